"""Arguments of the loss: checked, weights filled in, brought into the engine's form.

Shapes: B problems, G generated, G' of a second batch, P positives, N extra negatives, D features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drifting.fields import Columns
from drifting.problems import Problems

MOST_ELEMENTS = 2**44  # of all [G, M] tiles: 64 TiB in float32, a mistake in the shapes rather than a large batch


@dataclass(frozen=True, slots=True)
class DriftInputs:
    """Samples and weights of B problems that share a feature scale: the arguments of `DriftLoss`, as one object.

    Raises:
        ValueError: by `problems()`, naming the argument, what was expected and what came.
    """

    gen: Tensor  # [B, G, D]; the only entry that receives a gradient
    pos: Tensor  # [B, P, D]
    neg: Tensor | None = None  # [B, N, D]
    gen_weight: Tensor | None = None  # [B, G] ([B, G'] with `self_ref`) or [B]
    pos_weight: Tensor | None = None  # [B, P] or [B]
    neg_weight: Tensor | None = None  # [B, N] or [B]
    self_ref: Tensor | None = None  # [B, G', D]

    def problems(self, known: dict[object, Columns] | None = None) -> Problems:
        """Check every argument and fill in weights.

        `known` holds the checked weights of sets of the same shapes with the same weight tensors, which are found by
        their id: they must outlive it.
        """
        gen, pos, neg, self_ref = self.gen, self.pos, self.neg, self.self_ref
        self._refuse_transforms()
        _check_gen(gen, self_ref)
        _check_block("pos", "P", pos, gen)
        if pos.shape[1] == 0:
            raise ValueError(f"pos must hold at least one positive per problem, got {tuple(pos.shape)}")
        if self_ref is not None:
            _check_block("self_ref", "G'", self_ref, gen)
            if self_ref.shape[1] == 0:
                raise ValueError(f"self_ref must hold at least one sample per problem, got {tuple(self_ref.shape)}")
        if neg is not None:
            _check_block("neg", "N", neg, gen)
        elif self.neg_weight is not None:
            raise ValueError("neg_weight was given without neg; pass the extra negatives neg [B, N, D] as well")
        own = gen if self_ref is None else self_ref
        named = {
            "gen_weight": (self.gen_weight, own),
            "neg_weight": (self.neg_weight, neg),
            "pos_weight": (self.pos_weight, pos),
        }
        blocks = tuple(block.detach() for block in (own, neg, pos) if block is not None)
        known = {} if known is None else known
        shapes = (gen.shape[:2], *(block.shape[1] for block in blocks), neg is None, self_ref is None)
        key = (shapes, gen.dtype, gen.device, id(self.gen_weight), id(self.neg_weight), id(self.pos_weight))
        if key not in known:
            known[key] = _columns(named, gen, self_is_gen=self_ref is None)
        return Problems(gen=gen.detach(), blocks=blocks, columns=known[key])

    def _refuse_transforms(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if value is not None and torch._C._functorch.is_functorch_wrapped_tensor(value):
                raise ValueError(
                    f"{name} must be a plain tensor, not one inside torch.func or vmap: the loss has a batch axis of "
                    "its own, gen [B, G, D], and its gradient comes from .backward() or torch.autograd.grad"
                )

    def working_memory(self, num_temperatures: int) -> int:
        """Bytes that the engine holds at most between two walks over these problems, samples and result not counted."""
        num_gen, width = self.gen.shape[1:]
        own = self.gen if self.self_ref is None else self.self_ref
        num_refs = sum(block.shape[1] for block in (own, self.neg, self.pos) if block is not None)
        kept = num_temperatures * min(num_gen * width, num_gen * num_refs + num_refs**2)
        return self.gen.shape[0] * (kept + num_gen * num_refs) * 4

    def nonfinite(self) -> str:
        """Where samples are NaN or infinite, for a message; waits for the device."""
        found = []
        for name in ("gen", "pos", "neg", "self_ref"):
            block = getattr(self, name)
            if block is not None and (bad := (~block.isfinite()).flatten(1).any(1)).any():
                found.append(f"{name} in problems {bad.nonzero()[:5, 0].tolist()}")
        return ", ".join(found) or "no sample, but distances overflow: scale the samples down"


def all_problems(inputs: Sequence[DriftInputs]) -> list[Problems]:
    """Of several sets: weights that they share are checked and laid out once."""
    known: dict[object, Columns] = {}
    return [given.problems(known) for given in inputs]


def _columns(named: Mapping[str, tuple[Tensor | None, Tensor | None]], gen: Tensor, *, self_is_gen: bool) -> Columns:
    """References in the order of `named`: weights [B, M] and the span of columns that have any but one."""
    dtype = torch.float64 if gen.dtype == torch.float64 else torch.float32
    sizes = [0 if block is None else block.shape[1] for _, block in named.values()]
    if len(gen) * gen.shape[1] * sum(sizes) > MOST_ELEMENTS:
        raise ValueError(
            f"B G M = {len(gen)} * {gen.shape[1]} * {sum(sizes)} distances are more than {MOST_ELEMENTS}; "
            f"check the shapes, gen is {tuple(gen.shape)}"
        )
    weight = torch.ones(len(gen), sum(sizes), dtype=dtype, device=gen.device)
    start, stop, column = sum(sizes), 0, 0
    for (name, (given, block)), size in zip(named.items(), sizes, strict=True):
        if given is not None and block is not None:
            weight[:, column : column + size] = _checked_weight(name, given, block)
            start, stop = min(start, column), column + size
        column += size
    span = slice(start, stop) if start < stop else slice(0, 0)
    num_self, num_neg, num_pos = sizes
    return Columns(num_self, num_neg, num_pos, self_is_gen=self_is_gen, weight=weight, weighted=span)


def _check_gen(gen: Tensor, self_ref: Tensor | None) -> None:
    if gen.ndim != 3 or not gen.is_floating_point():
        raise ValueError(f"gen must be a float tensor [B, G, D], got {gen.dtype} {tuple(gen.shape)}")
    if 0 in gen.shape:
        raise ValueError(f"gen must have B, G and D of at least one, got {tuple(gen.shape)}")
    if gen.shape[1] < 2 and self_ref is None:
        raise ValueError(
            f"gen must hold G >= 2 samples per problem, got {tuple(gen.shape)}: nothing repels a single sample, and "
            "the loss turns into regression with a fixed step; generate more, or pass self_ref, a second batch"
        )


def _check_block(name: str, letter: str, block: Tensor, gen: Tensor) -> None:
    expected = f"[B, {letter}, D] with B={gen.shape[0]}, D={gen.shape[2]} to match gen {tuple(gen.shape)}"
    if block.ndim != 3 or block.shape[0] != gen.shape[0] or block.shape[2] != gen.shape[2]:
        raise ValueError(f"{name} must be {expected}, got {tuple(block.shape)}")
    if not block.is_floating_point():
        raise ValueError(f"{name} must be a float tensor, got {block.dtype}; convert and scale it as gen is scaled")
    if block.device != gen.device:
        raise ValueError(f"{name} must be on gen's device {gen.device}, got {block.device}")


def _checked_weight(name: str, weight: Tensor, block: Tensor) -> Tensor:
    """Weight of a block [B, K, D] in a shape that broadcasts to [B, K]."""
    shape = block.shape[:2]
    if weight.shape not in (shape, shape[:1]):
        raise ValueError(f"{name} must be {list(shape)} or {list(shape[:1])}, got {tuple(weight.shape)}")
    if weight.device != block.device:
        raise ValueError(f"{name} must be on the samples' device {block.device}, got {weight.device}")
    weight = weight.detach()
    message = f"{name} must be finite and >= 0"
    valid = (weight >= 0) & (weight < float("inf"))  # False for NaN
    if weight.device.type == "cpu":
        if not valid.all():
            raise ValueError(f"{message}, got {weight[~valid][0].item()}")
    elif weight.device.type != "meta":
        torch._assert_async(valid.all(), message)
    return weight if weight.ndim == 2 else weight[:, None]
