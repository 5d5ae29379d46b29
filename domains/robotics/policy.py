"""Drifting Policy (paper Sec. 5.3): noise and observation to an action chunk in one forward pass.

    policy = DriftingPolicy(task)
    policy.fit_normalizers(observations, actions)
    loss = policy.loss(batch)                                   # observations {key: [B, To, ...]}, actions [B, H, E]
    actions = policy.act(observation)                           # [B, Ta, E]
    policy.save_pretrained("folder")                            # and DriftingPolicy.from_pretrained("folder")

Shapes as in `chunk_policy`; Z numbers of noise.
"""

from collections.abc import Mapping

import torch
from torch import Generator, Tensor, nn

from domains.robotics.chunk_policy import ChunkPolicy, Randomness, StepLoss, draw_normal
from domains.robotics.config import DriftConfig, PolicyConfig
from domains.robotics.objective import ChunkDriftLoss
from domains.robotics.task import TaskConfig


class DriftingPolicy(ChunkPolicy):
    """A generator of action chunks, trained by drifting: the network is called once, in training as in use."""

    kind = "drifting"

    def __init__(self, task: TaskConfig, config: PolicyConfig | None = None, drift: DriftConfig | None = None) -> None:
        config = config or PolicyConfig()
        super().__init__(task, config)
        drift = drift or DriftConfig()
        self.num_generated = drift.num_generated
        self.objective = ChunkDriftLoss(drift)
        horizon, dim = self.chunk_shape
        self.lift = nn.Linear(config.noise_dim, horizon * dim) if config.noise_dim else None

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """What one chunk is made from: [Z], or [H, A]."""
        return self.chunk_shape if self.lift is None else (self.config.noise_dim,)

    def draw(self, count: int, generator: Generator | None = None) -> dict[str, Tensor]:
        """Noise [count, G, ...], and crops of images."""
        noise = draw_normal(count, (self.num_generated, *self.noise_shape), generator, self.device)
        return {"noise": noise, **super().draw(count, generator)}

    def forward(
        self,
        observations: Mapping[str, Tensor],
        actions: Tensor,
        draws: Mapping[str, Tensor],
        neighbours: Tensor | None = None,
        *,
        with_figures: bool = False,
    ) -> StepLoss:
        """The drifting loss of G generated chunks against the expert's, and its neighbours'."""
        gen, pos = self.drifting(observations, actions, draws, neighbours)
        if not with_figures:
            return StepLoss(self.objective(gen, pos))
        terms = self.objective.terms(gen, pos)
        return StepLoss(terms.loss.mean(), self.objective.figures(terms))

    def drifting(
        self,
        observations: Mapping[str, Tensor],
        actions: Tensor,
        draws: Mapping[str, Tensor],
        neighbours: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What drifts, normalised: generated chunks [B, G, H, A], and the expert's and its neighbours' [B, P, H, A]."""
        positives = actions[:, None] if neighbours is None else torch.cat([actions[:, None], neighbours], dim=1)
        condition = self.observations(observations, draws.get("crops"))
        return self.one_pass(draws["noise"], condition), self.actions.encode(positives, observations)

    def generate(self, condition: Tensor, num: int, generator: Randomness) -> Tensor:
        """Normalised chunks [B, num, H, A] for conditions [B, C], by one call of the network."""
        noise = draw_normal(len(condition), (num, *self.noise_shape), generator, self.device)
        return self.one_pass(noise, condition)

    def one_pass(self, noise: Tensor, condition: Tensor) -> Tensor:
        """noise [B, G, ...], condition [B, C] -> [B, G, H, A]; the observation was encoded once for all G."""
        num = noise.shape[1]
        start = noise.flatten(0, 1)
        if self.lift is not None:
            start = self.lift(start).unflatten(-1, self.chunk_shape)
        chunks: Tensor = self.net(start, condition)
        return chunks.unflatten(0, (-1, num))
