"""The measured times as a picture: one panel for each kind of database and each piece of work, one bar for each
contender."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.contenders import GROUPS, LABELS
from bench.kinds import KINDS

_WORK = {"s3": "backup to S3", "local": "backup to a folder", "restore": "restore"}
_OURS, _OTHERS = "#1f6f5c", "#b9c0c7"


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Write an SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "backupd", "svg.fonttype": "none", "font.size": 8})
    from matplotlib import pyplot

    panels = list(_panels(results))
    heights = [0.6 + len(bars) for _, bars in panels]
    figure, axes = pyplot.subplots(
        len(panels),
        1,
        figsize=(8, 0.32 * sum(heights) + 0.4),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    for axis, (title, bars) in zip(axes.flat, panels, strict=True):
        names = [label for label, _, _ in bars][::-1]
        times = [seconds for _, seconds, _ in bars][::-1]
        colours = [_OURS if ours else _OTHERS for _, _, ours in bars][::-1]
        drawn = axis.barh(names, times, color=colours, height=0.7)
        axis.bar_label(drawn, labels=[f"{seconds:.1f} s" for seconds in times], padding=3)
        axis.set_title(title, loc="left", fontsize=9, fontweight="bold")
        axis.set_xlim(0, max(times) * 1.12)
        axis.set_xticks([])
        axis.spines[["top", "right", "bottom"]].set_visible(False)
        axis.tick_params(left=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


Bar = tuple[str, float, bool]  # label, median of the seconds, whether it is backupd's


def _panels(results: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[Bar]]]:
    for name, kind in KINDS.items():
        entries = results["kinds"].get(name, {}).get("entries", [])
        for group, work in _WORK.items():
            bars = []
            for contender in GROUPS[group]:
                times = [entry["seconds"] for entry in entries if entry["name"] == contender]
                if times:
                    label = LABELS[contender].replace("`", "").replace("\\|", "|")
                    bars.append((label, median(times), label.startswith("backupd")))
            if bars:
                size = results["kinds"][name]["database_bytes"] / 1e9
                yield f"{kind.name}, {size:.1f} GB: {work}", bars
