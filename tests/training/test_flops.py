"""FLOPs against hand counts, recomputation apart from what is needed, and the table of devices."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from drifting.training import flops
from drifting.training.flops import FlopCount, peak_flops, training_flops


class Generator(nn.Module):
    def __init__(self, recompute=False):
        super().__init__()
        self.first, self.second, self.recompute = nn.Linear(8, 32), nn.Linear(32, 16), recompute

    def forward(self, noise, shift):
        block = lambda x: self.second(self.first(x).relu())  # noqa: E731
        x = checkpoint(block, noise, use_reentrant=False) if self.recompute else block(noise)
        return x + shift[:, None]


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 4, 3, padding=1, bias=False)
        self.register_buffer("mean", torch.zeros(4, 1))
        self.requires_grad_(False)

    def forward(self, x):
        return {"a": self.conv(x[:, None]) - self.mean, "b": x[:, None]}


FORWARD = 2 * (8 * 32 + 32 * 16)  # of one sample
ENCODE = 2 * 16 * 4 * 3


@pytest.mark.parametrize("recompute", [False, True])
def test_a_step_is_counted_by_hand(recompute):
    # Backward twice the forward, but for the noise, which needs no gradient; once for the frozen encoder.
    generated = 3 * FORWARD - 2 * 8 * 32 + 2 * ENCODE
    inputs = (torch.randn(2, 8), torch.randn(2))
    found = training_flops(Generator(recompute), inputs, Encoder(), generated=10, references=7)
    assert found == 10 * generated + 7 * ENCODE


def test_nothing_is_computed_and_nothing_changes():
    generator, encoder = Generator(), Encoder()
    state = torch.get_rng_state()
    training_flops(generator, (torch.randn(1, 8), torch.zeros(1)), encoder, generated=1, references=1)
    assert torch.equal(torch.get_rng_state()[:8], state[:8])
    assert all(parameter.grad is None for parameter in generator.parameters())
    assert not any(value.is_meta for module in (generator, encoder) for value in module.state_dict().values())


def test_what_is_computed_again_is_counted_apart():
    generator = Generator(recompute=True)
    with FlopCount() as count:
        generator(torch.randn(5, 8), torch.zeros(5)).sum().backward()
    assert count.needed == 5 * (3 * FORWARD - 2 * 8 * 32)
    assert 0 < count.recomputed <= 5 * FORWARD


def test_attention_is_counted_on_the_meta_device():
    q = torch.empty(2, 3, 10, 4, device="meta", requires_grad=True)
    with FlopCount() as count:
        nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()
    assert count.needed == 3 * 2 * (2 * 2 * 3 * 10 * 10 * 4)


def test_peak_of_the_longest_known_name_or_the_override(monkeypatch):
    assert peak_flops(torch.device("cpu")) is None
    assert peak_flops(torch.device("cpu"), 5e12) == 5e12
    for name, expected in {
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA A100-SXM4-40GB": 312e12,
        "NVIDIA L40S": 362e12,
        "NVIDIA GH200 480GB": 989e12,
        "Unheard Of": None,
    }.items():
        monkeypatch.setattr(flops.torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_flops(torch.device("cuda", 0)) == expected
    with pytest.raises(ValueError, match=r"log.peak_flops must be positive and finite, .* got -1"):
        peak_flops(torch.device("cpu"), -1)
