"""ToolHang: put the hooked frame upright into its stand, then hang the tool on the hook by its ring.

The frame lies flat. Its own axes: z along the rod, from the tip to the bar; x along the bar, from the hook to the rod;
the grip is on the rod below the bar. The tool's x axis runs from the ring along the handle, z is the ring's axis.
"""

from collections.abc import Iterator

import numpy as np

from domains.robotics.experts.servo import NEUTRAL, OPEN, ArmExpert, Pose, from_above

HOVER = 0.10
TRAVEL = 1.22  # height of the hand over everything that stands
GRIP = np.array([0.04375, 0.0, 0.0525])  # in the frame's axes
PRONG = np.array([-0.04375, 0.0, 0.1])  # the hook's end, in the frame's axes
APPROACH = np.deg2rad(-110)  # where the hand points while the frame stands; straight ahead a joint is at its end
NEARER = 0.2  # to the robot, before the hand is turned down again: where it let go of the frame, the arm would stretch
FUNNEL = 5.0  # metres higher per metre aside, where something goes into or around something
LIPS = 0.02  # the highest of it: of the tip above the hole, of the ring above the hook
OVER_HOLE, IN_HOLE = 0.0035, 0.005  # of tip or rod from the hole's axis; the hole is 10 mm wide, the rod 7.5
DEEPER = 0.0075  # at a time: more, and the push down outweighs the correction sideways
OVER_HOOK = 0.005  # of the ring's middle from the hook's axis; the ring is 21 mm wide inside, the hook 7.5
THREADED = 0.006  # below the hook's end the ring is around it,
AROUND, INWARD = 0.013, 0.004  # and so far below and towards the rod it slides on to the bar
BASE = 0.005  # half the thickness of the stand's plate, on which the tip arrives
PITCH = np.deg2rad(35)  # of the handle below the horizon: level it rests on the hook's end, steep it does not go over
SLIPPED = 0.05
UP = np.array([0.0, 0.0, 1.0])


class ToolHangExpert(ArmExpert):
    """Each half is tried again until robosuite's own check of it holds."""

    def plan(self) -> Iterator[np.ndarray]:
        """Assemble the frame, hang the tool."""
        simulator = self.environment.simulator
        while not simulator._check_success():
            if not simulator._check_frame_assembled():
                yield from self.assemble()
            else:
                yield from self.hang()

    def assemble(self) -> Iterator[np.ndarray]:
        """Grasp the frame by its grip, turn it upright over the hole, lower it, let go, back off."""
        across = self.frame.rotation[:, 0]
        side = 1.0 if across[1] > 0 else -1.0
        yield from self.move(lambda: self.frame_grasp(side).raised(HOVER), OPEN, within=0.02)
        yield from self.move(lambda: self.frame_grasp(side), OPEN, within=0.005, angle_within=0.05, speed=0.5)
        yield from self.close(lambda: self.frame_grasp(side))
        upright = self.upright()
        lifted = Pose(self.tip.position + 0.25 * UP, self.frame.rotation)
        mouth = self.mouth()
        for motion in (
            self.carry(lambda: self.tip, lifted, within=0.03, angle_within=0.5, speed=0.5, turn=0.3),
            self.carry(
                lambda: self.tip,
                Pose(mouth + 0.08 * UP, upright),
                within=0.02,
                angle_within=0.05,
                turn=0.3,
                patience=120,
            ),
        ):
            yield from self.while_held(motion, self.grip, SLIPPED)
        assembled = self.environment.simulator._check_frame_assembled
        while not assembled() and np.linalg.norm(self.hand.position - self.grip()) < SLIPPED:
            lower = self.carry(lambda: self.tip, lambda: self.lowered(upright), within=0.004, speed=0.5, stuck=8)
            yield from self.while_held(lower, self.grip, SLIPPED)
            if not assembled():  # wedged: back a little, and again
                back = Pose(np.array([*mouth[:2], self.tip.position[2] + 0.03]), upright)
                retreat = self.carry(lambda: self.tip, back, speed=0.5, patience=4)
                yield from self.while_held(retreat, self.grip, SLIPPED)
        yield from self.release(10)
        yield from self.back_off(0.1, within=0.03, speed=0.5)

    def hang(self) -> Iterator[np.ndarray]:
        """Grasp the tool, bring its ring over and around the hook, let go: it slides on to the bar."""
        nearer = self.hand.position - [NEARER, 0, 0]
        above = Pose(np.array([*nearer[:2], TRAVEL]), NEUTRAL)
        yield from self.move(above, OPEN, within=0.05, angle_within=0.3, turn=0.3)
        over = self.tool_grasp()
        yield from self.move(over.at([*over.position[:2], TRAVEL]), OPEN, within=0.05, angle_within=0.2)
        yield from self.move(lambda: self.tool_grasp().raised(HOVER), OPEN, within=0.02)
        yield from self.move(self.tool_grasp, OPEN, within=0.005, angle_within=0.05, speed=0.5)
        yield from self.close(self.tool_grasp)
        raised = self.ring
        raised = raised.at([*raised.position[:2], TRAVEL - 0.02])
        for motion in (
            self.carry(lambda: self.ring, raised, within=0.03, angle_within=0.5, speed=0.5, turn=0.3),
            self.carry(lambda: self.ring, self.hung(self.prong + 0.06 * UP), within=0.02, turn=0.3, patience=120),
            self.carry(lambda: self.ring, self.lowered_ring, within=0.002, speed=0.3, turn=0.3),
        ):
            yield from self.while_held(motion, lambda: self.tool.position, SLIPPED)
        yield from self.release(10)
        if not self.environment.simulator._check_success():
            yield from self.back_off(0.08, within=0.03, speed=0.5)

    @property
    def frame(self) -> Pose:
        """The frame."""
        return self.body("frame_root")

    @property
    def tool(self) -> Pose:
        """The tool's handle."""
        return self.body("tool_root")

    @property
    def tip(self) -> Pose:
        """The frame's lower end, with the frame's rotation."""
        return self.frame.at(self.site("frame_tip_site").position)

    @property
    def ring(self) -> Pose:
        """The middle of the tool's ring, with the tool's rotation."""
        return self.tool.at(self.site("tool_hole1_center").position)

    @property
    def prong(self) -> np.ndarray:
        """The end of the hook, [3]."""
        return (self.frame @ Pose(PRONG, np.eye(3))).position

    def grip(self) -> np.ndarray:
        """The middle of the frame's grip, [3]."""
        return (self.frame @ Pose(GRIP, np.eye(3))).position

    def mouth(self) -> np.ndarray:
        """The middle of the stand's hole at its upper end, [3]."""
        walls = [self.geom(f"stand_wall{index}") for index in range(4)]
        top = self.site("stand_mount_site").position[2]
        return np.array([*np.mean(walls, axis=0)[:2], top])

    def geom(self, name: str) -> np.ndarray:
        """Position of a part of the model, [3]."""
        sim = self.environment.simulator.sim
        return np.array(sim.data.geom_xpos[sim.model.geom_name2id(name)])

    def frame_grasp(self, side: float) -> Pose:
        """The hand around the grip of the lying frame."""
        return Pose(self.grip(), from_above(side * self.frame.rotation[:, 0]))

    def tool_grasp(self) -> Pose:
        """The hand around the tool's handle, so that the wrist is in its middle once the ring is over the hook."""
        return Pose(self.tool.position, from_above(self.tool.rotation[:, 1]))

    def upright(self) -> np.ndarray:
        """Rotation of the standing frame: rod up, the side that the hand is on turned to the approach."""
        y = np.array([np.cos(APPROACH), np.sin(APPROACH), 0.0])
        return np.stack([np.cross(y, UP), y, UP], axis=1)

    def lowered(self, upright: np.ndarray) -> Pose:
        """The next place of the tip: deeper while the rod is in the hole, or over it; else up again beside it."""
        mouth, tip, floor = self.mouth(), self.tip, self.geom("stand_base")[2] + BASE
        depth = mouth[2] - tip.position[2]
        aside = _aside(tip.position + max(depth, 0.0) * tip.rotation[:, 2], mouth)
        if depth <= 0:
            return Pose(mouth + _funnel(aside, OVER_HOLE, DEEPER) * UP, upright)
        if aside < IN_HOLE:
            return Pose(np.array([*mouth[:2], max(floor, tip.position[2] - DEEPER)]), upright)
        return Pose(np.array([*tip.position[:2], mouth[2] + LIPS]), upright)

    def hung(self, ring: np.ndarray) -> Pose:
        """The tool's ring at a place, its handle away from the rod and `PITCH` below the horizon."""
        out = self.outward
        x, y = np.cos(PITCH) * out - np.sin(PITCH) * UP, np.cross(UP, out)
        return Pose(ring, np.stack([x, y, np.cross(x, y)], axis=1))

    def lowered_ring(self) -> Pose:
        """The next place of the ring: the lower the nearer it is to the hook's axis, and around it towards the rod.

        A function of the poses without a jump, like `lowered`: what decides by a threshold a policy learns as its mean.
        """
        depth = self.prong[2] - self.ring.position[2]
        axis = self.prong - INWARD * np.clip(depth / THREADED, 0, 1) * self.outward
        aside = _aside(self.ring.position, axis)
        return self.hung(axis + _funnel(aside, OVER_HOOK, AROUND) * UP)

    @property
    def outward(self) -> np.ndarray:
        """Horizontal unit vector [3] along the bar, away from the rod."""
        out = -self.frame.rotation[:, 0] * [1, 1, 0]
        return out / np.linalg.norm(out)


def _aside(one: np.ndarray, other: np.ndarray) -> float:
    """Horizontal distance between two points, metres."""
    return float(np.linalg.norm(one[:2] - other[:2]))


def _funnel(aside: float, level: float, deepest: float) -> float:
    """Height to be at so far aside of an axis: 0 at `level`, higher further off, at most `deepest` below."""
    return float(np.clip(FUNNEL * (aside - level), -deepest, LIPS))
