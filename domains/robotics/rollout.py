"""Play a policy in a simulator: observe To steps, generate a chunk, execute Ta of its actions, again until the end.

Shapes: B episodes played at the same time, To observation steps, Ta executed steps, A action dimensions.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from domains.robotics.environments.seat import Chunk
from domains.robotics.environments.vectorized import Run, Start, VectorEnvironment
from drifting.training.draws import stream


class Policy(Protocol):
    """What can be played. `act` returns the actions to execute next, [B, Ta, A], in the simulator's own units."""

    def act(self, observation: Mapping[str, Tensor], generator: Sequence[torch.Generator]) -> Tensor:
        """Observations {key: [B, To, ...]}, images uint8 [B, To, H, W, 3]; row b draws its noise from generator b."""
        ...


@dataclass(slots=True)
class EpisodeResult:
    """One episode. `max_reward`: the highest of any step, Diffusion Policy's score; `stages`: the most done."""

    seed: int
    max_reward: float = 0.0
    success: bool = False
    stages: int = 0
    steps: int = 0
    frames: list[np.ndarray] = field(default_factory=list)  # uint8 [S, S, 3] where the episode was filmed

    def add(self, chunk: Chunk) -> None:
        """Account for what a chunk of actions brought."""
        self.max_reward = max(self.max_reward, *chunk.rewards) if chunk.rewards else self.max_reward
        self.success = self.success or chunk.success
        self.stages = max(self.stages, chunk.stages)
        self.steps += len(chunk.rewards)
        self.frames += chunk.frames


def roll_out(
    policy: Policy,
    environments: VectorEnvironment,
    seeds: Sequence[int],
    *,
    noise_seed: int = 0,
    filmed: Iterable[int] = (),
) -> list[EpisodeResult]:
    """One episode per seed, in the order of `seeds`; those of the seeds in `filmed` with pictures.

    All episodes that are being played share a call of the policy. The noise of an episode is a function of
    `noise_seed` and the episode's seed alone, and which episodes share a call depends on the number of seats but not
    of workers: the same seats give the same results bit for bit, other seats the same up to the rounding of the
    policy's matrix products, which a contact can amplify.

    Raises ValueError if seeds repeat or the policy returns something else than finite actions [B, Ta, A].
    """
    if len(set(seeds)) != len(seeds) or not seeds:
        raise ValueError(f"seeds must be one or more, each once, got {list(seeds)}")
    to_film = set(filmed)
    results = {seed: EpisodeResult(seed) for seed in seeds}
    noise = {seed: stream(noise_seed, "episode", seed) for seed in seeds}
    waiting = iter(seeds)
    playing: dict[int, int] = {}  # seat: seed
    seen: dict[int, dict[str, np.ndarray]] = {}  # seat: observations [To, ...]
    while True:
        commands: dict[int, Start | Run] = {}
        if playing:
            actions = chunk_of_actions(
                policy, list(seen.values()), [noise[playing[seat]] for seat in seen], environments.task.action_dim
            )
            commands |= {seat: Run(chunk) for seat, chunk in zip(seen, actions, strict=True)}
        for seat in range(environments.seats):
            if seat not in playing and (seed := next(waiting, None)) is not None:
                playing[seat] = seed
                commands[seat] = Start(seed, filmed=seed in to_film)
        if not commands:
            return [results[seed] for seed in seeds]
        seen = {}
        for seat, chunk in environments.command(dict(sorted(commands.items()))).items():
            results[playing[seat]].add(chunk)
            if chunk.ended:
                del playing[seat]
            else:
                seen[seat] = chunk.observation


def chunk_of_actions(
    policy: Policy, observations: Sequence[Mapping[str, np.ndarray]], generators: list[torch.Generator], dim: int
) -> np.ndarray:
    """One call of the policy for B observations [To, ...]: actions [B, Ta, A] of A = `dim` numbers.

    Raises ValueError if it returns anything else.
    """
    batch = {key: torch.from_numpy(np.stack([seen[key] for seen in observations])) for key in observations[0]}
    with torch.inference_mode():
        actions = policy.act(batch, generators).float().cpu().numpy()
    if actions.ndim != 3 or actions.shape[::2] != (len(observations), dim) or actions.shape[1] < 1:
        raise ValueError(f"policy.act must return [B={len(observations)}, Ta, A={dim}], got {actions.shape}")
    if not np.isfinite(actions).all():
        raise ValueError("policy.act returned actions that are not finite: the weights or the observation are broken")
    return actions
