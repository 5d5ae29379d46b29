"""An expert for PushT: of many straight pushes the one that helps the most per step, tried in a simulator of its own.

It walks round the T to where the push begins, pushes, and chooses again from where the T has come to rest. Nothing is
drawn at random.
"""

from dataclasses import dataclass

import numpy as np

from domains.robotics.environments.push_t import PushT
from domains.robotics.experts.push_t_geometry import (
    PUSHER,
    Surroundings,
    contacts,
    keypoint_error,
    on_board,
    rotation,
)

SLANTS = (-0.35, 0.0, 0.35)  # radians between a push and the normal of the edge
LONGEST = 100.0  # pixels of one push
GAP = 4.0  # between pusher and T where a push begins
WALKS = (44.0, 26.0, 14.0)  # pixels from the pusher to where it is sent: fast and cutting corners, or careful
AHEAD_PUSHING = 24.0
WALKING_STEPS = 10.0  # a push costs about so many steps before it begins
TRIED = 6  # of the best pushes, walk included
LEAST_GAIN = 0.05  # pixels of keypoint error: below, no push is worth while
SPACING = 2.0  # pixels between points of a path
NEAR = 4.0  # pixels from the beginning of a push at which it begins
ARRIVED = 3.0  # pixels from the end of a path
PATIENCE = 25  # steps that a path may take longer than planned


@dataclass(frozen=True)
class Push:
    """A straight push of the pusher's centre from `start` to `end`; `rate`: keypoint error removed per step."""

    start: np.ndarray
    end: np.ndarray
    rate: float


class Path:
    """A walk and a push, followed by sending the pusher to a point ahead of it, `ahead` pixels while it walks."""

    def __init__(self, way: list[np.ndarray], end: np.ndarray, ahead: float) -> None:
        pieces = []
        for begin, finish in zip(way, [*way[1:], end], strict=True):
            count = max(1, int(np.linalg.norm(finish - begin) / SPACING))
            pieces.append(begin + (finish - begin) * (np.arange(count) / count)[:, None])
        self._points = np.concatenate([*pieces, end[None]])
        self._push_begins = sum(map(len, pieces[:-1]))
        self._ahead = ahead
        self._reached = 0
        self._steps_left = len(self._points) // 5 + PATIENCE

    def target(self, place: np.ndarray) -> np.ndarray | None:
        """Where to send the pusher, [2], from where it is; None at the end. To be called once per step."""
        last = len(self._points) - 1
        near = self._points[self._reached : self._reached + 40]
        self._reached += int(np.linalg.norm(near - place, axis=1).argmin())
        if (self._reached >= last - 1 and np.linalg.norm(place - self._points[-1]) < ARRIVED) or self._steps_left == 0:
            return None
        self._steps_left -= 1
        # A corner that is cut short begins the push elsewhere: it begins when the pusher is where it should.
        walking = self._reached < self._push_begins - NEAR / SPACING
        ahead, furthest = (self._ahead, self._push_begins) if walking else (AHEAD_PUSHING, last)
        return self._points[min(self._reached + int(ahead / SPACING), furthest)].copy()


class PushTExpert:
    """Acts on the privileged state of a PushT environment; `reset` after each reset of that."""

    def __init__(self, environment: PushT) -> None:
        self._environment: PushT = environment.unwrapped  # type: ignore[assignment]
        self._model = PushT(self._environment.task)
        self._contacts = contacts()
        self.reset()

    def reset(self) -> None:
        """Begin an episode."""
        self.done = False
        self._path: Path | None = None

    def act(self) -> np.ndarray:
        """Where to send the pusher, [2]; where it is if nothing helps any more."""
        state = self._environment.get_state()
        target = None if self._path is None else self._path.target(state[:2])
        if target is None:
            self._path = self._choose(state)
            target = None if self._path is None else self._path.target(state[:2])
        self.done = target is None
        return state[:2].copy() if target is None else target

    def _choose(self, state: np.ndarray) -> Path | None:
        pose = state[2:5]
        surroundings = Surroundings(pose)
        best, best_rate, tried = None, 0.0, 0
        for push in sorted(self._pushes(pose, surroundings), key=lambda push: -push.rate):
            way = surroundings.way(state[:2], push.start)
            for ahead in WALKS if way is not None else ():
                rate = self._rate(state, Path(way, push.end, ahead))
                if rate > best_rate:
                    best, best_rate = Path(way, push.end, ahead), rate
            tried += way is not None
            if tried >= TRIED and best is not None:
                break
        return best

    def _rate(self, state: np.ndarray, path: Path) -> float:
        """Keypoint error that following the path removes per step, in the model."""
        self._model.reset(options={"state": state})
        place, steps = state[:2], 0
        while (target := path.target(place)) is not None:
            _, _, solved, _, _ = self._model.step(target)
            place = self._model.get_state()[:2]
            steps += 1
            if solved:
                break
        gain = keypoint_error(state[2:5]) - keypoint_error(self._model.get_state()[2:5])
        return gain / max(steps, 1) if gain > LEAST_GAIN else 0.0

    def _pushes(self, pose: np.ndarray, surroundings: Surroundings) -> list[Push]:
        found = []
        turn = rotation(pose[2])
        for point, normal in self._contacts:
            outward = turn @ normal
            start = turn @ point + pose[:2] + outward * (PUSHER + GAP)
            if not on_board(start) or surroundings.distance(start) < PUSHER + GAP / 2:
                continue
            tried = (self._tried(pose, start, -rotation(slant) @ outward) for slant in SLANTS)
            found += [push for push in tried if push is not None]
        return found

    def _tried(self, pose: np.ndarray, start: np.ndarray, direction: np.ndarray) -> Push | None:
        """The best length of a push in this direction, found by pushing in the model; None if it never helps."""
        before = keypoint_error(pose)
        self._model.reset(options={"state": np.array([*start, *pose])})
        best, steps = None, 0
        done, error = 0.0, before
        while done < LONGEST and error < before + 10 and steps < LONGEST / 4:
            self._model.step(start + direction * (done + AHEAD_PUSHING))
            state = self._model.get_state()
            steps += 1
            done, error = float((state[:2] - start) @ direction), keypoint_error(state[2:5])
            end = start + direction * done
            rate = (before - error) / (WALKING_STEPS + steps)
            if before - error > LEAST_GAIN and on_board(end) and (best is None or rate > best.rate):
                best = Push(start, end, rate)
        return best
