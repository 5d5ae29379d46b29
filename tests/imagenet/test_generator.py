"""Properties of the generator that hold without any reference."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from domains.imagenet.generator import DiTGenerator, GeneratorConfig, generator_preset, straight_through_clamp
from domains.imagenet.transformer import SwiGLU

SMALL = GeneratorConfig(
    channels=2,
    size=8,
    patch=2,
    hidden=32,
    depth=2,
    heads=2,
    num_classes=10,
    context_tokens=3,
    style_tokens=4,
    style_codes=5,
)


def inputs(count=3, cfg=SMALL, seed=0):
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, cfg.channels, cfg.size, cfg.size, generator=rng)
    labels = torch.randint(cfg.num_classes, (count,), generator=rng)
    return noise, labels, 1 + 3 * torch.rand(count, generator=rng)


def awake(cfg=SMALL, seed=0) -> DiTGenerator:
    """A generator none of whose parameters is zero."""
    net = DiTGenerator(cfg)
    rng = torch.Generator().manual_seed(seed)
    net.reset_parameters(rng)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=rng))
    return net


@pytest.mark.parametrize(
    ("name", "millions"), [("B/2", 132.709), ("L/2", 462.909), ("B/16", 133.865), ("L/16", 464.450), ("XL/2", 678.930)]
)
def test_parameter_counts(name, millions):
    """B and L are the paper's models; XL/2 only pins ours."""
    with torch.device("meta"):
        net = DiTGenerator(generator_preset(name))
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 3) == millions


@pytest.mark.parametrize(("name", "giga_macs"), [("B/16", 24.8), ("L/16", 86.8)])
def test_cost_of_one_sample(name, giga_macs):
    """The paper's "87G" counts multiply-adds."""
    with torch.device("meta"):
        net = DiTGenerator(generator_preset(name))
        noise, label, alpha = torch.empty(1, 3, 256, 256), torch.zeros(1, dtype=torch.int64), torch.ones(1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(noise, label, alpha)
    assert round(counter.get_total_flops() / 2e9, 1) == giga_macs


def test_xl_shape():
    cfg = generator_preset("XL/2")
    assert (cfg.hidden, cfg.depth, cfg.heads) == (1152, 28, 16)


def test_unknown_preset():
    with pytest.raises(ValueError, match="'S/2'"):
        generator_preset("S/2")


def test_new_generator_returns_zero_and_can_learn():
    net = DiTGenerator(SMALL)
    out = net(*inputs())
    assert torch.equal(out, torch.zeros_like(out))
    out.sum().backward()
    assert net.final.linear.bias.grad.abs().sum() > 0
    assert net.final.linear.weight.grad.abs().sum() > 0


def test_gradient_reaches_every_parameter():
    net = awake()
    net(*inputs(count=8)).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_output_depends_on_every_input():
    net = awake()
    noise, labels, alpha = inputs()
    style = torch.zeros(3, SMALL.style_tokens, dtype=torch.int64)
    with torch.no_grad():
        reference = net(noise, labels, alpha, style)
        for changed in (
            (noise + 0.1, labels, alpha, style),
            (noise, (labels + 1) % SMALL.num_classes, alpha, style),
            (noise, labels, alpha + 0.5, style),
            (noise, labels, alpha, style + 1),
        ):
            assert (net(*changed) - reference).abs().amax((1, 2, 3)).min() > 1e-4


def test_samples_of_a_batch_do_not_see_each_other():
    net = awake()
    noise, labels, alpha = inputs(count=4)
    style = net.conditioning.draw_style(4, noise.device)
    together = net(noise, labels, alpha, style)
    alone = torch.cat([net(noise[i : i + 1], labels[i : i + 1], alpha[i : i + 1], style[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_style_draw_is_reproducible_uniform_and_the_same_as_giving_the_indices():
    net = awake()
    batch = inputs()
    first = net(*batch, generator=torch.Generator().manual_seed(3))
    assert torch.equal(first, net(*batch, generator=torch.Generator().manual_seed(3)))
    assert not torch.equal(first, net(*batch, generator=torch.Generator().manual_seed(4)))
    style = net.conditioning.draw_style(3, torch.device("cpu"), torch.Generator().manual_seed(3))
    assert torch.equal(first, net(*batch, style))

    many = net.conditioning.draw_style(5000, torch.device("cpu"), torch.Generator().manual_seed(0))
    for column in many.T:
        frequency = column.bincount(minlength=SMALL.style_codes) / 5000
        torch.testing.assert_close(frequency, torch.full((SMALL.style_codes,), 0.2), rtol=0, atol=0.03)


def test_each_style_position_has_its_own_codebook():
    net = awake(replace(SMALL, style_tokens=2))
    _, labels, alpha = inputs(count=2)
    swapped = torch.tensor([[0, 1], [1, 0]])
    cond = net.conditioning(labels[:1].expand(2), alpha[:1].expand(2), swapped)
    tables = net.conditioning.style.weight.detach().split(SMALL.style_codes)
    expected = (tables[0][0] + tables[1][1]) - (tables[0][1] + tables[1][0])
    torch.testing.assert_close((cond[0] - cond[1]).detach(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("style_tokens", [0, 4])
@pytest.mark.parametrize("context_tokens", [0, 3])
def test_the_optional_parts_can_be_left_out(style_tokens, context_tokens):
    cfg = replace(SMALL, style_tokens=style_tokens, context_tokens=context_tokens, rotary=False, qk_norm=False)
    out = awake(cfg)(*inputs(cfg=cfg))
    assert out.shape == (3, 2, 8, 8)
    assert out.isfinite().all()


def test_bf16_autocast_stays_close_and_keeps_modulation_in_float32():
    net = awake()
    batch = (*inputs(), torch.zeros(3, SMALL.style_tokens, dtype=torch.int64))
    dtypes = []
    net.blocks[0].modulation.register_forward_hook(lambda _m, _i, out: dtypes.extend(t.dtype for t in out))
    net.blocks[0].norm1.register_forward_hook(lambda _m, _i, out: dtypes.append(out.dtype))
    exact = net(*batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(*batch)
        condition = net.conditioning(*batch[1:])
    out.sum().backward()
    assert out.dtype == condition.dtype == torch.float32
    assert set(dtypes) == {torch.float32}
    error = (out - exact).norm() / exact.norm()
    assert 0 < error < 0.03


def test_float32_attention_under_autocast_is_more_exact():
    nets = [awake(replace(SMALL, attention_float32=flag)) for flag in (False, True)]
    x, cond = torch.randn(2, 19, 32, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 32)
    dtypes = []
    for net in nets:
        net.blocks[0].attention.out.register_forward_pre_hook(lambda _m, args: dtypes.append(args[0].dtype))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            net.blocks[0](x, cond, None)
    assert dtypes == [torch.bfloat16, torch.float32]


def zero_style(count=3) -> torch.Tensor:
    return torch.zeros(count, SMALL.style_tokens, dtype=torch.int64)


def test_checkpointing_changes_memory_not_numbers():
    plain, recomputed = awake(), awake(replace(SMALL, checkpoint_blocks=True))
    batch = (*inputs(), zero_style())
    passes, kept = [], []
    recomputed.blocks[0].register_forward_pre_hook(lambda *_: passes.append(1))
    for net in (plain, recomputed):
        stored: dict[int, int] = {}
        own = {p.untyped_storage().data_ptr() for p in net.parameters()}

        def pack(x, stored=stored, own=own):
            storage = x.untyped_storage()
            if storage.data_ptr() not in own:
                stored[storage.data_ptr()] = storage.nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            out = net(*batch)
        kept.append(sum(stored.values()))
        out.square().sum().backward()
    assert len(passes) == 2, "the block is computed again in the backward pass"
    assert kept[1] < kept[0] / 4
    for ours, theirs in zip(plain.parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


BRANCHES = {
    "released": {},
    "layer norm": {"rms_norm": False},
    "GELU": {"swiglu": False},
    "no query norm": {"qk_norm": False},
    "no tokens": {"context_tokens": 0, "style_tokens": 0, "rotary": False},
    "float32 attention": {"attention_float32": True, "qk_norm": False},
}


@pytest.mark.parametrize("change", BRANCHES.values(), ids=BRANCHES)
def test_every_branch_trains_under_bf16_autocast(change):
    cfg = replace(SMALL, **change)
    net, (noise, labels, alpha) = awake(cfg), inputs(cfg=cfg)
    style = zero_style() if cfg.style_tokens else None
    gradients = []
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = net(noise, labels, alpha, style).square().mean()
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))]))
    error = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    assert 0 < error < 0.05
    assert gradients[1].dtype == torch.float32


def test_sampling_without_a_gradient_returns_the_same_numbers_and_changes_no_input():
    net, batch = awake(), (*inputs(), zero_style())
    given = [each.clone() for each in batch]
    trained = net(*batch).detach()
    with torch.inference_mode():
        torch.testing.assert_close(net(*batch), trained)
        torch.testing.assert_close(net(*batch), trained)
    assert all(torch.equal(before, after) for before, after in zip(given, batch, strict=True))


@pytest.mark.parametrize("trained", ["gate", "value", "out"])
def test_a_single_trained_layer_of_the_mlp_gets_its_gradient(trained):
    """Without gradients the layer works in place; a frozen part beside a trained one must not spoil its gradient."""
    mlp = SwiGLU(8, mlp_ratio=4.0)
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    expected = torch.autograd.grad(mlp(x).square().sum(), getattr(mlp, trained).weight)[0]
    mlp.requires_grad_(False)
    weight = getattr(mlp, trained).weight.requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(mlp(x).square().sum(), weight)[0], expected)


@pytest.mark.parametrize("style", [zero_style(), None], ids=["style given", "style drawn"])
def test_compiles_without_graph_breaks(style):
    net, batch = awake(), inputs()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.manual_seed(0)
    expected = net(*batch, style)
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(*batch, style), expected)


@pytest.mark.slow
@pytest.mark.timeout(900)  # C++ is compiled: minutes on a busy machine
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("checkpointed", [False, True], ids=["stored", "recomputed"])
def test_training_compiles_without_graph_breaks(checkpointed, backend):
    torch.compiler.reset()
    net, batch = awake(replace(SMALL, depth=1, checkpoint_blocks=checkpointed)), (*inputs(), zero_style())
    gradients = []
    for model in (net, torch.compile(net, fullgraph=True, backend=backend)):
        net.zero_grad()
        model(*batch).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in net.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(
            gradients[1][name], expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item(), msg=name
        )


def test_meta_construction_then_reset_gives_the_usual_start():
    with torch.device("meta"):
        net = DiTGenerator(SMALL)
    net.to_empty(device="cpu")
    net.reset_parameters(torch.Generator().manual_seed(1))
    ours, other = net.state_dict(), DiTGenerator(SMALL).state_dict()
    assert all(value.isfinite().all() for value in ours.values())
    for name, value in other.items():  # two draws of the same distributions: same constants, similar spread
        if value.numel() > 500 and value.std() > 0:
            assert 0.8 < ours[name].std() / value.std() < 1.25, name
        elif value.std() == 0:
            assert torch.equal(ours[name], value), name
    assert ours["conditioning.style.weight"].std() == pytest.approx(0.02, rel=0.1)


def test_straight_through_clamp():
    x = torch.tensor([-3.0, -1.0, 0.2, 1.0, 7.5], requires_grad=True)
    y = straight_through_clamp(x, -1.0, 1.0)
    assert torch.equal(y, torch.tensor([-1.0, -1.0, 0.2, 1.0, 1.0]))
    cotangent = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    y.backward(cotangent)
    assert torch.equal(x.grad, cotangent)


def test_output_range():
    net = awake(replace(SMALL, output_range=(-0.1, 0.2)))
    out = net(*inputs())
    assert (out.min().item(), out.max().item()) == (pytest.approx(-0.1), pytest.approx(0.2))
    out.sum().backward()
    assert net.final.linear.bias.grad.abs().min() > 0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("noise", torch.zeros(3, 2, 8, 7), "noise must be"),
        ("labels", torch.tensor([0, 1, 10]), r"0\.\.9.*\[0, 10\]"),
        ("labels", torch.tensor([0, -1, 1]), r"0\.\.9.*\[-1, 1\]"),
        ("labels", torch.tensor([0.0, 1.0, 2.0]), "int64"),
        ("labels", torch.tensor([0, 1]), "to match noise"),
        ("alpha", torch.tensor([1.0, 0.5, 1.0]), "alpha must be finite and >= 1"),
        ("alpha", torch.tensor([1.0, torch.nan, 1.0]), "alpha must be finite"),
        ("alpha", torch.tensor([1, 1, 1]), "float"),
        ("alpha", torch.ones(2), r"\[3\] float"),
        ("style", torch.full((3, 4), 5), r"0\.\.4"),
        ("style", torch.zeros(3, 3, dtype=torch.int64), r"\[3, 4\] int64"),
    ],
)
def test_wrong_input_is_refused(name, value, message):
    noise, labels, alpha = inputs()
    arguments = {"noise": noise, "labels": labels, "alpha": alpha} | {name: value}
    with pytest.raises(ValueError, match=message):
        DiTGenerator(SMALL)(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": 3}, "patch must be a divisor"),
        ({"heads": 3}, "multiple of 2"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"style_tokens": -1}, "style_tokens must be at least 0"),
        ({"mlp_ratio": 0.0}, "mlp_ratio"),
        ({"output_range": (1.0, -1.0)}, "low < high"),
        ({"hidden": 6, "heads": 1}, "multiple of 4"),
    ],
)
def test_wrong_config_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)
