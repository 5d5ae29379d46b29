"""The facts of a task: simulator, observations, actions, length of an episode. One file each in configs/task/.

How a policy is trained on it belongs to configs/experiment/.
"""

from dataclasses import dataclass, field

from omegaconf import MISSING

from drifting.training.config import require

SIMULATORS = ("robosuite", "push_t", "block_push", "kitchen", "none")
DISPLACED = ("robosuite", "block_push")  # by their actions, unless task.absolute_actions
BOTH_KINDS = (*DISPLACED, "none")  # of actions: with task.absolute_actions where to be, without it other ones
ARMS = ("robosuite", "none")  # whose absolute actions are poses: position, axis-angle and gripper of each arm


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

    `simulator` "none" is a robot of one's own: policies are trained on `demos.path` and played by the robot itself.
    `environment` is the simulator's own name of the task. `observations` maps the keys of low-dimensional observations
    to their widths, `images` those of camera images to their side length in pixels (square, RGB); a policy reads all
    that are named. `absolute_actions`: poses of arms (position, axis-angle, gripper, seven numbers each) in the world
    frame in place of displacements (robosuite, none), places on the table in place of displacements (block_push);
    push_t and kitchen have one kind of action and leave it false. `stages`: how many the score counts, 1 if the task
    succeeds or fails as a whole. `demo_noise`: standard deviation of the noise executed while demonstrations are made,
    in half ranges of the actions, and `demo_noise_steps` how many control steps it lasts (0: white; else of a strength
    of each episode's own, `demo_noise` on average, see `executed_noise`); the labels stay clean. `present`: the
    observed numbers, by key and index, that the first numbers of an absolute action are goals of; see
    `policy.relative`. `poses`: of the hand and of things, where they are among the observations; see `policy.geometry`.
    """

    name: str = MISSING
    simulator: str = MISSING
    environment: str = ""
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
        named = self.environment != "" or self.simulator == "none"
        require(named, "task.environment", f"{self.simulator}'s name of the task", self.environment)
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
    def displaces(self) -> bool:
        """Whether actions are known to be displacements; of one's own robot only its owner knows."""
        return not self.absolute_actions and self.simulator in DISPLACED

    @property
    def arm_poses(self) -> bool:
        """Whether actions are poses of arms, seven numbers each."""
        return self.absolute_actions and self.simulator in ARMS

    @property
    def observation_dim(self) -> int:
        """Numbers in one step's low-dimensional observations, O."""
        return sum(self.observations.values())
