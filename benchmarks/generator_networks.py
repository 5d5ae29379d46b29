"""The networks that benchmarks.generators compares, on the same parameters, and what they are asked."""

import torch
from torch import Tensor, nn

from benchmarks.plain_dit import PlainGenerator
from domains.imagenet.generator import DiTGenerator, GeneratorConfig, generator_preset

TINY = GeneratorConfig(size=8, hidden=32, depth=2, heads=2, num_classes=10, context_tokens=2, style_tokens=2)
Batch = tuple[Tensor, Tensor, Tensor, Tensor]  # noise, labels, alpha, style


def config_of(name: str) -> GeneratorConfig:
    return TINY if name == "tiny" else generator_preset(name)


def awake(cfg: GeneratorConfig, device: str, seed: int) -> DiTGenerator:
    """A generator with random weights where a new one has zeros: else its samples are zero, whatever else it does."""
    torch.manual_seed(seed)
    model = DiTGenerator(cfg)
    for name, parameter in model.named_parameters():
        if "modulation" in name or name.startswith("final.linear"):
            nn.init.normal_(parameter, std=0.02)
    return model.to(device).eval()


def batch_of(cfg: GeneratorConfig, count: int, device: str) -> Batch:
    noise = torch.randn(count, cfg.channels, cfg.size, cfg.size)
    labels, style = torch.randint(cfg.num_classes, (count,)), torch.randint(cfg.style_codes, (count, cfg.style_tokens))
    return tuple(each.to(device) for each in (noise, labels, torch.full((count,), 1.5), style))


def plain_copy(model: DiTGenerator) -> PlainGenerator:
    """The plain network on the same parameters in memory."""
    with torch.device("meta"):
        plain = PlainGenerator(model.cfg)
    plain.load_state_dict(model.state_dict(), assign=True)
    return plain.eval()


def compiled_copy(model: DiTGenerator) -> DiTGenerator:
    """Ours on the same parameters, each block compiled; blocks share the code, so it is generated once."""
    with torch.device("meta"):
        compiled = DiTGenerator(model.cfg)
    compiled.load_state_dict(model.state_dict(), assign=True)
    for block in compiled.blocks:
        block.compile(fullgraph=True)
    return compiled.eval()
