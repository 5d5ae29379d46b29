"""The table of BlockPush in pybullet: an xArm 6 holding a stick, two blocks, two target squares, a camera.

Lengths in metres, the robot's base at the origin, the table at height 0. Layout, heights, step rates and the arm are
those of the published task (its two-block version in Diffusion Policy, arXiv 2303.04137, Apache-2.0); the shapes of
blocks, stick and squares are plain primitives of our own.
"""

import math
from pathlib import Path

import numpy as np

from domains.robotics.environments.requirements import simulator_package

SIMULATION_HZ = 240
EFFECTOR_HEIGHT = 0.06
BLOCK_SIDE, BLOCK_HEIGHT, BLOCK_MASS = 0.04, 0.04, 0.05
STICK_RADIUS, STICK_LENGTH = 0.01, 0.05
TARGET_SIDE = 0.08
FRICTION = 0.6
JOINT_FORCE, HOLDING_FORCE = 1200.0, 100.0
ELBOW_UP = (-0.93, 0.70, -1.11, 0.0, 0.40, 0.0)  # joint angles to start the search for others from, radians
DOWN = (0.0, 1.0, 0.0, 0.0)  # quaternion xyzw of a flange that points at the table
RED, GREEN = (0.85, 0.25, 0.2, 1.0), (0.2, 0.6, 0.3, 1.0)
PALE_RED, PALE_GREEN = (0.95, 0.75, 0.72, 1.0), (0.72, 0.88, 0.75, 1.0)
POSE_AND_MOTION = 13  # position [3], quaternion [4], velocity [3], angular velocity [3]


class BlockPushScene:
    """One pybullet world in this process, without a window."""

    def __init__(self) -> None:
        pybullet = simulator_package("pybullet")
        models = Path(simulator_package("pybullet_data").getDataPath())
        self._bullet = simulator_package("pybullet_utils.bullet_client").BulletClient(pybullet.DIRECT)
        self._bullet.setGravity(0, 0, -9.8)
        self._bullet.setTimeStep(1 / SIMULATION_HZ)
        table = self._bullet.createCollisionShape(pybullet.GEOM_PLANE)
        board = self._visual((0.6, 0.6, 0.001), (0.93, 0.92, 0.9, 1.0))
        self._table = self._bullet.createMultiBody(0, table, -1)
        self._bullet.createMultiBody(0, -1, board, (0.4, 0.0, -0.001))
        self._bullet.changeDynamics(self._table, -1, lateralFriction=1.0)
        self._targets = [self._target(PALE_RED), self._target(PALE_GREEN)]
        self._blocks = [self._block(RED), self._block(GREEN)]
        self._arm = self._bullet.loadURDF(str(models / "xarm" / "xarm6_robot_white.urdf"), useFixedBase=True)
        infos = [self._bullet.getJointInfo(self._arm, joint) for joint in range(self._bullet.getNumJoints(self._arm))]
        self._joints = [info[0] for info in infos if info[2] == pybullet.JOINT_REVOLUTE]
        self._flange = self._joints[-1]
        for joint in self._joints:
            self._bullet.changeDynamics(self._arm, joint, linearDamping=0, angularDamping=0)
        self._stick = self._hold_stick()
        self.target_poses = np.zeros((2, 3))  # x, y, yaw

    def place(self, effector: np.ndarray, blocks: np.ndarray, targets: np.ndarray) -> None:
        """Everything at rest: the effector at [x, y], blocks and targets at [2, 3] of x, y, yaw."""
        self._put_arm(effector)
        for body, (x, y, yaw) in zip(self._blocks, blocks, strict=True):
            self._put(body, (x, y, BLOCK_HEIGHT / 2), (0, 0, yaw))
        self._put_targets(targets)

    def move_effector(self, target: np.ndarray, steps: int) -> None:
        """Drive the flange towards [x, y] at its height for `steps` simulation steps.

        Contacts that the solver remembers are forgotten first: what happens follows from `get_state()` and the target.
        """
        self.set_state(self.get_state())
        angles = self._inverse_kinematics(target)
        self._bullet.setJointMotorControlArray(
            self._arm,
            self._joints,
            self._bullet.POSITION_CONTROL,
            targetPositions=angles,
            forces=[JOINT_FORCE] * len(self._joints),
        )
        for _ in range(steps):
            self._bullet.stepSimulation()

    @property
    def effector(self) -> np.ndarray:
        """Where the flange is, [x, y]."""
        return np.array(self._bullet.getLinkState(self._arm, self._flange, computeForwardKinematics=1)[4][:2])

    @property
    def blocks(self) -> np.ndarray:
        """Where the blocks are, [2, 3] of x, y, yaw."""
        poses = []
        for body in self._blocks:
            position, rotation = self._bullet.getBasePositionAndOrientation(body)
            poses.append([*position[:2], self._bullet.getEulerFromQuaternion(rotation)[2]])
        return np.array(poses)

    def get_state(self) -> np.ndarray:
        """Angles and speeds of the joints, pose and motion of stick and blocks, poses of the targets; float64 [S]."""
        joints = self._bullet.getJointStates(self._arm, self._joints)
        parts = [[state[0] for state in joints], [state[1] for state in joints]]
        for body in (self._stick, *self._blocks):
            parts += [*self._bullet.getBasePositionAndOrientation(body), *self._bullet.getBaseVelocity(body)]
        return np.concatenate([np.asarray(part, dtype=np.float64) for part in (*parts, *self.target_poses)])

    def set_state(self, state: np.ndarray) -> None:
        """Restore what `get_state` returned, bit for bit and with nothing else remembered."""
        self._forget_contacts()
        count = len(self._joints)
        for joint, angle, speed in zip(self._joints, state[:count], state[count : 2 * count], strict=True):
            self._bullet.resetJointState(self._arm, joint, angle, speed)
        rest = state[2 * count :]
        for index, body in enumerate((self._stick, *self._blocks)):
            pose = rest[POSE_AND_MOTION * index : POSE_AND_MOTION * (index + 1)].tolist()
            self._bullet.resetBasePositionAndOrientation(body, pose[:3], pose[3:7])
            self._bullet.resetBaseVelocity(body, pose[7:10], pose[10:])
        self._put_targets(rest[-6:].reshape(2, 3))

    def picture(self, size: int) -> np.ndarray:
        """The table from above the far side, uint8 [size, size, 3], by pybullet's software renderer."""
        view = self._bullet.computeViewMatrix((0.95, 0.0, 0.85), (0.4, 0.0, 0.0), (0.0, 0.0, 1.0))
        lens = self._bullet.computeProjectionMatrixFOV(48.0, 1.0, 0.1, 3.0)
        renderer = self._bullet.ER_TINY_RENDERER
        pixels = self._bullet.getCameraImage(size, size, view, lens, shadow=0, renderer=renderer)[2]
        return np.ascontiguousarray(np.asarray(pixels, dtype=np.uint8).reshape(size, size, 4)[..., :3])

    def close(self) -> None:
        """End the world."""
        self._bullet.disconnect()

    def _visual(self, half: tuple[float, float, float], color: tuple[float, ...]) -> int:
        shape: int = self._bullet.createVisualShape(self._bullet.GEOM_BOX, halfExtents=half, rgbaColor=color)
        return shape

    def _target(self, color: tuple[float, ...]) -> int:
        shape = self._visual((TARGET_SIDE / 2, TARGET_SIDE / 2, 0.0005), color)
        body: int = self._bullet.createMultiBody(0, -1, shape)
        return body

    def _block(self, color: tuple[float, ...]) -> int:
        half = (BLOCK_SIDE / 2, BLOCK_SIDE / 2, BLOCK_HEIGHT / 2)
        solid = self._bullet.createCollisionShape(self._bullet.GEOM_BOX, halfExtents=half)
        body: int = self._bullet.createMultiBody(BLOCK_MASS, solid, self._visual(half, color))
        self._bullet.changeDynamics(body, -1, lateralFriction=FRICTION)
        return body

    def _hold_stick(self) -> int:
        bullet = self._bullet
        cylinder = {"radius": STICK_RADIUS, "rgbaColor": (0.2, 0.3, 0.6, 1.0), "length": STICK_LENGTH}
        solid = bullet.createCollisionShape(bullet.GEOM_CYLINDER, radius=STICK_RADIUS, height=STICK_LENGTH)
        stick: int = bullet.createMultiBody(0.1, solid, bullet.createVisualShape(bullet.GEOM_CYLINDER, **cylinder))
        for link in range(-1, bullet.getNumJoints(self._arm)):
            bullet.setCollisionFilterPair(stick, self._arm, -1, link, 0)
        grip = bullet.createConstraint(
            self._arm,
            self._flange,
            stick,
            -1,
            bullet.JOINT_FIXED,
            (0, 0, 0),
            parentFramePosition=(0, 0, STICK_LENGTH / 2),
            childFramePosition=(0, 0, 0),
        )
        bullet.changeConstraint(grip, maxForce=HOLDING_FORCE)
        return stick

    def _forget_contacts(self) -> None:
        """A contact ends when its bodies are found far apart."""
        for number, body in enumerate((self._stick, *self._blocks)):
            self._bullet.resetBasePositionAndOrientation(body, (10.0 + number, 0.0, 10.0), (0, 0, 0, 1))
        self._bullet.performCollisionDetection()

    def _put_targets(self, targets: np.ndarray) -> None:
        self.target_poses = np.array(targets, dtype=np.float64)
        for body, (x, y, yaw) in zip(self._targets, self.target_poses.tolist(), strict=True):
            self._put(body, (x, y, 0.0005), (0, 0, yaw))

    def _put(self, body: int, position: tuple[float, ...], angles: tuple[float, ...]) -> None:
        self._bullet.resetBasePositionAndOrientation(body, position, self._bullet.getQuaternionFromEuler(angles))
        self._bullet.resetBaseVelocity(body, (0, 0, 0), (0, 0, 0))

    def _put_arm(self, effector: np.ndarray) -> None:
        """Search from the same angles every time, so that an episode does not depend on the one before."""
        angles: tuple[float, ...] = ELBOW_UP
        for _ in range(20):
            for joint, angle in zip(self._joints, angles, strict=True):
                self._bullet.resetJointState(self._arm, joint, angle, 0.0)
            angles = self._inverse_kinematics(effector)
        below = (*effector, EFFECTOR_HEIGHT - STICK_LENGTH / 2)
        self._put(self._stick, below, (math.pi, 0, 0))

    def _inverse_kinematics(self, target: np.ndarray) -> tuple[float, ...]:
        angles: tuple[float, ...] = self._bullet.calculateInverseKinematics(
            self._arm, self._flange, (*target, EFFECTOR_HEIGHT), DOWN, maxNumIterations=100, residualThreshold=1e-6
        )
        return angles
