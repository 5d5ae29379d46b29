import pytest
import torch
from small_policies import NETS, small_config

from domains.robotics.config import PolicyConfig, UnetConfig
from domains.robotics.networks import build_network
from domains.robotics.networks.steps import StepEmbedding


def network(net, kind="drifting"):
    torch.manual_seed(0)
    return build_network(small_config(net=net, kind=kind), action_dim=3, cond_dim=5)


def inputs(count=4):
    rng = torch.Generator().manual_seed(1)
    return torch.randn(count, 8, 3, generator=rng), torch.randn(count, 5, generator=rng)


@pytest.mark.parametrize("net", NETS)
def test_every_parameter_gets_a_gradient(net):
    model = network(net, "diffusion")
    for name, parameter in model.named_parameters():
        if "modulation" in name:  # starts at zero, and with it the gradient of what it gates
            torch.nn.init.normal_(parameter, std=0.1)
    out = model(*inputs(), torch.tensor([0, 1, 2, 3]))
    assert out.shape == (4, 8, 3)
    out.square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("what", ["chunk", "condition", "time"])
def test_the_output_depends_on(net, what):
    torch.manual_seed(0)
    model = network(net, "diffusion")
    for block in getattr(model, "blocks", []):
        if hasattr(block, "modulation"):
            torch.nn.init.normal_(block.modulation[1].weight, std=0.5)
    chunk, cond = inputs()
    time = torch.tensor([3.0] * 4)
    other = {"chunk": (chunk + 1, cond, time), "condition": (chunk, cond + 1, time), "time": (chunk, cond, time + 2)}
    assert (model(chunk, cond, time) - model(*other[what])).abs().mean() > 1e-4


@pytest.mark.parametrize("net", NETS)
def test_chunks_of_a_batch_do_not_meet(net):
    model = network(net).eval()
    chunk, cond = inputs()
    torch.testing.assert_close(model(chunk, cond)[1:2], model(chunk[1:2], cond[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["drifting", "diffusion"])
@pytest.mark.parametrize("net", NETS)
def test_a_condition_serves_several_chunks_in_a_row(net, kind):
    model = network(net, kind)
    for name, parameter in model.named_parameters():
        if "modulation" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    chunk, cond = inputs(6)
    cond = cond[:2].requires_grad_()
    time = (torch.arange(6),) if kind == "diffusion" else ()
    once, each = model(chunk, cond, *time), model(chunk, cond[[0, 0, 0, 1, 1, 1]], *time)
    torch.testing.assert_close(once, each, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(out.square().sum(), [cond, *model.parameters()]) for out in (once, each)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["drifting", "diffusion"])
def test_the_perceptron_begins_with_one_linear_layer_of_chunk_condition_and_time(kind):
    """In this order, in which saved policies have its columns."""
    model = network("mlp", kind)
    chunk, cond = inputs()
    parts, time = [chunk.flatten(1), cond], ()
    if kind == "diffusion":
        time = (torch.arange(4),)
        parts.append(model.step(*time))
    hidden = model.enter(torch.cat(parts, dim=-1))
    for block in model.blocks:
        hidden = block(hidden)
    torch.testing.assert_close(model(chunk, cond, *time), model.leave(hidden).unflatten(-1, (8, 3)))


@pytest.mark.parametrize("net", NETS)
def test_conditions_that_do_not_divide_the_chunks_are_refused(net):
    chunk, cond = inputs(4)
    with pytest.raises(ValueError, match="cond must have a row for each chunk or for each n of them, got 3 for 4"):
        network(net)(chunk, cond[:3])


@pytest.mark.parametrize("net", NETS)
def test_a_network_for_steps_needs_them(net):
    with pytest.raises(ValueError, match="time must be a tensor"):
        network(net, "diffusion")(*inputs())


@pytest.mark.parametrize(
    ("widths", "million"),
    # Counted in Diffusion Policy's network for Lift: 7 actions, 2 x 19 observations.
    [([256, 512, 1024], 63.5), ([512, 1024, 2048], 248.8)],
)
def test_the_unet_has_the_published_size(widths, million):
    config = PolicyConfig(kind="diffusion", unet=UnetConfig(down_dims=widths, step_width=128))
    with torch.device("meta"):
        model = build_network(config, action_dim=7, cond_dim=38)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(million, abs=0.05)


def test_diffusion_steps_are_told_apart():
    embedded = StepEmbedding(64)(torch.arange(100))
    between = torch.cdist(embedded, embedded) + torch.eye(100) * 1e9
    assert between.min() > 1e-3
