"""The T of PushT as a shape: its outline, where it may be pushed, and the pusher's way round it.

Lengths in pixels. Poses are (x, y, angle) of the T's own frame, whose origin is the middle of the bar's outer edge.
"""

import heapq
from collections.abc import Sequence

import numpy as np

from domains.robotics.environments.push_t import BOARD, KEYPOINTS
from domains.robotics.environments.requirements import simulator_package

PUSHER = 15.0  # its radius
GOAL = np.array([256.0, 256.0, np.pi / 4])
BAR, STEM = (-60.0, 0.0, 60.0, 30.0), (-15.0, 30.0, 15.0, 120.0)  # lowest x, y, highest x, y
WALL = 16.0  # how near to the edge of the board the pusher's centre may come
STEPS_AWAY = (4.0, 8.0, 16.0, 32.0, 64.0)  # lengths of steps out of contact
DIRECTIONS = np.stack([np.cos(np.arange(24) * np.pi / 12), np.sin(np.arange(24) * np.pi / 12)], axis=-1)
CLEARANCE, ROUND = 1.0, 12.0  # between pusher and T: at least, and on the way round

# Edges that the pusher can reach: from, to, outward normal, number of contact points.
EDGES = (
    ((-60, 0), (60, 0), (0, -1), 7),
    ((-60, 0), (-60, 30), (-1, 0), 2),
    ((60, 0), (60, 30), (1, 0), 2),
    ((-60, 30), (-32, 30), (0, 1), 2),
    ((32, 30), (60, 30), (0, 1), 2),
    ((-15, 50), (-15, 120), (-1, 0), 4),
    ((15, 50), (15, 120), (1, 0), 4),
    ((-15, 120), (15, 120), (0, 1), 2),
)


def contacts() -> np.ndarray:
    """Points of the outline and outward normals in the T's frame, [K, 2, 2]."""
    rows = [
        [np.add(begin, share * np.subtract(end, begin)), normal]
        for begin, end, normal, count in EDGES
        for share in (np.arange(count) + 0.5) / count
    ]
    return np.array(rows, dtype=np.float64)


def rotation(angle: float) -> np.ndarray:
    """Matrix [2, 2] that turns column vectors by `angle`."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])


def keypoint_error(pose: np.ndarray) -> float:
    """Mean distance of the T's keypoints from where they belong: place and angle in one number."""
    here = KEYPOINTS @ rotation(pose[2]).T + pose[:2]
    there = KEYPOINTS @ rotation(GOAL[2]).T + GOAL[:2]
    return float(np.linalg.norm(here - there, axis=1).mean())


class Surroundings:
    """The T in one pose, and the free board round it, for the pusher's centre."""

    def __init__(self, pose: np.ndarray) -> None:
        self._shapely = simulator_package("shapely")
        affinity = simulator_package("shapely.affinity")
        body = self._shapely.union(self._shapely.box(*BAR), self._shapely.box(*STEM))
        turned = affinity.rotate(body, pose[2], origin=(0, 0), use_radians=True)
        self._body = affinity.translate(turned, pose[0], pose[1])
        self._blocked = self._body.buffer(PUSHER + CLEARANCE)
        ring = self._body.convex_hull.buffer(PUSHER + ROUND).simplify(2).exterior.coords
        self._corners = [np.array(corner) for corner in ring[:-1] if on_board(np.array(corner))]

    def distance(self, place: np.ndarray) -> float:
        """From the pusher's centre to the T."""
        return float(self._body.distance(self._shapely.Point(place)))

    def way(self, start: np.ndarray, end: np.ndarray) -> list[np.ndarray] | None:
        """The shortest way of straight lines that does not touch the T, from where the pusher stands; None if none."""
        clear = self._step_away(start)
        places = [clear, end, *self._corners]
        best, queue, before = {0: 0.0}, [(0.0, 0)], {0: 0}
        while queue:
            length, here = heapq.heappop(queue)
            if here == 1:
                return [start, *self._traced(places, before)]
            if length > best[here]:
                continue
            for there in range(1, len(places)):
                further = length + float(np.linalg.norm(places[there] - places[here]))
                if further < best.get(there, np.inf) and self._free(places[here], places[there]):
                    best[there], before[there] = further, here
                    heapq.heappush(queue, (further, there))
        return None

    def _step_away(self, place: np.ndarray) -> np.ndarray:
        """Out of contact by the shortest straight step that does not push; `place` itself if there is none."""
        gap = self.distance(place)
        if gap >= PUSHER + 2 * CLEARANCE:
            return place
        for length in STEPS_AWAY:
            ends = place + length * DIRECTIONS
            farthest = max(ends, key=self.distance)
            line = self._shapely.LineString([place, farthest])
            clear = self.distance(farthest) >= PUSHER + 2 * CLEARANCE
            if clear and on_board(farthest) and self._body.distance(line) >= gap - CLEARANCE / 2:
                return np.array(farthest)
        return place

    def _free(self, start: np.ndarray, end: np.ndarray) -> bool:
        return not self._blocked.intersects(self._shapely.LineString([start, end]))

    @staticmethod
    def _traced(places: Sequence[np.ndarray], before: dict[int, int]) -> list[np.ndarray]:
        way, here = [places[1]], 1
        while here != 0:
            here = before[here]
            way.append(places[here])
        return way[::-1]


def on_board(place: np.ndarray) -> bool:
    """Whether the pusher's centre can be there."""
    return bool((place > WALL).all() and (place < BOARD - WALL).all())
