"""Published architectures at a size that tests can afford, with random weights: none is zero, so that all matter."""

import torch
from torch import nn


def randomized(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights; norms, running statistics included, near their usual values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                if name.endswith("running_var"):
                    tensor.copy_(1 + 0.3 * noise.abs())
                elif tensor.ndim > 1:
                    tensor.copy_(noise / (tensor[0].numel() ** 0.5))
                else:
                    tensor.copy_((1 if name.endswith("weight") else 0) + 0.2 * noise)
    return network


def small_convnext(num_labels: int = 3, depths=(1, 2, 1, 1)):
    from transformers import ConvNextV2Config, ConvNextV2ForImageClassification

    config = ConvNextV2Config(hidden_sizes=[8, 16, 24, 32], depths=list(depths), num_labels=num_labels)
    return randomized(ConvNextV2ForImageClassification(config)).eval()


def small_resnet(layers=(1, 2, 3, 1)):
    from torchvision.models.resnet import BasicBlock, ResNet

    return randomized(ResNet(BasicBlock, list(layers), num_classes=5)).eval()


def small_autoencoder(**changes):
    """8 x 8 pixels to one latent of 4 channels."""
    from diffusers import AutoencoderKL

    config = {
        "block_out_channels": (8, 8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "norm_num_groups": 4,
    }
    return randomized(AutoencoderKL(**config | changes)).eval()
