"""FusedAdamW in the frameworks that people train with. Each module is imported by name; none is needed to train.

- `greedylr_fused.integrations.transformers`: the Trainer of transformers 5
- `greedylr_fused.integrations.lightning`: the Trainer of Lightning 2
- `greedylr_fused.integrations.torchtitan`: the Trainer of torchtitan 0.3

`closures.py` refuses closures that return part of a loss; `register()` hands it to `step()`. `shown_lr.py` is an LR
scheduler that only shows. Accelerate needs none (docs/accelerate.md), nor do graphs (docs/compile-and-graphs.md).
"""

from greedylr_fused.integrations.closures import check_whole
from greedylr_fused.step import losses


def register() -> None:
    """Let `step()` check what frameworks hand to it. No framework is imported."""
    losses.closure_checks.append(check_whole)
