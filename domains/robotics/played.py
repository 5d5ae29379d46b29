"""What an evaluation has played so far, on the disk, so that the same command continues an interrupted one."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from domains.robotics.rollout import EpisodeResult
from drifting.training.atomic_file import replace_text
from drifting.training.fingerprint import Fingerprint


@dataclass(frozen=True, slots=True)
class Rollouts:
    """The episodes of one checkpoint, and the seconds that they took."""

    episodes: list[EpisodeResult]
    seconds: float


class Played:
    """Rollouts by the weights that played them, without pictures, in the file `path`.

    `setting` is everything else that decides their result, of types that JSON has. A file of another setting does not
    count, and is replaced when the first rollouts are added.
    """

    def __init__(self, path: Path, setting: Mapping[str, Any]) -> None:
        self._path = path
        self._setting = json.loads(json.dumps(setting))  # tuples as the lists that are read back
        found = json.loads(path.read_text()) if path.exists() else {}
        self._rollouts: dict[str, Any] = found["rollouts"] if found.get("setting") == self._setting else {}

    def find(self, policy: nn.Module) -> Rollouts | None:
        """What these weights have played, or None."""
        entry = self._rollouts.get(Fingerprint(policy).sha256)
        if entry is None:
            return None
        return Rollouts([EpisodeResult(**episode) for episode in entry["episodes"]], entry["seconds"])

    def add(self, policy: nn.Module, episodes: Sequence[EpisodeResult], seconds: float) -> Rollouts:
        """Keep what `policy` has just played; returns it, pictures included."""
        bare = [asdict(replace(episode, frames=[])) for episode in episodes]
        self._rollouts[Fingerprint(policy).sha256] = {"episodes": bare, "seconds": seconds}
        replace_text(self._path, json.dumps({"setting": self._setting, "rollouts": self._rollouts}) + "\n")
        return Rollouts(list(episodes), seconds)

    def remove(self) -> None:
        """Delete the file: everything has been reported."""
        self._path.unlink(missing_ok=True)
