"""Set before anything imports Triton: without a GPU the kernels of one are interpreted."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
