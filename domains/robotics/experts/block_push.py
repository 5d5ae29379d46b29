"""An expert for BlockPush: walk round a block to the far side of its target, push, step back, then the other block.

Which block comes first and which target it goes to are drawn anew every episode from the environment's own generator,
so that the demonstrations of one start have four modes.
"""

import numpy as np

from domains.robotics.environments.block_push import BlockPush

TRAVEL, PUSH = 0.03, 0.02  # metres per control step
ORBIT = 0.065  # distance from a block's centre at which the stick walks round it
ALIGNED = (0.15, 0.6)  # radians off the line from target through block: push, only walk round it
NEAR = (1.2 * ORBIT, 1.8 * ORBIT)  # the same in metres from the block
PLACED, DISPLACED = 0.02, 0.045  # metres to the target: leave the block there, come back to it
TURN = 0.7  # radians of the orbit that the stick aims ahead
STEERING = 0.6  # share of the sideways error that a step corrects while pushing


class BlockPushExpert:
    """Acts on the privileged state of a BlockPush environment; `reset` after each reset of that."""

    def __init__(self, environment: BlockPush) -> None:
        self._environment: BlockPush = environment.unwrapped  # type: ignore[assignment]
        self.reset()

    def reset(self) -> None:
        """Draw the order of the blocks and their targets."""
        draw = self._environment.np_random
        self._order: list[int] = draw.permutation(2).tolist()
        self._target_of: list[int] = draw.permutation(2).tolist()
        self._block: int | None = None

    @property
    def done(self) -> bool:
        """Whether both blocks are where they belong."""
        return all(self._distance(block) < DISPLACED for block in self._order)

    def act(self) -> np.ndarray:
        """The displacement [2] of the place that the stick is sent to."""
        stick = self._environment.scene.effector
        goal = self._next_place(stick)
        return goal - self._environment.stick_target

    def _next_place(self, stick: np.ndarray) -> np.ndarray:
        if self._block is not None and self._distance(self._block) < PLACED:
            self._block = None
        if self._block is None:
            left = [block for block in self._order if self._distance(block) > DISPLACED]
            if not left:
                return stick
            self._block = left[0]
        block, target = self._place(self._block), self._target(self._block)
        ahead = (target - block) / np.linalg.norm(target - block)
        offset = stick - block
        along = float(offset @ ahead)
        aside = offset - along * ahead
        angle = float(np.arctan2(np.linalg.norm(aside), -along))
        distance = float(np.linalg.norm(offset))
        aligned = _falling(angle, *ALIGNED) * _falling(distance, *NEAR)
        push = PUSH * ahead - STEERING * aside
        round_ = self._clear_of_blocks(stick + _limited(self._orbit(block, offset, ahead) - stick, TRAVEL)) - stick
        return stick + aligned * push + (1 - aligned) * round_

    def _orbit(self, block: np.ndarray, offset: np.ndarray, ahead: np.ndarray) -> np.ndarray:
        """A point on the circle round the block, between the stick and the place behind it."""
        now, wanted = np.arctan2(offset[1], offset[0]), np.arctan2(-ahead[1], -ahead[0])
        turn = (wanted - now + np.pi) % (2 * np.pi) - np.pi
        angle = now + np.clip(turn, -TURN, TURN)
        return block + ORBIT * np.array([np.cos(angle), np.sin(angle)])

    def _clear_of_blocks(self, place: np.ndarray) -> np.ndarray:
        """The place, moved out of the surroundings of any block."""
        for block in range(2):
            offset = place - self._place(block)
            distance = float(np.linalg.norm(offset))
            if distance < 0.85 * ORBIT:
                side = np.array([-offset[1], offset[0]]) / distance
                place = self._place(block) + (offset / distance) * 0.9 * ORBIT + 0.2 * TRAVEL * side
        return place

    def _place(self, block: int) -> np.ndarray:
        return self._environment.scene.blocks[block, :2]

    def _target(self, block: int) -> np.ndarray:
        return self._environment.scene.target_poses[self._target_of[block], :2]

    def _distance(self, block: int) -> float:
        return float(np.linalg.norm(self._place(block) - self._target(block)))


def _limited(step: np.ndarray, longest: float) -> np.ndarray:
    length = float(np.linalg.norm(step))
    return step if length <= longest else step * (longest / length)


def _falling(value: float, full: float, none: float) -> float:
    """1 up to `full`, 0 from `none` on, smooth between."""
    part = min(max((none - value) / (none - full), 0.0), 1.0)
    return part * part * (3 - 2 * part)
