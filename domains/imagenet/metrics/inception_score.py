"""Inception score (Salimans et al. 2016): exp E_x KL( p(y|x) || p(y) ), a mean over parts of the set.

The value depends on the size of the parts, and on the order of the samples where parts hold classes together. Two
protocols: "adm" (guided-diffusion's evaluator) takes parts of 5000 in the order of sampling; "authors" (the paper's
code, and torch-fidelity) takes 10 parts after a permutation by NumPy's RandomState(2020).
"""

from collections.abc import Sequence
from itertools import pairwise
from statistics import mean

import numpy as np
import torch
from torch import Tensor

PROTOCOLS = ("adm", "authors")
ADM_PART = 5000
AUTHORS_PARTS = 10
AUTHORS_SEED = 2020


def inception_score(logits: Tensor, protocol: str) -> float:
    """Of logits [n, c], for Inception those without bias, by a protocol of `PROTOCOLS`.

    Raises:
        ValueError: another protocol; fewer samples than it has parts.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    if protocol == "adm":
        parts: Sequence[Tensor] = logits.split(ADM_PART)
    else:
        if len(logits) < AUTHORS_PARTS:
            raise ValueError(f"logits must be of at least {AUTHORS_PARTS} samples, got {len(logits)}")
        order = torch.from_numpy(np.random.RandomState(AUTHORS_SEED).permutation(len(logits)))
        bounds = [index * len(logits) // AUTHORS_PARTS for index in range(AUTHORS_PARTS + 1)]
        parts = [logits[order[start:stop]] for start, stop in pairwise(bounds)]
    return mean(score_of_part(part) for part in parts)


def score_of_part(logits: Tensor) -> float:
    """exp of the mean Kullback-Leibler divergence of the predictions to their mean; logits [n, c]."""
    log_p = logits.double().log_softmax(1)
    p = log_p.exp()
    marginal = p.mean(0)
    # 0 log 0 = 0: a class that no sample has.
    divergence = (p * log_p).sum(1).mean() - torch.special.xlogy(marginal, marginal).sum()
    return float(divergence.exp())
