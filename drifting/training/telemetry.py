"""What a training loop tells of itself, in one object: figures, time split, throughput, stalls, a profile.

telemetry = Telemetry(config.log, world, flops=flops)
drift_loss = FeatureDriftLoss(telemetry.wrap("encoder", encoder), loss)
with telemetry.loop(run_dir, model, total=steps, start=state.step, show=["drift_rms"], config=config):
    while state.step < steps:
        with telemetry.waiting_for("images"):
            batch = ...
        with telemetry.region("loss"):
            ...
        telemetry.step(images)
        if every(config.log.every, state.step, last=steps):
            telemetry.write(state.step, figures)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from drifting.training.communication_time import time_reduction, timed_collectives
from drifting.training.config import LogConfig
from drifting.training.flops import peak_flops
from drifting.training.metrics_log import MetricsLog, SilentLog, open_log
from drifting.training.stall_watch import StallWatch
from drifting.training.step_profile import Steps, profiled_steps
from drifting.training.step_timer import Given, Result, StepTimer
from drifting.training.world import World


class Telemetry:
    """A run's timer, log, watch and profiler, one of each per rank; rank 0 alone writes figures.

    Args:
        config: what is wanted.
        world: the ranks.
        flops: gives the FLOPs that a step of this process needs (`training_flops`), asked only where the device's own
            are known; None leaves MFU out.
    """

    def __init__(self, config: LogConfig, world: World, *, flops: Callable[[], int] | None = None) -> None:
        self._config, self._world = config, world
        peak = peak_flops(world.device, config.peak_flops)
        self._timer = StepTimer(world.device, flops=flops() if flops and peak else None, peak=peak)
        self._log: MetricsLog | SilentLog = SilentLog()
        self._watch: StallWatch | None = None
        self._profile: Steps | None = None

    @contextmanager
    def loop(
        self, run_dir: Path, model: nn.Module, *, total: int, start: int, show: Sequence[str], config: object
    ) -> Iterator[None]:
        """Open the log of a run of `total` steps that goes on from `start`, watch, profile, and time the ranks.

        Args:
            run_dir: of the run.
            model: what `parallelize` returned.
            total: steps of the run.
            start: steps done before.
            show: figures of the progress bar.
            config: root dataclass of the run, for the trackers.

        Raises:
            ConfigError: a tracker that is not installed.
        """
        wanted, world = self._config, self._world
        if isinstance(model, DistributedDataParallel):
            time_reduction(model, self._timer)
        with ExitStack() as stack:
            self._log = open_log(
                run_dir,
                total=total,
                start=start,
                show=show,
                main=world.is_main,
                tracker=wanted.tracker,
                project=wanted.project,
                config=asdict(config),  # type: ignore[call-overload]
            )
            stack.enter_context(self._log)
            watch = StallWatch(wanted.stall_warning, wanted.stall_limit, rank=world.rank)
            self._watch = stack.enter_context(watch)
            self._profile = stack.enter_context(profiled_steps(run_dir, enabled=wanted.profile, rank=world.rank))
            if world.size > 1:
                stack.enter_context(timed_collectives(self._timer))
            yield

    def region(self, name: str) -> AbstractContextManager[None]:
        """Charge what happens inside to `name`; see `StepTimer`."""
        return self._timer.region(name)

    def wrap(self, name: str, function: Callable[Given, Result]) -> Callable[Given, Result]:
        """`function`, each call of which is a region."""
        return self._timer.wrap(name, function)

    @contextmanager
    def waiting_for(self, source: str) -> Iterator[None]:
        """Region "data", in which the rank waits for `source`: named, and ended after a bound, if nothing comes."""
        if self._watch is None:
            raise RuntimeError("waiting_for belongs inside Telemetry.loop, which starts the watch")
        with self._timer.region("data"), self._watch.waiting_for(source):
            yield

    def step(self, images: int) -> None:
        """A step that generated `images` on all ranks together is done."""
        self._timer.step(images)
        if self._profile is not None:
            self._profile.step()

    def write(self, step: int, figures: Mapping[str, float | Tensor]) -> None:
        """Log `figures` after `step` steps, and the timer's since the last line."""
        self._log.write(step, {**figures, **self._timer.figures()})
