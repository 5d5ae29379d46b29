"""NutAssemblySquare: take the nut by its handle and lower it over the square peg."""

from collections.abc import Iterator
from functools import partial
from itertools import product

import numpy as np

from domains.robotics.experts.servo import NEUTRAL, OPEN, ArmExpert, Pose, about, from_above, turned

HOVER = 0.08
ABOVE_PEG = 0.13  # of the nut's centre above the peg's: clear of its tip, which is 0.1 above
SEATED = -0.02  # of the nut's centre, against the peg's
PEG_TIP = 0.1
STRAIGHT = 0.006  # of the hole's play of 0.0067
SLIPPED = 0.03


class SquareExpert(ArmExpert):
    """Of the ways to grasp the nut and to turn it, takes the one that keeps the wrist nearest its middle."""

    def plan(self) -> Iterator[np.ndarray]:
        """Grasp the handle, raise, align over the peg, lower; again if the nut slips."""
        simulator = self.environment.simulator
        peg, nut = self.body("peg1"), lambda: self.nut
        while not simulator._check_success():
            side, level = self._turns()
            grasp = partial(self.grasp, side)
            yield from self.move(partial(self.grasp, side, HOVER), OPEN, within=0.02, angle_within=0.1)
            yield from self.move(grasp, OPEN, within=0.006, angle_within=0.06, speed=0.7)
            yield from self.close(grasp)
            clear = peg.raised(ABOVE_PEG)
            start = Pose(np.array([*self.nut.position[:2], clear.position[2]]), level)
            above = Pose(clear.position, level)
            for motion in (
                self.carry(nut, start, within=0.03, angle_within=0.3),
                self.carry(nut, above, within=0.02, angle_within=0.15),
                self.carry(nut, above, within=0.003, angle_within=0.05, speed=0.5, settle=3),
                self.carry(nut, partial(self.lowered, above), within=0.005, speed=0.5),
            ):
                yield from self.while_held(motion, lambda: self.handle, SLIPPED)
            yield from self.release()
            yield from self.move(lambda: Pose(self.hand.position, NEUTRAL).raised(0.1), OPEN, patience=8)

    @property
    def nut(self) -> Pose:
        """The centre of the nut's hole."""
        return self.body("SquareNut_main")

    @property
    def handle(self) -> np.ndarray:
        """The centre of its handle, [3]."""
        return self.site("SquareNut_handle_site").position

    def grasp(self, side: float, height: float = 0.0) -> Pose:
        """The hand across the handle, or above; side 1 or -1, for a handle looks the same from both."""
        return Pose(self.handle, from_above(side * self.nut.rotation[:, 1])).raised(height)

    def lowered(self, above: Pose) -> Pose:
        """The goal of the nut over the peg: down if it is straight above, or around the peg already, else up."""
        peg, nut = self.body("peg1").position, self.nut.position
        aside = np.linalg.norm(nut[:2] - peg[:2])
        if aside < STRAIGHT or nut[2] < peg[2] + PEG_TIP - 0.01:
            return above.at(np.array([peg[0], peg[1], peg[2] + SEATED]))
        return above

    def _turns(self) -> tuple[float, np.ndarray]:
        """Side to grasp from, and rotation of the level nut over the peg, in which the wrist is nearest its middle.

        Not with the handle away from the robot: that is out of the arm's reach.
        """
        quarters = [about([0, 0, 1], quarter * np.pi / 2) for quarter in range(4)]
        ways = [(side, level) for side, level in product((1.0, -1.0), quarters) if level[0, 0] < 0.5]

        def effort(way: tuple[float, np.ndarray]) -> float:
            side, level = way
            start, end = (from_above(side * nut[:, 1]) for nut in (self.nut.rotation, level))
            return max(turned(NEUTRAL, start), turned(NEUTRAL, end)) + 0.1 * turned(start, end)

        return min(ways, key=effort)
