"""Drifting in feature space: one drifting loss per feature, summed (paper Sec. 3.4, A.5).

    L = sum_j mean_{problems, locations} |phi_j(x) - sg(phi_j(x) + V_j)|^2          Eq. 13-14, 26

phi is frozen; the gradient reaches the generator through it. Locations of one feature are drifting problems of their
own and share the feature's scale S and RMS lambda. Features of equal width are processed side by side, as many at a
time as a memory budget allows.
Shapes: K samples, F feature locations, D feature width (channels C of a map); B problems, *S the shape of a sample.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from drifting.arguments import DriftInputs
from drifting.engine import BatchStatistics
from drifting.loss import DriftLoss, DriftTerms
from drifting.scales import num_ranks

FeatureEncoder = Callable[[Tensor], Mapping[str, Tensor]]
"""samples [K, *S] -> {key: [K, F, D]}, differentiable, its own parameters frozen."""

Samples = Tensor | Mapping[str, Tensor]
"""Samples [B, K, *S], or their features {key: [B F, K, D]} as `FeatureDriftLoss.encode` returns them."""

STD_EPS = 1e-6  # inside the square root: a constant channel has std 1e-3 and a finite gradient


def pooled_statistics(feature_map: Tensor, patch_sizes: Sequence[int] = (2, 4)) -> dict[str, Tensor]:
    """Every vector that one feature map contributes to the drifting loss (paper A.5 a-d).

    ========== ============ ==================================================
    key        F            vectors
    ========== ============ ==================================================
    ``""``     H W          (a) the map itself, one vector per location
    ``mean``   1            (b) mean over all locations
    ``std``    1            (b) standard deviation over all locations
    ``mean_p`` H W / p^2    (c, d) mean over each p x p patch, p in patch_sizes
    ``std_p``  H W / p^2    (c, d) standard deviation over each p x p patch
    ========== ============ ==================================================

    Locations and patches are in row-major order; std = sqrt(biased variance + 1e-6).

    Args:
        feature_map: [K, C, H, W], any float dtype; the statistics are taken in float32 (float64 stays float64).
        patch_sizes: side lengths p >= 2. A patch larger than the map is left out: small maps have fewer keys.

    Returns:
        {key: [K, F, C]}.

    Raises:
        ValueError: the map is not [K, C, H, W], p < 2, or p fits into the map without dividing its sides.
    """
    if feature_map.ndim != 4:
        raise ValueError(f"feature_map must be [K, C, H, W], got shape {tuple(feature_map.shape)}")
    x = feature_map.to(torch.promote_types(feature_map.dtype, torch.float32))
    height, width = x.shape[-2:]

    locations = rearrange(x, "k c h w -> k (h w) c")
    statistics = {"": locations, "mean": locations.mean(1, keepdim=True), "std": _std(locations, dim=1, keepdim=True)}
    for p in patch_sizes:
        if p < 2:
            raise ValueError(f"patch_sizes must be >= 2 (1 is the map itself, always included), got {p}")
        if p > min(height, width):
            continue
        if height % p or width % p:
            raise ValueError(
                f"patch size {p} does not divide the {height} x {width} feature map; choose patch_sizes to fit"
            )
        patches = rearrange(x, "k c (h p) (w q) -> k (h w) (p q) c", p=p, q=p)
        statistics[f"mean_{p}"] = patches.mean(2)
        statistics[f"std_{p}"] = _std(patches, dim=2)
    return statistics


def _std(x: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    return (x.var(dim, correction=0, keepdim=keepdim) + STD_EPS).sqrt()


def total_loss(terms: Mapping[str, DriftTerms]) -> Tensor:
    """Sum over features of the mean over problems and locations, [] (Eq. 13-14)."""
    return torch.stack([term.loss.mean() for term in terms.values()]).sum()


class FeatureDriftLoss(nn.Module):
    """Sum over an encoder's features of the drifting loss, each averaged over problems and locations.

    Args:
        encoder: samples [K, *S] -> {key: [K, F, D]}; frozen by its owner, differentiable in its input.
        loss: the drifting loss applied to every feature.
        budget: working memory in bytes, per problem of the batch, that features processed together may hold; None
            processes all of them together. It depends on no rank's number of problems: every rank has the same lots.
            Ranks exchange the statistics of all lots at once, twice in a step, and visit each lot twice more for it;
            None spares them that.
    """

    def __init__(self, encoder: FeatureEncoder, loss: DriftLoss, budget: int | None = 64 * 2**20) -> None:
        super().__init__()
        if budget is not None and budget < 1:
            raise ValueError(f"budget must be at least 1 byte, or None for no limit, got {budget}")
        self.encoder = encoder
        self.loss = loss
        self.budget = budget

    def forward(
        self,
        gen: Tensor,
        pos: Samples,
        neg: Samples | None = None,
        *,
        neg_weight: Tensor | None = None,
        self_ref: Samples | None = None,
    ) -> Tensor:
        """Total loss, []; arguments as in `terms`."""
        inputs = self.inputs(gen, pos, neg, neg_weight, self_ref)
        losses = [
            loss for lot, known in self._lots_known(inputs, len(gen)) for loss in self.loss.joint_losses(lot, known)
        ]
        return torch.stack([loss.mean() for loss in losses]).sum()

    def terms(
        self,
        gen: Tensor,
        pos: Samples,
        neg: Samples | None = None,
        *,
        neg_weight: Tensor | None = None,
        self_ref: Samples | None = None,
    ) -> dict[str, DriftTerms]:
        """Terms of each feature over its B F problems, problem-major: row b F + f is location f of problem b.

        Args:
            gen: generated samples [B, G, *S]; the only argument that receives a gradient.
            pos: real samples [B, P, *S], or their features as `encode` returned them.
            neg: extra negatives [B, N, *S], or their features.
            neg_weight: [B, N] or [B].
            self_ref: [B, G', *S], an independent second generated batch that repels in place of `gen` itself, or its
                features.

        Raises:
            ValueError: samples that do not share B and *S, an encoder that returns anything but {key: [K, F, D]}, or
                features of other keys than the encoder's.
        """
        inputs = self.inputs(gen, pos, neg, neg_weight, self_ref)
        terms = [
            term for lot, known in self._lots_known(inputs, len(gen)) for term in self.loss.joint_terms(lot, known)
        ]
        return dict(zip(inputs, terms, strict=True))

    @torch.no_grad()
    def encode(self, samples: Tensor) -> dict[str, Tensor]:
        """Features of real samples [B, K, *S] for `pos`, `neg` or `self_ref`, to be used more than once.

        Returns:
            {key: [B F, K, D]}; may be moved or stored in half precision, the loss computes in float32.
        """
        # An encoder of views returns samples that still ask for a gradient, whatever the mode.
        return {key: feature.detach() for key, feature in self._problems(samples).items()}

    def inputs(
        self,
        gen: Tensor,
        pos: Samples,
        neg: Samples | None = None,
        neg_weight: Tensor | None = None,
        self_ref: Samples | None = None,
    ) -> dict[str, DriftInputs]:
        """Arguments of the drifting loss of every feature."""
        references = {"pos": pos, "neg": neg, "self_ref": self_ref}
        for name, block in references.items():
            if isinstance(block, Tensor) and (block.shape[0] != gen.shape[0] or block.shape[2:] != gen.shape[2:]):
                raise ValueError(
                    f"{name} must be [B, K, *S] with B={gen.shape[0]}, S={tuple(gen.shape[2:])} "
                    f"to match gen {tuple(gen.shape)}, got {tuple(block.shape)}"
                )
        gen_features = self._problems(gen)
        encoded: dict[str, Mapping[str, Tensor]] = {
            name: self.encode(block) if isinstance(block, Tensor) else block
            for name, block in references.items()
            if block is not None
        }
        for name, given in encoded.items():
            if given.keys() != gen_features.keys():
                different = sorted(given.keys() ^ gen_features.keys())
                raise ValueError(f"{name} must have the encoder's features; only one of the two has {different}")
        inputs = {}
        weights: dict[int, Tensor | None] = {}  # one for all features of so many locations
        for key, features in gen_features.items():
            locations = features.shape[0] // gen.shape[0]
            if locations not in weights:
                weights[locations] = None if neg_weight is None else neg_weight.repeat_interleave(locations, dim=0)
            weight = weights[locations]
            own = {name: blocks[key] for name, blocks in encoded.items()}
            inputs[key] = DriftInputs(features, neg_weight=weight, **own)
        return inputs

    def lots(self, inputs: Mapping[str, DriftInputs], num_problems: int) -> Iterator[list[DriftInputs]]:
        """Features in order, as many at a time as the budget allows, at least one."""
        lot: list[DriftInputs] = []
        held = 0
        for given in inputs.values():
            size = given.working_memory(len(self.loss.temperatures)) // num_problems
            if lot and self.budget is not None and held + size > self.budget:
                yield lot
                lot, held = [], 0
            lot.append(given)
            held += size
        yield lot

    def _lots_known(
        self, inputs: Mapping[str, DriftInputs], num_problems: int
    ) -> Iterator[tuple[list[DriftInputs], BatchStatistics | None]]:
        """Lots and, where several ranks share several lots, their statistics: else each lot would exchange its own."""
        lots = list(self.lots(inputs, num_problems))
        if len(lots) == 1 or num_ranks(self.loss.process_group) == 1:
            return ((lot, None) for lot in lots)
        statistics = self.loss.joint_statistics(lambda: [lots])
        return zip(lots, statistics.split([len(lot) for lot in lots]), strict=True)

    def _problems(self, samples: Tensor) -> dict[str, Tensor]:
        """Features of samples [B, K, *S] as problems: {key: [B F, K, D]}."""
        features = self.encoder(samples.flatten(0, 1))
        count = samples.shape[0] * samples.shape[1]
        if not features:
            raise ValueError("encoder returned no feature; it must return {key: [K, F, D]}")
        for key, feature in features.items():
            if feature.ndim != 3 or feature.shape[0] != count:
                raise ValueError(f"encoder must return [K, F, D] with K={count}, got {key!r}: {tuple(feature.shape)}")
        return {
            key: rearrange(feature, "(b k) f d -> (b f) k d", b=samples.shape[0]) for key, feature in features.items()
        }
