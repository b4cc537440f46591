"""Made-up folders of runs, for the tests of the report: nothing is trained."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

#: A name that would run a script in a page that does not escape it.
HOSTILE = "<script>alert('x')</script>"

CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "trainer": {
        "max_steps": 300,
        "callbacks": [
            {
                "class_path": "zoo.callbacks.BestAndLastCheckpoint",
                "init_args": {"monitor": "val/fd", "mode": "min"},
            }
        ],
    },
    "model": {"class_path": "zoo.GAN", "init_args": {"latent_dim": 32, "loss": "hinge"}},
    "data": {"class_path": "zoo.datamodules.Digits", "init_args": {"batch_size": 64}},
    "run": {"root": "runs", "name": None},
}
FACTS: dict[str, Any] = {
    "model": {"class": "zoo.models.gan.module.GAN", "summary": "A GAN.", "input_shape": [1, 8, 8], "trainable": 1234},
    "data": {"class": "zoo.datamodules.digits.Digits", "num_classes": 10, "train": 1200, "val": 300},
    "steps": 300,
    "epochs": 2,
    "checkpoint": {"file": "checkpoints/best.ckpt", "metric": "val/fd", "mode": "min", "value": 4.5},
    "hardware": {"accelerator": "CPU", "devices": 1, "cores": 2, "threads": 1, "precision": "32-true"},
    "versions": {"torch": "2.8.0"},
    "sessions": [{"started": "2026-01-02T03:04:05+00:00", "seconds": 75.2, "first_step": 0, "last_step": 300}],
    "command": "zoo fit --config gan_digits.yaml",
    "recipes": ["gan_digits.yaml"],
    "changed": [["model.loss", "relativistic", "hinge"], ["model.conditional", None, "true"]],
    "end": ["max_steps 300 reached"],
    "next": [["draw samples", "sample --ckpt_path {checkpoint} --n 64"], ["repeat it", "fit --config {config}"]],
}
#: val/fd by step; the best value is in the middle.
DISTANCES = {99: 9.0, 199: 4.5, 299: 6.0}


def png(color: int = 0, size: int = 8) -> bytes:
    """A picture of one gray."""
    file = io.BytesIO()
    Image.new("L", (size, size), color).save(file, "PNG")
    return file.getvalue()


def write_run(folder: Path, facts: dict[str, Any] | None = FACTS, **config: Any) -> Path:
    """Writes what a run of a GAN leaves: configuration, metrics, facts and samples.

    Args:
        folder: folder of the run, which is created.
        facts: what is left when training has ended; None for a run that was killed.
        **config: sections of the configuration that are others.
    """
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG | config), encoding="utf-8")
    rows = [
        {"step": step, "train/loss_d": 1 / (1 + step), "train/value": -1.4, "train/value_optimum": -1.386}
        for step in range(0, 300, 50)
    ]
    rows += [{"step": step, "val/fd": value, "val/fd_floor": 1.25} for step, value in DISTANCES.items()]
    write_metrics(folder, rows)
    if facts is not None:
        (folder / "report").mkdir()
        (folder / "report" / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    (folder / "samples").mkdir()
    for step in (0, 150, 300):
        (folder / "samples" / f"step_{step:07d}.png").write_bytes(png(step // 2))
    return folder


def write_metrics(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Writes metrics.csv; a row need not have all columns."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with (folder / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def write_findings(folder: Path, names: tuple[str, ...] = ("ant", "bee")) -> None:
    """Writes what a classifier leaves: one mistake, and a confusion matrix of 100 samples, of which 90 are right."""
    report = folder / "report"
    report.mkdir(exist_ok=True)
    (report / "mistake_00.png").write_bytes(png(7))
    mistake = {"index": 5, "true": names[0], "predicted": names[1], "probability": 0.987, "true_probability": 0.01}
    found = {"seen": 100, "wrong": 10, "weights": "best.ckpt"}
    mistakes = [{**mistake, "picture": "mistake_00.png", "path": None}]
    (report / "mistakes.json").write_text(json.dumps({**found, "mistakes": mistakes}), encoding="utf-8")
    with (report / "confusion.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["true / predicted", *names], [names[0], 40, 8], [names[1], 2, 50]])


def write_pairs(folder: Path, distance: float = 20.0) -> None:
    """Writes what a generative image model leaves: one sample beside its nearest training picture."""
    report = folder / "report"
    report.mkdir(exist_ok=True)
    for name in ("sample_00.png", "nearest_00.png"):
        (report / name).write_bytes(png(9))
    pair = {"sample": "sample_00.png", "nearest": "nearest_00.png", "distance": distance}
    found = {"searched": 1200, "held_out": 33.5, "held_out_samples": 256, "weights": "best.ckpt", "pairs": [pair]}
    (report / "nearest.json").write_text(json.dumps(found), encoding="utf-8")
