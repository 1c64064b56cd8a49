"""Where there is no GPU, Triton's kernels run under its interpreter."""

import os

import torch

if not torch.cuda.is_available():  # read when a kernel's module is imported, so before any test is
    os.environ["TRITON_INTERPRET"] = "1"
