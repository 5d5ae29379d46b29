"""What every policy has: an observation encoder, a network, an action space, and the chunk that it acts by.

A subclass says how chunks are sampled (`generate`) and trained (`draw`, `forward`).
Shapes: B observations, G chunks of each, H horizon, To observation steps, Ta executed steps, E numbers of an action as
the environment takes it, A as the network does, C numbers of the condition.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, Self

import torch
from torch import Generator, Tensor, nn

from domains.robotics.action_space import ActionSpace
from domains.robotics.config import PolicyConfig
from domains.robotics.networks import build_network
from domains.robotics.observations import ObservationEncoder
from domains.robotics.pretrained_policy import (
    PolicyDescription,
    PolicyFileError,
    read_description,
    read_into,
    write_policy,
)
from domains.robotics.task import TaskConfig

Randomness = Generator | Sequence[Generator] | None
"""One generator for all observations; one each, so that actions do not depend on the batch; None for torch's own."""


class Windows(Protocol):
    """A batch of demonstrations: what was seen, and what the expert did."""

    observations: Mapping[str, Tensor]  # {key: [B, To, ...]}
    actions: Tensor  # [B, H, E]


@dataclass(frozen=True)
class StepLoss:
    """Loss of one step, [] with gradient, and figures to log, each [] and detached; none unless they were asked for."""

    loss: Tensor
    figures: dict[str, Tensor] = field(default_factory=dict)


class ChunkPolicy(nn.Module):
    """Observations to chunks of actions. Observations and actions are plain numbers; the bounds are in the weights."""

    kind: ClassVar[str]
    """Its `policy.kind`."""

    def __init__(self, task: TaskConfig, config: PolicyConfig) -> None:
        super().__init__()
        if config.kind != self.kind:
            raise ValueError(f"config.kind must be {self.kind} for a {type(self).__name__}, got {config.kind}")
        self.task, self.config = task, config
        self.observations = ObservationEncoder(task, config)
        self.actions = ActionSpace(task, relative=config.relative)
        self.net = build_network(config, action_dim=self.actions.dim, cond_dim=self.observations.dim)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.actions.normalizer.center.device

    @property
    def observation_steps(self) -> int:
        """To."""
        return self.config.observation_steps

    @property
    def chunk_shape(self) -> tuple[int, int]:
        """[H, A]."""
        return self.config.horizon, self.actions.dim

    def fit_normalizers(self, observations: Mapping[str, Tensor], actions: Tensor) -> None:
        """Take the bounds of the training demonstrations: {key: [N, width]} and [N, E].

        With `config.relative` they are windows, {key: [N, To, width]} and [N, H, E].
        """
        self.observations.fit(observations)
        self.actions.fit(actions, observations)

    def draw(self, count: int, generator: Generator | None = None) -> dict[str, Tensor]:
        """Every random number that `forward` needs for `count` observations, each [count, ...]."""
        crops = self.observations.draw_crops(count, generator, self.device)
        return {} if crops is None else {"crops": crops}

    def forward(
        self,
        observations: Mapping[str, Tensor],
        actions: Tensor,
        draws: Mapping[str, Tensor],
        neighbours: Tensor | None = None,
        *,
        with_figures: bool = False,
    ) -> StepLoss:
        """The training loss; see `loss`. `neighbours` [B, N, H, E]: further actions that fit each observation."""
        raise NotImplementedError

    def generate(self, condition: Tensor, num: int, generator: Randomness) -> Tensor:
        """Normalised chunks [B, num, H, A] for conditions [B, C]."""
        raise NotImplementedError

    def loss(self, batch: Windows, generator: Generator | None = None) -> Tensor:
        """Training loss of a batch, [], with random numbers of `generator`."""
        draws = self.draw(len(batch.actions), generator)
        result: StepLoss = self(batch.observations, batch.actions, draws)
        return result.loss

    @torch.no_grad()
    def sample(
        self, observation: Mapping[str, Tensor], num: int, generator: Randomness = None, *, normalized: bool = False
    ) -> Tensor:
        """`num` chunks for each observation: [B, num, H, E], or the network's own numbers [B, num, H, A].

        Args:
            observation: {key: [B, To, ...]}, the oldest step first.
            num: G.
            generator: see `Randomness`.
            normalized: leave the chunks in the network's units.

        Raises:
            ValueError: num < 1, observations of another shape, or another number of generators.
        """
        if num < 1:
            raise ValueError(f"num must be at least 1, got {num}")
        observation = {key: value.to(self.device) for key, value in observation.items()}
        condition = self.observations(observation)
        chunks = self.generate(condition, num, generator)
        return chunks if normalized else self.actions.decode(chunks, observation)

    def act(self, observation: Mapping[str, Tensor], generator: Randomness = None) -> Tensor:
        """The actions to execute now, [B, Ta, E], on the policy's device.

        A window begins with the first observation step, so that the present is step To - 1 of the chunk.
        """
        first = self.config.observation_steps - 1
        return self.sample(observation, 1, generator)[:, 0, first : first + self.config.action_steps]

    def save_pretrained(self, folder: str | os.PathLike[str], *, demonstrations: str = "unknown") -> None:
        """Write config.json and model.safetensors into `folder`; see `pretrained_policy`.

        `demonstrations`: what it was trained on, "scripted" or "human", for tables of results.
        """
        write_policy(folder, PolicyDescription(self.task, self.config, demonstrations), self.state_dict())

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> Self:
        """A saved policy in eval mode; PolicyFileError if `folder` holds none, or one of another kind."""
        description = read_description(folder)
        if description.policy.kind != cls.kind:
            raise PolicyFileError(
                f"{folder} holds a {description.policy.kind} policy, not a {cls.kind} one: load_policy takes either"
            )
        policy = cls(description.task, description.policy)
        read_into(policy, folder)
        return policy.to(device).eval()


def draw_normal(rows: int, shape: Sequence[int], generator: Randomness, device: torch.device) -> Tensor:
    """Normal numbers [rows, *shape]; of a sequence of generators each draws one row, on its own device."""
    if generator is None or isinstance(generator, Generator):
        source = torch.device("cpu") if generator is None else generator.device
        return torch.randn(rows, *shape, generator=generator, device=source).to(device)
    if len(generator) != rows:
        raise ValueError(f"generator must be one for each of {rows} observations, got {len(generator)}")
    return torch.stack([torch.randn(*shape, generator=g, device=g.device).to(device) for g in generator])
