import pytest
import torch

from domains.robotics.config import DriftConfig
from domains.robotics.objective import ChunkDriftLoss
from drifting import DriftLoss, MeanShift

TEMPERATURES = [0.1, 0.5]


def chunks(count=3, generated=4, seed=0):
    rng = torch.Generator().manual_seed(seed)
    gen = torch.randn(count, generated, 5, 2, generator=rng, dtype=torch.float64)
    return gen.requires_grad_(), torch.randn(count, 1, 5, 2, generator=rng, dtype=torch.float64)


def gradient(loss, gen):
    return torch.autograd.grad(loss, gen)[0]


def test_a_chunk_is_one_vector():
    gen, pos = chunks()
    ours = ChunkDriftLoss(DriftConfig(TEMPERATURES, floor=0.0))(gen, pos)
    theirs = DriftLoss(TEMPERATURES, field=MeanShift(floor=0))(gen.flatten(2), pos.flatten(2))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, gen), gradient(theirs, gen))


def test_timesteps_are_problems_of_one_batch():
    gen, pos = chunks()
    ours = ChunkDriftLoss(DriftConfig(TEMPERATURES, rows="timestep", floor=0.0))(gen, pos)
    rows = [torch.stack([x[b, :, t] for b in range(3) for t in range(5)]) for x in (gen, pos)]
    theirs = DriftLoss(TEMPERATURES, field=MeanShift(floor=0))(*rows)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, gen), gradient(theirs, gen))


@pytest.mark.parametrize("rows", ["chunk", "timestep"])
def test_samples_of_one_observation_never_meet_those_of_another(rows):
    """Apart from the shared scale and RMS: without them each problem drifts as if it were alone."""
    objective = ChunkDriftLoss(DriftConfig(rows=rows, temperatures=[1.0]))
    objective.loss.normalize_features = objective.loss.normalize_drift = False
    gen, pos = chunks()
    together = gradient(objective(gen, pos), gen)
    for b in range(3):
        alone = gen[b : b + 1].detach().requires_grad_()
        torch.testing.assert_close(gradient(objective(alone, pos[b : b + 1]), alone) / 3, together[b : b + 1])


def test_the_drift_goes_to_the_expert():
    gen, pos = chunks()
    objective = ChunkDriftLoss(DriftConfig())
    moved = gen - 0.1 * gradient(objective(gen, pos), gen) * gen.numel()
    assert ((moved.mean(1) - pos[:, 0]).norm(dim=(1, 2)) < (gen.mean(1) - pos[:, 0]).norm(dim=(1, 2))).all()


def test_figures_name_every_temperature():
    objective = ChunkDriftLoss(DriftConfig(temperatures=[0.2, 0.05]))
    figures = objective.figures(objective.terms(*chunks()))
    assert set(figures) == {"drift_rms", "drift_rms/0.2", "drift_rms/0.05", "spread_squared"}
    assert figures["drift_rms"] == figures["drift_rms/0.2"]
    assert all(value.shape == () for value in figures.values())


def test_refusals():
    with pytest.raises(ValueError, match=r"\[B, K, H, A\]"):
        ChunkDriftLoss(DriftConfig())(torch.zeros(3, 4, 5), torch.zeros(3, 1, 5))
    with pytest.raises(ValueError, match=r"drift\.num_generated must be at least 2"):
        DriftConfig(num_generated=1)
    with pytest.raises(ValueError, match=r"drift\.rows must be chunk or timestep"):
        DriftConfig(rows="step")
