"""Keeps functions out of the graphs of torch.compile."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def outside_graph(function: Callable[P, R]) -> Callable[P, R]:
    """The same function, run as it is by a compiled caller: one graph break, nothing inside is traced.

    `torch.compiler.disable` as a decorator would do, but loads the compiler with the library, for seconds.
    """
    untraced: Callable[P, R] | None = None

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal untraced
        if not torch.compiler.is_compiling():
            return function(*args, **kwargs)
        if untraced is None:
            untraced = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
        return untraced(*args, **kwargs)

    return call
