import json
from pathlib import Path

import pytest
import torch
from small_policies import NETS, Batch, diffusion, drifting, observation, small_config, small_task

from domains.robotics.config import DriftConfig
from domains.robotics.diffusion_baseline import DiffusionPolicy
from domains.robotics.policy import DriftingPolicy
from domains.robotics.policy_kinds import load_policy
from domains.robotics.pretrained_policy import PolicyFileError


def calls_of(net):
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    return calls


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("noise_dim", [0, 3])
def test_one_network_call_whatever_is_asked(net, noise_dim):
    policy = drifting(net=net, noise_dim=noise_dim)
    calls = calls_of(policy.net)
    assert policy.act(observation()).shape == (3, 4, 2)
    assert len(calls) == 1
    assert policy.sample(observation(), 6).shape == (3, 6, 8, 2)
    assert len(calls) == 2
    policy.loss(Batch())
    assert len(calls) == 3


def test_observations_are_encoded_once_for_all_samples():
    policy = drifting()
    seen = []
    policy.observations.register_forward_hook(lambda module, given, out: seen.append(tuple(out.shape)))
    policy.sample(observation(), 6)
    assert seen == [(3, 10)]


def test_executed_are_the_steps_from_the_present_on():
    policy = drifting()
    chunk = policy.sample(observation(), 1, torch.Generator().manual_seed(5))[:, 0]
    acted = policy.act(observation(), torch.Generator().manual_seed(5))
    torch.testing.assert_close(acted, chunk[:, 1:5])


def test_actions_come_in_plain_units():
    policy = drifting()
    policy.actions.fit(torch.tensor([[100.0, -1.0], [300.0, 1.0]]))
    chunks = policy.sample(observation(), 4, torch.Generator().manual_seed(0))
    inside = policy.sample(observation(), 4, torch.Generator().manual_seed(0), normalized=True)
    torch.testing.assert_close(chunks[..., 0], 200 + 100 * inside[..., 0])


@pytest.mark.parametrize("make", [drifting, diffusion])
def test_an_observation_with_its_own_generator_does_not_depend_on_the_batch(make):
    policy, seen = make(), observation()
    together = policy.sample(seen, 2, generators(7, 8, 9))
    alone = policy.sample({key: value[1:2] for key, value in seen.items()}, 2, generators(8))
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0], policy.sample(seen, 2, generators(1, 8, 9))[0])


def test_noise_decides_between_samples():
    chunks = drifting().sample(observation(), 4)
    assert chunks.std(1).min() > 1e-4


def test_six_generated_are_trained_by_the_drifting_loss():
    policy = drifting(drift=DriftConfig(num_generated=6))
    batch = Batch()
    draws = policy.draw(3, torch.Generator().manual_seed(0))
    assert draws["noise"].shape == (3, 6, 8, 2)
    result = policy(batch.observations, batch.actions, draws, with_figures=True)
    gen = policy.one_pass(draws["noise"], policy.observations(batch.observations))
    torch.testing.assert_close(result.loss, policy.objective(gen, batch.actions[:, None]))
    torch.testing.assert_close(policy.loss(batch, torch.Generator().manual_seed(0)), result.loss)
    assert {"drift_rms", "spread_squared"} <= set(result.figures)
    result.loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.parameters())


def test_neighbours_are_further_positives():
    policy, batch = drifting(), Batch()
    draws = policy.draw(3, torch.Generator().manual_seed(0))
    near = torch.randn(3, 2, 8, 2)
    gen = policy.one_pass(draws["noise"], policy.observations(batch.observations))
    expected = policy.objective(gen, torch.cat([batch.actions[:, None], near], dim=1))
    torch.testing.assert_close(policy(batch.observations, batch.actions, draws, near).loss, expected)


def test_absolute_poses_are_seven_numbers_outside():
    policy = drifting(small_task(action_dim=14, robots=2, absolute_actions=True))
    assert policy.net.shape == (8, 20)
    assert policy.act(observation()).shape == (3, 4, 14)
    assert policy.loss(Batch(action_dim=14)).isfinite()


@pytest.mark.parametrize("make", [drifting, diffusion])
def test_relative_actions_move_with_the_hand(make, tmp_path):
    """A policy that sees no difference acts the same from where the hand is; trained, played and read back."""
    task = small_task(simulator="push_t", present={"hand": [0, 1]})
    policy = make(task, relative=True)
    seen = observation(50)
    policy.fit_normalizers(seen, 30 * torch.randn(50, 8, 2))
    policy.observations.normalizer.half_range.fill_(1e9)
    acted = policy.eval().act(observation(), torch.Generator().manual_seed(0))
    there = observation()
    there["hand"] = there["hand"] + torch.tensor([5.0, -3.0])
    moved = policy.act(there, torch.Generator().manual_seed(0))
    torch.testing.assert_close(moved, acted + torch.tensor([5.0, -3.0]), rtol=0, atol=1e-4)
    assert policy.loss(Batch()).isfinite()
    policy.save_pretrained(tmp_path)
    loaded = type(policy).from_pretrained(tmp_path)
    assert torch.equal(loaded.act(there, torch.Generator().manual_seed(0)), moved)


@pytest.mark.parametrize("make", [drifting, diffusion])
@pytest.mark.parametrize("net", NETS)
def test_a_saved_policy_acts_the_same(make, net, tmp_path):
    policy = make(net=net)
    policy.fit_normalizers(observation(50), 30 * torch.randn(50, 2))
    policy.save_pretrained(tmp_path / "policy")
    assert sorted(path.name for path in (tmp_path / "policy").iterdir()) == ["config.json", "model.safetensors"]
    loaded = type(policy).from_pretrained(tmp_path / "policy")
    assert not loaded.training
    acted = policy.eval().act(observation(), torch.Generator().manual_seed(0))
    assert torch.equal(loaded.act(observation(), torch.Generator().manual_seed(0)), acted)
    assert loaded.task == policy.task and loaded.config == policy.config
    assert type(load_policy(tmp_path / "policy")) is type(policy)
    policy.save_pretrained(tmp_path / "policy")  # in place of the older one


def test_folders_that_hold_no_policy_of_ours(tmp_path):
    with pytest.raises(PolicyFileError, match="cannot read"):
        load_policy(tmp_path)
    drifting().save_pretrained(tmp_path)
    with pytest.raises(PolicyFileError, match="holds a drifting policy, not a diffusion one"):
        DiffusionPolicy.from_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    cases = {
        "expected format": content | {"format": "lerobot"},
        "policy.horizont": content | {"policy": content["policy"] | {"horizont": 8}},
        "does not fit": content | {"policy": content["policy"] | {"noise_dim": 5}},
        "must be": content | {"task": content["task"] | {"observations": {"object": 4, "hand": 2}}},
    }
    for message, changed in cases.items():
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(PolicyFileError, match=message):
            load_policy(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(content))
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-50])
    with pytest.raises(PolicyFileError, match="truncated or damaged"):
        load_policy(tmp_path)


def test_a_foreign_folder_is_not_written_to(tmp_path):
    (tmp_path / "config.json").write_text('{"format": "another"}')
    with pytest.raises(PolicyFileError, match="no policy of this library"):
        drifting().save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    (tmp_path / "config.json").rename(tmp_path / "model.safetensors")
    with pytest.raises(PolicyFileError, match="of another network"):
        drifting().save_pretrained(tmp_path)


class Killed(BaseException):
    """The end of a process: nothing that it does afterwards reaches the disk."""


def test_a_policy_saved_before_a_setting_existed_is_one_without_it(tmp_path):
    policy = drifting()
    policy.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    for section, keys in {"task": ("poses", "demo_noise_steps"), "policy": ("geometry",)}.items():
        for key in keys:
            del content[section][key]
    (tmp_path / "config.json").write_text(json.dumps(content))
    again, seen = DriftingPolicy.from_pretrained(tmp_path), observation()
    expected = policy.act(seen, torch.Generator().manual_seed(0))
    torch.testing.assert_close(again.act(seen, torch.Generator().manual_seed(0)), expected)


@pytest.mark.parametrize("steps", range(8))
@pytest.mark.parametrize("older", [False, True])
def test_killed_while_it_is_saved(tmp_path, monkeypatch, steps, older):
    first, second = drifting(), drifting(net="unet", action_steps=2)
    if older:
        first.save_pretrained(tmp_path)
    left = iter(range(steps))
    with monkeypatch.context() as patch:

        def until_killed(call):
            def counted(*arguments, **options):
                if next(left, None) is None:
                    raise Killed
                return call(*arguments, **options)

            return counted

        for name in ("open", "replace", "unlink", "rename"):
            patch.setattr(Path, name, until_killed(getattr(Path, name)))
        try:
            second.save_pretrained(tmp_path)
        except Killed:
            pass
        else:
            assert steps > 4, "nothing was killed: this test counts other calls than the save makes"
    try:
        found = load_policy(tmp_path).config
        assert found in (first.config, second.config)
    except PolicyFileError as error:
        assert "cannot read" in str(error)
    second.save_pretrained(tmp_path)
    assert load_policy(tmp_path).config == second.config
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_refusals():
    with pytest.raises(ValueError, match=r"config\.kind must be drifting"):
        DriftingPolicy(small_task(), small_config(kind="diffusion"))
    with pytest.raises(ValueError, match="num must be at least 1"):
        drifting().sample(observation(), 0)
    with pytest.raises(ValueError, match="one for each of 3 observations, got 2"):
        drifting().act(observation(), generators(0, 1))
