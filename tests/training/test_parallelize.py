"""What is done to a module from outside, on one process; several ranks: tests/distributed/test_parallel_equality.py."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from drifting.training.config import ParallelConfig
from drifting.training.parallelize import find_blocks, parallelize, unsynchronized, weigh_gradient
from drifting.training.world import World

ALONE = World(torch.device("cpu"))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return x + self.linear(x).tanh()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.blocks = nn.ModuleList([Residual(), Residual()])
        self.stages = nn.ModuleList([nn.ModuleList([Residual()]), nn.ModuleList([nn.Sequential(Residual())])])
        self.idle = nn.ModuleList([nn.Identity()])

    def forward(self, x):
        x = self.first(x)
        for block in [*self.blocks, self.stages[0][0], self.stages[1][0]]:
            x = block(x)
        return x


def counted(net):
    """How often each of the blocks computes, a list that grows by its number."""
    calls = []
    for number, block in enumerate(net.blocks):
        block.linear.register_forward_hook(lambda *_, number=number: calls.append(number))
    return calls


def gradients(net, model):
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    model(x).square().sum().backward()
    return [parameter.grad for parameter in net.parameters()]


def test_blocks_are_found_without_a_hint():
    net = Net()
    assert find_blocks(net) == [net.blocks[0], net.blocks[1], net.stages[0][0], net.stages[1][0]]
    assert find_blocks(nn.Sequential(nn.Linear(1, 1))) == []


def test_checkpointing_recomputes_each_block_and_changes_no_number_and_no_name():
    plain = Net()
    net = copy.deepcopy(plain)
    calls, calls_of_plain = counted(net), counted(plain)
    expected = gradients(plain, plain)
    model = parallelize(net, ALONE, ParallelConfig(checkpoint_activations=True))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(gradients(net, model), expected, strict=True))
    assert calls_of_plain == [0, 1]
    assert calls == [0, 1, 1, 0]  # again in the backward pass
    assert list(net.state_dict()) == list(plain.state_dict())


def test_named_blocks_replace_the_found_ones():
    net = Net()
    calls = counted(net)
    model = parallelize(net, ALONE, ParallelConfig(checkpoint_activations=True), blocks=[net.blocks[1]])
    gradients(net, model)
    assert calls == [0, 1, 1]


def test_bfloat16_is_that_of_matrix_products_and_weights_stay():
    net = Net()
    seen = []
    net.first.register_forward_hook(lambda module, given, result: seen.append(result.dtype))
    model = parallelize(net, ALONE, ParallelConfig(precision="bfloat16"))
    found = gradients(net, model)
    assert seen == [torch.bfloat16]
    assert {gradient.dtype for gradient in found} == {torch.float32}


@pytest.mark.slow
def test_compiled_and_checkpointed_blocks_give_the_same_gradient():
    counters.clear()
    plain = Net()
    net = copy.deepcopy(plain)
    model = parallelize(net, ALONE, ParallelConfig(compile=True, checkpoint_activations=True))
    for ours, theirs in zip(gradients(net, model), gradients(plain, plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert counters["stats"]["unique_graphs"] >= 1
    assert not counters["graph_break"]


@pytest.mark.parametrize("changes", [{"precision": "bfloat16"}, {"checkpoint_activations": True}])
def test_a_copy_that_would_run_the_original_is_refused(changes):
    net = Net()
    parallelize(net, ALONE, ParallelConfig(**changes))
    with pytest.raises(RuntimeError, match="a parallelized module cannot be copied"):
        copy.deepcopy(net)


def test_a_weight_scales_the_gradient_and_not_the_value():
    x = torch.ones(3, requires_grad=True)
    assert weigh_gradient(x, 2.5) is x
    (weigh_gradient(x * 2, 1.5) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert torch.equal(x.grad, 2.5 * 1.5 * 2 * torch.tensor([1.0, 2.0, 3.0]))
    assert weigh_gradient(torch.ones(2), 3.0).equal(torch.ones(2))


def test_a_plain_module_has_nothing_to_synchronise():
    with unsynchronized(nn.Linear(1, 1)):
        pass
