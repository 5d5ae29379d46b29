"""The facts of a task: simulator, observations, actions, length of an episode. One file each in configs/task/.

How a policy is trained on it belongs to configs/experiment/.
"""

from dataclasses import dataclass, field

from omegaconf import MISSING

from drifting.training.config import require

SIMULATORS = ("robosuite", "push_t", "block_push", "kitchen")
BOTH_KINDS = ("robosuite", "block_push")  # of actions: displacements, or with task.absolute_actions where to be


@dataclass
class PoseConfig:
    """Where a pose is observed: `size` numbers of a position and four of a quaternion (x, y, z, w), in the world frame.

    `position` and `quaternion` name observations, `position_at` and `quaternion_at` the first number in each. Without
    `quaternion` it is a place alone.
    """

    position: str = MISSING
    position_at: int = 0
    size: int = 3
    quaternion: str = ""
    quaternion_at: int = 0

    def __post_init__(self) -> None:
        require(self.size in (2, 3), "task.poses.*.size", "2 on a plane or 3", self.size)


@dataclass
class TaskConfig:
    """One manipulation task.

    `environment` is the simulator's own name of it. `observations` maps the keys of low-dimensional observations to
    their widths, `images` those of camera images to their side length in pixels (square, RGB); a policy reads all that
    are named. `absolute_actions`: poses in the world frame instead of displacements (robosuite), places on the table
    instead of displacements (block_push); push_t and kitchen have one kind of action and leave it false. `stages`: how
    many the score counts, 1 if the task succeeds or fails as a whole. `demo_noise`: standard deviation of the noise
    executed while demonstrations are made, in half ranges of the actions, and `demo_noise_steps` how many control steps
    it lasts (0: white; see `executed_noise`); the labels stay clean. `present`: the observed numbers, by key and index,
    that the first numbers of an absolute action are goals of; see `policy.relative`. `poses`: of the hand and of
    things, where they are among the observations; see `policy.geometry`.
    """

    name: str = MISSING
    simulator: str = MISSING
    environment: str = MISSING
    observations: dict[str, int] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    robots: int = 1
    action_dim: int = MISSING
    absolute_actions: bool = False
    max_steps: int = MISSING
    control_hz: int = 20
    stages: int = 1
    demo_noise: float = 0.0
    demo_noise_steps: float = 0.0
    present: dict[str, list[int]] = field(default_factory=dict)
    poses: dict[str, PoseConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.simulator in SIMULATORS, "task.simulator", ", ".join(SIMULATORS), self.simulator)
        require(len(self.observations) + len(self.images) > 0, "task.observations", "one key or more", {})
        for key, width in (*self.observations.items(), *self.images.items()):
            require(width >= 1, f"task.observations.{key}", "at least 1", width)
        either = self.simulator in BOTH_KINDS or not self.absolute_actions
        require(either, "task.absolute_actions", f"false outside {', '.join(BOTH_KINDS)}", self.absolute_actions)
        for name in ("robots", "action_dim", "max_steps", "control_hz", "stages"):
            require(getattr(self, name) >= 1, f"task.{name}", "at least 1", getattr(self, name))
        for name in ("demo_noise", "demo_noise_steps"):
            quiet = 0 <= getattr(self, name) < float("inf")
            require(quiet, f"task.{name}", "at least 0 and finite", getattr(self, name))

    @property
    def observation_dim(self) -> int:
        """Numbers in one step's low-dimensional observations, O."""
        return sum(self.observations.values())
