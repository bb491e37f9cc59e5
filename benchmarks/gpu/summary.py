"""What the benchmarks of a GPU check found: a few lines, and a figure.

python -m benchmarks.gpu.summary FOLDER      draws FOLDER/gpu_check.png from the JSON files there
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks import report

Records = list[dict[str, Any]]
#: At most so many bars per panel.
MOST = 24


def records(folder: Path, name: str) -> Records:
    """Of one benchmark; empty if it left no file, or one of another form."""
    try:
        return list(report.load(folder / f"{name}.json")["records"])
    except (OSError, ValueError):
        return []


def highlights(folder: Path) -> list[str]:
    """One line per case: median, and ratios where there is something beside it."""
    lines = [f"{r['traffic']}: {r['gb_per_s']['median']:,.0f} GB/s" for r in records(folder, "roofline")]
    for r in records(folder, "step_throughput"):
        if r["contender"].startswith(("ours", "torch-fused")):
            lines.append(f"{_case(r)} {r['contender']}: {_step(r)}")
    for r in records(folder, "host_overhead"):
        if r["contender"].startswith("ours"):
            us = f"{r['us_per_step']['median']:,.0f} us"
            beside = f", {r['ratio']['median']:.2f}x torch" if r["ratio"] else ""
            lines.append(f"host, {r['tensors']} {r['kind']} tensors, {r['contender']}: {us}{beside}")
    for r in records(folder, "control_cost"):
        if added := r["device_added_us"] or r["added_us"]:
            what, syncs = f"{r['schedule']} adds to {r['family']}, {r['shapes']}", r["host_syncs_per_step"]
            lines.append(f"{what}: {added['median']:+.2f} us, {syncs:g} syncs per step")
    for r in records(folder, "train_step"):
        lines.append(
            f"training step {r['model']}, {r['contender']}: {r['ms']['median']:.2f} ms, "
            f"{r['speedup']['median']:.2f}x unfused, {r['host_syncs_per_step']:g} syncs per step"
        )
    return lines


def _case(record: dict[str, Any]) -> str:
    return f"{record['shapes']} {record['mix']}"


def _step(record: dict[str, Any]) -> str:
    ms = record.get("device_ms") or record["ms"]
    parts = [f"{ms['median']:.3f} ms"]
    if share := record.get("share_of_roofline"):
        parts.append(f"{share['median']:.3f} of the roofline")
    if ratio := record.get("ratio_device") or record.get("ratio"):
        parts.append(f"{ratio['median']:.2f}x torch")
    return ", ".join(parts)


def print_highlights(folder: str) -> None:
    """To the terminal."""
    print("\n".join(highlights(Path(folder))))


def figure(folder: Path, path: Path) -> None:
    """Three panels: share of the roofline, how many times faster than torch, and whole training steps.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = _panels(folder)
    drawing, axes = pyplot.subplots(1, 3, figsize=(21, 7), layout="constrained")
    for axis, (title, bars) in zip(axes, panels, strict=True):
        names, values = [name for name, _ in bars[:MOST]], [value for _, value in bars[:MOST]]
        positions = list(range(len(names)))
        colours = ["tab:blue" if "ours" in name or " fused" in name else "tab:gray" for name in names]
        axis.barh(positions, values, color=colours)
        axis.set_yticks(positions, names, fontsize=7)
        axis.invert_yaxis()
        axis.set_title(title if bars else f"{title}: not measured", fontsize=9)
        if bars and "ms" not in title:
            axis.axvline(1.0, color="black", linewidth=0.8)
    pyplot.close(drawing)
    drawing.savefig(path, dpi=110)


def _panels(folder: Path) -> list[tuple[str, list[tuple[str, float]]]]:
    """Titles, and names with values; device time where there is one."""
    steps = [r for r in records(folder, "step_throughput") if r["contender"].startswith(("ours", "torch-fused"))]
    shares = [(r, r["share_of_roofline"]) for r in steps]
    ratios = [(r, r.get("ratio_device") or r["ratio"]) for r in steps if r["contender"].startswith("ours")]
    trained = [(f"{r['model']} {r['contender']}", r["ms"]["median"]) for r in records(folder, "train_step")]

    def named(pairs: list[tuple[dict[str, Any], dict[str, float] | None]]) -> list[tuple[str, float]]:
        return [(f"{_case(r)} {r['contender']}", spread["median"]) for r, spread in pairs if spread]

    return [
        ("share of the roofline", named(shares)),
        ("times as fast as torch fused", named(ratios)),
        ("training step, ms", trained),
    ]


def main() -> None:
    """Draw the figure of a folder."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    folder = Path(sys.argv[1])
    figure(folder, folder / "gpu_check.png")
    print("gpu_check.png")


if __name__ == "__main__":
    main()
