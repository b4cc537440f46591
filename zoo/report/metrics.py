"""Reading metrics.csv, without Lightning."""

from __future__ import annotations

import csv
import math
from pathlib import Path

#: Points (step, value) by the name of the metric.
Metrics = dict[str, list[tuple[int, float]]]

POINTS = 1000  # per curve at most: a panel is less than a thousand pixels wide


def read_metrics(path: Path) -> Metrics:
    """Reads CSVLogger's file: finite points (step, value) by the name of the metric.

    If a metric has more than `POINTS` points, every second one is dropped, repeatedly, so that memory does not grow
    with the length of the run. The last point is always kept. What is not a number is skipped, and so is a row that was
    cut off when the run was killed.
    """
    metrics: Metrics = {}
    if not path.is_file():
        return metrics
    count, stride, latest = dict[str, int](), dict[str, int](), dict[str, tuple[int, float]]()
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for row in csv.DictReader(file):
            step = None if None in row.values() else _number(row.get("step") or "")
            for name, text in row.items() if step is not None else ():
                if name in ("step", "epoch", None) or (value := _number(text)) is None:
                    continue
                latest[name] = (int(step or 0), value)
                count[name] = count.get(name, 0) + 1
                if (count[name] - 1) % stride.setdefault(name, 1):
                    continue
                points = metrics.setdefault(name, [])
                points.append(latest[name])
                if len(points) > POINTS:
                    del points[1::2]
                    stride[name] *= 2
    for name, points in metrics.items():
        if points[-1] != latest[name]:
            points.append(latest[name])
    return metrics


def _number(text: str) -> float | None:
    """A finite number; None for anything else."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
