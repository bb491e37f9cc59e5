"""Backend `triton`: the step as Triton kernels, on NVIDIA, AMD and Intel GPUs.

`backend.py` plans and launches; `elements.py` updates parameters (A1-A6), `measure.py` reads gradients for their norm,
`control.py` closes a step (G1-G4, S1-S3), `observe.py` moves the LR by the loss (C1-C9), `access.py` reads and writes
memory. Triton is imported only where a kernel is built.
"""

from greedylr_fused.backends.triton.backend import TritonBackend as TritonBackend
