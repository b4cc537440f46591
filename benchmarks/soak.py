"""Whether a long run stays as it is: memory, open files, threads, and the size of its folder.

Trains a generative recipe for so many minutes, with samples, validations, curves and checkpoints but without early
stopping, and measures every `--every` seconds. What is printed is the change from the sixth of the time that follows
the warm-up, the first sixth, to the last one. Run it as

    python -m benchmarks.soak gan.yaml --minutes 60
    python -m benchmarks.soak diffusion.yaml --minutes 60
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from zoo.cli.fit import run_trainer


class Watch(Callback):
    """Writes a line of measurements every so many seconds.

    Args:
        path: of the file.
        every: seconds from one line to the next.
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
    return sum(1 for _ in Path(folder).iterdir())


def _resident() -> int:
    """Resident set of this process, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def summary(rows: list[dict[str, float]]) -> str:
    """For each quantity the medians of the sixth after the warm-up and of the last sixth, and the change."""
    part = max(1, len(rows) // 6)
    lines = [f"{len(rows)} measurements, {rows[-1]['step']:.0f} steps"]
    for name in list(rows[0])[1:]:
        early, late = (
            statistics.median(row[name] for row in rows[s]) for s in (slice(part, 2 * part), slice(-part, None))
        )
        change = f" ({100 * (late / early - 1):+.1f}%)" if early else ""
        lines.append(f"{name}: {early:.1f} to {late:.1f}{change}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=20, help="seconds from one measurement to the next")
    parser.add_argument("--threads", type=int, default=1)
    arguments, extra = parser.parse_known_args()
    torch.set_num_threads(arguments.threads)
    os.environ.setdefault("WANDB_MODE", "offline")
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "soak.jsonl"
        # The schedule would end with the steps that it knows of, so the learning rate stays where it is.
        length = str(timedelta(minutes=arguments.minutes))
        command = [
            "fit", "--config", arguments.recipe, f"--run.root={folder}", "--trainer.max_steps=100000000",
            f"--trainer.max_time=00:{length.rjust(8, '0')}", "--trainer.enable_progress_bar=false",
            "--trainer.callbacks=SampleLogger", "--trainer.callbacks+=CurvePlotter",
            "--trainer.callbacks+=BestAndLastCheckpoint", "--trainer.callbacks.monitor=val/fd",
            "--trainer.callbacks+=benchmarks.soak.Watch", f"--trainer.callbacks.path={table}",
            f"--trainer.callbacks.every={arguments.every}", *extra,
        ]  # fmt: skip
        run_trainer(command)
        print(summary([json.loads(line) for line in table.read_text().splitlines()]))


if __name__ == "__main__":
    main()
