"""A whole training step as one CUDA graph.

`CapturedStep` in `captured_step.py` runs a step eagerly, captures it, and replays it; `frozen.py` compares before each
replay what the graph has frozen with what the optimizers have now; `stepped.py` has those as one, and `checks.py` looks
at arguments and inputs. `torch_graph.py` has torch's graph and its stream.
"""

from greedylr_fused.graphs.captured_step import CapturedStep

__all__ = ["CapturedStep"]
