"""A temperature that is learned beside the generator, after Kyutai's Pocket TTS (blog, September 2026).

    L_tau = -mean_b max_i log p_i,    p_i = sum_{j in pos} w_j exp(-d_ij / tau) / sum_j w_j exp(-d_ij / tau)

p_i is the share of positives in what sample i sees, itself left out. While samples cluster far from the data a larger
tau shows them positives; once they stand among the data a smaller one tells positives from generated neighbours.
The published description is a blog's; the objective above is our reading of it.
Shapes: B problems, G generated, M references.
"""

import math

import torch
from torch import Tensor, nn

from drifting.arguments import DriftInputs
from drifting.engine import full_precision
from drifting.fields import Columns
from drifting.scales import global_mean, global_sum
from drifting.walks import Normalization, PlainWalk


class LearnedTemperature(nn.Module):
    """Kernel width tau = exp(theta) with an objective of its own.

        temperature = LearnedTemperature(0.5)
        drift_loss = DriftLoss((temperature,), feature_extent=Extent.SAMPLE)
        optimizer = torch.optim.AdamW([{"params": model.parameters()},
                                       {"params": temperature.parameters(), "lr": 1e-2, "weight_decay": 0.0}])
        loss = drift_loss(gen, pos) + temperature.loss(DriftInputs(gen, pos), drift_loss.normalization)

    Args:
        start: tau at the beginning, in the unit of the distances that the drifting loss sees.

    Raises:
        ValueError: unless `start` is finite and > 0.
    """

    def __init__(self, start: float = 0.5) -> None:
        super().__init__()
        if not 0 < start < float("inf"):
            raise ValueError(f"LearnedTemperature: start must be finite and > 0, got {start}")
        self.log_temperature = nn.Parameter(torch.tensor(math.log(start)))

    def forward(self) -> Tensor:
        """tau, []."""
        return self.log_temperature.exp()

    def extra_repr(self) -> str:
        """Current value, for print(module)."""
        return f"{self.log_temperature.detach().exp().item():.4g}"

    def loss(self, inputs: DriftInputs, normalization: Normalization) -> Tensor:
        """L_tau, []; its gradient reaches tau alone.

        Args:
            inputs: the arguments of the drifting loss.
            normalization: how that loss normalises: `DriftLoss.normalization`.
        """
        with torch.no_grad(), full_precision(inputs.gen.device):
            value, slope = self._value_and_slope(inputs, normalization)
        return value + slope * (self.log_temperature - self.log_temperature.detach())

    def _value_and_slope(self, inputs: DriftInputs, normalization: Normalization) -> tuple[Tensor, Tensor]:
        """L_tau and its derivative in log tau, [] and []."""
        walk = PlainWalk([inputs.problems()], 0, normalization)
        walk.set_scale(global_mean([walk.distances()], normalization.group)[:, 0])
        best = [
            best_sample(walk.normalized_distance(rows), walk.group.columns(rows), self().to(walk.group.dtype))
            for rows in walk.group.row_slices()
        ]
        value, slope = (torch.cat(parts) for parts in zip(*best, strict=True))  # [B]
        totals = torch.stack([value.sum(), slope.sum(), value.new_tensor(float(len(value)))])
        value, slope, count = global_sum(totals, normalization.group).unbind()
        return -value / count, -slope / count


def best_sample(distance: Tensor, columns: Columns, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """max_i log p_i of every problem and its derivative in log tau, [B] and [B].

    d log p_i / d log tau = (mean distance to positives seen - mean distance to all seen) / tau, both as the
    softmax sees them. Distances [B, G, M], temperature [].
    """
    logits = columns.weight.log()[:, None, :] - distance / temperature
    if columns.self_is_gen:
        logits[..., : columns.num_self].diagonal(dim1=-2, dim2=-1).fill_(float("-inf"))
    positive, positive_distance = logits[..., columns.num_negative :], distance[..., columns.num_negative :]
    log_share = positive.logsumexp(-1) - logits.logsumexp(-1)  # [B, G]
    seen = (positive.softmax(-1) * positive_distance).sum(-1) - (logits.softmax(-1) * distance).sum(-1)
    value, index = log_share.max(-1, keepdim=True)
    return value[:, 0], (seen / temperature).gather(-1, index)[:, 0]
