"""Everything that is to be measured on a GPU, in order of worth, within minutes, for the day that one is at hand.

Each item writes a small JSON file into --out as it goes, and `report.md` sums up. A part that fails, hangs or crashes
is kept with its last lines, and the rest goes on. Where the time is over, call again with the same --out: what is done
stays, and the rest is measured. Nothing is installed or downloaded. Usage, in the root of the checkout:

    python -m benchmarks.gpu_day --out gpu_day --data data
    python -m benchmarks.gpu_day --out gpu_day --items 3,5
    python -m benchmarks.gpu_day --out rehearsal --device cpu --tiny

Fashion-MNIST, CIFAR-10 (as torchvision has it, or cifar10-jpeg.tar.xz) and tinyshakespeare.txt are read from --data;
random data of the same sizes stands in for what is missing, and the results say so.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_day.report import write
from benchmarks.gpu_day.results import Options, Results
from benchmarks.gpu_day.supervise import Item, run_apart, run_here

HERE = "benchmarks.gpu_day"
ITEMS = (
    Item("1_tests", "Tests marked gpu, and of metrics", f"{HERE}.tests_on_gpu:test_parts", 400),
    Item("2_distributed", "DDP and FSDP on one device", f"{HERE}.tests_on_gpu:distributed_parts", 300),
    Item("3_agreement", "Resuming bit for bit; CPU and device", f"{HERE}.agreement:parts", 120),
    Item("4_syncs", "Waiting for the device", f"{HERE}.agreement:sync_parts", 90),
    Item("5_steps", "Step times, Lightning and bare", f"{HERE}.speed:step_parts", 90),
    Item("6_options", "Options on and off", f"{HERE}.speed:option_parts", 240),
    Item("7_quality", "Quality", f"{HERE}.quality:parts", 400),
)


def numbers(text: str) -> list[int]:
    """Numbers of items, separated by commas."""
    found = [int(number) for number in text.split(",")]
    if not set(found) <= set(range(1, len(ITEMS) + 1)):
        raise argparse.ArgumentTypeError(f"items are 1 to {len(ITEMS)}")
    return found


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu_day", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results; read again by the next call")
    parser.add_argument("--minutes", type=float, default=9.0, help="length of this call (default: 9)")
    parser.add_argument("--data", help="folder of the real datasets (default: random data)")
    parser.add_argument("--items", type=numbers, default=[], help="numbers of the items, such as 3,5 (default: all)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="device (default: cuda)")
    parser.add_argument("--tiny", action="store_true", help="rehearse with the smallest sizes")
    parser.add_argument("--in_process", action="store_true", help="rehearse in this process, where a crash ends all")
    given = parser.parse_args(args)
    deadline = time.monotonic() + 60 * given.minutes
    data = str(Path(given.data).resolve()) if given.data else None
    options = Options(given.device, given.tiny, data)
    os.environ.setdefault("WANDB_MODE", "disabled")
    given.out.mkdir(parents=True, exist_ok=True)
    for number, item in enumerate(ITEMS, 1):
        if given.items and number not in given.items:
            continue
        path = given.out.resolve() / f"{item.name}.json"
        if given.in_process:
            if not Results(path).complete:
                run_here(item, options, path)
        else:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the item's process is ended too
            run_apart(item, options, path, deadline)
        write(given.out / "report.md", ITEMS, given.out, options)
        parts = Results(path).parts.values()
        done = sum(part["status"] == "done" for part in parts)
        print(
            f"{item.name}: {done} of {len(parts)} done{'' if Results(path).complete else ', not complete'}", flush=True
        )


if __name__ == "__main__":
    main()
