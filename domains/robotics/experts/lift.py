"""Lift: grasp the cube from above and raise it four centimetres."""

from collections.abc import Iterator

import numpy as np

from domains.robotics.experts.servo import CLOSED, NEUTRAL, OPEN, ArmExpert, Pose, distance, from_above, nearest

HOVER = 0.08  # above the cube, clear of it at any yaw
RAISE = 0.12
SLIPPED = 0.03


class LiftExpert(ArmExpert):
    """Closes along the pair of faces that the wrist has to turn least for; tries again if the cube slips."""

    def plan(self) -> Iterator[np.ndarray]:
        """Hover, descend, close, raise."""
        while not self.environment.simulator._check_success():
            yield from self.move(lambda: self.grasp().raised(HOVER), OPEN, within=0.03, angle_within=0.15)
            yield from self.move(self.grasp, OPEN, within=0.01)
            yield from self.close(self.grasp)
            height = self.hand.raised(RAISE)
            for _ in range(40):
                if self.environment.simulator._check_success() or distance(self.hand, self.cube) > SLIPPED:
                    break
                yield self.towards(height, CLOSED)

    @property
    def cube(self) -> Pose:
        """The cube's centre."""
        return self.body("cube_main")

    def grasp(self) -> Pose:
        """The hand around the cube's centre."""
        cube = self.cube
        sides = [side for axis in cube.rotation.T[:2] for side in (axis, -axis)]
        return Pose(cube.position, nearest([from_above(side) for side in sides], NEUTRAL))
