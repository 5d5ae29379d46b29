"""A trained generator and its image decoder as a pipeline of the diffusers library.

    pipe = DriftingPipeline(DiTGenerator.from_pretrained("drift-b2"), AutoencoderKL.from_pretrained("sd-vae-ft-mse"))
    images = pipe(class_labels=[207, 360], guidance_scale=1.5, generator=torch.Generator().manual_seed(0)).images
    pipe.save_pretrained("folder")
    pipe = DriftingPipeline.from_pretrained("folder").to("cuda")

Saving, loading, devices, precision and offloading are those of every pipeline; there is no scheduler and no loop.
"""

import os
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ImagePipelineOutput, ModelMixin
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from domains.imagenet.generator import DiTGenerator, GeneratorConfig
from domains.imagenet.pretrained import Pretrained

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class OneStepTransformer(ModelMixin, DiTGenerator):  # type: ignore[misc]
    """`DiTGenerator` as a component of a pipeline; on disk the folder of `DiTGenerator.save_pretrained`."""

    def __init__(self, cfg: GeneratorConfig) -> None:
        DiTGenerator.__init__(self, cfg)  # ModelMixin's own takes no arguments

    @classmethod
    def of(cls, generator: DiTGenerator) -> Self:
        """The same network, sharing its parameters; in eval mode."""
        return cls.skeleton(generator.cfg, generator.kind).fill(generator.state_dict(), type(generator).__name__)

    @classmethod
    def from_pretrained(cls, name_or_folder: str | os.PathLike[str], **loading: Any) -> Self:
        """As `DiTGenerator.from_pretrained`, in the words of diffusers.

        Args:
            name_or_folder: a folder, or the id of a Hub repository.
            loading: what diffusers passes to all components. `dtype` of the parameters is heeded (`torch_dtype` in
                older releases); device_map and quantization_config are refused.
        """
        for option in ("device_map", "quantization_config"):
            if loading.get(option) is not None:
                raise ValueError(f"{option}={loading[option]} does not apply to {cls.__name__}; use pipe.to(device)")
        dtype = loading.get("dtype") or loading.get("torch_dtype")
        return super(ModelMixin, cls).from_pretrained(name_or_folder, dtype=dtype)

    def forward(self, *args: Any, **named: Any) -> Tensor:
        """As `DiTGenerator.forward`; with parameters in half precision the products are taken in it."""
        half = self.dtype in (torch.bfloat16, torch.float16)
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=half):
            return DiTGenerator.forward(self, *args, **named)

    def save_pretrained(self, folder: str | os.PathLike[str], *, max_shard_size: int | str = "5GB", **_: Any) -> None:
        """As `DiTGenerator.save_pretrained`: always safetensors."""
        Pretrained.save_pretrained(self, folder, max_shard_size=max_shard_size)


class DriftingPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Class labels to images in one forward pass of the generator, and one of the decoder for latent models.

    Args:
        transformer: the generator; a plain `DiTGenerator` is wrapped and keeps its parameters.
        vae: decodes its latents; None for a generator of pixels.

    Raises:
        ValueError: latents without a decoder, or a decoder of other latents.
    """

    model_cpu_offload_seq = "transformer->vae"
    _optional_components = ["vae"]  # noqa: RUF012 (a name and a type that diffusers prescribes)

    def __init__(self, transformer: OneStepTransformer, vae: AutoencoderKL | None = None) -> None:
        super().__init__()
        if not isinstance(transformer, OneStepTransformer):
            transformer = OneStepTransformer.of(transformer)
        channels, size = transformer.cfg.channels, transformer.cfg.size
        if vae is None and channels not in (1, 3):
            raise ValueError(
                f"transformer makes latents of {channels} x {size} x {size}: pass the vae that decodes them, such as "
                "AutoencoderKL.from_pretrained('stabilityai/sd-vae-ft-mse')"
            )
        if vae is not None and vae.config.latent_channels != channels:
            raise ValueError(f"vae decodes {vae.config.latent_channels} channels, transformer makes {channels}")
        self.register_modules(transformer=transformer, vae=vae)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | Sequence[int],
        guidance_scale: float | Sequence[float] = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[list[Image.Image] | np.ndarray | Tensor]:
        """Draw one image per label.

        Args:
            class_labels: K class indices.
            guidance_scale: alpha >= 1, for all or for each image; 1 is no guidance. It conditions the generator, and
                costs nothing.
            generator: source of noise and styles, or K of them: then an image depends on its own alone.
            output_type: "pil", "np" [K, H, W, C] in [0, 1], "pt" [K, C, H, W] in [0, 1], or "latent": the generator's
                samples as they are.
            return_dict: False for a tuple.

        Raises:
            ValueError: naming the argument, with what was expected and what came.
        """
        labels, alpha = self._checked(class_labels, guidance_scale, generator, output_type)
        cfg, device = self.transformer.cfg, self._execution_device
        # In float32 whatever the parameters are: a seed stands for the same image in every precision.
        noise = randn_tensor((len(labels), cfg.channels, cfg.size, cfg.size), generator, device=device)
        style = self._draw_style(len(labels), generator)
        samples = self.transformer(
            noise, torch.tensor(labels, device=device), torch.tensor(alpha, device=device), style
        )
        images = samples if output_type == "latent" else self._decoded(samples)
        if output_type in ("pil", "np"):
            images = images.cpu().permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _checked(
        self,
        class_labels: int | Sequence[int],
        guidance_scale: float | Sequence[float],
        generator: torch.Generator | list[torch.Generator] | None,
        output_type: str,
    ) -> tuple[list[int], list[float]]:
        """Labels and guidance scales, K of each, before anything is sent to a device."""
        labels = [class_labels] if isinstance(class_labels, int) else [int(label) for label in class_labels]
        many = isinstance(guidance_scale, Sequence)
        alpha = [float(a) for a in guidance_scale] if many else [float(guidance_scale)] * len(labels)
        num_classes = self.transformer.cfg.num_classes
        if not labels or not all(0 <= label < num_classes for label in labels):
            raise ValueError(f"class_labels must be one or more of 0..{num_classes - 1}, got {class_labels}")
        if len(alpha) != len(labels) or not all(1 <= a < float("inf") for a in alpha):
            raise ValueError(
                f"guidance_scale must be finite and >= 1 (1 is no guidance), one number or one for each of "
                f"{len(labels)} labels, got {guidance_scale}"
            )
        if isinstance(generator, list) and len(generator) != len(labels):
            raise ValueError(f"generator must be one, or one for each of {len(labels)} labels, got {len(generator)}")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}")
        return labels, alpha

    def _draw_style(self, count: int, generator: torch.Generator | list[torch.Generator] | None) -> Tensor | None:
        draw, device = self.transformer.conditioning.draw_style, self._execution_device
        if not isinstance(generator, list):
            return draw(count, device, generator)
        own = [draw(1, device, each) for each in generator]
        return None if own[0] is None else torch.cat(own)

    def _decoded(self, samples: Tensor) -> Tensor:
        """Samples as they come from the generator -> images [K, C, H, W] in [0, 1], float32."""
        if self.vae is not None:
            latents = samples.to(self.vae.dtype) / self.vae.config.scaling_factor
            latents = latents + (self.vae.config.get("shift_factor") or 0.0)
            samples = self.vae.decode(latents).sample
        return (samples.float() / 2 + 0.5).clamp(0, 1)
