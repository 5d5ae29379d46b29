"""Parameters of the golden files, under the authors' flax names."""

import numpy as np
import torch
from torch import Tensor


def stored_parameters(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """The parameters of a golden file: float32 arrays, or int8 * 2^k + offset with [k, offset] beside them."""
    params = {}
    for name, value in arrays.items():
        if name.startswith("q8/params/"):
            power, offset = arrays["q8meta" + name[2:]]
            params[name.removeprefix("q8/params/")] = torch.from_numpy(value.astype(np.float32) * 2.0**power + offset)
        elif name.startswith("params/"):
            params[name.removeprefix("params/")] = torch.from_numpy(value)
    return {name: value.float() for name, value in params.items()}
