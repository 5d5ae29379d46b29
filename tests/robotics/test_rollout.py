"""Rollouts: the time layout, what an episode's result is, and on what it does not depend."""

from types import SimpleNamespace

import pytest
import torch
from played_policies import NoisyChase, Recorded
from task_files import task_of

pytest.importorskip("gym_pusht")

from domains.robotics.environments import make_environment
from domains.robotics.environments.vectorized import VectorEnvironment
from domains.robotics.rollout import roll_out
from drifting.training.draws import stream

SEEDS = [100_003, 100_000, 100_007, 100_001, 100_002]
PUSH_T = task_of("push_t", max_steps=44)


def played(policy=None, *, task=PUSH_T, seeds=SEEDS, seats=3, workers=0, **settings):
    with VectorEnvironment(task, seats=seats, workers=workers) as environments:
        return roll_out(policy or NoisyChase(), environments, seeds, **settings)


def test_the_result_is_what_the_environment_gives_for_the_policy_s_actions():
    environment = make_environment(PUSH_T)
    for result in played():
        policy, noise = NoisyChase(), stream(0, "episode", result.seed)
        observation, _ = environment.reset(seed=result.seed)
        rewards, ended = [], False
        while not ended:
            keypoints = torch.from_numpy(observation["keypoint"]).expand(1, 2, -1)
            for action in policy.act({"keypoint": keypoints}, [noise])[0].numpy():
                observation, reward, terminated, truncated, _ = environment.step(action)
                rewards.append(reward)
                ended = terminated or truncated
                if ended:
                    break
        assert result.max_reward == max(rewards)
        assert result.steps == len(rewards) == 44
        assert not result.success


def test_the_policy_sees_the_last_two_steps_and_at_the_start_the_first_one_twice():
    policy = Recorded(steps=3)
    (result,) = played(policy, seeds=[100_000], seats=1)
    environment = make_environment(PUSH_T)
    observation, _ = environment.reset(seed=100_000)
    track = [observation["agent_pos"]]
    actions = torch.cat(policy.done, dim=1)[0, : result.steps].numpy()
    track += [environment.step(action)[0]["agent_pos"] for action in actions]
    shown = [seen["agent_pos"][0] for seen in policy.shown]
    assert shown[0].tolist() == [track[0].tolist()] * 2
    for call in range(1, len(shown)):
        assert shown[call].tolist() == [track[3 * call - 1].tolist(), track[3 * call].tolist()]
    assert len(shown) == 15  # 44 steps by threes


def test_results_come_in_the_order_of_the_seeds():
    results = played()
    assert [result.seed for result in results] == SEEDS
    backwards = played(seeds=SEEDS[::-1])
    assert [result.max_reward for result in backwards[::-1]] == [result.max_reward for result in results]


def test_results_depend_on_neither_workers_nor_seats():
    expected = played(seats=3)
    for seats, workers in ((3, 1), (3, 2), (1, 0), (5, 0)):
        assert played(seats=seats, workers=workers) == expected


def test_other_noise_is_another_episode():
    assert played() == played(noise_seed=0)
    assert [r.max_reward for r in played(noise_seed=1)] != [r.max_reward for r in played()]


def test_episodes_share_calls_of_the_policy():
    policy = NoisyChase()
    played(policy, seats=4)
    assert sum(policy.batches) == 5 * 6  # five episodes of 44 steps by eights
    assert policy.batches[:6] == [4] * 6
    assert len(policy.batches) == 12  # four together, then the fifth


def test_a_success_ends_the_episode_and_the_highest_reward_counts():
    task = task_of("block_push", absolute_actions=False)  # as experts act
    pytest.importorskip("pybullet")
    from domains.robotics.experts.block_push import BlockPushExpert

    with VectorEnvironment(task, seats=1, workers=0) as environments:

        def act(observation, generator):
            environment = environments._local[0]._environment
            if not hasattr(environment, "expert"):
                environment.expert = BlockPushExpert(environment)
            return torch.from_numpy(environment.expert.act())[None, None]

        (result,) = roll_out(SimpleNamespace(act=act), environments, [100_000])
    assert result.success
    assert result.stages == 2
    assert result.max_reward == 1.0
    assert 30 < result.steps < 200


def test_filmed_episodes_have_pictures():
    results = played(filmed=[100_007])
    assert [len(result.frames) for result in results] == [0, 0, 45, 0, 0]
    assert results[2].frames[0].shape == (256, 256, 3)
    assert [r.max_reward for r in results] == [r.max_reward for r in played()]


@pytest.mark.parametrize(
    ("actions", "words"),
    [
        (torch.zeros(1, 8, 3), r"must return \[B=1, Ta, A=2\], got \(1, 8, 3\)"),
        (torch.zeros(2, 8, 2), r"must return \[B=1, Ta, A=2\]"),
        (torch.zeros(1, 2), r"must return \[B=1, Ta, A=2\]"),
        (torch.full((1, 8, 2), float("nan")), "not finite"),
    ],
)
def test_a_policy_that_returns_something_else(actions, words):
    with pytest.raises(ValueError, match=words):
        played(SimpleNamespace(act=lambda observation, generator: actions), seeds=[1])


@pytest.mark.parametrize("seeds", [[], [1, 2, 1]])
def test_seeds_are_distinct(seeds):
    with pytest.raises(ValueError, match="seeds must be one or more, each once"):
        played(seeds=seeds)
