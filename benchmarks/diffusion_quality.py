"""Fréchet distance of the diffusion recipes over several seeds, by solver and number of network evaluations.

Each seed trains the recipe by the command line's own code. The checkpoint with the best `val/fd` is measured on the
validation split by each solver and number of evaluations, from which a recipe's are chosen; and with the recipe's own
ones alone on the test split, which nothing else uses. Measured are as many samples as the split has images, averaged
over `--draws` sets of samples, beside the floor, the distance of training images, of the same classes for a conditional
model. `label_accuracy` is the percentage of samples that the extractor's own classifier, which was trained on real
images, assigns to the requested class. The test split adds precision, recall, density and coverage (see
`zoo.metrics.fidelity`), and the CPU seconds to draw 1,000 samples. Samples are drawn in the precision of training, such
as `--trainer.precision bf16-mixed`; those of a checkpoint in float32. `--solvers` without a name leaves out the
comparison on the validation split. Usage:

    python -m benchmarks.diffusion_quality diffusion.yaml --seeds 3
    python -m benchmarks.diffusion_quality diffusion_fashion.yaml fashion_mnist.yaml --data.root data --solvers
    python -m benchmarks.diffusion_quality --ckpt_path best.ckpt --data FashionMNIST --data.root data
    python -m benchmarks.diffusion_quality consistency.yaml --model.teacher best.ckpt --evaluations 1 2 3

The last one measures a consistency model, which has no choice of solver. Other options are those of `zoo fit`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

import zoo
from benchmarks.common import run_recipe
from benchmarks.output import markdown_table, mean_std, new_parser, report
from zoo import ConsistencyModel
from zoo.metrics import FidelityDiversity, FidelityScores, FrechetDistance, extractor_for
from zoo.models.diffusion.solvers import SOLVERS
from zoo.registry import find_class

EVALUATIONS = (5, 6, 8, 10, 18, 35)
TWO_EVALUATIONS_PER_STEP = ("heun", "predictor_corrector")
CHUNK = 1000  # images per call of the model or the extractor
FLOOR_DRAWS = 4  # draws of training images for the floor

Key = tuple[str, float, int]  # solver, guidance scale, network evaluations


class Evaluator:
    """Compares samples of a model with a split.

    Args:
        model: diffusion or consistency model.
        data: data module.
        split: "val" or "test".

    Attributes:
        floors: Fréchet distance of as many training images from the split, for each of `FLOOR_DRAWS` draws.
    """

    def __init__(self, model: Any, data: Any, split: str) -> None:
        self.x, self.y = data.split(split)
        self.model, self.split = model, split
        metric = model.distance
        assert isinstance(metric, FrechetDistance)
        self.metric = metric.clone()
        self.classifier = extractor_for(data.input_shape)  # also where the distance is in other features
        self.metric.reset_real_features = False
        self.features = torch.cat([self.metric.extractor(images) for images in self.x.split(CHUNK)])
        self.metric.update(self.features, real=True)
        labels = self.y if model.conditional else None
        draws = (data.training_samples(len(self.x), labels=labels, seed=seed) for seed in range(FLOOR_DRAWS))
        self.floors = [self.measure(images)["fd"] for images in draws]

    def measure(self, fake: Tensor) -> dict[str, float]:
        """Fréchet distance from the split, and percentage of images classified as the split's labels."""
        self.metric.reset()
        correct = 0
        fidelity = FidelityDiversity() if self.split == "test" else None
        if fidelity is not None:
            fidelity.update(self.features, real=True)
        for images, labels in zip(fake.split(CHUNK), self.y.split(CHUNK), strict=True):
            features = self.metric.extractor(images)
            self.metric.update(features, real=False)
            if fidelity is not None:
                fidelity.update(features, real=False)
            correct += int((self.classifier.logits(images).argmax(1) == labels).sum())
        scores = {} if fidelity is None else fidelity.compute()._asdict()
        values = {"fd": self.metric.compute().item(), "label_accuracy": 100 * correct / len(self.y)}
        return values | {name: score.item() for name, score in scores.items()}

    def measure_samples(self, seed: int, **options: Any) -> dict[str, float]:
        """`measure` for samples of the split's labels, and the CPU seconds to draw 1,000 of them.

        Args:
            seed: seed of the samples.
            **options: options of the model's `sample`.
        """
        seeds = torch.randint(2**62, (len(self.y),), generator=torch.Generator().manual_seed(seed))
        parts = zip(seeds.split(CHUNK), self.y.split(CHUNK), strict=True)
        conditional = self.model.conditional
        start = time.process_time()
        samples = [self.model.sample(len(s), seeds=s, labels=y if conditional else None, **options) for s, y in parts]
        seconds = (time.process_time() - start) / len(self.y) * 1000
        return self.measure(torch.cat(samples)) | {"draw_seconds": seconds}


def steps_for(solver: str, evaluations: int) -> int | None:
    """Number of solver steps for a number of network evaluations, or None if none fits."""
    if solver not in TWO_EVALUATIONS_PER_STEP:
        return evaluations
    return (evaluations + 1) // 2 if evaluations % 2 else None


def settings(model: Any, options: argparse.Namespace) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Settings to measure, each with the options of the model's `sample`."""
    if isinstance(model, ConsistencyModel):
        for evaluations in options.evaluations:
            yield ("consistency model", 0.0, evaluations), {"steps": evaluations}
        return
    for solver, scale, evaluations in product(options.solvers, options.guidance_scale, options.evaluations):
        steps = steps_for(solver, evaluations)
        if steps is not None:
            yield (solver, scale, evaluations), {"solver": solver, "steps": steps, "guidance_scale": scale}


def load(options: argparse.Namespace) -> tuple[Any, Any]:
    """The model of `--ckpt_path` and its data."""
    root = {"root": options.root} if options.root else {}
    return zoo.load(options.ckpt_path), find_class(options.data)(**root)


def train(options: argparse.Namespace, extra: Sequence[str], seed: int, folder: str) -> tuple[Any, Any, dict[str, Any]]:
    """Trains the recipe; returns its best model, which draws in the precision of training, its data, and the cost."""
    root = [f"--data.root={options.root}"] if options.root else []
    trainer, seconds = run_recipe(options.recipes, folder, seed, *extra, *root)
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    model = zoo.load(trainer.log_dir or "")
    sample = model.sample

    def sample_in_precision(*args: Any, **kwargs: Any) -> Tensor:
        with trainer.precision_plugin.forward_context():
            return sample(*args, **kwargs)

    model.sample = sample_in_precision
    return model, data, {"cpu_seconds": round(seconds), "images": trainer.global_step * data.batch_size}


def measure(evaluator: Evaluator, seed: int, draws: int, setting: dict[str, Any]) -> dict[str, float]:
    """Means of what is measured over sets of samples."""
    values = [evaluator.measure_samples(100 * seed + draw, **setting) for draw in range(draws)]
    return {name: statistics.mean(value[name] for value in values) for name in values[0]}


def table(results: dict[Key, list[float]], evaluations: Sequence[int]) -> str:
    """Fréchet distances, mean and standard deviation over the seeds, by number of network evaluations."""
    rows = []
    for solver, scale in dict.fromkeys((solver, scale) for solver, scale, _ in results):
        values = [results.get((solver, scale, count)) for count in evaluations]
        rows.append([f"{solver}, {scale:g}", *(mean_std(value, 2) if value else "" for value in values)])
    return markdown_table(["solver, guidance scale", *map(str, evaluations)], rows)


def main(args: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("recipes", nargs="*", help="recipes to train, stacked in this order")
    parser.add_argument("--ckpt_path", help="path to a checkpoint to measure, instead of training a recipe")
    parser.add_argument("--data", default="Digits", help="data module of the checkpoint")
    parser.add_argument("--data.root", dest="root", help="folder of the dataset")
    parser.add_argument("--seeds", type=int, default=3, help="number of random seeds")
    parser.add_argument("--first_seed", type=int, default=0, help="first random seed")
    parser.add_argument("--draws", type=int, default=3, help="sets of samples to average over")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--solvers", nargs="*", default=list(SOLVERS), choices=list(SOLVERS), help="solvers")
    parser.add_argument(
        "--evaluations", nargs="+", type=int, default=EVALUATIONS, help="numbers of network evaluations"
    )
    parser.add_argument(
        "--guidance_scale", nargs="+", type=float, default=[0.0], help="weights of classifier-free guidance"
    )
    options, extra = parser.parse_known_args(args)
    if bool(options.recipes) == bool(options.ckpt_path):
        parser.error("give either recipes or --ckpt_path")
    torch.set_num_threads(options.threads)
    results: dict[Key, list[float]] = {}
    chosen: list[dict[str, float]] = []
    seeds = range(options.first_seed, options.first_seed + (1 if options.ckpt_path else options.seeds))
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            model, data, cost = (*load(options), {}) if options.ckpt_path else train(options, extra, seed, folder)
            data.setup()
            pairs = list(settings(model, options))
            evaluators = {split: Evaluator(model, data, split) for split in (["val", "test"] if pairs else ["test"])}
            for split, evaluator in evaluators.items():
                floors = evaluator.floors
                report(f"{split} floor", seed, fd=statistics.mean(floors), std=statistics.stdev(floors))
            for (solver, scale, count), setting in pairs:
                found = measure(evaluators["val"], seed, options.draws, setting)
                results.setdefault((solver, scale, count), []).append(found["fd"])
                row = f"{solver}, guidance {scale:g}" if scale else solver
                report(row, seed, **{f"{name}_{count}": value for name, value in found.items()})
            chosen.append(measure(evaluators["test"], seed, options.draws, {}))
            report("test", seed, **chosen[-1], **cost)
    if results:
        print(f"Validation split\n\n{table(results, options.evaluations)}\n")
    print("Test split, the model's own settings\n")
    columns = {"fd": "FD", "label_accuracy": "label accuracy, %"} | {name: name for name in FidelityScores._fields}
    columns |= {"draw_seconds": "CPU seconds for 1,000 samples"}
    print(markdown_table(list(columns.values()), [[mean_std([row[name] for row in chosen], 2) for name in columns]]))


if __name__ == "__main__":
    main()
