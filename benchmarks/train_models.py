"""Training of the models in `zoo/weights/`, each by its recipe, with its card and its row of `results.csv`. Usage:

    python -m benchmarks.train_models gan-digits diffusion-digits
    python -m benchmarks.train_models resnet-fashion-mnist --root data
    python -m benchmarks.train_models resnet-cifar10-jpeg --root data/cifar10-jpeg    # with folders train/ and test/
    python -m benchmarks.train_models gan-digits --out models --trainer.max_steps 12000    # in a folder of your own

Each model is the best checkpoint of one run with seed 0, chosen on the validation split; the test split, or for a
language model the held-out text, is measured once, at the end. The same versions, kind of CPU and number of threads
give the same weights. Of a model with a moving average the average is saved, and not the weights that it was made from.
Other options are those of `zoo fit`; with them, `--out` must name a folder.
"""

from __future__ import annotations

import csv
import hashlib
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import zoo
from benchmarks.common import run_recipe
from benchmarks.output import markdown_table, new_parser
from zoo.checkpoints.pretrained import WEIGHTS
from zoo.cli.fit import run_trainer
from zoo.registry import trained_results
from zoo.sharing.card import Facts, Result

FOLDER = Path(zoo.__file__).parent / "weights"
PAGE = Path(__file__).parents[1] / "docs" / "models.md"
MARKED = re.compile(r"(<!-- models -->\n).*?(\n<!-- end -->)", re.DOTALL)
COLUMNS = (
    "model", "class", "data", "metric", "value", "floor", "samples", "seed", "parameters", "bytes", "sha256", "command",
)  # fmt: skip
DIGITS = (
    "1,797 handwritten digits of 8x8 pixels of the UCI repository (Alpaydin and Kaynak 1998), CC BY 4.0; 1,200 images "
    "to train on, 300 for validation, 297 for the test."
)
CLOTHES = (
    "Fashion-MNIST, 70,000 gray pictures of clothes of 28x28 pixels (Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747), "
    "MIT license, copyright 2017 Zalando SE; 10,000 images are the test split."
)
JPEGS = (
    "CIFAR-10 (Krizhevsky 2009), 50,000 color pictures of 32x32 pixels to train on, 5,000 of them for validation, and "
    "10,000 for the test, as JPEG files. The compression took detail, so that accuracies are not comparable with those "
    "published for CIFAR-10. The pictures are not part of this package."
)
NATS = (
    "The loss is in nats a character. nanoGPT, with the same numbers of layers, channels and characters, has 1.88 "
    "after 2,000 steps (its README); the recipe has 1.65 after as many, and this model took 6,000."
)
ROOT = "--data.root"
BF16 = "--trainer.precision=bf16-mixed"  # on a CPU with bf16 instructions
CALIBRATE = "--model.calibrate=true"
UNCALIBRATED = "_uncalibrated"  # ends the name of a metric that is measured without temperature scaling
POINTS = "Synthetic points, drawn from a known density."
SMALL = (
    "Trained for minutes on two CPU cores, to be looked at and built upon; larger networks and longer runs do better."
)


@dataclass(frozen=True)
class Spec:
    """How a model is made.

    Attributes:
        recipes: recipes, stacked in this order.
        data: sentences on the data and its license.
        limits: sentences on what the model is not good for.
        options: further options of `fit`.
        root: option of `fit` that is given `--root`, the place of the dataset; none if the package has the data.
        place: `--root` in the command that the card shows.
        split: split of the results, "test" or "val".
        teacher: trained model whose checkpoint is the teacher.
        remarks: sentences on the results.
        dataset: name of the data in tables; the class of the data module if it is empty.
    """

    recipes: Sequence[str]
    data: str
    limits: str = SMALL
    options: Sequence[str] = ()
    root: str = ""
    place: str = "data"
    split: str = "test"
    teacher: str = ""
    remarks: str = ""
    dataset: str = ""


SPECS = {
    "gan-digits": Spec(["gan_digits.yaml"], DIGITS),
    "gan-fashion-mnist": Spec(
        ["gan.yaml", "fashion_mnist.yaml"], CLOTHES, f"{SMALL} It lacks variety: see recall beside its floor.",
        [BF16, "--trainer.max_steps=14000", "--trainer.val_check_interval=3500"], root=ROOT,
    ),
    "gan-points": Spec(["gan_points.yaml"], POINTS, "Points in the plane: it shows mode coverage on 8 modes."),
    "diffusion-digits": Spec(["diffusion.yaml"], DIGITS),
    "diffusion-fashion-mnist": Spec(
        ["diffusion_fashion.yaml", "fashion_mnist.yaml"], CLOTHES, root=ROOT,
        options=[
            BF16, "--data.val_size=2000", "--model.excess_samples=0", "--trainer.max_steps=4800",
            "--trainer.val_check_interval=4800",
        ],
    ),
    "diffusion-points": Spec(["diffusion_points.yaml"], POINTS, "Points in the plane: it shows what solvers do."),
    "consistency-digits": Spec(["consistency.yaml"], DIGITS, teacher="diffusion-digits"),
    "mlp-fashion-mnist": Spec(
        ["mlp.yaml", "fashion_mnist.yaml"], CLOTHES, root=ROOT,
        options=[CALIBRATE, "--model.width=320", "--model.hidden_dropout=0.25", "--trainer.max_epochs=30"],
    ),
    "resnet-fashion-mnist": Spec(
        ["resnet.yaml", "fashion_mnist.yaml"], CLOTHES, options=[BF16, CALIBRATE, "--trainer.max_epochs=14"], root=ROOT
    ),
    "resnet-cifar10-jpeg": Spec(
        ["resnet.yaml"], JPEGS, root=ROOT, place="data/cifar10-jpeg", dataset="CIFAR-10 (JPEG)",
        options=[
            BF16, CALIBRATE, "--model.widths=[40,80,160]", "--data=ImageFolder", "--data.image_size=32",
            "--data.batch_size=128", "--data.augment.flip=true", "--data.augment.crop=2", "--data.augment.cutout=0",
            "--trainer.max_epochs=20",
        ],
    ),
    "vit-fashion-mnist": Spec(["vit.yaml", "fashion_mnist.yaml"], CLOTHES, root=ROOT, options=[CALIBRATE]),
    "transformer-shakespeare": Spec(
        ["shakespeare_cpu.yaml"],
        "tinyshakespeare, 1.1 MB of Shakespeare's plays (Karpathy 2015), in the public domain; 90% to train on.",
        f"It writes what looks like Shakespeare, and means nothing. {SMALL}",
        ["--trainer.max_steps=6000", "--trainer.val_check_interval=1000"], root="--data.path",
        place="data/tinyshakespeare.txt", split="val", remarks=NATS, dataset="tinyshakespeare",
    ),
    "seq2seq-reverse": Spec(
        ["seq2seq.yaml"], "Synthetic sequences of digits.", "It reverses sequences of at most 10 digits, nothing else."
    ),
}  # fmt: skip


def command(name: str, spec: Spec, extra: Sequence[str] = ()) -> str:
    """Command that makes a model, as it is typed in a checkout."""
    return " ".join(
        ["python -m benchmarks.train_models", name, *([f"--root {spec.place}"] if spec.root else []), *extra]
    )


def make(
    name: str, spec: Spec, root: str | None, out: Path, runs: str, extra: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Trains, measures and saves a model.

    Args:
        name: name of the model.
        spec: how it is made.
        root: folder of the dataset.
        out: folder in which the folder of the model is written, or replaced.
        runs: folder of the runs.
        extra: further options of `fit`.

    Returns:
        Rows of `results.csv`.
    """
    options = [*spec.options, *([f"{spec.root}={root}"] if spec.root else [])]
    if spec.teacher:
        options.append(f"--model.teacher={out / spec.teacher}")
    trainer, _ = run_recipe(spec.recipes, runs, 0, *options, *extra)
    return save(name, spec, Path(trainer.log_dir or ""), out, command(name, spec, extra))


def save(name: str, spec: Spec, run: Path, out: Path, made_by: str) -> list[dict[str, Any]]:
    """Measures the best checkpoint of a run and saves it with its card; returns its rows of `results.csv`."""
    best = run / "checkpoints" / "best.ckpt"
    measure = "test" if spec.split == "test" else "validate"
    tested = run_trainer([measure, f"--config={run / 'config.yaml'}", f"--ckpt_path={best}"]).trainer
    values = {key: float(value) for key, value in tested.callback_metrics.items() if key.startswith(f"{spec.split}/")}
    results = [
        Result(key, value, values.get(f"{key}_floor")) for key, value in values.items() if not key.endswith("_floor")
    ]
    data: Any = tested.datamodule  # type: ignore[attr-defined]
    samples = len(data.labels(spec.split)) if hasattr(data, "labels") else 0
    model = zoo.load(best)
    facts = Facts(made_by, spec.data, spec.limits, results, samples, spec.remarks)
    options: Any = {"name": name, "license": "mit", "run": run, "facts": facts}
    folder = model.save_pretrained(out / name, averages_only=True, overwrite=True, **options)
    weights = (folder / WEIGHTS).read_bytes()
    common = {
        "model": name,
        "class": type(model).__name__,
        "data": spec.dataset or type(data).__name__,
        "samples": samples or "",
        "seed": 0,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "bytes": len(weights),
        "sha256": hashlib.sha256(weights).hexdigest(),
        "command": made_by,
    }
    return [
        common
        | {"metric": one.metric, "value": f"{one.value:.6g}", "floor": "" if one.floor is None else f"{one.floor:.6g}"}
        for one in results
    ]


def write_results(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes `results.csv`; models that are not among the rows keep theirs."""
    kept: list[dict[str, Any]] = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            kept = [row for row in csv.DictReader(file) if row["model"] not in {new["model"] for new in rows}]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted([*kept, *rows], key=lambda row: row["model"]))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Table of all models in Markdown: what each is, its size, and its metrics beside their floors.

    A metric of a classifier is followed by its value without temperature scaling, where that was measured.
    """
    by_model: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_model.setdefault(row["model"], []).append(row)
    lines = []
    for name, results in by_model.items():
        first = results[0]
        parameters = f"{int(first['parameters']):,}"
        known = {one["metric"].partition("/")[2]: float(one["value"]) for one in results}
        floors = {one["metric"].partition("/")[2]: f" ({float(one['floor']):.3g})" for one in results if one["floor"]}
        values = [
            f"{metric} {value:.3g}{floors.get(metric, '')}"
            + (f" (uncalibrated {known[raw]:.3g})" if (raw := f"{metric}{UNCALIBRATED}") in known else "")
            for metric, value in known.items()
            if not metric.endswith(UNCALIBRATED)
        ]
        data = f"`{first['data']}`" if first["data"].isidentifier() else first["data"]
        lines.append([f"`{name}`", f"`{first['class']}`", data, parameters, ", ".join(values)])
    return markdown_table(["name", "class", "data", "parameters", "measured (floor)"], lines)


def filled(page: str, rows: Sequence[dict[str, Any]]) -> str:
    """The text of a page with the table between its marks."""
    return MARKED.sub(lambda found: f"{found[1]}\n{table(rows)}\n{found[2]}", page)


def main(args: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("models", nargs="+", choices=list(SPECS), help="models to make")
    parser.add_argument("--root", help="folder of the dataset, or file of the text")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the models")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    options, extra = parser.parse_known_args(args)
    if extra and options.out == FOLDER:
        parser.error(f"with {' '.join(extra)} the models are not those of the package: give --out FOLDER")
    for name in options.models:
        if SPECS[name].root and options.root is None:
            parser.error(f"{name} needs --root, the folder of its dataset")
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.models:
        with tempfile.TemporaryDirectory() as runs:
            rows = make(name, SPECS[name], options.root, options.out, runs, extra)
        write_results(options.out / "results.csv", rows)
        if options.out == FOLDER:
            PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), trained_results()), encoding="utf-8")
        print(f"{options.out / name}: " + ", ".join(f"{row['metric']} {row['value']}" for row in rows), flush=True)


if __name__ == "__main__":
    main()
