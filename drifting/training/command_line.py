"""`@command` makes `python -m domains.<name>.train key=value ...` out of a function of one typed configuration.

    @command(ToyConfig, "toy", configs=Path(__file__).parents[2] / "configs")
    def main(config: ToyConfig) -> None: ...

    if __name__ == "__main__":
        main()

`configs/toy.yaml` begins with the lines below. The schema comes first, so that every default can be overridden and
every typo is refused; `_self_` comes before `experiment`, or the experiment would lose silently; the rest keeps Hydra
from changing or littering the working directory.

    defaults:
      - toy_schema
      - _self_
      - experiment: null
      - override hydra/job_logging: disabled
      - override hydra/hydra_logging: disabled
    hydra:
      run: {dir: .}
      output_subdir: null
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from drifting.training.config import Schema, typed
from drifting.training.errors import TrainingError


def command(
    schema: type[Schema], config_name: str, *, configs: Path
) -> Callable[[Callable[[Schema], None]], Callable[[], None]]:
    """Decorate `main(config)` so that `main()` composes `configs`/`config_name`.yaml with the command line's overrides.

    The schema is registered as `<config_name>_schema`. A TrainingError ends the process with its message and status 1;
    Hydra reports its own composition errors likewise; any other exception is a bug and keeps its traceback.
    """

    def decorate(main: Callable[[Schema], None]) -> Callable[[], None]:
        def run(config: DictConfig) -> None:
            try:
                main(typed(config, schema))
            except TrainingError as error:
                sys.exit(f"error: {error}")

        @functools.wraps(main)
        def entry() -> None:
            ConfigStore.instance().store(name=f"{config_name}_schema", node=schema)
            folder = str(configs.resolve())
            hydra.main(config_path=folder, config_name=config_name, version_base="1.3")(run)()

        return entry

    return decorate
