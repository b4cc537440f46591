"""What each process of `tests.test_strategies` does: python one_process.py PLAN, with the environment of a launcher.

The plan is JSON: the number of processes, and the arguments of `carry_out`. What a process found is left in
`rank_<r>.json` in the plan's folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from torch import Tensor
from torch.nn.utils import parameters_to_vector
from torch.utils.data import DataLoader

from zoo import MLPClassifier, TransformerLM, ViTClassifier
from zoo.cli.fit import ZooCLI, run_trainer
from zoo.datamodules.base import TensorBatches, identity_collate
from zoo.datamodules.evaluation import evaluation_loader
from zoo.distributed.launching import end_communication
from zoo.tokenizers import CharacterTokenizer


def found(cli: ZooCLI) -> dict:
    """What a process has in hands after training."""
    trainer, model = cli.trainer, cli.model
    result = {
        "metrics": metrics(cli),
        "loader": [index for batch in trainer.train_dataloader.batch_sampler for index in batch],
        "train_size": len(trainer.train_dataloader.dataset),
        "random": torch.rand(()).item(),
        "images": getattr(getattr(model, "ema", None), "images", None),
    }
    if type(trainer.strategy).__name__ != "FSDP2Strategy":  # of which every process has another part
        state = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
        result["parameters"] = hashlib.sha256(state).hexdigest()
    return result


def metrics(cli: ZooCLI) -> dict[str, float]:
    """What was measured, but for training, of which each process logs its own."""
    values = cli.trainer.callback_metrics.items()
    return {name: value.item() for name, value in values if not name.startswith("train/")}


def carry_out(runs: dict[str, list[str]], evaluated: dict[str, str], folder: str) -> dict[str, dict]:
    """Runs `fit` with the arguments of each name, and writes `<name>.ckpt`.

    Args:
        runs: arguments of `fit`, by the name of the run.
        evaluated: by the name of a run, the checkpoint that is validated and tested afterwards.
        folder: of the checkpoints.
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
    """The same global batches of 12 samples on any number of processes, in order."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        self.samples = TensorBatches(x, y)

    def train_dataloader(self) -> DataLoader:
        return evaluation_loader(self.samples, 12 // self.trainer.world_size, identity_collate, self.trainer)


def parameters_after_the_same_batches(processes: int) -> dict[str, list[float]]:
    """Trains models whose samples know nothing of each other: no batch norm, and no random numbers in training."""
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


if __name__ == "__main__":
    plan = json.loads(Path(sys.argv[1]).read_text())
    results = {"in order": parameters_after_the_same_batches(plan.pop("processes")), **carry_out(**plan)}
    (Path(plan["folder"]) / f"rank_{os.environ['LOCAL_RANK']}.json").write_text(json.dumps(results))
    end_communication()
