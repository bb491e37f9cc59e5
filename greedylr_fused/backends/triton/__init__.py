"""Backend `triton`: the step as Triton kernels, on NVIDIA, AMD and Intel GPUs.

`backend.py` plans and launches, `mixes.py` says for which types. `update.py` updates parameters, chunk by chunk, by
`elements.py` or, with moments in 8 bits, by `groups.py`: both by the formula in `adamw.py` (A1-A6), with the formats of
`eight_bit.py` and `masters.py`. `measure.py` reads gradients for their norm, with `moved.py` for a tuner, whose S and
moves are in `tuner.py`. `control.py` closes a step (G1-G4, S1-S3), `observe.py` moves the LR by the loss (C1-C9),
`search.py` by trials (L1-L9), which `backup.py` undoes, `spikes.py` skips spikes (K1-K4), `slots.py` says where;
`access.py` reads and writes memory. Triton is imported only where a kernel is built.
"""

from greedylr_fused.backends.triton.backend import TritonBackend as TritonBackend
