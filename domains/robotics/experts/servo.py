"""Sending an arm of robosuite to poses: the closed loop under every scripted expert.

The controller's goal is the present pose plus the action, so the arm creeps after it; a hand that is off target, or
pushed by noise, is sent back at the next step. All poses are in the world frame, lengths in metres, angles in radians.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from domains.robotics.environments.robosuite_tasks import RobosuiteEnvironment
from domains.robotics.experts.expert import ScriptedExpert

OPEN, CLOSED = -1.0, 1.0
STEP, TURN = 0.05, 0.5  # of an action of 1: metres, radians
GAIN = 2.0  # the goal lies this many times as far as the target: the controller alone is slow near it

CLOSING_STEPS = 15  # the gripper's command takes ten from open to closed
STILL = 5e-4  # metres per step
BEYOND = 0.005  # to make up for a load the hand is sent beyond by its error again, by so many metres an axis at most


@dataclass(frozen=True)
class Pose:
    """Position [3] and rotation matrix [3, 3] of a body; columns are its axes in the world."""

    position: np.ndarray
    rotation: np.ndarray

    def __matmul__(self, other: "Pose") -> "Pose":
        """The pose that is `other` as seen from this one."""
        return Pose(self.position + self.rotation @ other.position, self.rotation @ other.rotation)

    def inverse(self) -> "Pose":
        """The pose of the world as seen from this one."""
        return Pose(-self.rotation.T @ self.position, self.rotation.T)

    def at(self, position: np.ndarray) -> "Pose":
        """The same rotation at another place."""
        return Pose(np.asarray(position, dtype=np.float64), self.rotation)

    def raised(self, height: float) -> "Pose":
        """The same pose, higher."""
        return self.at(self.position + np.array([0, 0, height]))


Goal = Pose | Callable[[], Pose]  # fixed, or asked anew at every step


def distance(one: Pose, other: Pose) -> float:
    """Between positions, metres."""
    return float(np.linalg.norm(one.position - other.position))


def angle(one: Pose, other: Pose) -> float:
    """Of the rotation between two poses, radians in [0, pi]."""
    return turned(one.rotation, other.rotation)


def turn_between(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Axis-angle [3], in the world, of the rotation from matrix `start` to `end`."""
    return Rotation.from_matrix(end @ start.T).as_rotvec()


def turned(start: np.ndarray, end: np.ndarray) -> float:
    """Angle of the rotation from matrix `start` to `end`, radians in [0, pi]."""
    return float(np.linalg.norm(turn_between(start, end)))


def about(axis: np.ndarray | list[float], radians: float) -> np.ndarray:
    """Matrix of the rotation about a world axis."""
    unit = np.asarray(axis, dtype=np.float64)
    return Rotation.from_rotvec(unit / np.linalg.norm(unit) * radians).as_matrix()


def from_above(closing: np.ndarray) -> np.ndarray:
    """Rotation of a hand that points down and closes along the horizontal part of `closing` [3].

    The hand's x axis is the one along which its fingers close; z is where it points.
    """
    x = np.array([closing[0], closing[1], 0.0])
    x /= np.linalg.norm(x)
    down = np.array([0.0, 0.0, -1.0])
    return np.stack([x, np.cross(down, x), down], axis=1)


def nearest(rotations: list[np.ndarray], to: np.ndarray) -> np.ndarray:
    """The one of the rotations that is the smallest turn away from `to`."""
    return min(rotations, key=lambda rotation: turned(to, rotation))


NEUTRAL = from_above(np.array([0.0, 1.0, 0.0]))  # the hand of a Panda at rest, its wrist far from either end


class ArmExpert(ScriptedExpert):
    """A scripted expert with one Panda arm. Actions [7]: displacement, axis-angle, gripper."""

    environment: RobosuiteEnvironment

    @property
    def hand(self) -> Pose:
        """Where the grip is: between the fingertips."""
        return self.site("gripper0_right_grip_site")

    def site(self, name: str) -> Pose:
        """Pose of a marked point of the model."""
        data = self.environment.simulator.sim.data
        index = self.environment.simulator.sim.model.site_name2id(name)
        return Pose(np.array(data.site_xpos[index]), np.array(data.site_xmat[index]).reshape(3, 3))

    def body(self, name: str) -> Pose:
        """Pose of a body."""
        data = self.environment.simulator.sim.data
        index = self.environment.simulator.sim.model.body_name2id(name)
        return Pose(np.array(data.body_xpos[index]), np.array(data.body_xmat[index]).reshape(3, 3))

    @property
    def finger_gap(self) -> float:
        """Distance between the fingers, metres: 0.08 open, 0 closed on nothing."""
        sim = self.environment.simulator.sim
        joints = self.environment.simulator.robots[0]._ref_gripper_joint_pos_indexes["right"]
        return float(np.abs(sim.data.qpos[joints]).sum())

    def rest(self, last: np.ndarray) -> np.ndarray:
        """Stay, fingers as they are."""
        return np.append(np.zeros(6), last[6])

    def towards(self, goal: Pose, grip: float, *, speed: float = 1.0, turn: float = 1.0) -> np.ndarray:
        """The action [7] that brings the hand nearer to `goal`; no component exceeds `speed`, `turn` of the largest."""
        hand = self.hand
        shift = _limited(GAIN * (goal.position - hand.position) / STEP, speed)
        rotation = _limited(GAIN * turn_between(hand.rotation, goal.rotation) / TURN, turn)
        return np.concatenate([shift, rotation, [grip]])

    def move(
        self,
        goal: Goal,
        grip: float,
        *,
        within: float = 0.01,
        angle_within: float = 0.1,
        speed: float = 1.0,
        turn: float = 1.0,
        patience: int = 80,
    ) -> Iterator[np.ndarray]:
        """Approach the goal until the hand is `within` metres and `angle_within` radians of it.

        Ends after `patience` steps in any case: what follows finds out whether it is near enough.
        """
        for _ in range(patience):
            target = _now(goal)
            if distance(self.hand, target) < within and angle(self.hand, target) < angle_within:
                return
            yield self.towards(target, grip, speed=speed, turn=turn)

    def close(self, goal: Goal) -> Iterator[np.ndarray]:
        """Close the fingers at the goal until they no longer move: they take half a second."""
        for step in range(CLOSING_STEPS):
            before = self.finger_gap
            yield self.towards(_now(goal), CLOSED)
            if step >= 4 and before - self.finger_gap < STILL:
                return

    def release(self, steps: int = 5) -> Iterator[np.ndarray]:
        """Open the fingers where they are."""
        here = self.hand
        for _ in range(steps):
            yield self.towards(here, OPEN)

    def while_held(
        self, motion: Iterator[np.ndarray], place: Callable[[], np.ndarray], within: float
    ) -> Iterator[np.ndarray]:
        """The motion, cut short when the task is solved, or what was grasped at `place()` [3] has left the hand."""
        for action in motion:
            lost = np.linalg.norm(self.hand.position - place()) > within
            if lost or self.environment.simulator._check_success():
                return
            yield action

    def back_off(self, metres: float, *, within: float, speed: float) -> Iterator[np.ndarray]:
        """Draw the open hand back from where it points."""
        hand = self.hand
        yield from self.move(hand.at(hand.position - metres * hand.rotation[:, 2]), OPEN, within=within, speed=speed)

    def carry(
        self,
        thing: Callable[[], Pose],
        goal: Goal,
        *,
        within: float = 0.01,
        angle_within: float = 0.1,
        speed: float = 1.0,
        turn: float = 1.0,
        patience: int = 80,
        settle: int = 1,
        stuck: int | None = None,
    ) -> Iterator[np.ndarray]:
        """Bring what the fingers hold to the goal, as `move` brings the hand: the thing's own pose is controlled.

        So it does not matter how it lies in the hand. The hand is sent a little beyond, since a load holds it back: by
        the present error and not by a sum of past ones, so that the action depends on the present poses alone, which is
        what a policy sees. Ends after `settle` steps at the goal in a row, for what must not swing past it, and also if
        the thing has moved by less than a millimetre in the last `stuck` steps.
        """
        arrived = 0
        places: list[Pose] = []
        for _ in range(patience):
            held, target = thing(), _now(goal)
            arrived = arrived + 1 if distance(held, target) < within and angle(held, target) < angle_within else 0
            places.append(held)
            wedged = stuck is not None and len(places) > stuck and distance(held, places[-1 - stuck]) < 0.001
            if arrived >= settle or wedged:
                return
            hand = target @ held.inverse() @ self.hand
            beyond = np.clip(target.position - held.position, -BEYOND, BEYOND)
            yield self.towards(hand.at(hand.position + beyond), CLOSED, speed=speed, turn=turn)


def _now(goal: Goal) -> Pose:
    return goal if isinstance(goal, Pose) else goal()


def _limited(vector: np.ndarray, largest: float) -> np.ndarray:
    """The vector, shortened so that no component exceeds `largest`."""
    return vector * min(1.0, largest / max(float(np.abs(vector).max()), 1e-9))
