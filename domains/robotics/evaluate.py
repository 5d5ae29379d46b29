"""Play a trained policy from fixed initial conditions and report as Diffusion Policy does.

    python -m domains.robotics.evaluate run=runs/lift episodes=50
    python -m domains.robotics.evaluate run=runs/lift_diffusion sampler=ddim inference_steps=16
    python -m domains.robotics.evaluate run=runs/lift/policy videos=8      a folder of save_pretrained

The score is the mean over the last checkpoints, never the best of them. eval_log.json, media/*.mp4 and frames.png lie
in <run>/eval-<what was played>. The same command continues an interrupted evaluation after the last checkpoint that was
played to the end.
"""

import json
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING

from domains.robotics.chunk_policy import ChunkPolicy
from domains.robotics.config import CONFIGS
from domains.robotics.demonstrations.config import EVALUATION_SEED
from domains.robotics.environments.seat import Film
from domains.robotics.environments.vectorized import Start, VectorEnvironment
from domains.robotics.evaluation import Latency, action_latency, run_figures, score_checkpoint
from domains.robotics.played import Played, Rollouts
from domains.robotics.rollout import EpisodeResult, roll_out
from domains.robotics.trained_policies import TrainedPolicies
from domains.robotics.videos import check_encoder, save_frame_sheet, save_video
from drifting.training.atomic_file import replace_text
from drifting.training.command_line import command
from drifting.training.config import require
from drifting.training.devices import chosen_device
from drifting.training.run_dir import environment

DECISIVE = ("episodes", "checkpoints", "first_seed", "noise_seed")  # for the figures, beside the label of the policies
PLAIN_VALUE = r"[\w./:~+@%-]+"  # what Hydra reads as it stands


@dataclass
class EvaluateConfig:
    """`run`: a run directory of training or a folder of `save_pretrained`; everything else has a default.

    `episodes` initial conditions, of the seeds from `first_seed` on; the last `checkpoints` are played, or as many as
    there are. `seats` episodes are played at the same time, in `workers` processes; the result does not depend on the
    latter. The first `videos` episodes of the newest checkpoint are filmed, `video_size` pixels wide. `sampler` and
    `inference_steps` sample a diffusion baseline otherwise than it was configured; `action_steps` of a chunk are
    executed before the policy is asked again, by default as it was trained. `timeout`: seconds after which a simulator
    that does not answer is an error. `out` in place of <run>/eval-<kind of policy, and what is not as by default>.
    """

    run: str = MISSING
    episodes: int = 50
    checkpoints: int = 10
    workers: int = 1
    seats: int = 8
    videos: int = 4
    video_size: int = 256
    first_seed: int = EVALUATION_SEED
    noise_seed: int = 0
    sampler: str | None = None
    inference_steps: int | None = None
    action_steps: int | None = None
    device: str = "auto"
    threads: int = 1
    timeout: float = 300.0
    out: str = ""

    def __post_init__(self) -> None:
        for name in ("episodes", "checkpoints", "workers", "seats", "threads"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("videos", "first_seed", "noise_seed"):
            require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        require(self.first_seed + self.episodes <= 2**32, "first_seed", "below 2^32 - episodes", self.first_seed)
        fits = self.video_size >= 16 and self.video_size % 2 == 0
        require(fits, "video_size", "even and at least 16", self.video_size)
        require(0 < self.timeout < float("inf"), "timeout", "positive and finite, in seconds", self.timeout)


@command(EvaluateConfig, "robotics_evaluate", configs=CONFIGS)
def main(config: EvaluateConfig) -> None:
    """Evaluate the last checkpoints of a run, or a saved policy."""
    evaluate(config)


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Play, write and print; returns what eval_log.json holds."""
    torch.set_num_threads(config.threads)
    device = chosen_device(config.device)
    policies = TrainedPolicies.find(Path(config.run), config.checkpoints)
    policies = policies.sampled_by(config.sampler, config.inference_steps).executing(config.action_steps)
    loaded = policies.load(device)
    out = folder_of(config, policies.label)
    out.mkdir(parents=True, exist_ok=True)
    task, steps, machine = policies.task, policies.steps, environment()
    print(f"{task.name}, {policies.label}: {config.episodes} episodes from seed {config.first_seed}, steps {steps}")
    if len(steps) < config.checkpoints and policies.config is not None:
        print(f"the run has {count_of(len(steps))}, {config.checkpoints} were asked for")

    setting = {name: getattr(config, name) for name in ("episodes", "first_seed", "noise_seed", "seats", "threads")}
    setting |= {"task": asdict(task), "policy": asdict(policies.policy), "device": str(device), "environment": machine}
    played = Played(out / "played.json", setting)
    rollouts, latency = play(config, policies, loaded, played)
    results = {step: each.episodes for step, each in rollouts.items()}

    log: dict[str, Any] = {
        "task": task.name,
        "policy": policies.label,
        "demonstrations": policies.demonstrations,
        "episodes": config.episodes,
        "first_seed": config.first_seed,
        **run_figures(results, task.stages),
        "latency": {**asdict(latency), "device": str(device), "threads": config.threads, "cpu": machine["cpu"]},
        "seconds": sum(each.seconds for each in rollouts.values()),
        "environment": machine,
        "command": command_of(config),
    }
    log |= save_pictures(out, [result for result in results[steps[-1]] if result.frames])
    replace_text(out / "eval_log.json", json.dumps(log, indent=2) + "\n")
    played.remove()
    print(summary(log))
    print(out / "eval_log.json")
    return log


def play(
    config: EvaluateConfig, policies: TrainedPolicies, loaded: Iterator[tuple[int, ChunkPolicy]], played: Played
) -> tuple[dict[int, Rollouts], Latency]:
    """The rollouts of every checkpoint, by step, and the latency of the newest; what was played before is not again."""
    task = policies.task
    rollouts: dict[int, Rollouts] = {}
    seeds = range(config.first_seed, config.first_seed + config.episodes)
    with VectorEnvironment(
        task,
        seats=min(config.seats, config.episodes),
        workers=config.workers,
        observation_steps=policies.policy.observation_steps,
        film=Film(size=config.video_size),
        timeout=config.timeout,
    ) as environments:
        # Only the newest checkpoint is filmed, hours later perhaps: whatever videos need is found missing here.
        first = environments.command({0: Start(seeds[0], filmed=config.videos > 0)})[0]
        if config.videos:
            check_encoder(first.frames)
        for step, policy in loaded:
            filmed = seeds[: config.videos] if step == policies.steps[-1] else ()
            known = None if filmed else played.find(policy)
            if known is None:
                began = time.perf_counter()
                episodes = roll_out(policy, environments, seeds, noise_seed=config.noise_seed, filmed=filmed)
                rollouts[step] = played.add(policy, episodes, time.perf_counter() - began)
            else:
                rollouts[step] = known
            print(line_of(step, rollouts[step].episodes, task.stages) + ("   (played before)" if known else ""))
    return rollouts, action_latency(policy, first.observation, task.action_dim)


def folder_of(config: EvaluateConfig, label: str) -> Path:
    """`config.out`, or <run>/eval-<label>-<what else decides the figures and is not as by default>."""
    if config.out:
        return Path(config.out)
    others = [f"{name}-{value}" for name, value in changed(config).items() if name in DECISIVE]
    return Path(config.run) / "-".join(["eval", label, *others]).replace(" ", "-").replace("_", "-")


def command_of(config: EvaluateConfig) -> str:
    """The command line that evaluates as `config` says."""

    def quoted(value: str) -> str:
        return value if re.fullmatch(PLAIN_VALUE, value) else "'" + value.replace("'", r"\'") + "'"

    settings = [f"{name}={quoted(str(value))}" for name, value in changed(config).items()]
    return shlex.join(["python", "-m", "domains.robotics.evaluate", *settings])


def changed(config: EvaluateConfig) -> dict[str, Any]:
    """What is not as by default, by name."""
    defaults = {field.name: field.default for field in fields(config)}
    return {name: value for name, value in vars(config).items() if value != defaults[name]}


def save_pictures(out: Path, films: Sequence[EpisodeResult]) -> dict[str, str]:
    """A video of each filmed episode and one sheet of stills; their paths by Diffusion Policy's names."""
    paths = {}
    for film in films:
        video = save_video(out / "media" / f"seed_{film.seed}.mp4", film.frames)
        paths[f"test/sim_video_{film.seed}"] = str(video.relative_to(out))
    if films:
        rows = [(f"seed {film.seed}, score {film.max_reward:.2f}", film.frames) for film in films]
        paths["frame_sheet"] = save_frame_sheet(out / "frames.png", rows).name
    return paths


def line_of(step: int, results: Sequence[EpisodeResult], stages: int) -> str:
    """One checkpoint."""
    row = score_checkpoint(step, results, stages)
    text = f"step {step:>8}   score {row.mean_score:.3f}   success {row.success_rate:.3f}"
    return text + "".join(f"   p{k + 1} {share:.3f}" for k, share in enumerate(row.stages) if stages > 1)


def count_of(checkpoints: int) -> str:
    """A number in words."""
    return f"{checkpoints} checkpoint{'s' if checkpoints > 1 else ''}"


def summary(log: dict[str, Any]) -> str:
    """The run in three lines."""
    low, high = log["test/mean_score_interval"]
    latency = log["latency"]
    return (
        f"mean over {count_of(len(log['checkpoints']))}: score {log['test/mean_score']:.3f} "
        f"(95 % over initial conditions {low:.3f} to {high:.3f}), success {log['test/success_rate']:.3f}\n"
        f"one action chunk, batch 1: p50 {latency['p50_ms']:.2f} ms, p99 {latency['p99_ms']:.2f} ms on "
        f"{latency['device']}, {latency['threads']} thread{'s' if latency['threads'] > 1 else ''}\n"
        f"{log['seconds']:.0f} s of rollouts; demonstrations: {log['demonstrations']}"
    )


if __name__ == "__main__":
    main()
