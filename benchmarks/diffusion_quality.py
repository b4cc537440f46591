"""Quality of the diffusion recipes over several seeds, by solver and number of evaluations of the network.

Each seed trains the recipe as it stands, by the command line's own code; the checkpoint with the best `val/fd` is then
measured on the test split, which nothing else touches: the Fréchet distance of as many samples as there are test
images, mean over `--draws` of them, beside the floor, that of training images. The share of samples that are what they
were asked to be is the judgement of the extractor's own classifier, which has seen no sample. Run it as

    python benchmarks/diffusion_quality.py diffusion.yaml --seeds 3
    python benchmarks/diffusion_quality.py diffusion.yaml diffusion_fashion.yaml --data.root data --seeds 3
    python benchmarks/diffusion_quality.py --ckpt_path best.ckpt --data FashionMNIST --data.root data
    python benchmarks/diffusion_quality.py consistency.yaml --model.teacher best.ckpt --evaluations 1 2 3

where the last measures a student, which has no choice of solver.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo import ConsistencyModel
from zoo.checkpoints.reading import load_model
from zoo.cli.fit import run_trainer
from zoo.metrics import FrechetDistance
from zoo.models.diffusion.solvers import SOLVERS
from zoo.registry import find_class

EVALUATIONS = (5, 6, 8, 10, 18, 35)
TWO_A_STEP = ("heun", "predictor_corrector")


class Judge:
    """The test split, and what the extractor makes of samples beside it."""

    def __init__(self, model: Any, data: Any) -> None:
        data.setup()
        self.x, self.y = data.split("test")
        self.model = model
        metric = model.distance
        assert isinstance(metric, FrechetDistance)
        self.metric = metric.clone()
        self.metric.reset_real_features = False
        for images in self.x.split(1000):
            self.metric.update(images, real=True)
        self.floor, _ = self.measure(data.reference(len(self.x)))

    def measure(self, fake: Tensor) -> tuple[float, float]:
        """Fréchet distance to the test split, and the share that is classified as the test split's labels, %."""
        self.metric.reset()
        hits = 0
        for images, labels in zip(fake.split(1000), self.y.split(1000), strict=True):
            self.metric.update(images, real=False)
            hits += int((self.metric.extractor.logits(images).argmax(1) == labels).sum())
        return self.metric.compute().item(), 100 * hits / len(self.y)

    def draw(self, draw: int, **options: Any) -> tuple[float, float]:
        seeds = torch.randint(2**62, (len(self.y),), generator=torch.Generator().manual_seed(draw))
        parts = zip(seeds.split(1000), self.y.split(1000), strict=True)
        labels = self.model.conditional
        samples = [self.model.sample(len(s), seeds=s, labels=y if labels else None, **options) for s, y in parts]
        return self.measure(torch.cat(samples))


def steps_for(solver: str, evaluations: int) -> int | None:
    """Steps of the solver that cost so many evaluations, if any do."""
    if solver not in TWO_A_STEP:
        return evaluations
    return (evaluations + 1) // 2 if evaluations % 2 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", help="stacked, in this order")
    parser.add_argument("--ckpt_path", help="measure this checkpoint, and train nothing")
    parser.add_argument("--data", default="Digits", help="data module of the checkpoint")
    parser.add_argument("--data.root", dest="root")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=3, help="sets of samples that are averaged over")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--solvers", nargs="+", default=list(SOLVERS), choices=list(SOLVERS))
    parser.add_argument("--evaluations", nargs="+", type=int, default=EVALUATIONS)
    parser.add_argument("--guidance_scale", nargs="+", type=float, default=[0.0])
    arguments, extra = parser.parse_known_args()
    torch.set_num_threads(arguments.threads)
    os.environ.setdefault("WANDB_MODE", "disabled")
    results: dict[tuple[str, float, int], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.first_seed, arguments.first_seed + (1 if arguments.ckpt_path else arguments.seeds)):
            if arguments.ckpt_path:
                model = load_model(arguments.ckpt_path)
                root = {"root": arguments.root} if arguments.root else {}
                judge, cost = Judge(model, find_class(arguments.data)(**root)), {}
            else:
                judge, cost = train(arguments, extra, seed, folder)
            print(json.dumps({"seed": seed, "floor": round(judge.floor, 3), **cost}), flush=True)
            student = isinstance(judge.model, ConsistencyModel)
            choices = itertools.product(
                [""] if student else arguments.solvers, [0.0] if student else arguments.guidance
            )
            for (solver, guidance), evaluations in itertools.product(choices, arguments.evaluations):
                steps = steps_for(solver, evaluations)
                if steps is None:
                    continue
                options = (
                    {"steps": steps} if student else {"solver": solver, "steps": steps, "guidance_scale": guidance}
                )
                draws = [judge.draw(100 * seed + draw, **options) for draw in range(arguments.draws)]
                fd, hits = (statistics.mean(values) for values in zip(*draws, strict=True))
                results.setdefault((solver or "student", guidance, evaluations), []).append((fd, hits))
                row = {"evaluations": evaluations, "fd": round(fd, 3), "as_asked": round(hits, 2)}
                print(json.dumps({"seed": seed, **options, **row}), flush=True)
    print(table(results, arguments.evaluations))


def train(arguments: argparse.Namespace, extra: list[str], seed: int, folder: str) -> tuple[Judge, dict[str, float]]:
    """Trains the recipe; returns its best checkpoint's judge, and what the training cost, validation included."""
    command = ["fit", *(word for recipe in arguments.recipes for word in ("--config", recipe)), *extra]
    command += [f"--seed_everything={seed}", f"--run.root={folder}", "--trainer.enable_progress_bar=false"]
    command += ["--trainer.enable_model_summary=false", *([f"--data.root={arguments.root}"] if arguments.root else [])]
    start = time.process_time()
    trainer = run_trainer(command).trainer
    seconds = time.process_time() - start
    best = Path(trainer.log_dir or "") / "checkpoints" / "best.ckpt"
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    cost = {"cpu_seconds": round(seconds), "images": trainer.global_step * data.batch_size}
    return Judge(load_model(str(best)), data), cost


def table(results: dict[tuple[str, float, int], list[tuple[float, float]]], evaluations: list[int]) -> str:
    """Fréchet distances, mean and standard deviation over the seeds, as a Markdown table."""
    lines = [
        "| solver, guidance | " + " | ".join(map(str, evaluations)) + " |",
        "| --- |" + " --- |" * len(evaluations),
    ]
    for solver, guidance in dict.fromkeys((solver, guidance) for solver, guidance, _ in results):
        cells = []
        for count in evaluations:
            values = [fd for fd, _ in results.get((solver, guidance, count), [])]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.2f}{spread}" if values else "")
        lines.append(f"| {solver}, {guidance:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
