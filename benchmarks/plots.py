"""Pictures of result files: ratio to torch fused, share of the roofline, host time over the number of tensors."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.report import Record

_OURS, _THEIRS, _OTHERS = "#1f77b4", "#d62728", "#999999"


def bars(records: Sequence[Record], key: str, label: str, title: str, path: Path, scale: float = 1.0) -> bool:
    """A panel per case, a bar per contender with a line from the 20th to the 80th percentile.

    Args:
        records: of step_throughput.
        key: of the value, a spread; records without one are left out.
        label: of the axis.
        title: above all.
        path: PNG to write.
        scale: factor to the axis's unit.

    Returns:
        Whether there was anything to draw.
    """
    kept = [record for record in records if record.get(key)]
    cases = list(dict.fromkeys((record["shapes"], record["mix"]) for record in kept))
    if not cases:
        return False
    pyplot = _pyplot()
    most = max(sum((r["shapes"], r["mix"]) == case for r in kept) for case in cases)
    columns = min(3, len(cases))
    rows = -(-len(cases) // columns)
    size = (5.2 * columns, (0.26 * most + 1.0) * rows + 0.6)
    figure, axes = pyplot.subplots(rows, columns, squeeze=False, figsize=size)
    for axis in axes.flat[len(cases) :]:
        axis.axis("off")
    for axis, case in zip(axes.flat, cases, strict=False):
        own = [record for record in kept if (record["shapes"], record["mix"]) == case][::-1]
        middle = [record[key]["median"] * scale for record in own]
        spread = [[abs(record[key][p] - record[key]["median"]) * scale for record in own] for p in ("p20", "p80")]
        colors = [_color(record["contender"]) for record in own]
        axis.barh([r["contender"] for r in own], middle, xerr=spread, color=colors, error_kw={"linewidth": 0.8})
        axis.axvline(1.0 * (scale if key == "share_of_roofline" else 1.0), color="black", linewidth=0.8, zorder=0)
        axis.set_title(" ".join(case), fontsize=9)
        axis.tick_params(labelsize=7)
    figure.supxlabel(label, fontsize=9)
    figure.suptitle(title, fontsize=10)
    _save(figure, path)
    return True


#: What the first picture shows, named as its reader would: an optimizer's whole work in each.
WORK = {
    ("1000x64x64", "fp32"): "1,000 small layers, float32",
    ("lora-llama-8b", "bf16"): "LoRA of Llama 8B, bfloat16",
    ("gpt2-124m", "bf16"): "GPT-2 124M, bfloat16",
    ("gpt2-124m", "fp32"): "GPT-2 124M, float32",
}


def headline(records: Sequence[Record], title: str, path: Path) -> bool:
    """One bar of ours per work on one of torch's, which is as long for all: clipping, AdamW, GreedyLR."""
    ours = {(r["shapes"], r["mix"]): r for r in reversed(records) if _is_whole(r)}  # of several the first, as listed
    cases = [case for case in WORK if case in ours][::-1]
    if not cases:
        return False
    figure, axis = _pyplot().subplots(figsize=(7.5, 0.55 * len(cases) + 1.1))
    names = [WORK[case] for case in cases]
    ratios = [ours[case]["ratio"]["median"] for case in cases]
    axis.barh(
        names, [1.0] * len(cases), color="#dddddd", label="torch: clip_grad_norm_, fused AdamW, GreedyLR on the host"
    )
    axis.barh(names, [1 / ratio for ratio in ratios], color=_OURS, label="greedylr_fused")
    for row, ratio in enumerate(ratios):
        axis.text(1 / ratio + 0.01, row, f"{ratio:.1f}x as fast", va="center", fontsize=9)
    axis.set(xlim=(0, max(1.0, *(1.2 / ratio for ratio in ratios))), xticks=[])
    axis.spines[:].set_visible(False)
    axis.legend(loc="upper center", bbox_to_anchor=(0.35, 0.0), ncols=2, fontsize=8, frameon=False)
    axis.set_title("Time of one optimizer step: clipping, AdamW, GreedyLR", fontsize=10, loc="left")
    figure.supxlabel(title, fontsize=6, color="#777777")
    _save(figure, path)
    return True


def _is_whole(record: Record) -> bool:
    name = record["contender"]
    return name.startswith("ours-") and name.endswith("+clip+greedy") and bool(record.get("ratio"))


def host_time(records: Sequence[Record], title: str, path: Path) -> bool:
    """Microseconds per step over the number of tensors, both logarithmic; a panel per kind of tensor."""
    kinds = list(dict.fromkeys(record["kind"] for record in records))
    if not kinds:
        return False
    figure, axes = _pyplot().subplots(1, len(kinds), squeeze=False, sharey=True, figsize=(4.8 * len(kinds), 4))
    for axis, kind in zip(axes.flat, kinds, strict=True):
        for name in dict.fromkeys(record["contender"] for record in records):
            own = [r for r in records if (r["kind"], r["contender"]) == (kind, name)]
            style = "--" if "+clip" in name else "-"
            dark = _OTHERS if "foreach" in name else _color(name)
            medians = [r["us_per_step"]["median"] for r in own]
            if own:
                axis.plot([r["tensors"] for r in own], medians, style, color=dark, marker="o", markersize=3, label=name)
        axis.set(xscale="log", yscale="log", xlabel="tensors", title=f"{kind} tensors")
        axis.grid(True, which="major", linewidth=0.3)
        axis.legend(fontsize=7)
    axes[0][0].set_ylabel("host microseconds per step")
    figure.suptitle(title, fontsize=10)
    _save(figure, path)
    return True


def draw(folder: Path) -> list[Path]:
    """The pictures of all result files of a folder, beside them. Without matplotlib: none, and a line that says so."""
    try:
        import matplotlib

        matplotlib.use("Agg")
    except ImportError as error:
        print(f"no pictures: {error}; pip install matplotlib, then python -m benchmarks.plots {folder}")
        return []
    drawn: list[tuple[Path, bool]] = []
    if (source := folder / "step_throughput.json").exists():
        content = report.load(source)
        records, title = content["records"], _title(content["environment"])
        path = folder / "ratio_to_torch_fused.png"
        drawn.append((path, bars(_with_ratio(records), "ratio", "times as fast as torch fused doing it", title, path)))
        path = folder / "speed.png"
        drawn.append((path, headline(records, title, path)))
        path = folder / "share_of_roofline.png"
        label = "% of the roofline measured in the same rounds"
        drawn.append((path, bars(records, "share_of_roofline", label, title, path, scale=100)))
    if (source := folder / "host_overhead.json").exists():
        content = report.load(source)
        path = folder / "host_overhead.png"
        drawn.append((path, host_time(content["records"], _title(content["environment"]), path)))
    return [path for path, done in drawn if done]


def _with_ratio(records: Sequence[Record]) -> list[Record]:
    """Those whose ratio is not one of a contender to itself."""
    return [record for record in records if record["contender"] != record.get("base")]


def _color(name: str) -> str:
    return _OURS if name.startswith("ours") else _THEIRS if name.startswith("torch-fused") else _OTHERS


def _title(environment: dict[str, Any]) -> str:
    return f"{environment['device']}, torch {environment['torch']}, commit {environment['commit']}"


def _pyplot() -> Any:
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    _pyplot().close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="+", help="with step_throughput.json, host_overhead.json, or both")
    for folder in parser.parse_args(argv).folder:
        for path in draw(folder):
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
