"""Guidance at the level of velocities, for any field (W-Flow, arXiv 2605.11755).

    V = V_cond + (alpha - 1) (V_cond - V_uncond)

V_cond is the inner field's drift to the positives, V_uncond its drift with the extra negatives in the positives' place.
The extra negatives are no negatives of the inner field: they repel only by what they would have attracted.

Which guided distribution rests depends on the field. V is zero where (alpha times the pull to p) = (alpha - 1 times the
pull to p_uncond) + (the push off q): for `KernelGradient` at q ~ p^alpha p_uncond^(1 - alpha), the distribution that
classifier-free guidance of diffusion aims at; extra negatives within the field aim at alpha p - (alpha - 1) p_uncond.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from drifting.fields.field import Columns, Contact, Coupling, Field
from drifting.fields.mass import check_mass
from drifting.kernels import Temperature


def guidance_excess(columns: Columns) -> Tensor:
    """alpha - 1 of each problem [B], recovered from the mass of the extra negatives; inverse of `guidance_weight`.

    w N = (alpha - 1)(K - 1), K the samples of the self block; where these have weights, times their mean. The same for
    an independent second batch of K samples: call `guidance_weight` with `num_gen=K`.

    Raises:
        ValueError: fewer than two samples in the self block, or all of weight zero.
    """
    if columns.num_self < 2:
        raise ValueError(
            f"VelocityGuidance reads alpha from w N = (alpha - 1)(K - 1): self_ref must hold K >= 2 samples, "
            f"got {columns.num_self}"
        )
    own, extra, _ = torch.split(columns.weight, [columns.num_self, columns.num_neg, columns.num_pos], dim=-1)
    own_mass = own.sum(-1) * ((columns.num_self - 1) / columns.num_self)
    check_mass("gen_weight", own_mass, "guidance is measured by it")
    return extra.sum(-1) / own_mass


def with_positives(columns: Columns, weight: Tensor) -> Columns:
    """The same self block and other positives, of weight [B, P']; no extra negatives."""
    own = columns.weight[:, : columns.num_self]
    return Columns(
        num_self=columns.num_self,
        num_neg=0,
        num_pos=weight.shape[-1],
        self_is_gen=columns.self_is_gen,
        weight=torch.cat([own, weight], dim=-1),
        weighted=slice(0, columns.num_self + weight.shape[-1]),
    )


@dataclass(frozen=True)
class VelocityGuidance:
    """Any field, guided by its own drift to the extra negatives; without extra negatives the field itself.

    The field runs twice. Use `neg_weight=guidance_weight(alpha, num_gen=K, num_uncond=N)` with K the samples of `gen`,
    or of `self_ref` where there is one.

    Args:
        field: the inner field.
    """

    field: Field

    def __call__(
        self, distance: Tensor, columns: Columns, *, temperature: Temperature, with_contact: bool = True
    ) -> Coupling:
        """Coupling of distances [B, G, M]; see the module's formula."""
        if not columns.num_neg:
            return self.field(distance, columns, temperature=temperature, with_contact=with_contact)
        excess = guidance_excess(columns)[:, None, None]
        split = [columns.num_self, columns.num_neg, columns.num_pos]
        self_distance, neg_distance, pos_distance = torch.split(distance, split, dim=-1)
        _, neg_weight, pos_weight = torch.split(columns.weight, split, dim=-1)
        # In the positives' place the extra negatives get the positives' mass, for fields that see the scale of weights.
        # Where a problem has no guidance any weights will do, since the drift to them is multiplied by zero.
        neg_weight = torch.where(excess[:, 0] > 0, neg_weight, torch.ones_like(neg_weight))
        as_positives = neg_weight * (pos_weight.sum(-1, keepdim=True) / neg_weight.sum(-1, keepdim=True))
        conditional, unconditional = (
            self.field(
                torch.cat([self_distance, block], dim=-1),
                with_positives(columns, weight),
                temperature=temperature,
                with_contact=with_contact,
            )
            for block, weight in ((pos_distance, pos_weight), (neg_distance, as_positives))
        )
        push, pull = torch.split(conditional.coefficients, [columns.num_self, columns.num_pos], dim=-1)
        push_uncond, pull_uncond = torch.split(unconditional.coefficients, [columns.num_self, columns.num_neg], dim=-1)
        blocks = [torch.lerp(push_uncond, push, 1 + excess), -excess * pull_uncond, (1 + excess) * pull]
        return Coupling(
            torch.cat(blocks, dim=-1),
            balanced=conditional.balanced and unconditional.balanced,
            contact=_worse_plan(conditional.contact, unconditional.contact),
        )


def _worse_plan(conditional: Contact | None, unconditional: Contact | None) -> Contact | None:
    """Contact of the drift to the positives, with the plan figures of whichever call converged less."""
    if conditional is None or unconditional is None:
        return None
    if conditional.plan_error is None or unconditional.plan_error is None:
        return conditional
    if conditional.sweeps is None or unconditional.sweeps is None:
        return conditional
    return replace(
        conditional,
        plan_error=conditional.plan_error.maximum(unconditional.plan_error),
        sweeps=conditional.sweeps.maximum(unconditional.sweeps),
    )
