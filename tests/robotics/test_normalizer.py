import pytest
import torch
from small_policies import small_task

from domains.robotics.action_space import ActionSpace
from domains.robotics.normalizer import Normalizer
from domains.robotics.rotations import axis_angle_to_matrix
from drifting.training.errors import ConfigError


def values():
    return torch.tensor([[0.0, 400.0, 7.0], [10.0, 500.0, 7.0], [5.0, 420.0, 7.0]])


def test_smallest_and_largest_become_minus_one_and_one():
    normalized = Normalizer(3).fit(values())(values())
    torch.testing.assert_close(normalized[:, 0], torch.tensor([-1.0, 1.0, 0.0]))
    torch.testing.assert_close(normalized[:, 1], torch.tensor([-1.0, 1.0, -0.6]))


def test_a_constant_is_shifted_to_zero_and_not_stretched():
    normalizer = Normalizer(3).fit(values())
    assert normalizer(values())[:, 2].tolist() == [0, 0, 0]
    assert normalizer(torch.tensor([0.0, 400.0, 7.5]))[2] == 0.5


def test_the_inverse_returns_plain_numbers():
    normalizer = Normalizer(3).fit(values())
    torch.testing.assert_close(normalizer.inverse(normalizer(values())), values())


def test_untouched_dimensions_stay():
    normalizer = Normalizer(3, untouched=[1]).fit(values())
    assert normalizer(values())[:, 1].tolist() == [400, 500, 420]


def test_bounds_are_part_of_the_weights():
    normalizer = Normalizer(3)
    assert torch.equal(normalizer(values()), values())
    normalizer.load_state_dict(Normalizer(3).fit(values()).state_dict())
    assert normalizer(values()).abs().max() == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(4, 2), r"\[\.\.\., 3\]"),
        (torch.zeros(0, 3), "at least one row"),
        (torch.full((2, 3), float("nan")), "finite"),
    ],
)
def test_refusals(given, message):
    with pytest.raises(ValueError, match=message):
        Normalizer(3).fit(given)


def poses(count=50, arms=1):
    rng = torch.Generator().manual_seed(0)
    axis = torch.randn(count, arms, 3, generator=rng)
    angle = torch.rand(count, arms, 1, generator=rng) * 3
    rotation = axis / axis.norm(dim=-1, keepdim=True) * angle
    place, gripper = (
        torch.rand(count, arms, 3, generator=rng),
        torch.rand(count, arms, 1, generator=rng).round() * 2 - 1,
    )
    return torch.cat([place, rotation, gripper], dim=-1).flatten(1)


@pytest.mark.parametrize("arms", [1, 2])
def test_absolute_poses_become_ten_numbers_per_arm_and_return(arms):
    space = ActionSpace(small_task(action_dim=7 * arms, robots=arms, absolute_actions=True))
    given = poses(arms=arms)
    space.fit(given)
    inside = space.encode(given)
    assert inside.shape == (50, 10 * arms)
    torch.testing.assert_close(space.decode(inside), given, rtol=0, atol=1e-4)


def test_rotations_keep_their_scale_and_are_rotation_rows():
    space = ActionSpace(small_task(action_dim=7, absolute_actions=True))
    given = poses()
    space.fit(given)
    inside = space.encode(given)
    rows = axis_angle_to_matrix(given[:, 3:6])[:, :2].flatten(1)
    torch.testing.assert_close(inside[:, 3:9], rows)
    assert inside[:, :3].abs().max() == pytest.approx(1)


def test_relative_actions_are_only_scaled():
    space = ActionSpace(small_task(action_dim=7))
    given = poses()
    space.fit(given)
    assert space.dim == 7
    torch.testing.assert_close(space.decode(space.encode(given)), given)


def test_places_of_a_pusher_have_no_rotation():
    space = ActionSpace(small_task(simulator="block_push", absolute_actions=True))
    given = poses()[:, :2]
    space.fit(given)
    assert space.dim == 2
    torch.testing.assert_close(space.decode(space.encode(given)), given)


def test_relative_actions_do_not_depend_on_where_the_hand_is():
    task = small_task(
        absolute_actions=True, action_dim=7, observations={"hand": 3, "object": 2}, present={"hand": [0, 1, 2]}
    )
    space = ActionSpace(task, relative=True)
    hand = torch.randn(50, 2, 3, generator=torch.Generator().manual_seed(1))
    chunks = poses(200).unflatten(0, (50, 4))
    space.fit(chunks, {"hand": hand})
    inside = space.encode(chunks, {"hand": hand})
    assert inside[..., :3].abs().max() == pytest.approx(1)
    torch.testing.assert_close(space.decode(inside, {"hand": hand}), chunks, rtol=0, atol=1e-4)
    # Everything a metre to the side, and an older observation that does not count.
    there, moved = chunks.clone(), hand + torch.tensor([1.0, 0, 0])
    there[..., 0] += 1
    moved[:, 0] = 7
    torch.testing.assert_close(space.encode(there, {"hand": moved}), inside, rtol=0, atol=1e-5)
    # Several chunks of each observation, as positives and samples are.
    several = chunks[:, None].expand(-1, 3, -1, -1)
    torch.testing.assert_close(space.encode(several, {"hand": hand}), inside[:, None].expand(-1, 3, -1, -1))


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"absolute_actions": True, "action_dim": 7}, r"policy\.relative=true needs task\.present"),
        ({"action_dim": 7, "present": {"hand": [0]}}, r"needs task\.absolute_actions=true: displacements"),
    ],
)
def test_what_cannot_be_relative_is_refused(facts, message):
    with pytest.raises(ConfigError, match=message):
        ActionSpace(small_task(**facts), relative=True)


def test_only_its_owner_knows_what_the_actions_of_an_own_robot_are():
    """Places or joint angles can be relative, in any number; poses of arms come by sevens."""
    own = {"simulator": "none", "environment": "", "present": {"hand": [0, 1]}}
    space = ActionSpace(small_task(**own), relative=True)
    hand = {"hand": torch.randn(3, 2, 2)}
    there = space.encode(torch.zeros(3, 8, 2), hand)
    torch.testing.assert_close(there, -hand["hand"][:, -1:].expand(-1, 8, -1))
    with pytest.raises(ConfigError, match=r"task\.action_dim must be a multiple of 7"):
        ActionSpace(small_task(**own, absolute_actions=True), relative=True)


@pytest.mark.parametrize("present", [{"eye": [0]}, {"hand": [2]}, {"hand": [0, 1], "object": [0]}])
def test_a_present_place_must_be_observed_and_fit_the_action(present):
    task = small_task(simulator="push_t", action_dim=2, present=present)
    ActionSpace(task)  # not relative: what is not used need not be there
    with pytest.raises(ConfigError, match=r"task\.present"):
        ActionSpace(task, relative=True)


def test_relative_actions_need_what_was_observed():
    space = ActionSpace(small_task(simulator="push_t", present={"hand": [0, 1]}), relative=True)
    with pytest.raises(ValueError, match="observations must be given"):
        space.encode(torch.zeros(3, 8, 2))


def test_actions_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"actions must be \[\.\.\., 2\]"):
        ActionSpace(small_task()).encode(torch.zeros(3, 7))
    with pytest.raises(ValueError, match="multiple of 7"):
        ActionSpace(small_task(action_dim=8, absolute_actions=True))
