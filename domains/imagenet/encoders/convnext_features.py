"""Features of ConvNeXt-V2, which the pixel generators of the paper use beside the masked auto-encoder (Table 9)."""

import json
import os
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from domains.imagenet.encoders.imagenet_input import ImagenetInput
from domains.imagenet.frozen import FrozenModule, freeze, run, weight_dtype
from domains.imagenet.hub import WeightsError, load_complete, local_folder
from domains.imagenet.transformer import at_least_float32
from drifting.features import pooled_statistics

if TYPE_CHECKING:
    from transformers import ConvNextV2ForImageClassification, ConvNextV2Model

NORM_EPS = 1e-3  # added to the standard deviation over channels, not to the variance
SMALLEST_VARIANCE = 1e-12


class ConvNextFeatures(FrozenModule):
    """Locations, mean and standard deviation of every stage's output, normalised over channels, as released.

    ============================ ====== ==============================================================
    key                          F      vectors
    ============================ ====== ==============================================================
    ``stage<i>``, i = 1, 2, 3    h w    the map y of stage i (of 0..3), one vector per location
    ``stage<i>_mean``, i = 0..3  1      mean of y over all locations
    ``stage<i>_std``, i = 0..3   1      standard deviation of y over all locations
    ``global_mean``              1      the network's own last vector: LayerNorm of the mean of the raw last map
    ``global_std``               1      the same as ``stage3_std``: it counts twice
    ============================ ====== ==============================================================

    y = (x - mean_c) / (std_c + 1e-3), mean and biased standard deviation over the channels of each location, without
    affine parameters. At 224 x 224 the four stages of the base network are 56, 28, 14 and 7 wide with 128, 256, 512 and
    1024 channels: 13 keys, 1039 vectors.

    The network is taken over, not copied; a classification head is not kept.

    Args:
        network: of the transformers library.
        size: side to which samples in [-1, 1] are resized.
        dtype: of weights and activations, statistics are taken in float32; None leaves the weights as they are.
        checkpoint: keep only the output of each block for the backward pass, and compute its inside again there.
    """

    def __init__(
        self,
        network: "ConvNextV2Model | ConvNextV2ForImageClassification",
        *,
        size: int = 224,
        dtype: torch.dtype | None = None,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.input = ImagenetInput(size)
        # The head is another module of the same library, with the body as `convnextv2`.
        self.network: ConvNextV2Model = freeze(getattr(network, "convnextv2", network), dtype)
        self.checkpoint = checkpoint
        self.eval()

    @classmethod
    def from_pretrained(
        cls, name_or_folder: str | os.PathLike[str], *, revision: str | None = None, **options: Any
    ) -> Self:
        """Of published weights; the released recipe names `facebook/convnextv2-base-22k-224`.

        Args:
            name_or_folder: a folder, or the id of a Hub repository.
            revision: of the repository.
            options: arguments of the constructor.

        Raises:
            WeightsError: the files are not to be had, or are those of another network.
        """
        from transformers import ConvNextV2ForImageClassification

        files = ("config.json", "model.safetensors|pytorch_model.bin")
        folder = local_folder(name_or_folder, files=files, revision=revision, setting="convnext")
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
        if kind != "convnextv2":
            raise WeightsError(f"convnext={name_or_folder} must hold a network of model_type convnextv2, got {kind}")
        load = ConvNextV2ForImageClassification.from_pretrained
        network = load_complete(load, folder, setting="convnext", optional="classifier.")
        return cls(network, **options)

    def forward(self, samples: Tensor) -> dict[str, Tensor]:
        """Samples [K, 3, H, W] in [-1, 1] -> {key: [K, F, D]}, float32."""
        network = self.network
        x = network.embeddings(self.input(samples).to(weight_dtype(network)))
        features: dict[str, Tensor] = {}
        for i, stage in enumerate(network.encoder.stages):
            for layer in (*stage.downsampling_layer, *stage.layers):
                x = run(layer, x, self.checkpoint)
            statistics = pooled_statistics(normalized_over_channels(x), patch_sizes=())
            if i > 0:
                features[f"stage{i}"] = statistics[""]
            features[f"stage{i}_mean"], features[f"stage{i}_std"] = statistics["mean"], statistics["std"]
        norm, pooled = network.layernorm, at_least_float32(x).mean((2, 3))
        weight, bias = norm.weight.to(pooled.dtype), norm.bias.to(pooled.dtype)
        features["global_mean"] = F.layer_norm(pooled, norm.normalized_shape, weight, bias, norm.eps).unsqueeze(1)
        features["global_std"] = statistics["std"]
        return features


def normalized_over_channels(x: Tensor) -> Tensor:
    """y = (x - mean_c) / (std_c + 1e-3), mean and biased deviation over the channels of a location; [K, C, h, w]."""
    centred = at_least_float32(x) - at_least_float32(x).mean(1, keepdim=True)
    # The root has no gradient at zero: a location whose channels are all equal is left a tiny deviation.
    deviation = centred.square().mean(1, keepdim=True).clamp(min=SMALLEST_VARIANCE).sqrt()
    return centred / (deviation + NORM_EPS)
