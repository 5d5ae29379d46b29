"""Linear accuracy: how well a linear classifier of frozen features names the classes of images that it has not seen.

Shapes: N training, L held-out samples, D features, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

DECAY = 1e-3  # of the squared weights, on standardised features
ITERATIONS = 200
SMALLEST_DEVIATION = 1e-6


def linear_accuracy(
    train: Tensor, train_labels: Tensor, held_out: Tensor, held_out_labels: Tensor, num_classes: int
) -> float:
    """Share of held-out samples whose label a logistic regression of the training features chooses.

    Features are standardised by the training set's mean and deviation. The minimum of the cross-entropy plus
    DECAY |W|^2 is unique, and found by L-BFGS from zero: nothing is drawn.

    Args:
        train: [N, D].
        train_labels: [N] int64.
        held_out: [L, D].
        held_out_labels: [L] int64.
        num_classes: C.

    Raises:
        ValueError: shapes that do not fit together, or no samples.
    """
    for name, features, labels in (("train", train, train_labels), ("held_out", held_out, held_out_labels)):
        if features.ndim != 2 or not len(features) or features.shape[:1] != labels.shape:
            raise ValueError(
                f"{name} must be [N, D] with one label each, N >= 1, got {tuple(features.shape)} and labels "
                f"{tuple(labels.shape)}"
            )
    centre, deviation = train.mean(0), train.std(0, correction=0).clamp(min=SMALLEST_DEVIATION)
    x = (train - centre) / deviation
    weight = torch.zeros(num_classes, x.shape[1], device=x.device, requires_grad=True)
    bias = torch.zeros(num_classes, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), train_labels) + DECAY * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(objective)
    with torch.no_grad():
        chosen = F.linear((held_out - centre) / deviation, weight, bias).argmax(1)
    return float((chosen == held_out_labels).float().mean())
