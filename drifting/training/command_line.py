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
import os
import sys
import time
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from drifting.training.config import Schema, typed
from drifting.training.errors import TrainingError
from drifting.training.launch import naming_lost_ranks

# A launcher ends the other ranks when the first one exits: rank 0 must have said why by then.
SAID_SECONDS = 1.0

_given: ContextVar[frozenset[str] | None] = ContextVar("_given", default=None)


def command(
    schema: type[Schema], config_name: str, *, configs: Path
) -> Callable[[Callable[[Schema], None]], Callable[[], None]]:
    """Decorate `main(config)` so that `main()` composes `configs`/`config_name`.yaml with the command line's overrides.

    The schema is registered as `<config_name>_schema`; `--profile` is short for log.profile=true. A TrainingError ends
    the process with its message and status 1; Hydra reports its own composition errors likewise; any other exception is
    a bug and keeps its traceback.
    """

    def decorate(main: Callable[[Schema], None]) -> Callable[[], None]:
        def run(config: DictConfig) -> None:
            words = HydraConfig.get().overrides.task
            token = _given.set(frozenset(word.lstrip("+~").partition("=")[0] for word in words))
            try:
                with naming_lost_ranks():
                    main(typed(config, schema))
            except TrainingError as error:
                _exit(error)
            finally:
                _given.reset(token)

        @functools.wraps(main)
        def entry() -> None:
            ConfigStore.instance().store(name=f"{config_name}_schema", node=schema)
            folder = str(configs.resolve())
            sys.argv[1:] = ["log.profile=true" if word == "--profile" else word for word in sys.argv[1:]]
            hydra.main(config_path=folder, config_name=config_name, version_base="1.3")(run)()

        return entry

    return decorate


def given_keys() -> frozenset[str] | None:
    """The keys that the command line has set, whatever it has set them to; None outside of a command."""
    return _given.get()


def _exit(error: TrainingError) -> NoReturn:
    """End with the error's message, said once if all ranks raise it."""
    rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
    if rank == 0:
        sys.exit(f"error: {error}")
    if error.agreed:
        time.sleep(SAID_SECONDS)
        sys.exit(1)
    sys.exit(f"rank {rank}: error: {error}")
