"""The ranks' problems of a step, put together, are those of one process."""

import copy

import pytest
import torch
from torch import nn

from domains.imagenet.config import DriftSection, ImagenetConfig
from domains.imagenet.data.labelled_images import LabelledImages
from domains.imagenet.problems import ProblemDraws, StepProblems, backward
from domains.imagenet.real_samples import RealSamples
from drifting import FeatureDriftLoss, MeanShift, Sinkhorn
from drifting.features import pooled_statistics
from drifting.fields import KernelGradient
from drifting.training.config import typed
from drifting.training.draws import stream
from drifting.training.errors import ConfigError
from drifting.training.telemetry import Telemetry
from drifting.training.world import World

CPU = torch.device("cpu")
CLASSES = 10


def settings(**sections) -> ImagenetConfig:
    dit = {"channels": 1, "size": 4, "patch": 2, "hidden": 8, "depth": 1, "heads": 2, "num_classes": CLASSES}
    base = {
        "run": {"name": "a", "steps": 3},
        "generator": {"kind": "dit", "dit": dit | {"style_tokens": 3, "style_codes": 5}},
        "encoder": {"kind": "pixels"},
        "drift": {"classes_per_step": 5, "num_generated": 4, "num_positive": 3, "num_unconditional": 2},
        "queue": {"per_class": 6, "unconditional": 9, "push_per_step": 4},
    }
    return typed({key: base.get(key, {}) | sections.get(key, {}) for key in base | sections}, ImagenetConfig)


def images() -> LabelledImages:
    labels = torch.arange(CLASSES).repeat(8)
    return LabelledImages(torch.randn(80, 1, 4, 4, generator=torch.Generator().manual_seed(0)), labels)


def samples(config: ImagenetConfig, rank: int = 0, ranks: int = 1) -> RealSamples:
    queue, drift = config.queue, config.drift
    return RealSamples(
        images(),
        num_classes=CLASSES,
        per_class=queue.per_class,
        unconditional=queue.unconditional,
        num_positive=drift.num_positive,
        num_unconditional=drift.num_unconditional,
        seed=config.run.seed,
        rank=rank,
        ranks=ranks,
    )


def drawn(config: ImagenetConfig, world: World, *, steps: int = 2, real: RealSamples | None = None) -> StepProblems:
    real = samples(config) if real is None else real
    source = ProblemDraws(config, real, config.generator.build(), CLASSES, world)
    for step in range(steps):
        torch.manual_seed(world.rank)  # what the process did before does not matter
        real.push(config.queue.push_per_step)
        problems = source.draw(step)
    return problems


def test_the_field_is_chosen_by_name_and_only_the_paper_s_takes_its_settings():
    drifts = {name: DriftSection(field=name, repulsion=1.0) for name in ("mean_shift", "kernel_gradient", "sinkhorn")}
    assert [type(drift.build().field) for drift in drifts.values()] == [MeanShift, KernelGradient, Sinkhorn]
    assert [drift.twins for drift in drifts.values()] == [False, False, True]
    with pytest.raises(ValueError, match=r"drift\.field must be mean_shift or kernel_gradient or sinkhorn, got 'mmd'"):
        DriftSection(field="mmd")
    for name in ("kernel_gradient", "sinkhorn"):
        with pytest.raises(ValueError, match=rf"drift\.field must be mean_shift, for another .*, got '{name}'"):
            DriftSection(field=name, repulsion=0.5)


@pytest.mark.parametrize("field", ["mean_shift", "sinkhorn"])
@pytest.mark.parametrize("size", [2, 4])
def test_shares_put_together_are_the_problems_of_one_process(field, size):
    config = settings(drift={"field": field})
    whole = drawn(config, World(CPU))
    ranks = [drawn(config, World(CPU, rank, size)) for rank in range(size)]
    twins = 2 if field == "sinkhorn" else 1
    for name in ("labels", "alpha", "noise", "style", "positives", "unconditional", "neg_weight"):
        halves = [[block for rank in ranks for block in [getattr(rank, name).chunk(twins)[t]]] for t in range(twins)]
        assert torch.equal(torch.cat([torch.cat(half) for half in halves]), getattr(whole, name)), name
    assert len(whole.labels) == 5 * twins
    assert len(whole.labels.unique()) == 5
    mean = sum(rank.weight * rank.alpha.mean() for rank in ranks) / size
    torch.testing.assert_close(mean, whole.alpha.mean())


def test_ranks_that_share_samples_have_the_same_problems_and_their_own_noise():
    config = settings()
    whole = drawn(config, World(CPU))
    pair = [drawn(config, World(CPU, rank, 2, shard_generated=2)) for rank in range(2)]
    assert all(torch.equal(rank.positives, whole.positives) for rank in pair)
    assert torch.equal(torch.cat([rank.noise for rank in pair], dim=1), whole.noise)
    assert torch.equal(torch.cat([rank.style for rank in pair], dim=1), whole.style)
    assert torch.equal(pair[1].neg_weight, whole.neg_weight)  # of all G


def test_every_step_draws_anew_and_a_repeated_step_the_same():
    config = settings()
    first, again, second = (drawn(config, World(CPU), steps=steps) for steps in (1, 1, 2))
    assert torch.equal(first.noise, again.noise)
    assert torch.equal(first.positives, again.positives)
    assert not torch.equal(first.noise, second.noise)
    assert not torch.equal(first.alpha, second.alpha)


def test_real_samples_of_a_problem_are_distinct_and_uniform():
    real = samples(settings(queue={"per_class": 4, "unconditional": 20}))
    labels = torch.tensor([2, 7])
    counts = torch.zeros(4)
    for step in range(600):
        positives, unconditional = real.draw(labels, [stream(0, "real", step, item) for item in range(2)])
        for row, label in zip(positives, labels, strict=True):
            held = real.positives.samples[label]
            found = (row[:, None] == held).flatten(2).all(2)  # [P, capacity]
            assert found.sum(1).eq(1).all()
            assert found.sum(0).max() == 1
            counts += found.sum(0)
        assert len(unconditional.flatten(2).unique(dim=1)[0]) == 2
    assert (counts / counts.sum() - 0.25).abs().max() < 0.01  # 3600 draws
    with pytest.raises(LookupError, match="hold fewer than n=3"):
        real.positives.count[7] = 2
        real.draw(labels, [stream(0, "real", 0, item) for item in range(2)])


def test_parts_keep_twins_together_and_lose_nothing():
    config = settings(drift={"field": "sinkhorn"})
    whole = drawn(config, World(CPU))
    parts = whole.split(2)
    assert [len(part.labels) for part in parts] == [6, 4]
    for part in parts:
        assert torch.equal(*part.labels.chunk(2))
    assert torch.equal(torch.cat([part.noise.chunk(2)[1] for part in parts]), whole.noise.chunk(2)[1])


@pytest.mark.parametrize("keep", ["none", "float32", "bfloat16"])
def test_real_images_are_encoded_once_where_their_features_are_kept(keep):
    config = settings(drift={"keep_references": keep})
    problems = drawn(config, World(CPU))
    torch.manual_seed(1)
    generator = config.generator.build()
    with torch.no_grad():  # a fresh one passes no gradient beyond its last layer
        for parameter in generator.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    seen = []

    def encoder(images):
        seen.append(len(images))
        return pooled_statistics(torch.cat((images, images.sin()), dim=1), patch_sizes=[2])

    def gradient(parts, keep=None):
        generator.zero_grad()
        seen.clear()
        loss = FeatureDriftLoss(encoder, config.drift.build(), budget=1)
        value, _ = backward(generator, loss, problems, telemetry, parts=parts, with_terms=False, keep_references=keep)
        return value, torch.cat([parameter.grad.flatten() for parameter in generator.parameters()])

    telemetry = Telemetry(config.log, World(CPU))
    value, expected = gradient(1)
    found, ours = gradient(2, config.drift.kept_references)
    generated, real = 5 * 4, 5 * (3 + 2)
    assert sum(seen) == 3 * generated + (3 if keep == "none" else 1) * real
    tolerance = 0.03 if keep == "bfloat16" else 1e-5
    torch.testing.assert_close(found, value, rtol=tolerance, atol=0)
    assert (ours - expected).norm() < tolerance * expected.norm()
    assert isinstance(problems.positives, torch.Tensor)  # the caller's stay what they are


def test_the_gradient_of_a_small_share_counts_less():
    class Identity(nn.Module):
        def forward(self, noise, labels, alpha, style):
            return noise

    problems = drawn(settings(), World(CPU, 1, 2))
    problems.noise.requires_grad_()
    problems.arguments(Identity())["gen"].sum().backward()
    assert problems.weight == pytest.approx(2 * 3 / 5)
    assert torch.allclose(problems.noise.grad, torch.full_like(problems.noise, 1.2))


def test_queues_of_a_rank_get_other_images_and_give_the_classes_just_pushed():
    config = settings(queue={"owner": "rank"})
    reals = [samples(config, rank, 2) for rank in range(2)]
    for rank, real in enumerate(reals):
        before = real.epochs.position % len(real.data)
        problems = drawn(config, World(CPU, rank, 2), steps=1, real=real)
        order = real.epochs.order[before : before + 8]
        assert torch.equal(real.newest_labels, images().labels[order][4 * rank : 4 * rank + 4])
        assert set(problems.labels.tolist()) <= set(real.newest_labels.tolist())
        assert len(problems.labels) == (2, 3)[rank]
    assert not torch.equal(reals[0].positives.samples, reals[1].positives.samples)


def test_queues_continue_on_another_number_of_ranks():
    shared = [copy.deepcopy(samples(settings()).state_dict()) for _ in range(2)]
    config = settings()
    one = samples(config)
    one.push(40)
    one.load_state_dicts(shared, rank=0, ranks=1)
    assert torch.equal(one.positives.samples, shared[0]["positives"]["samples"])
    assert torch.equal(one.positives.count, shared[0]["positives"]["count"])

    config = settings(queue={"owner": "rank"})
    own = [samples(config, rank, 2) for rank in range(2)]
    states = [copy.deepcopy(real.state_dict()) for real in own]
    dealt = [samples(config, rank, 4) for rank in range(4)]
    for rank, real in enumerate(dealt):
        real.load_state_dicts(states, rank=rank, ranks=4)
    assert sum(int(real.positives.count.sum()) for real in dealt) == sum(
        int(real.positives.count.sum()) for real in own
    )
    assert all(real.epochs.position == own[0].epochs.position for real in dealt)


@pytest.mark.parametrize(
    ("sections", "size", "said"),
    [
        ({}, 6, r"drift.classes_per_step must be at least 6, .* got 5"),
        ({"parallel": {"parts": 3}}, 2, r"parallel.parts must be at most 2, the classes of a rank in a step, got 3"),
        ({"queue": {"owner": "rank", "push_per_step": 2}}, 2, r"queue.push_per_step must be at least 3 with"),
    ],
)
def test_what_ranks_cannot_share_is_refused(sections, size, said):
    config = settings(**sections)
    with pytest.raises(ConfigError, match=said):
        drawn(config, World(CPU, size - 1, size))


def test_samples_that_cannot_be_shared_evenly_are_refused():
    with pytest.raises(
        ConfigError, match=r"drift.num_generated must be a multiple of parallel.shard_generated = 3, got 4"
    ):
        drawn(settings(), World(CPU, 0, 3, shard_generated=3))
