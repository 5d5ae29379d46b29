"""Where the expert goes left or right: the policy must do either, whole, though it saw one of them per observation.

Observations c in [-1, 1]^2, chunks of 4 two-dimensional actions y_t = +-m(c) t / 4 + N(0, .04^2), |m| = .8, to the
plus side with probability .7; 2,000 observations, one chunk each.
"""

import pytest
import torch

from domains.robotics.config import DriftConfig, MlpConfig, PolicyConfig
from domains.robotics.policy import DriftingPolicy
from domains.robotics.task import TaskConfig
from drifting.training.config import OptimConfig
from drifting.training.ema import Ema
from drifting.training.optimizer import build_optimizer, optimizer_step

TASK = TaskConfig("toy", "push_t", "toy", observations={"place": 2}, action_dim=2, max_steps=1)
PLUS, NOISE, STEPS = 0.7, 0.04, 4


def way(place):
    """m(c), [N, 2]: a direction that turns with the place."""
    angle = 2.5 * place[:, 0] + 1.5 * place[:, 1]
    return 0.8 * torch.stack([angle.cos(), angle.sin()], dim=-1)


def expert(place, rng):
    side = torch.where(torch.rand(len(place), generator=rng) < PLUS, 1.0, -1.0)
    time = torch.arange(1, STEPS + 1)[None, :, None] / STEPS
    clean = side[:, None, None] * way(place)[:, None] * time
    return clean + NOISE * torch.randn(len(place), STEPS, 2, generator=rng)


def trained(drift, steps, batch, seed=0):
    rng = torch.Generator().manual_seed(seed)
    place = torch.rand(2000, 2, generator=rng) * 2 - 1
    chunks = expert(place, rng)
    torch.manual_seed(seed)
    config = PolicyConfig(
        horizon=STEPS, observation_steps=1, action_steps=STEPS, net="mlp", mlp=MlpConfig(hidden=128, depth=2)
    )
    policy = DriftingPolicy(TASK, config, drift)
    policy.fit_normalizers({"place": place}, chunks.flatten(0, 1))
    near = torch.cdist(place, place).fill_diagonal_(9).topk(drift.neighbours, largest=False).indices
    optim = OptimConfig(lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0, schedule="cosine", clip_norm=1.0)
    optimizer, ema = build_optimizer(policy, optim), Ema(policy, [0.99])
    for step in range(steps):
        rows = torch.randint(2000, (batch,), generator=rng)
        neighbours = chunks[near[rows]] if drift.neighbours else None
        loss = policy({"place": place[rows][:, None]}, chunks[rows], policy.draw(batch, rng), neighbours).loss
        optimizer_step(loss, policy, optimizer, optim, step=step, total_steps=steps)
        ema.update(policy)
    return ema.model()


def judged(policy):
    """Shares of samples: on the minus side, near neither mode at the end, and on one side all along."""
    rng = torch.Generator().manual_seed(99)
    place = torch.rand(256, 2, generator=rng) * 2 - 1
    chunks = policy.sample({"place": place[:, None]}, 64, rng)
    mode = way(place)[:, None]
    side = (chunks * mode[:, :, None]).sum(-1)  # [N, n, H]
    last = chunks[:, :, -1]
    distance = torch.minimum((last - mode).norm(dim=-1), (last + mode).norm(dim=-1))
    minus = (side[..., -1] < 0).float().mean(1)
    return {
        "minus": minus.mean(),
        "one mode only": ((minus < 0.05) | (minus > 0.95)).float().mean(),
        "astray": (distance > 0.25).float().mean(),
        "whole": ((side > 0).all(-1) | (side < 0).all(-1)).float().mean(),
    }


@pytest.mark.parametrize(
    ("drift", "steps", "astray", "whole"),
    [
        (DriftConfig(neighbours=8, temperatures=[0.2]), 500, 0.35, 0.9),
        pytest.param(DriftConfig(), 1500, 0.25, 0.9, marks=pytest.mark.slow),
        pytest.param(DriftConfig(temperatures=[0.02, 0.05, 0.2]), 1500, 0.5, 0.9, marks=pytest.mark.slow),
        pytest.param(DriftConfig(rows="timestep"), 1500, 0.5, 0.3, marks=pytest.mark.slow),
    ],
    ids=["neighbours", "chunk", "narrow chunk", "timestep"],
)
def test_both_ways_are_taken(drift, steps, astray, whole):
    """Rows of timesteps match each timestep, not the chunk: their samples may change sides."""
    figures = judged(trained(drift, steps=steps, batch=32))
    assert 0.15 < figures["minus"] < 0.45
    assert figures["one mode only"] < 0.05
    assert figures["whole"] > whole
    assert figures["astray"] < astray
