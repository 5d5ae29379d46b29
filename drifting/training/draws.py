"""Random numbers that belong to a step and a problem, not to a process: the same on any number of ranks.

    stream(seed, "noise", step, problem, device)     a generator of its own for every (purpose, step, problem)

A rank draws for its own problems alone, in any order. Nothing needs saving: a continued run draws the same by itself.
The CPU and CUDA generate different numbers from one seed.
"""

import hashlib

import torch


def seed_of(seed: int, purpose: str, step: int, item: int = 0) -> int:
    """A seed in [0, 2^63): a function of its arguments alone. Items of one step never share a seed, nor its low half.

    torch's CPU generator keeps the low 32 bits of a seed, so that two steps of a long run may happen to draw the same
    for one item each.
    """
    key = f"{seed}/{purpose}/{step}".encode()
    first = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
    return (first + item) % 2**63


def stream(seed: int, purpose: str, step: int, item: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator of one draw, seeded by `seed_of`."""
    return torch.Generator(device).manual_seed(seed_of(seed, purpose, step, item))
