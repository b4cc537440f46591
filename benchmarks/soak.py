"""Resources of a long run over time: memory, open files, threads, and the size of its folder.

Trains a generative recipe for a number of minutes, with samples, validation, curves and checkpoints but without early
stopping, and measures every `--every` seconds. Printed is the change from the second sixth of the time to the last
one; the first sixth is warm-up. It reads /proc, so it needs Linux. Usage:

    python -m benchmarks.soak gan_digits.yaml --minutes 60
    python -m benchmarks.soak diffusion.yaml --minutes 60

Other options are those of `zoo fit`.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from benchmarks.common import run_recipe
from benchmarks.output import markdown_table, new_parser


class ResourceMonitor(Callback):
    """Writes resources as lines of JSON at a fixed interval.

    Args:
        path: file to append to.
        every: seconds between two lines.
    """

    def __init__(self, path: str, every: float) -> None:
        self.path, self.every = path, every
        self.due = time.monotonic()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if time.monotonic() < self.due:
            return
        self.due += self.every
        files = [path for path in Path(trainer.log_dir).rglob("*") if path.is_file()]
        row = {
            "step": trainer.global_step,
            "resident_mib": _resident() / 2**20,
            "gpu_mib": torch.cuda.memory_reserved() / 2**20 if torch.cuda.is_available() else 0,
            "open_files": _count("/proc/self/fd"),
            "threads": threading.active_count(),
            "system_threads": _count("/proc/self/task"),
            "folder_mib": sum(path.stat().st_size for path in files) / 2**20,
            "folder_files": len(files),
        }
        with Path(self.path).open("a") as file:
            file.write(json.dumps(row) + "\n")


def _count(folder: str) -> int:
    """Number of entries in a folder."""
    return sum(1 for _ in Path(folder).iterdir())


def _resident() -> int:
    """Resident memory of this process, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def summary(rows: list[dict[str, float]]) -> str:
    """Medians of each quantity in the second and in the last sixth of the measurements, and the change, as a table."""
    part = max(1, len(rows) // 6)
    lines = []
    for name in list(rows[0])[1:]:
        early, late = (
            statistics.median(row[name] for row in rows[s]) for s in (slice(part, 2 * part), slice(-part, None))
        )
        change = f"{100 * (late / early - 1):+.1f}" if early else ""
        lines.append([name, f"{early:.1f}", f"{late:.1f}", change])
    return markdown_table(["", "second sixth", "last sixth", "change %"], lines)


def duration(minutes: float) -> str:
    """Duration as Lightning's `max_time` reads it, days:hours:minutes:seconds."""
    seconds = max(1, round(60 * minutes))
    return f"{seconds // 86400:02}:{seconds // 3600 % 24:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def main(args: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("recipe", help="recipe to train")
    parser.add_argument("--minutes", type=float, default=60, help="length of the run")
    parser.add_argument("--every", type=float, default=20, help="seconds between two measurements")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    options, extra = parser.parse_known_args(args)
    torch.set_num_threads(options.threads)
    os.environ.setdefault("WANDB_MODE", "offline")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "soak.jsonl"
        run_recipe(
            [options.recipe],
            folder,
            0,
            "--trainer.max_steps=100000000",  # far away, so that the learning rate stays constant
            f"--trainer.max_time={duration(options.minutes)}",
            "--trainer.callbacks=SampleLogger",
            "--trainer.callbacks+=CurvePlotter",
            "--trainer.callbacks+=BestAndLastCheckpoint",
            "--trainer.callbacks.monitor=val/fd",
            f"--trainer.callbacks+={__name__}.{ResourceMonitor.__name__}",
            f"--trainer.callbacks.path={path}",
            f"--trainer.callbacks.every={options.every}",
            *extra,
        )
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    if len(rows) < 2:
        parser.error(f"one measurement in {options.minutes:g} minutes: give more --minutes or a smaller --every")
    print(f"{len(rows)} measurements, {rows[-1]['step']} steps")
    print(summary(rows))


if __name__ == "__main__":
    main()
