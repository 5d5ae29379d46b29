"""PickPlaceCan: grasp the can from above, carry it over the wall, drop it into its quarter of the other bin."""

from collections.abc import Iterator

import numpy as np

from domains.robotics.experts.servo import CLOSED, NEUTRAL, OPEN, ArmExpert, Pose

HOVER = 0.12  # above the can's centre
GRIP_HEIGHT = 0.01
CLEAR = 0.30  # of the hand above the bins' floors: over the walls
DROP = 0.12  # above the floor
NEARER = np.array([-0.05, -0.07])  # off the middle of the can's quarter of the bin, which the arm can hardly reach
SLIPPED = 0.06


class CanExpert(ArmExpert):
    """A can looks the same from all sides, so the wrist keeps its turn."""

    def plan(self) -> Iterator[np.ndarray]:
        """Grasp, raise, carry over, lower, let go and retreat; again if the can slips."""
        simulator = self.environment.simulator
        x, y, floor = simulator.target_bin_placements[simulator.object_id] + np.array([*NEARER, 0])
        while not simulator._check_success():
            yield from self.move(lambda: self.grasp().raised(HOVER), OPEN, within=0.03)
            yield from self.move(self.grasp, OPEN, within=0.012)
            yield from self.close(self.grasp)
            clear = Pose(np.array([*self.hand.position[:2], floor + CLEAR]), NEUTRAL)
            for goal in (clear, clear.at([x, y, floor + CLEAR]), clear.at([x, y, floor + DROP])):
                yield from self.while_held(self.move(goal, CLOSED, within=0.03), lambda: self.can.position, SLIPPED)
            yield from self.release()
            yield from self.move(lambda: Pose(self.hand.position, NEUTRAL).raised(0.1), OPEN, patience=8)

    @property
    def can(self) -> Pose:
        """The can's centre."""
        return self.body("Can_main")

    def grasp(self) -> Pose:
        """The hand around the upper half."""
        return Pose(self.can.position, NEUTRAL).raised(GRIP_HEIGHT)
