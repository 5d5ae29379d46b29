"""Diffusion Policy (arXiv 2303.04137) on the same networks, data and interface: what drifting is compared with.

DDPM with squared-cosine noise levels, by diffusers. `policy.diffusion.draws` noise levels per observation make a step
as large as that of a drifting policy with as many generated chunks.
Shapes as in `chunk_policy`; R draws per observation.
"""

from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

import torch
from torch import Generator, Tensor

from domains.robotics.chunk_policy import ChunkPolicy, Randomness, StepLoss, draw_normal
from domains.robotics.config import DiffusionConfig, PolicyConfig
from domains.robotics.task import TaskConfig
from drifting.training.errors import ConfigError


class DiffusionPolicy(ChunkPolicy):
    """Chunks by `policy.diffusion.inference_steps` calls of the network."""

    kind = "diffusion"

    def __init__(self, task: TaskConfig, config: PolicyConfig) -> None:
        super().__init__(task, config)
        self.levels = build_scheduler(config.diffusion, "ddpm")
        self._samplers: dict[Any, Any] = {}

    def draw(self, count: int, generator: Generator | None = None) -> dict[str, Tensor]:
        """Noise [count, R, H, A], diffusion steps [count, R], and crops of images."""
        settings = self.config.diffusion
        noise = draw_normal(count, (settings.draws, *self.chunk_shape), generator, self.device)
        source = torch.device("cpu") if generator is None else generator.device
        shape = (count, settings.draws)
        time = torch.randint(settings.train_steps, shape, generator=generator, device=source).to(self.device)
        return {"noise": noise, "time": time, **super().draw(count, generator)}

    def forward(
        self,
        observations: Mapping[str, Tensor],
        actions: Tensor,
        draws: Mapping[str, Tensor],
        neighbours: Tensor | None = None,
        *,
        with_figures: bool = False,
    ) -> StepLoss:
        """Mean squared error of the predicted noise or clean actions; neighbours are refused."""
        if neighbours is not None:
            raise ValueError("neighbours belong to the drifting loss; set drift.neighbours=0 for policy.kind=diffusion")
        num = draws["noise"].shape[1]
        condition = self.observations(observations, draws.get("crops"))
        clean = self.actions.encode(actions, observations).repeat_interleave(num, dim=0)
        noise, time = draws["noise"].flatten(0, 1), draws["time"].flatten()
        predicted = self.net(self.levels.add_noise(clean, noise, time), condition, time)
        target = noise if self.config.diffusion.prediction == "epsilon" else clean
        loss = (predicted - target).square().mean()
        return StepLoss(loss, {"denoising_error": loss.detach()} if with_figures else {})

    def generate(self, condition: Tensor, num: int, generator: Randomness) -> Tensor:
        """Normalised chunks [B, num, H, A] for conditions [B, C]: one call of the network per inference step."""
        scheduler = self._sampler()
        chunks = draw_normal(len(condition), (num, *self.chunk_shape), generator, self.device).flatten(0, 1)
        # Each chunk's noise is of its observation's generator, in the order of the chunks.
        one = generator is None or isinstance(generator, Generator)
        source = generator if one else [each for each in generator for _ in range(num)]  # type: ignore[union-attr]
        for time in scheduler.timesteps:
            predicted = self.net(chunks, condition, time.expand(len(chunks)))
            chunks = scheduler.step(predicted, time, chunks, generator=source).prev_sample
        return chunks.unflatten(0, (-1, num))

    def _sampler(self) -> Any:
        """The scheduler of the present settings, made once for each: making it takes longer than a small network."""
        settings = self.config.diffusion
        key = (astuple(settings), self.device)
        if key not in self._samplers:
            scheduler = build_scheduler(settings, settings.sampler)
            scheduler.set_timesteps(settings.inference_steps, device=self.device)
            self._samplers[key] = scheduler
        return self._samplers[key]


def build_scheduler(config: DiffusionConfig, sampler: str) -> Any:
    """Diffusers' "ddpm" or "ddim": squared-cosine levels, clean actions clipped to [-1, 1] at every step.

    Raises ConfigError if diffusers is not installed.
    """
    try:
        from diffusers import DDIMScheduler, DDPMScheduler
    except ImportError as error:
        raise ConfigError(
            f"policy.kind=diffusion needs diffusers ({error}): pip install 'drifting-models[robotics]'"
        ) from error
    scheduler = DDPMScheduler if sampler == "ddpm" else DDIMScheduler
    return scheduler(
        num_train_timesteps=config.train_steps,
        beta_schedule="squaredcos_cap_v2",
        clip_sample=True,
        prediction_type=config.prediction,
        timestep_spacing="trailing",  # few steps then begin where training ends: at pure noise
    )
