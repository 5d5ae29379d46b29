"""The parameters of other implementations under our names: one table per network, read in both directions.

A rule is one line per kind of parameter: their name, our name, and how the array lies there. `{}` stands for a number
and means the same number on both sides. Every name must fall under exactly one rule; nothing is dropped or guessed.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from domains.imagenet.hub import WeightsError


def _same(w: Tensor) -> Tensor:
    return w


@dataclass(frozen=True)
class Layout:
    """How an array lies in the other implementation: its axes, and the way to ours and back."""

    axes: tuple[str, ...] | None = None  # None: any; "1" is an axis of that size
    to_ours: Callable[[Tensor], Tensor] = _same
    to_theirs: Callable[[Tensor], Tensor] = _same

    def fits(self, w: Tensor) -> bool:
        """Whether `w` can be such an array."""
        if self.axes is None:
            return True
        return w.ndim == len(self.axes) and all(a != "1" or n == 1 for a, n in zip(self.axes, w.shape, strict=True))


SAME = Layout()
DENSE = Layout(("in", "out"), lambda w: w.permute(1, 0), lambda w: w.permute(1, 0))
CONV = Layout(("kh", "kw", "in", "out"), lambda w: w.permute(3, 2, 0, 1), lambda w: w.permute(2, 3, 1, 0))
BATCHED = Layout(("1", "tokens", "width"), lambda w: w.squeeze(0), lambda w: w.unsqueeze(0))


@dataclass(frozen=True)
class Rule:
    """Their name, ours, and their layout.

    `parts` > 0: their name has one more number at its end, 0..parts-1, and these arrays are the consecutive row blocks
    of our one.
    """

    theirs: str
    ours: str
    layout: Layout = SAME
    parts: int = 0


class ParameterNames:
    """A table of rules, usable both ways."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)

    def to_ours(self, theirs: dict[str, Tensor], where: str) -> dict[str, Tensor]:
        """Our names and layouts, contiguous. Takes the tensors out of `theirs` one by one: they are in memory once.

        Args:
            theirs: their names to tensors; empty afterwards.
            where: the file they come from, for messages.

        Raises:
            WeightsError: names that no rule knows, an array of another layout, or a missing part; names them.
        """
        rules = [(_pattern(rule.theirs), rule) for rule in self.rules]
        _refuse_unknown([name for name in theirs if not any(p.fullmatch(name) for p, _ in rules)], where)
        ours: dict[str, Tensor] = {}
        parts: dict[Rule, dict[tuple[int, ...], Tensor]] = {}
        for name in list(theirs):
            match, rule = next((m, r) for pattern, r in rules if (m := pattern.fullmatch(name)))
            value = theirs.pop(name)
            if not rule.layout.fits(value):
                axes = ", ".join(rule.layout.axes or ())
                raise WeightsError(f"{where}: {name} must be ({axes}), got shape {tuple(value.shape)}")
            numbers = tuple(int(number) for number in match.groups())
            if rule.parts:
                parts.setdefault(rule, {})[numbers] = rule.layout.to_ours(value)
            else:
                ours[rule.ours.format(*numbers)] = rule.layout.to_ours(value).contiguous()
        for rule, found in parts.items():
            _refuse_incomplete(rule, found, where)
            ours[rule.ours] = torch.cat([found[(i,)] for i in range(rule.parts)])
        return ours

    def to_theirs(self, ours: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
        """Their names and layouts, as views of our tensors.

        Raises:
            WeightsError: names that no rule knows.
        """
        rules = [(_pattern(rule.ours), rule) for rule in self.rules]
        _refuse_unknown([name for name in ours if not any(p.fullmatch(name) for p, _ in rules)], where)
        theirs: dict[str, Tensor] = {}
        for name, value in ours.items():
            match, rule = next((m, r) for pattern, r in rules if (m := pattern.fullmatch(name)))
            if rule.parts:
                for i, part in enumerate(value.chunk(rule.parts)):
                    theirs[rule.theirs.format(i)] = rule.layout.to_theirs(part)
            else:
                theirs[rule.theirs.format(*match.groups())] = rule.layout.to_theirs(value)
        return theirs


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(r"(0|[1-9]\d*)".join(re.escape(piece) for piece in template.split("{}")))


def _refuse_unknown(names: list[str], where: str) -> None:
    if names:
        raise WeightsError(f"{where}: {len(names)} parameters belong to another network: {listed(names)}")


def _refuse_incomplete(rule: Rule, found: Mapping[tuple[int, ...], Tensor], where: str) -> None:
    if sorted(found) != [(i,) for i in range(rule.parts)]:
        wanted = f"{rule.theirs.format(0)} .. {rule.theirs.format(rule.parts - 1)}"
        raise WeightsError(f"{where} must hold {wanted}, got the numbers {sorted(n for (n,) in found)}")
    if len(shapes := {tuple(part.shape) for part in found.values()}) > 1:
        raise WeightsError(f"{where}: {rule.theirs} must have one shape for all numbers, got {sorted(shapes)}")


def listed(names: Sequence[str], limit: int = 6) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
