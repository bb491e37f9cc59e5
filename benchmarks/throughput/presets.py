"""What `optimizer_step` measures when the command line does not say."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.cases import peers
from benchmarks.cases.mixes import COMPRESSED, MIXES
from benchmarks.cases.shapes import NAMES

_PAIR = ["{}", "torch-fused", "{}+clip", "torch-fused+clip"]
_GREEDY = ["{}+clip+greedy", "torch-fused+clip+greedy"]
FEW = ["fp32", "bf16"]


@dataclass(frozen=True)
class Preset:
    """What is measured when the command line does not say: mixes per shapes, contenders, seconds per case."""

    cases: dict[str, list[str]]
    contenders: list[str]
    seconds: float


def _presets() -> dict[str, Preset]:
    on_cpu = [name.format("ours-cpu") for name in [*_PAIR, *_GREEDY]] + ["torch-foreach"]
    on_gpu = [name.format(ours) for ours in ("ours-cuda", "ours-triton") for name in [*_PAIR, *_GREEDY, "{}+graph"]]
    on_state = [name.format("ours-cpu") for name in _PAIR]
    on_state.append("torch-fused-bf16")
    on_gpu += ["torch-foreach", "torch-fused+graph", "torch-capturable+graph"]
    every = [family + extra for family in peers.FAMILIES for extra in ("", "+clip", "+clip+greedy", "+graph")]
    small = {name: FEW for name in ("lora-llama-8b", "1000x64x64", "10000x64")}
    plain = [name for name in MIXES if name not in COMPRESSED]
    return {
        # In the order of interest: on a busy machine the last ones are left out.
        "quick": Preset({"1000x64x64": FEW, "flat-1e8": plain, "gpt2-124m": FEW, **small}, on_cpu, seconds=4),
        "state": Preset(dict.fromkeys(("matrix-1e8", "gpt2-124m"), [*FEW, *COMPRESSED]), on_state, seconds=8),
        "gpu": Preset(
            {"flat-1e9": plain, "matrix-1e9": COMPRESSED, "llama-3.2-1b": FEW, "gpt2-124m": FEW}
            | {"unet-sd15": ["bf16"], **small},
            list(dict.fromkeys(on_gpu)),
            seconds=2,
        ),
        "full": Preset({name: list(MIXES) for name in NAMES}, every, seconds=20),
    }


PRESETS = _presets()
