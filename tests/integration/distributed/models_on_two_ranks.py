"""Trains some models on two ranks, for `test_ddp.py`: python -m ...models_on_two_ranks FOLDER.

Each rank leaves what it found in `rank_<rank>.json` of the folder.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import BackboneFinetuning

from tests.helpers.networks import mlps, unet
from tests.helpers.ranks import run_ranks
from zoo import GAN, Classifier, Diffusion
from zoo.datamodules import Digits
from zoo.distributed.launching import end_communication
from zoo.models import PooledResNet

#: Options of the GANs, by name.
GANS: dict[str, dict[str, Any]] = {
    "wasserstein with its penalty": {"penalty": "gradient_penalty", "loss": "wasserstein", "n_critic": 2},
    "accumulating, clipped, conditional": {
        "accumulate_grad_batches": 2, "gradient_clip_val": 1.0, "conditional": True,
    },
}  # fmt: skip


class Watched(Diffusion):
    """A diffusion model that keeps some of the noise, and of the noise levels, of every batch."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[list[float]] = []
        self.loss, self.denoiser.loss = self.denoiser.loss, self.watch  # type: ignore[method-assign]

    def watch(self, x: torch.Tensor, noisy: torch.Tensor, sigma: torch.Tensor, labels: Any) -> torch.Tensor:
        noise = (noisy - x).div(sigma.view(-1, 1, 1, 1)).flatten()
        self.seen.append(noise[:4].tolist() + sigma[:2].tolist())
        return self.loss(x, noisy, sigma, labels)


def train(model: LightningModule, *callbacks: Callback, ckpt_path: Path | None = None) -> dict[str, Any]:
    """Trains on twelve batches in two epochs; returns metrics, steps, and a hash of all parameters."""
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(
        strategy="ddp",
        devices=2,
        accelerator="cpu",
        max_epochs=2,
        limit_train_batches=6,
        callbacks=list(callbacks),
        **quiet,
    )
    trainer.fit(model, datamodule=Digits(batch_size=32), ckpt_path=ckpt_path, weights_only=True)
    state = b"".join(v.numpy().tobytes() for k, v in sorted(model.state_dict().items()) if torch.is_tensor(v))
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    return metrics | {
        "hash": hashlib.sha256(state).hexdigest(),
        "steps": trainer.global_step,
        "images": model.ema.images,
        "noise": getattr(model, "seen", []),
    }


class Epochs(Callback):
    """Keeps the backbone's weights after every epoch, and writes a checkpoint after each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sums: list[float] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.sums.append(sum(p.double().abs().sum().item() for p in pl_module.backbone.parameters() if p.ndim > 1))
            trainer.save_checkpoint(self.folder / f"epoch_{trainer.current_epoch}.ckpt")


def fine_tune(folder: Path, ckpt_path: Path | None = None) -> dict[str, Any]:
    """Trains a classifier whose backbone is unfrozen after an epoch, of two."""
    seed_everything(0)
    network = partial(PooledResNet, widths=(4, 4, 4), block_type="residual")
    model = Classifier((1, 8, 8), 10, network, ema_half_life=100, layer_decay=0.75)
    epochs = Epochs(folder)
    found = train(model, BackboneFinetuning(unfreeze_backbone_at_epoch=1, train_bn=False), epochs, ckpt_path=ckpt_path)
    return found | {"sums": epochs.sums}


def task(folder: Path, rank: int) -> None:
    warnings.filterwarnings("ignore")
    results = {}
    for name, options in GANS.items():
        seed_everything(0)
        results[name] = train(GAN((1, 8, 8), 10, **mlps(32), latent_dim=8, **options))
    seed_everything(0)
    results["diffusion"] = train(Watched((1, 8, 8), 10, conditional=True, network=unet(16)))
    results["fine-tuning"] = fine_tune(folder)
    results["fine-tuning, resumed"] = fine_tune(folder, folder / "epoch_0.ckpt")
    (folder / f"rank_{rank}.json").write_text(json.dumps(results))
    end_communication()


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    sys.exit(run_ranks(lambda rank: task(place, rank), 2))
