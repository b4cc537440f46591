"""Tests that need a GPU, and training of every model by NCCL and FSDP on one device."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

from benchmarks.gpu_day.checkout import CHECKOUT
from benchmarks.gpu_day.results import Options, Part, Skipped, last_lines

DISTRIBUTED = "tests/integration/distributed"
SHARDED = ("ViTClassifier", "TransformerLM")


def test_parts(options: Options) -> dict[str, Part]:
    """The tests of all folders but that of the distributed ones, which have an item of their own."""
    return {
        "tests marked gpu": _pytest(options, "-m", "gpu", "tests", f"--ignore={DISTRIBUTED}"),
        "tests of metrics": _pytest(options, "tests/unit/metrics"),
    }


def _pytest(options: Options, *arguments: str) -> Part:
    def part() -> dict[str, Any]:
        if options.tiny:
            raise Skipped("a rehearsal runs no tests")
        if find_spec("pytest") is None:
            raise Skipped("pytest is not installed")
        return run_pytest(*arguments)

    return part


def run_pytest(*arguments: str) -> dict[str, Any]:
    """Runs pytest in another process; returns its summary, the tests that failed, and the last lines."""
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", "-p", "benchmarks.gpu_day"]
    command += ["-o", "addopts=--import-mode=importlib"]  # without options of plugins that may be missing
    command += ["--continue-on-collection-errors", *arguments]
    lines = []
    with subprocess.Popen(
        command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        env={**os.environ, "COLUMNS": "200"},  # so that the reason of a failure stands in its line
    ) as process:  # fmt: skip
        for line in process.stdout or ():
            print(line, end="", flush=True)  # kept if this process is ended
            lines.append(line.rstrip())
    failed = [line[:200] for line in lines if re.match(r"(FAILED|ERROR) ", line)]
    last = last_lines("\n".join(lines))
    found = {"code": process.returncode, "summary": last[-1].strip("= ") if last else "", "failed": failed[:40]}
    return found | {"last lines": last if process.returncode else []}


def distributed_parts(options: Options) -> dict[str, Part]:
    """The tests, and a short run of every model with its callbacks by DDP, and by FSDP if it can be sharded."""
    from benchmarks.gpu_day.recipes import RECIPES

    runs = [("DDP", name) for name in RECIPES] + [("FSDP", name) for name in SHARDED]
    backend = "NCCL" if options.device == "cuda" else "gloo"
    tests = {"tests marked gpu": _pytest(options, "-m", "gpu", DISTRIBUTED)}
    return tests | {
        f"{strategy}, {backend}: {name}": partial(_train, options, strategy, RECIPES[name]) for strategy, name in runs
    }


def _train(options: Options, strategy: str, recipe: str) -> dict[str, Any]:
    import torch
    from lightning.pytorch.loggers import CSVLogger
    from lightning.pytorch.strategies import DDPStrategy

    from benchmarks.gpu_day.recipes import scratch, set_up
    from zoo.distributed.fsdp import FSDP2Strategy
    from zoo.testing.runs import quiet

    classes: dict[str, Callable[[], Any]] = {"DDP": DDPStrategy, "FSDP": FSDP2Strategy}
    setup = set_up(recipe, options)
    model, data = setup.build()
    steps = options.steps(20, 2)
    trainer = setup.trainer(
        options, scratch().name, strategy=classes[strategy](), max_steps=steps, val_check_interval=steps,
        check_val_every_n_epoch=None, limit_val_batches=2, callbacks=setup.callbacks(), enable_checkpointing=True,
        logger=CSVLogger(scratch().name),
    )  # fmt: skip
    try:
        with quiet():
            trainer.fit(model, datamodule=data)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    metrics = {
        name: round(value.item(), 5) for name, value in trainer.callback_metrics.items() if name.startswith("val")
    }
    return {"steps": trainer.global_step, "data": setup.source, "metrics": metrics}
