"""Demonstrations by scripted experts in the real simulator, made once and cached by their settings.

What is executed is noisy, so that the states around the expert's path are seen; what is written as the action is what
the expert wanted in that state. Episode k has the seed `seed + k`, for the environment and for its noise: the file is
the same for any number of processes, and an interrupted collection continues.
"""

import hashlib
import json
import shutil
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from domains.robotics.demonstrations.cache import cache_folder, one_maker
from domains.robotics.demonstrations.config import EVALUATION_SEED, DemosConfig
from domains.robotics.demonstrations.end_with_parent import end_with_parent
from domains.robotics.demonstrations.episode import DemonstrationError
from domains.robotics.demonstrations.recording import Recorder
from domains.robotics.demonstrations.schema import DemonstrationFile, DemonstrationWriter
from domains.robotics.experts import EXPERT_REVISIONS, expert_name
from domains.robotics.task import TaskConfig
from drifting.training.atomic_file import replace_text

REVISION = 1  # raise it when the same settings give other demonstrations of every task
PATIENCE = 10  # failures before the share of successes counts
MASKED_OUT = 0.1  # share of the episodes in mask/valid of the file, for robomimic's tools


def scripted_demonstrations(task: TaskConfig, config: DemosConfig, *, progress: bool = True) -> Path:
    """The file of these demonstrations; collected first if it is not in the cache.

    Raises:
        DemonstrationError: the expert fails too often.
        ConfigError: no expert for the task, or a package is missing.
    """
    path = demonstrations_path(task, config)
    with one_maker(path):
        if not path.exists():
            collect_as_configured(task, config, path, progress=progress)
    return path


def collect_as_configured(task: TaskConfig, config: DemosConfig, path: Path, *, progress: bool = True) -> None:
    """`collect` the demonstrations that `config` describes; errors as there."""
    noise, noise_steps = demonstration_noise(task, config)
    collect(
        task,
        episodes=config.episodes,
        seed=config.seed,
        noise=noise,
        noise_steps=noise_steps,
        path=path,
        workers=config.workers,
        progress=progress,
    )


def demonstrations_path(task: TaskConfig, config: DemosConfig) -> Path:
    """<cache>/<task>-<hash of everything that determines the demonstrations>.hdf5."""
    made: dict[str, Any] = {"revision": revision(task), "episodes": config.episodes, "seed": config.seed}
    made["noise"], noise_steps = demonstration_noise(task, config)
    if noise_steps:  # else the name is that of files made before there was a choice
        made["noise_steps"] = noise_steps
    text = json.dumps({"task": facts_of(task), "demos": made}, sort_keys=True)
    return cache_folder(config.cache) / f"{task.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.hdf5"


def facts_of(task: TaskConfig) -> dict[str, Any]:
    """What of a task decides its demonstrations, noise apart."""
    undecided = ("demo_noise", "demo_noise_steps", "stages", "present", "poses")
    return {name: value for name, value in asdict(task).items() if name not in undecided}


def demonstration_noise(task: TaskConfig, config: DemosConfig) -> tuple[float, float]:
    """Standard deviation of the executed noise, in half ranges of the actions, and the steps that it lasts."""
    std = task.demo_noise if config.noise is None else config.noise
    steps = task.demo_noise_steps if config.noise_steps is None else config.noise_steps
    return float(std), float(steps)


def revision(task: TaskConfig) -> int:
    """Of what makes the demonstrations of a task: rises with this package's and with its expert's."""
    return REVISION + EXPERT_REVISIONS.get(expert_name(task.name), 0)


def collect(
    task: TaskConfig,
    *,
    episodes: int,
    seed: int,
    noise: float,
    noise_steps: float = 0.0,
    path: Path,
    workers: int = 1,
    progress: bool = True,
) -> None:
    """Write `episodes` successful demonstrations to `path`, those of the first seeds from `seed` on that succeed.

    Every attempt is kept beside `path` in a hidden folder until the file is whole: an interrupted call, repeated,
    continues.

    Raises:
        DemonstrationError: more than three of four attempts fail, or the seeds reach those of evaluation.
        ConfigError: no expert for the task, or a package is missing.
    """
    folder = path.with_name(f".{path.name}.attempts")
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"task": facts_of(task), "noise": noise, "noise_steps": noise_steps, "revision": revision(task)}
    _same_settings(folder, settings)
    kept: list[Path] = []
    attempts = 0
    with (
        tqdm(total=episodes, desc=f"demonstrations of {task.name}", unit="episode", disable=not progress) as bar,
        closing(_attempts(Recorder(task, noise, noise_steps), folder, range(seed, EVALUATION_SEED), workers)) as found,
    ):
        for attempts, attempt in enumerate(found, start=1):
            if attempt is not None:
                kept.append(attempt)
                bar.update()
            bar.set_postfix(failed=attempts - len(kept))
            if len(kept) == episodes or attempts - len(kept) > PATIENCE + 3 * len(kept):
                break
    if len(kept) < episodes:
        raise DemonstrationError(
            f"the expert of {task.name} succeeded in {len(kept)} of {attempts} episodes from seed {seed} on with noise "
            f"{noise:g}, {episodes} were asked for. Lower demos.noise or demos.episodes, or choose another demos.seed"
        )
    _assemble(kept, path, {"attempts": attempts, "failed": attempts - len(kept), "seed": seed, **settings})
    shutil.rmtree(folder)


def summary(path: Path) -> str:
    """Episodes, steps, size and success rate of a file that `collect` made, in one line."""
    with DemonstrationFile(path) as file:
        steps, attempts = int(file.data.attrs["total"]), file.collected["attempts"]
        rate = f"{len(file.names)} of {attempts} attempts succeeded with noise {file.collected['noise']:g}"
        if noise_steps := file.collected.get("noise_steps"):
            rate += f" that lasts {noise_steps:g} steps"
        return f"{len(file.names)} episodes, {steps} steps, {path.stat().st_size / 1e6:.1f} MB, {rate}: {path}"


def _attempts(recorder: Recorder, folder: Path, seeds: range, workers: int) -> Generator[Path | None, None, None]:
    """The outcome of every seed in order: the attempt's file, None for a failure; what `folder` has is not repeated."""
    if workers == 1:
        yield from (recorder.record_into(folder, seed) for seed in seeds)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_be_worker, initargs=(recorder,))
    waiting: deque[Future[Path | None]] = deque()
    try:
        for seed in seeds:
            waiting.append(pool.submit(_record_into, folder, seed))
            if len(waiting) == 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


_worker: Recorder | None = None  # of this process, if it is one of the pool's: it keeps its simulator


def _be_worker(recorder: Recorder) -> None:
    global _worker
    end_with_parent()  # two would record the same seeds if the command is repeated
    _worker = recorder


def _record_into(folder: Path, seed: int) -> Path | None:
    if _worker is None:
        raise RuntimeError("_record_into runs in the processes of the pool alone")
    return _worker.record_into(folder, seed)


def _assemble(attempts: list[Path], path: Path, collected: dict[str, Any]) -> None:
    """One file of the attempts' episodes, in order."""
    with DemonstrationFile(attempts[0]) as first:
        writer = DemonstrationWriter(path, first.env_args or {})
    with writer:
        for attempt in attempts:
            with DemonstrationFile(attempt) as file:
                writer.write(file.episode("demo_0"))
        writer.split(int(MASKED_OUT * len(attempts)))
        writer.collected = collected


def _same_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Attempts of other settings are not continued but thrown away."""
    noted, text = folder / "settings.json", json.dumps(settings, sort_keys=True)
    if noted.exists() and noted.read_text() == text:
        return
    for attempt in folder.iterdir():
        attempt.unlink()
    replace_text(noted, text)
