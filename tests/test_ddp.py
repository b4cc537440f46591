"""Two processes on the CPU: the same parameters on both, one writer, and the measures of one process."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers import TINY, run_program

SCRIPT = """
import hashlib, json, sys, warnings
import torch
from lightning.pytorch import Trainer, seed_everything
from zoo import GAN
from zoo.datamodules import Digits
warnings.filterwarnings("ignore")
options = json.loads(sys.argv[1])
seed_everything(0)
model = GAN(input_shape=(1, 8, 8), num_classes=10, width=32, latent_dim=8, **options)
trainer = Trainer(strategy="ddp", devices=2, accelerator="cpu", max_epochs=2, limit_train_batches=6, logger=False,
                  enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
trainer.fit(model, datamodule=Digits(batch_size=32))
state = b"".join(v.numpy().tobytes() for k, v in sorted(model.state_dict().items()) if torch.is_tensor(v))
result = {"hash": hashlib.sha256(state).hexdigest(), "steps": trainer.global_step, "images": model.ema.images}
result |= {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
open(f"rank_{trainer.global_rank}.json", "w").write(json.dumps(result))
"""


def results_of_both_ranks(script: str, argument: str, folder: Path) -> list[dict]:
    """Runs a script, which starts its second process by itself, and reads what each rank left."""
    (folder / "train.py").write_text(script)
    command = [sys.executable, "train.py", argument]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"penalty": "gradient_penalty", "loss": "wasserstein", "d_steps": 2},
        {"accumulate": 2, "clip_norm": 1.0, "conditional": True},
    ],
    ids=["default", "wasserstein with its penalty", "accumulating, clipped, conditional"],
)
def test_both_ranks_end_with_the_same_parameters(options, tmp_path):
    first, second = results_of_both_ranks(SCRIPT, json.dumps(options), tmp_path)
    assert first["hash"] == second["hash"]
    assert first["val/fd"] == second["val/fd"]
    assert first["val/fd_floor"] == second["val/fd_floor"]
    assert first["steps"] == 12 // options.get("accumulate", 1)
    assert first["images"] == 12 * 32 * 2, "images of both ranks"


CLASSIFIERS = """
import hashlib, json, sys, warnings
import torch
from lightning.pytorch import Trainer, seed_everything
from zoo import MLPClassifier, ResNetClassifier
from zoo.datamodules import Digits
warnings.filterwarnings("ignore")
seed_everything(0)
common = {"input_shape": (1, 8, 8), "num_classes": 10, "ema_half_life": 1000}
model = {"mlp": lambda: MLPClassifier(width=16, depth=2, **common),
         "resnet": lambda: ResNetClassifier(depth=8, widths=(4, 4, 4), **common)}[sys.argv[1]]()
trainer = Trainer(strategy="ddp", devices=2, accelerator="cpu", max_epochs=1, logger=False,
                  enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
trainer.fit(model, datamodule=Digits(batch_size=32))
parameters = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
result = {"hash": hashlib.sha256(parameters).hexdigest(), "images": model.ema.images, "noise": torch.rand(1).item()}
result |= {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
open(f"rank_{trainer.global_rank}.json", "w").write(json.dumps(result))
"""


@pytest.mark.parametrize("model", ["mlp", "resnet"])
def test_both_ranks_of_a_classifier_agree_and_draw_noise_of_their_own(model, tmp_path):
    first, second = results_of_both_ranks(CLASSIFIERS, model, tmp_path)
    assert first["hash"] == second["hash"]
    assert first["val/loss"] == second["val/loss"]
    assert first["val/acc"] == second["val/acc"]
    assert first["images"] == 18 * 32 * 2, "images of both ranks"
    assert first["noise"] != second["noise"], "dropout masks and augmentation differ"


DIFFUSION = """
import hashlib, json, sys, warnings
import torch
from lightning.pytorch import Trainer, seed_everything
from zoo import Diffusion
from zoo.datamodules import Digits
warnings.filterwarnings("ignore")
seed_everything(0)
seen = []

class Watched(Diffusion):
    def weighted_loss(self, network, x, noisy, sigma, labels):
        seen.append((noisy - x).div(sigma.view(-1, 1, 1, 1)).flatten()[:4].tolist() + sigma[:2].tolist())
        return super().weighted_loss(network, x, noisy, sigma, labels)

model = Watched(input_shape=(1, 8, 8), num_classes=10, conditional=True, widths=(16,), blocks=1)
trainer = Trainer(strategy="ddp", devices=2, accelerator="cpu", max_epochs=2, limit_train_batches=6, logger=False,
                  enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
trainer.fit(model, datamodule=Digits(batch_size=32))
state = b"".join(v.numpy().tobytes() for k, v in sorted(model.state_dict().items()) if torch.is_tensor(v))
result = {"hash": hashlib.sha256(state).hexdigest(), "noise": seen, "images": model.ema.images}
result |= {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
open(f"rank_{trainer.global_rank}.json", "w").write(json.dumps(result))
"""


def test_both_ranks_of_a_diffusion_model_agree_and_draw_noise_of_their_own(tmp_path):
    first, second = results_of_both_ranks(DIFFUSION, "", tmp_path)
    assert first["hash"] == second["hash"]
    assert first["images"] == 12 * 32 * 2, "images of both ranks"
    measured = {name for name in first if name.startswith("val/")}
    assert {"val/loss", "val/excess", "val/fd", "val/nn_ratio", "val/distance_to_analytic"} <= measured
    for name in measured:
        assert first[name] == second[name], name
    for one, other in zip(first["noise"], second["noise"], strict=True):
        assert set(one).isdisjoint(other), "the same noise on both ranks"


TRANSFORMERS = """
import hashlib, json, sys, warnings
import torch
from lightning.pytorch import Trainer, seed_everything
from zoo import Seq2Seq, TransformerLM
from zoo.datamodules import Sequences, Text
warnings.filterwarnings("ignore")
seed_everything(0)
if sys.argv[1] == "text":
    data = Text("text.txt", "characters", context=8, batch_size=4)
    model = TransformerLM(data.input_shape, data.num_classes, data.tokenizer_description, layers=1, width=16, heads=2)
else:
    data = Sequences(digits=4, num_train=900, num_test=100, val_size=101, batch_size=16)
    model = Seq2Seq(data.input_shape, data.num_classes, data.output_length, layers=1, width=16, heads=2)
seen = []
step = model.training_step
model.training_step = lambda batch, batch_idx: (seen.append(batch[0][0].tolist()), step(batch, batch_idx))[1]
trainer = Trainer(strategy="ddp", devices=2, accelerator="cpu", max_epochs=1, limit_train_batches=8, logger=False,
                  enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
trainer.fit(model, datamodule=data)
parameters = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
result = {"hash": hashlib.sha256(parameters).hexdigest(), "seen": seen}
result |= {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
open(f"rank_{trainer.global_rank}.json", "w").write(json.dumps(result))
"""


@pytest.mark.parametrize(
    ("model", "metrics"),
    [("text", {"val/loss", "val/perplexity", "val/bits_per_byte"}), ("answers", {"val/loss", "val/exact_match"})],
)
def test_both_ranks_of_a_transformer_agree_and_read_texts_of_their_own(model, metrics, tmp_path):
    (tmp_path / "text.txt").write_text("".join(chr(97 + index * index % 23) for index in range(2000)))
    first, second = results_of_both_ranks(TRANSFORMERS, model, tmp_path)
    assert first["hash"] == second["hash"]
    assert {name for name in first if name.startswith("val/")} == metrics
    for name in metrics:
        assert first[name] == second[name], name
    assert first["seen"] != second["seen"]


def test_two_processes_make_one_run_with_the_floor_of_one_process(tmp_path):
    floors = []
    for devices in (1, 2):
        args = ["fit", "--config", "gan.yaml", "--config", "ddp.yaml", *TINY, f"--trainer.devices={devices}"]
        done = run_program(*args, f"--run.name=on_{devices}", cwd=tmp_path, WANDB_MODE="offline")
        assert done.returncode == 0, done.stderr[-3000:]
        folder = tmp_path / "runs" / f"on_{devices}"
        assert [p.name for p in folder.iterdir()] == ["version_0"], "only rank zero makes a folder"
        assert len(list((folder / "version_0" / "wandb").glob("offline-run-*"))) == 1, "one W&B run"
        assert len(list((folder / "version_0" / "samples").glob("step_*.png"))) == 2
        rows = list(csv.DictReader((folder / "version_0" / "metrics.csv").open()))
        floors += [float(row["val/fd_floor"]) for row in rows if row["val/fd_floor"]][:1]
        assert yaml.safe_load((folder / "version_0" / "config.yaml").read_text())["trainer"]["strategy"] == "ddp"
    assert floors[0] == pytest.approx(floors[1], rel=1e-4)


@pytest.mark.slow
def test_two_processes_train_to_the_quality_of_one(tmp_path: Path):
    """The same steps on the same number of images, each of two processes taking half of every batch."""
    best = []
    for devices in (1, 2):
        args = [
            "--config",
            "gan.yaml",
            "--config",
            "ddp.yaml",
            f"--trainer.devices={devices}",
            "--trainer.max_steps=3000",
        ]
        options = [f"--run.name=on_{devices}", f"--data.batch_size={64 // devices}", "--trainer.accelerator=cpu"]
        done = run_program(
            "fit", *args, *options, cwd=tmp_path, WANDB_MODE="disabled", OMP_NUM_THREADS="1", timeout=900
        )
        assert done.returncode == 0, done.stderr[-3000:]
        rows = csv.DictReader((tmp_path / "runs" / f"on_{devices}" / "version_0" / "metrics.csv").open())
        best.append(min(float(row["val/fd"]) for row in rows if row["val/fd"]))
    assert best[1] < 1.5 * best[0]
