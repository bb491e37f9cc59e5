"""FusedAdamW in the frameworks that people train with. Each module is imported by name; none is needed to train.

- `greedylr_fused.integrations.transformers`: the Trainer of transformers 5
- `greedylr_fused.integrations.lightning`: the Trainer of Lightning 2

Accelerate needs none (docs/accelerate.md), and nor do `torch.compile` and CUDA graphs (docs/compile-and-graphs.md).
"""
