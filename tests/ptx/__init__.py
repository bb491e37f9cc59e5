"""The PTX that nvcc emitted, run on a CPU under the project's real host code; no GPU is needed.

`parsing` reads the text, `flow` cuts it into basic blocks, `translating` (with `computing`, `bits`, `moving`,
`operands`) turns each block into a Python function over NumPy arrays, one element per thread. `running` lets every
thread go its own way from block to block, `grid` is a launch with its barriers, shuffles and memory (`memory`), `races`
asks whether what threads share is ordered. `host` links the module's host code with a CUDA runtime that hands launches
to these.

`launches` runs Triton's kernels the same way, whose PTX `dialect` puts in nvcc's words.

What this cannot show: the work of ptxas, the memory model of the hardware beyond `races`, speed.
"""


class Fault(RuntimeError):
    """A kernel does what PTX forbids, or what this package does not know how to run."""
