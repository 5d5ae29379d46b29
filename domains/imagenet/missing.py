"""What a command needs and does not find: all of it at once, before anything starts."""

from collections.abc import Iterable
from dataclasses import dataclass
from textwrap import indent

from drifting.training.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Missing:
    """One thing that is not there. `setting`: the key that names it; `command`: what gets it, in lines of a shell."""

    setting: str
    what: str
    command: str


def refuse_missing(missing: Iterable[Missing]) -> None:
    """Raise ConfigError that lists everything with the command for it, or return if there is nothing."""
    listed = [f"  {each.setting}: {each.what}\n{indent(each.command, ' ' * 6)}" for each in dict.fromkeys(missing)]
    if listed:
        raise ConfigError("\n".join([f"{len(listed)} things are missing; what gets each stands under it:", *listed]))
