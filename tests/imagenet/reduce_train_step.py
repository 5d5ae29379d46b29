"""The authors' whole training step as small as it can be committed: tests/golden/official_train_step.npz.

    python tests/imagenet/reduce_train_step.py <folder of the full goldens>

All that the step computes stays as it is. The decoder and the classification head of the auto-encoder, which take no
part in it, become zeros, which compress to nothing; what is left is the entropy of the encoder's int8 weights.
"""

import sys
from pathlib import Path

import numpy as np
from golden_networks import load_arrays

UNUSED = ("q8/params/mae/decoder/", "q8/params/mae/fc/")
TARGET = Path(__file__).parents[1] / "golden" / "official_train_step.npz"


def main() -> None:
    if len(sys.argv) != 2 or not (source := Path(sys.argv[1]) / "train_step.npz").is_file():
        sys.exit(f"usage: {sys.argv[0]} <folder that holds train_step.npz>, got {sys.argv[1:]}")
    arrays = load_arrays(source)
    np.savez_compressed(
        TARGET, **{name: np.zeros_like(a) if name.startswith(UNUSED) else a for name, a in arrays.items()}
    )


if __name__ == "__main__":
    main()
