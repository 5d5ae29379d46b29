"""The drifting loss of a policy: every observation is a drifting problem, the expert's action chunk its positive.

    rows="chunk"      one problem per observation, D = H A: the whole chunk drifts as one vector
    rows="timestep"   one problem per observation and timestep, D = A; S and lambda are shared over all of them

There is no feature space: what drifts are the normalised actions (paper Sec. 5.3).
Shapes: B observations, G generated chunks of each, P positives of each, H timesteps, A action dimensions.
"""

import torch
from torch import Tensor, nn

from domains.robotics.config import DriftConfig
from drifting import DriftLoss, DriftTerms, MeanShift
from drifting.training.drift_figures import temperature_names


class ChunkDriftLoss(nn.Module):
    """`DriftLoss` on action chunks; the samples of one observation never meet those of another."""

    def __init__(self, config: DriftConfig) -> None:
        super().__init__()
        self.rows = config.rows
        self.loss = DriftLoss(config.temperatures, MeanShift(floor=config.floor))

    def forward(self, gen: Tensor, pos: Tensor) -> Tensor:
        """Mean over problems, []; gen [B, G, H, A] with gradient, pos [B, P, H, A]."""
        return self.loss(self.as_rows(gen), self.as_rows(pos))

    def terms(self, gen: Tensor, pos: Tensor) -> DriftTerms:
        """Loss per problem and diagnostics; B in chunk mode, B H in timestep mode."""
        return self.loss.terms(self.as_rows(gen), self.as_rows(pos))

    def as_rows(self, chunks: Tensor) -> Tensor:
        """Chunks [B, K, H, A] as drifting problems, [B, K, H A] or [B H, K, A]."""
        if chunks.ndim != 4:
            raise ValueError(f"chunks must be [B, K, H, A], got {tuple(chunks.shape)}")
        return chunks.flatten(2) if self.rows == "chunk" else chunks.transpose(1, 2).flatten(0, 1)

    def figures(self, terms: DriftTerms) -> dict[str, Tensor]:
        """What to log, each []: the drift's RMS per temperature, and the squared distance of samples from their mean.

        Squares can be averaged over ranks, the RMS distance could not.
        """
        names = temperature_names(self.loss.temperatures)
        by_temperature = {f"drift_rms/{name}": rms for name, rms in zip(names, terms.drift_rms.unbind(), strict=True)}
        largest = max(range(len(names)), key=lambda place: float(self.loss.temperatures[place]))
        spread = torch.as_tensor(terms.diagnostics.gen_spread)
        return {"drift_rms": terms.drift_rms[largest], **by_temperature, "spread_squared": spread.square()}
