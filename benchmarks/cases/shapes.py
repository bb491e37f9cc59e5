"""Parameter shapes of real models, computed from their published configurations, and of made-up extremes.

Every model's number of parameters is that of its authors; a tied output layer counts once, as an optimizer sees it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

Size = tuple[int, ...]


@dataclass(frozen=True)
class Shapes:
    """The tensors that one optimizer steps.

    Attributes:
        name: as in `--shapes`.
        about: what it stands for.
        sizes: of every tensor, in the model's order.
    """

    name: str
    about: str
    sizes: tuple[Size, ...]

    @property
    def elements(self) -> int:
        """Number of parameters."""
        return sum(map(prod, self.sizes))


def _gpt2(layers: int = 12, width: int = 768, vocabulary: int = 50257, context: int = 1024) -> list[Size]:
    sizes: list[Size] = [(vocabulary, width), (context, width)]
    for _ in range(layers):
        sizes += [(width,)] * 2 + [(width, 3 * width), (3 * width,), (width, width), (width,)]
        sizes += [(width,)] * 2 + [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [*sizes, (width,), (width,)]


@dataclass(frozen=True)
class _Llama:
    """A decoder with grouped-query attention and a gated MLP: Llama 3, and Qwen2.5 (`bias`)."""

    vocabulary: int
    width: int
    layers: int
    kv_width: int
    hidden: int
    tied: bool
    bias: bool = False

    def linears(self) -> list[Size]:
        """Of one layer, as (outputs, inputs): q, k, v, o, gate, up, down."""
        w, kv, h = self.width, self.kv_width, self.hidden
        return [(w, w), (kv, w), (kv, w), (w, w), (h, w), (h, w), (w, h)]

    def sizes(self) -> list[Size]:
        found: list[Size] = [(self.vocabulary, self.width)]
        for _ in range(self.layers):
            for index, linear in enumerate(self.linears()):
                found += [linear, linear[:1]] if self.bias and index < 3 else [linear]
            found += [(self.width,)] * 2
        found.append((self.width,))
        return found if self.tied else [*found, (self.vocabulary, self.width)]

    def lora(self, rank: int) -> list[Size]:
        """Two thin matrices beside every linear layer."""
        return [
            size
            for _ in range(self.layers)
            for outputs, inputs in self.linears()
            for size in ((rank, inputs), (outputs, rank))
        ]


_LLAMA_1B = _Llama(128256, width=2048, layers=16, kv_width=512, hidden=8192, tied=True)
_LLAMA_8B = _Llama(128256, width=4096, layers=32, kv_width=1024, hidden=14336, tied=False)
_LLAMA_70B = _Llama(128256, width=8192, layers=80, kv_width=1024, hidden=28672, tied=False)
_QWEN = _Llama(151936, width=896, layers=24, kv_width=128, hidden=4864, tied=True, bias=True)


def _vit(
    layers: int = 24, width: int = 1024, patch: int = 16, patches: int = 14 * 14, classes: int = 1000
) -> list[Size]:
    sizes: list[Size] = [(1, 1, width), (width, 3, patch, patch), (width,), (1, patches + 1, width)]
    for _ in range(layers):
        sizes += [(width,)] * 2 + [(3 * width, width), (3 * width,), (width, width), (width,)]
        sizes += [(width,)] * 2 + [(4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    return [*sizes, (width,), (width,), (classes, width), (classes,)]


class _UNet:
    """The denoiser of Stable Diffusion 1.x (arXiv 2112.10752)."""

    channels = (320, 640, 1280, 1280)
    time, text = 1280, 768

    def __init__(self) -> None:
        self.sizes: list[Size] = []
        first, last = self.channels[0], self.channels[-1]
        self._layer(first, 4, 3, 3)
        self._layer(self.time, first)
        self._layer(self.time, self.time)
        skips = self._down()
        self._residual(last, last)
        self._attention(last)
        self._residual(last, last)
        self._up(skips)
        self._norm(first)
        self._layer(4, first, 3, 3)

    def _down(self) -> list[int]:
        before = self.channels[0]
        skips = [before]
        for level, c in enumerate(self.channels):
            for _ in range(2):
                self._residual(before, c)
                if level < 3:
                    self._attention(c)
                skips.append(c)
                before = c
            if level < 3:
                self._layer(c, c, 3, 3)
                skips.append(c)
        return skips

    def _up(self, skips: list[int]) -> None:
        before = self.channels[-1]
        for level, c in reversed(list(enumerate(self.channels))):
            for _ in range(3):
                self._residual(before + skips.pop(), c)
                if level < 3:
                    self._attention(c)
                before = c
            if level > 0:
                self._layer(c, c, 3, 3)

    def _layer(self, outputs: int, *rest: int) -> None:
        self.sizes += [(outputs, *rest), (outputs,)]

    def _norm(self, c: int) -> None:
        self.sizes += [(c,), (c,)]

    def _residual(self, inputs: int, outputs: int) -> None:
        self._norm(inputs)
        self._layer(outputs, inputs, 3, 3)
        self._layer(outputs, self.time)
        self._norm(outputs)
        self._layer(outputs, outputs, 3, 3)
        if inputs != outputs:
            self._layer(outputs, inputs, 1, 1)

    def _attention(self, c: int) -> None:
        self._norm(c)
        self._layer(c, c, 1, 1)
        for source in (c, self.text):
            self._norm(c)
            self.sizes += [(c, c), (c, source), (c, source)]
            self._layer(c, c)
        self._norm(c)
        self._layer(8 * c, c)
        self._layer(c, 4 * c)
        self._layer(c, c, 1, 1)


_MAKE: dict[str, tuple[str, Callable[[], list[Size]]]] = {
    "gpt2-124m": ("GPT-2 124M", _gpt2),
    "qwen2.5-0.5b": ("Qwen2.5-0.5B", _QWEN.sizes),
    "llama-3.2-1b": ("Llama-3.2-1B", _LLAMA_1B.sizes),
    "llama-3-8b": ("Llama-3-8B", _LLAMA_8B.sizes),
    "vit-l-16": ("ViT-L/16, 224 pixels, 1,000 classes", _vit),
    "lora-llama-8b": ("LoRA of rank 16 beside every linear layer of Llama-3-8B", lambda: _LLAMA_8B.lora(16)),
    "lora-llama-70b": ("LoRA of rank 16 beside every linear layer of Llama-3-70B", lambda: _LLAMA_70B.lora(16)),
    "unet-sd15": ("the UNet of Stable Diffusion 1.5", lambda: _UNet().sizes),
    "10000x64": ("10,000 tensors of 64 elements", lambda: [(64,)] * 10_000),
    "1000x64x64": ("1,000 tensors of 64 x 64", lambda: [(64, 64)] * 1_000),
    "flat-1e8": ("one tensor of 1e8 elements", lambda: [(10**8,)]),
    "matrix-1e8": ("one matrix of 1e8 elements", lambda: [(15_625, 6_400)]),
    "matrix-1e9": ("one matrix of 1e9 elements", lambda: [(156_250, 6_400)]),
    "flat-1e9": ("one tensor of 1e9 elements", lambda: [(10**9,)]),
}
NAMES = tuple(_MAKE)


def shapes(name: str) -> Shapes:
    """The shapes of that name.

    Raises:
        ValueError: unknown name.
    """
    if name not in _MAKE:
        raise ValueError(f"shapes: expected one of {', '.join(NAMES)}, got {name!r}")
    about, make = _MAKE[name]
    return Shapes(name, about, tuple(make()))
