"""What rollouts say about a policy, in the figures of Diffusion Policy (arXiv 2303.04137), each with its uncertainty.

The score of an episode is its highest reward; that of a policy the mean over fixed initial conditions, and that of a
run the mean over its last checkpoints, never the best of them. Shapes: C checkpoints, N initial conditions.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from domains.robotics.rollout import EpisodeResult, Policy, chunk_of_actions
from drifting.training.draws import stream

CONFIDENCE_Z = 1.959964  # 95 %
RESAMPLES = 4000


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds from one observation to its actions, of single calls."""

    p50_ms: float
    p99_ms: float
    mean_ms: float
    calls: int


@dataclass(frozen=True, slots=True)
class CheckpointScore:
    """The episodes of one checkpoint: mean score, share that succeed, share that do at least k stages, k = 1, 2, ..."""

    step: int
    mean_score: float
    success_rate: float
    stages: list[float]


def score_checkpoint(step: int, results: Sequence[EpisodeResult], stages: int) -> CheckpointScore:
    """Means over the episodes of one checkpoint on a task of so many `stages`."""
    return CheckpointScore(
        step=step,
        mean_score=float(np.mean([result.max_reward for result in results])),
        success_rate=float(np.mean([result.success for result in results])),
        stages=[float(np.mean([result.stages >= k for result in results])) for k in range(1, stages + 1)],
    )


def run_figures(results: Mapping[int, Sequence[EpisodeResult]], stages: int) -> dict[str, Any]:
    """Everything that eval_log.json says about the episodes, by Diffusion Policy's names where it has one.

    Args:
        results: the same seeds in the same order for each checkpoint, by step. `sim_max_reward_<seed>` are the last's,
            `scores` of a checkpoint those of its episodes in that order.
        stages: of the task; with more than one, `p1`, `p2`, ... are the shares that do at least so many.

    Raises:
        ValueError: no checkpoint, or other seeds at another checkpoint.
    """
    seeds = {step: [result.seed for result in episodes] for step, episodes in results.items()}
    if not results or any(other != next(iter(seeds.values())) for other in seeds.values()):
        raise ValueError(f"results must have the same seeds at one checkpoint or more, got {seeds}")
    rows = [score_checkpoint(step, results[step], stages) for step in sorted(results)]
    scores = np.array([[result.max_reward for result in results[row.step]] for row in rows])
    successes = np.array([[result.success for result in results[row.step]] for row in rows], dtype=float)
    figures: dict[str, Any] = {
        "test/mean_score": float(scores.mean()),
        "test/mean_score_interval": mean_interval(scores),
        "test/success_rate": float(successes.mean()),
        "test/success_interval": mean_interval(successes),
    }
    if stages > 1:
        figures |= {f"test/p{k + 1}": float(np.mean([row.stages[k] for row in rows])) for k in range(stages)}
    last = results[rows[-1].step]
    figures |= {f"test/sim_max_reward_{result.seed}": result.max_reward for result in last}
    figures["test/mean_steps"] = float(np.mean([result.steps for result in last]))
    figures["checkpoints"] = [asdict(row) | {"scores": own.tolist()} for row, own in zip(rows, scores, strict=True)]
    return figures


def mean_interval(scores: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of scores [C, N] in [0, 1]: what other initial conditions would have given.

    The N initial conditions are the sample; checkpoints share them, and more of them do not narrow it. Where every
    score is 0 or 1 it is Wilson's, which is not empty at 0 and 1; otherwise a bootstrap of the N means.
    """
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"scores must be [C, N] and not empty, got shape {scores.shape}")
    if np.isin(scores, (0.0, 1.0)).all():
        return wilson_interval(float(scores.mean()), scores.shape[1])
    means = scores.mean(axis=0)
    draws = np.random.default_rng(0).integers(len(means), size=(RESAMPLES, len(means)))
    low, high = np.quantile(means[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `count` trials (J. Am. Stat. Assoc. 22, 1927)."""
    if count < 1 or not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1] of at least one trial, got {share} of {count}")
    square = CONFIDENCE_Z**2 / count
    center = (share + square / 2) / (1 + square)
    half = CONFIDENCE_Z * np.sqrt(share * (1 - share) / count + square / (4 * count)) / (1 + square)
    return max(0.0, float(center - half)), min(1.0, float(center + half))


def action_latency(
    policy: Policy, observation: Mapping[str, np.ndarray], dim: int, *, calls: int = 200, seconds: float = 20.0
) -> Latency:
    """Time single calls with one observation [To, ...], noise and transfers included, on as many threads as torch has.

    `calls` of them, fewer (at least 20) if they take longer than `seconds` altogether.
    """
    generator = stream(0, "latency", 0)
    for _ in range(5):  # the first calls allocate
        chunk_of_actions(policy, [observation], [generator], dim)
    times: list[float] = []
    while len(times) < calls and (len(times) < 20 or sum(times) < seconds):
        began = time.perf_counter()
        chunk_of_actions(policy, [observation], [generator], dim)
        times.append(time.perf_counter() - began)
    milliseconds = 1000 * np.array(times)
    low, high = np.quantile(milliseconds, [0.5, 0.99])
    return Latency(float(low), float(high), float(milliseconds.mean()), len(times))
