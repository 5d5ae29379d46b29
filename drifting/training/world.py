"""The ranks of a run as each of them sees them: who it is, what share of the work is its own, what all agree on.

A process alone is a world of size 1, and nothing here communicates then.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from drifting.training.errors import ConfigError


@dataclass(frozen=True)
class World:
    """A process among the ranks of a run.

    `mesh` are the ranks that share out the weights, (shard) or (replicate, shard); None where every rank has them all.
    `shard_generated` ranks with neighbouring numbers hold the same problems and share their generated samples, in the
    process group `generated`, None for one rank: `DriftLoss(shard_generated=world.generated)`.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None
    shard_generated: int = 1
    generated: ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this rank prints and writes what is written once."""
        return self.rank == 0

    @property
    def problem_shares(self) -> int:
        """Into how many parts problems are divided: as many as ranks, fewer where ranks share generated samples."""
        return self.size // self.shard_generated

    @property
    def problem_share(self) -> int:
        """Which part is this rank's."""
        return self.rank // self.shard_generated

    def own(self, total: int, name: str = "total") -> slice:
        """Own part of `total` problems: neighbours, sizes that differ by one at most, never none.

        Raises ConfigError, with `name` for what it is called in the configuration, for fewer problems than parts: a
        rank without any could not take part in the step.
        """
        shares = self.problem_shares
        if total < shares:
            raise ConfigError(
                f"{name} must be at least {shares}, one problem for each of {shares} parts, got {total}. "
                "Use fewer ranks, or let several share the generated samples (parallel.shard_generated)."
            )
        return slice(total * self.problem_share // shares, total * (self.problem_share + 1) // shares)

    def own_samples(self, total: int, name: str = "total") -> slice:
        """Own part of the `total` generated samples of each of its problems; ConfigError if they are uneven."""
        ranks = self.shard_generated
        if total % ranks:
            raise ConfigError(f"{name} must be a multiple of parallel.shard_generated = {ranks}, got {total}")
        return slice(total // ranks * (self.rank % ranks), total // ranks * (self.rank % ranks + 1))

    def weight(self, total: int) -> float:
        """What the mean over this rank's own problems counts, when ranks are averaged, for the mean over all `total`.

        1 where all have as many: own problems x parts / total.
        """
        own = self.own(total)
        return float(own.stop - own.start) * self.problem_shares / total

    def mean(self, figures: Mapping[str, Tensor], weight: float = 1.0) -> dict[str, Tensor]:
        """Means over ranks, each times its rank's weight (see `weight`), of figures of any shape; one exchange.

        Every rank must call it with the same names and shapes.
        """
        if self.size == 1 or not figures:
            return {name: value.detach() for name, value in figures.items()}
        own = [value.detach().to(self.device, torch.float32).reshape(-1) for value in figures.values()]
        total = torch.cat(own) * (weight / self.size)
        dist.all_reduce(total)
        parts = total.split_with_sizes([len(values) for values in own])
        return {name: part.view(figures[name].shape) for name, part in zip(figures, parts, strict=True)}

    def refuse_differences(self, module: torch.nn.Module) -> None:
        """Raise RuntimeError unless every rank's `module` has the same weights, as the same seed gives them."""
        if self.size == 1:
            return
        sums = [parameter.detach().double().sum() for parameter in module.parameters()]
        own = torch.stack(sums).to(self.device)
        main = own.clone()
        dist.broadcast(main, 0)
        different = (own != main).any().to(torch.float32)
        dist.all_reduce(different, dist.ReduceOp.MAX)
        if different.item():
            raise RuntimeError("ranks start from different weights; seed them alike before the module is built")

    def say(self, text: str) -> None:
        """Print a line, once for all ranks."""
        if self.is_main:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()

    def meet(self) -> None:
        """Wait for every rank: what each has written before lies there now."""
        if dist.is_initialized():
            dist.barrier()

    def finish(self) -> None:
        """Wait for every rank, then part: what follows is each rank's own business, and usually rank 0's alone."""
        self.meet()
        if dist.is_initialized():
            dist.destroy_process_group()
