"""Which demonstrations a policy learns from: the `demos` section of a configuration."""

from dataclasses import dataclass

from drifting.training.config import require
from drifting.training.errors import ConfigError

SOURCES = ("scripted", "human")
EVALUATION_SEED = 100_000  # evaluation resets to this seed and above, demonstrations stay below


@dataclass
class DemosConfig:
    """Scripted demonstrations are made once and cached, human ones are downloaded once or lie at `path`.

    `episodes` and `seed` are of scripted ones: how many succeed, and the seed of the first; the next ones follow, below
    `EVALUATION_SEED`. Of human ones all are used. `noise`: standard deviation of the executed noise in half ranges of
    the actions, and `noise_steps` how many control steps it lasts (see `executed_noise`), null for the task's.
    `validation_episodes` are held out. `workers`: processes that collect. `cache`: folder of what was made or
    downloaded, by default $DRIFTING_CACHE or ~/.cache/drifting/demonstrations.
    """

    source: str = "scripted"
    path: str = ""
    episodes: int = 50
    seed: int = 0
    noise: float | None = None
    noise_steps: float | None = None
    validation_episodes: int = 8
    workers: int = 1
    cache: str = ""

    def __post_init__(self) -> None:
        require(self.source in SOURCES, "demos.source", " or ".join(SOURCES), self.source)
        given = self.path == "" or self.source == "human"
        require(given, "demos.path", "left away with demos.source=scripted (a file is demos.source=human)", self.path)
        require(self.episodes >= 1, "demos.episodes", "at least 1", self.episodes)
        below = f"in 0..{EVALUATION_SEED - 1}: evaluation begins at {EVALUATION_SEED}"
        require(0 <= self.seed < EVALUATION_SEED, "demos.seed", below, self.seed)
        quiet = self.noise is None or 0 <= self.noise < float("inf")
        require(quiet, "demos.noise", "at least 0 and finite, or null for the task's", self.noise)
        lasting = self.noise_steps is None or 0 <= self.noise_steps < float("inf")
        require(lasting, "demos.noise_steps", "at least 0 and finite, or null for the task's", self.noise_steps)
        require(self.validation_episodes >= 0, "demos.validation_episodes", "at least 0", self.validation_episodes)
        require(self.workers >= 1, "demos.workers", "at least 1", self.workers)

    def check_held_out(self, episodes: int) -> None:
        """Raise ConfigError if `validation_episodes` leave nothing to train on, of so many `episodes`."""
        if self.validation_episodes >= episodes:
            raise ConfigError(
                f"demos.validation_episodes must leave a demonstration to train on, of {episodes} in all, "
                f"got {self.validation_episodes}"
            )
