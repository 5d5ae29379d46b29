from dataclasses import replace

import pytest
import torch
from small_policies import Batch, diffusion, observation
from torch import nn

from domains.robotics import diffusion_baseline

pytest.importorskip("diffusers")


class Known(nn.Module):
    """A perfect denoiser: what the clean chunks are, or the noise that they imply."""

    def __init__(self, clean, levels, prediction):
        super().__init__()
        self.clean, self.levels, self.prediction, self.times = clean, levels, prediction, []

    def forward(self, x, cond, time):
        self.times.append(int(time[0]))
        if self.prediction == "sample":
            return self.clean
        alpha = self.levels.alphas_cumprod[time][:, None, None]
        return (x - alpha.sqrt() * self.clean) / (1 - alpha).sqrt()


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
@pytest.mark.parametrize(("sampler", "steps"), [("ddpm", 100), ("ddim", 16)])
def test_a_perfect_denoiser_returns_the_clean_chunks(prediction, sampler, steps):
    policy = diffusion(steps=100, diffusion={"prediction": prediction, "sampler": sampler, "inference_steps": steps})
    clean = torch.rand(6, 8, 2) * 1.6 - 0.8
    policy.net = Known(clean, policy.levels, prediction)
    chunks = policy.sample(observation(), 2, torch.Generator().manual_seed(0), normalized=True)
    torch.testing.assert_close(chunks.flatten(0, 1), clean, rtol=0, atol=1e-3)
    assert len(policy.net.times) == steps
    assert policy.net.times[0] == 99  # from pure noise, however few steps follow
    assert policy.net.times == sorted(policy.net.times, reverse=True)


def test_the_loss_is_the_error_of_what_is_predicted():
    for prediction in ("epsilon", "sample"):
        policy, batch = diffusion(diffusion={"prediction": prediction, "draws": 5}), Batch()
        draws = policy.draw(3, torch.Generator().manual_seed(0))
        assert draws["noise"].shape == (3, 5, 8, 2) and draws["time"].shape == (3, 5)
        policy.net = Known(batch.actions.repeat_interleave(5, 0), policy.levels, prediction)
        assert policy(batch.observations, batch.actions, draws).loss < 1e-8
        policy.net.clean = policy.net.clean + 1.0
        assert policy(batch.observations, batch.actions, draws, with_figures=True).figures["denoising_error"] > 0.1


def test_every_step_is_drawn():
    time = diffusion(steps=8).draw(500, torch.Generator().manual_seed(0))["time"]
    assert sorted(time.unique().tolist()) == list(range(8))


def test_learns_what_the_expert_does():
    policy = diffusion(steps=20, diffusion={"prediction": "sample", "draws": 8})
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    rng, batch = torch.Generator().manual_seed(0), Batch(16)
    batch.actions = batch.observations["object"][:, -1:, :2].clamp(-0.9, 0.9).expand(16, 8, 2).clone()

    def error():
        chunks = policy.sample(batch.observations, 1, rng, normalized=True)[:, 0]
        return (chunks - batch.actions).square().mean()

    before = error()
    for _ in range(200):
        loss = policy.loss(batch, rng)
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    assert error() < 0.05 < 0.2 < before


def test_a_scheduler_is_made_once_for_each_sampling(monkeypatch):
    made, build = [], diffusion_baseline.build_scheduler
    monkeypatch.setattr(diffusion_baseline, "build_scheduler", lambda *given: made.append(given) or build(*given))
    policy = diffusion(diffusion={"sampler": "ddim", "inference_steps": 4})
    first = policy.sample(observation(), 1, torch.Generator().manual_seed(0))
    made.clear()
    assert torch.equal(policy.sample(observation(), 1, torch.Generator().manual_seed(0)), first)
    assert made == []
    levels = replace(policy.config.diffusion, sampler="ddpm", inference_steps=8)
    policy.config = replace(policy.config, diffusion=levels)  # as evaluation does
    assert not torch.equal(policy.sample(observation(), 1, torch.Generator().manual_seed(0)), first)
    assert [sampler for _, sampler in made] == ["ddpm"]


def test_neighbours_are_refused():
    policy, batch = diffusion(), Batch()
    with pytest.raises(ValueError, match=r"drift\.neighbours=0"):
        policy(batch.observations, batch.actions, policy.draw(3), torch.zeros(3, 2, 8, 2))
