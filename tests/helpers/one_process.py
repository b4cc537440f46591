"""Runs of all models on several ranks, and what each rank finds.

    python -m tests.helpers.one_process PLAN

The plan is JSON, the arguments of `carry_out_plan`. Each rank works in `place_of_<rank>` of the plan's folder, and
leaves what it found in `rank_<rank>.json` and what it printed in `rank_<rank>.log`.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from torch import Tensor
from torch.nn.utils import parameters_to_vector
from torch.utils.data import DataLoader

from tests.helpers.command import CHECKOUT
from tests.helpers.ranks import run_ranks
from zoo import MLPClassifier, TransformerLM, ViTClassifier
from zoo.cli.fit import ZooCLI, run_trainer
from zoo.datamodules.base import TensorBatches, identity_collate
from zoo.datamodules.evaluation import evaluation_loader
from zoo.distributed.launching import end_communication
from zoo.tokenizers import CharacterTokenizer


def found(cli: ZooCLI) -> dict:
    """What a rank finds after training: metrics, order of the data, a random number, parameters."""
    trainer, model = cli.trainer, cli.model
    result = {
        "metrics": metrics(cli),
        "loader": [index for batch in trainer.train_dataloader.batch_sampler for index in batch],
        "train_size": len(trainer.train_dataloader.dataset),
        "random": torch.rand(()).item(),
        "images": getattr(getattr(model, "ema", None), "images", None),
    }
    if type(trainer.strategy).__name__ != "FSDP2Strategy":  # by which each rank holds another part
        state = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
        result["parameters"] = hashlib.sha256(state).hexdigest()
    return result


def metrics(cli: ZooCLI) -> dict[str, float]:
    """Metrics, but for those of training, of which each rank logs its own."""
    values = cli.trainer.callback_metrics.items()
    return {name: value.item() for name, value in values if not name.startswith("train/")}


def carry_out(runs: dict[str, list[str]], evaluated: dict[str, str], folder: str) -> dict[str, dict]:
    """Trains, writes `<name>.ckpt`, and evaluates.

    Args:
        runs: arguments of `fit`, by the name of the run.
        evaluated: checkpoint that is validated and tested after a run, by the name of the run.
        folder: folder of the checkpoints.
    """
    results = {}
    for name, args in runs.items():
        cli = run_trainer(["fit", *args])
        results[name] = found(cli)
        cli.trainer.save_checkpoint(Path(folder) / f"{name}.ckpt")
        if name in evaluated:
            for command in ("validate", "test"):
                evaluate = getattr(cli.trainer, command)
                evaluate(cli.model, datamodule=cli.datamodule, ckpt_path=evaluated[name], verbose=False)
                results[name][command] = metrics(cli)
    return results


class InOrder(LightningDataModule):
    """The same global batches of 12 samples, in order, on any number of processes."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        self.samples = TensorBatches(x, y)

    def train_dataloader(self) -> DataLoader:
        return evaluation_loader(self.samples, 12 // self.trainer.world_size, identity_collate, self.trainer)


def parameters_after_the_same_batches(processes: int) -> dict[str, list[float]]:
    """Trains models without batch norm and dropout, so that samples are independent; returns their parameters."""
    seed_everything(0, verbose=False)
    images, labels = torch.randn(48, 1, 8, 8), torch.randint(10, (48,))
    tokens = torch.randint(9, (48, 8))
    options = {"optimizer": partial(torch.optim.SGD, lr=0.1), "lr_scheduler": None}
    size = {"layers": 1, "width": 16, "heads": 2}
    mlp = MLPClassifier((1, 8, 8), 10, 16, 2, input_dropout=0.0, hidden_dropout=0.0, batch_norm=False, **options)
    vit = ViTClassifier((1, 8, 8), 10, **size, **options)
    language = TransformerLM((8,), 9, CharacterTokenizer("abcdefghi").description, **size, **options)
    runs = {
        "MLPClassifier": (mlp, images, labels),
        "ViTClassifier": (vit, images, labels),
        "TransformerLM": (language, tokens, tokens.roll(1)),
    }
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    for model, x, y in runs.values():
        strategy = "ddp" if processes > 1 else "auto"
        trainer = Trainer(accelerator="cpu", devices=processes, strategy=strategy, max_epochs=3, **quiet)
        trainer.fit(model, datamodule=InOrder(x, y))
    return {name: parameters_to_vector(model.parameters()).tolist() for name, (model, *_) in runs.items()}


def launch(folder: Path, processes: int, in_order: bool = True, **plan: Any) -> list[dict[str, Any]]:
    """Carries out a plan on several ranks, in a program of its own; returns what each rank found.

    Args:
        folder: folder of the plan and of everything that is written.
        processes: number of ranks.
        in_order: also train on the same global batches; see `parameters_after_the_same_batches`.
        **plan: arguments of `carry_out`, but for the folder.
    """
    path = folder / "plan.json"
    path.write_text(json.dumps({"processes": processes, "in_order": in_order, "folder": str(folder), **plan}))
    command = [sys.executable, "-m", "tests.helpers.one_process", str(path)]
    environment = os.environ | {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=900)
    logs = [(folder / f"rank_{rank}.log").read_text()[-3000:] for rank in range(processes)]
    assert done.returncode == 0, "\n".join([done.stderr[-3000:], *logs])
    return [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(processes)]


def carry_out_plan(processes: int, in_order: bool, folder: str, **plan: Any) -> int:
    """Carries out a plan on forks of this process; returns an exit code."""
    place = Path(folder)

    def task(rank: int) -> None:
        (place / f"place_of_{rank}").mkdir()
        os.chdir(place / f"place_of_{rank}")
        first = {"in order": parameters_after_the_same_batches(processes)} if in_order else {}
        results = first | carry_out(folder=folder, **plan)
        (place / f"rank_{rank}.json").write_text(json.dumps(results))
        end_communication()

    return run_ranks(task, processes, [place / f"rank_{rank}.log" for rank in range(processes)])


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(carry_out_plan(**json.loads(Path(sys.argv[1]).read_text())))
