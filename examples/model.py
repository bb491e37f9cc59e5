"""A byte-level GPT in plain PyTorch: RMSNorm, rotary positions, grouped-query attention, SwiGLU, tied embedding.

One architecture for every size, with the shapes of Llama (arXiv 2302.13971, 2407.21783). Layers map
(batch, time, width) to the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 256  # bytes


@dataclass(frozen=True)
class Shape:
    """What fixes the parameters of a model."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    hidden: int
    context: int

    @property
    def head_width(self) -> int:  # even: rotary positions turn pairs
        return self.width // self.heads


class Attention(nn.Module):
    """Causal attention; `kv_heads` keys and values, each shared by `heads / kv_heads` queries (arXiv 2305.13245)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.query = nn.Linear(shape.width, shape.width, bias=False)
        self.key = nn.Linear(shape.width, shape.kv_heads * shape.head_width, bias=False)
        self.value = nn.Linear(shape.width, shape.kv_heads * shape.head_width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        split = (*x.shape[:2], -1, self.shape.head_width)
        query, key, value = (layer(x).view(split).transpose(1, 2) for layer in (self.query, self.key, self.value))
        query, key, grouped = rotate(query, cos, sin), rotate(key, cos, sin), self.shape.kv_heads < self.shape.heads
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
        return self.out(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.out = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Attention and MLP, each added to the residual stream after a norm of its own."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.width, eps=1e-5)
        self.attention = Attention(shape)
        self.mlp_norm = nn.RMSNorm(shape.width, eps=1e-5)
        self.mlp = MLP(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """Predicts the next byte.

    Args:
        shape: sizes; `width` divisible by `heads`, `heads` by `kv_heads`.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=1e-5)
        angles = torch.outer(torch.arange(shape.context), 10000.0 ** -torch.arange(0, 1, 2 / shape.head_width))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # GPT-2: what adds to the residual stream starts smaller, the more layers add to it.
                depth = 2 * shape.layers if name.endswith("out.weight") else 1
                nn.init.normal_(parameter, std=0.02 / depth**0.5)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats per byte.

        Args:
            tokens: int64 (batch, time), time at most `context`.
            targets: int64 (batch, time), the byte that follows each token.
        """
        time = tokens.shape[1]
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos[:time], self.sin[:time])
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs of `x` (batch, heads, time, head_width) by position-dependent angles (arXiv 2104.09864)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).to(x.dtype)


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The matrices within the blocks, and so not the embedding, which is the head too."""
    return [p for name, p in model.named_parameters() if "blocks." in name and p.dim() == 2]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; gains do not."""
    matrices, gains = ([p for p in model.parameters() if (p.dim() >= 2) == wide] for wide in (True, False))
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": gains, "weight_decay": 0.0}]
