"""What a policy is told: low-dimensional observations and camera images of To steps, as one vector per observation.

Shapes: B observations, To steps, O low-dimensional numbers of one step (of `geometry` too), F octaves, C numbers of the
condition.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from domains.robotics.config import PolicyConfig
from domains.robotics.geometry import PoseGeometry
from domains.robotics.normalizer import Normalizer
from domains.robotics.task import TaskConfig


class ObservationEncoder(nn.Module):
    """Observations by key to conditions [B, C], C = To ((1 + F) O + cameras x features).

    Low-dimensional keys are put side by side, in the order of the task, what follows from the poses after them; all is
    normalised but rotation matrices, and its octaves follow. Every camera has an encoder of its own (see `cameras`),
    trained with the policy.
    """

    def __init__(self, task: TaskConfig, config: PolicyConfig) -> None:
        super().__init__()
        self.steps, self.octaves = config.observation_steps, config.octaves
        self.widths = dict(task.observations)
        self.images = dict(task.images)
        self.geometry = PoseGeometry(task) if config.geometry else None
        self.observed = task.observation_dim
        width, matrices = task.observation_dim, range(0)
        if self.geometry is not None:
            matrices = range(width, width + self.geometry.rotation_dim)
            width += self.geometry.dim
        self.normalizer = Normalizer(width, untouched=matrices) if self.widths else None
        self.cameras = nn.ModuleDict()
        for key, side in self.images.items():
            from domains.robotics.cameras import CameraEncoder

            self.cameras[key] = CameraEncoder(side, config.image)
        low = (1 + self.octaves) * width
        self.dim = self.steps * (low + len(self.images) * config.image.features)

    def fit(self, observations: Mapping[str, Tensor]) -> None:
        """Take the bounds of the demonstrations' low-dimensional observations {key: [..., width]}; images have none."""
        if self.normalizer is not None:
            self.normalizer.fit(self._side_by_side(observations))

    def draw_crops(self, count: int, generator: torch.Generator | None, device: torch.device) -> Tensor | None:
        """Where the crops of `count` observations lie, [count, To, cameras, 2] in [0, 1); None without cameras."""
        if not self.cameras:
            return None
        source = device if generator is None else generator.device
        return torch.rand(count, self.steps, len(self.cameras), 2, generator=generator, device=source).to(device)

    def forward(self, observations: Mapping[str, Tensor], crops: Tensor | None = None) -> Tensor:
        """{key: [B, To, ...]} -> [B, C]; central crops if none are given.

        Raises:
            ValueError: a missing key, or an observation of another shape.
        """
        parts = []
        if self.normalizer is not None:
            low = self._normalized(observations).flatten(1)
            parts = [low, *octaves(low, self.octaves)]
        self._check_steps(observations, self.images)
        for index, (key, encoder) in enumerate(self.cameras.items()):
            where = None if crops is None else crops[:, :, index].flatten(0, 1)
            features = encoder(observations[key].flatten(0, 1), where)
            parts.append(features.unflatten(0, (-1, self.steps)).flatten(1))
        return torch.cat(parts, dim=-1)

    def low_dimensional(self, observations: Mapping[str, Tensor]) -> Tensor:
        """The normalised low-dimensional observations without geometry, [B, To x widths]; errors as `forward`."""
        return self._normalized(observations)[..., : self.observed].flatten(1)

    def _normalized(self, observations: Mapping[str, Tensor]) -> Tensor:
        """[B, To, O]."""
        if self.normalizer is None:
            raise ValueError("the task has no low-dimensional observations")
        self._check_steps(observations, self.widths)
        return self.normalizer(self._side_by_side(observations))

    def _side_by_side(self, observations: Mapping[str, Tensor]) -> Tensor:
        for key, width in self.widths.items():
            if key not in observations:
                raise ValueError(f"observations must have {key!r}, got {sorted(observations)}")
            if observations[key].shape[-1] != width:
                raise ValueError(f"observation {key!r} must be [..., {width}], got {tuple(observations[key].shape)}")
        parts = [observations[key].float() for key in self.widths]
        if self.geometry is not None:
            parts.append(self.geometry(observations))
        return torch.cat(parts, dim=-1)

    def _check_steps(self, observations: Mapping[str, Tensor], keys: Mapping[str, int]) -> None:
        for key in keys:
            if key not in observations:
                raise ValueError(f"observations must have {key!r}, got {sorted(observations)}")
            shape = observations[key].shape
            if len(shape) < 3 or shape[1] != self.steps:
                raise ValueError(f"observation {key!r} must be [B, {self.steps}, ...], got {tuple(shape)}")


def octaves(x: Tensor, count: int) -> list[Tensor]:
    """sin(2^k pi x), k = 1 ... count, each as x (Fourier features, Tancik et al., arXiv 2006.10739).

    Of x in [-1, 1] the k-th tells apart what differs by 2^-k: millimetres, where a network that is given x alone learns
    to answer centimetres first.
    """
    return [torch.sin(2.0**k * math.pi * x) for k in range(1, count + 1)]
