"""Every benchmark runs on its smallest setting and prints its result; a new script fails until it has a run here."""

from __future__ import annotations

import logging
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.helpers.command import CHECKOUT
from zoo.cli.main import main

FOLDER = CHECKOUT / "benchmarks"
SCRIPTS = sorted(
    path.stem for path in FOLDER.glob("*.py") if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")
)


@dataclass(frozen=True)
class Run:
    """A run of a script on its smallest setting.

    Attributes:
        args: arguments; names in braces are keys of the fixture `paths`.
        prints: regular expressions of what it must print.
        writes: file that it must write.
    """

    args: str
    prints: tuple[str, ...]
    writes: str = ""


N = r"-?\d+(\.\d+)?(e[-+]\d+)?"
MEAN = rf"{N} ± {N}"
CPU = "--trainer.accelerator=cpu"
SHORT = f"{CPU} --trainer.max_steps=2 --trainer.val_check_interval=2"
CLASSIFIER = f"{CPU} --data Digits --seeds 1 --epochs 1 --data.batch_size=600"
DIFFUSION = f"{SHORT} --model.excess_samples=2 --model.network=UNet --model.network.widths=[8]"
TRANSFORMER = f"{CPU} --model.layers=1 --model.width=16 --model.heads=2"


def row(name: str, *cells: str) -> str:
    """Regular expression of a row of a Markdown table."""
    return "".join(rf"\| {cell} " if cell else r"\| " for cell in (re.escape(name), *cells)) + r"\|\n"


RUNS = {
    "allocator": [
        Run(
            "--recipes gan_digits --turns 1 --scale 0.1",
            (row("gan_digits", *[N] * 3, *[r"[\d,]+"] * 4), r'"faults_kept": \d'),
        ),
    ],
    "classifier_quality": [
        Run(
            f"mlp --rows dropout {CLASSIFIER} --model.width=32",
            (
                row("dropout, last epoch", *[N] * 5),
                row("dropout, early stopping", *[N] * 5),
                row("dropout, early stopping, calibrated", *[N] * 5),
                row("dropout, early stopping, 50 MC samples", *[N] * 5),
            ),
        ),
        Run(
            f"mlp --rows ensemble {CLASSIFIER} --model.width=32",
            (row("ensemble of 4 without dropout, 1/4 of the epochs each", *[N] * 5),),
        ),
        Run(
            f"resnet_options --rows ResNet-8 constant {CLASSIFIER} --model.widths=[8,8,8]",
            (row("ResNet-8 of He et al., patch size 2", *[N] * 5), row("constant learning rate 0.05", *[N] * 5)),
        ),
        Run(
            "resnet_speed --rounds 1 --batch_size 2 --rows fp32 bf16",
            (row("fp32", N, "1.00"), row("bf16", N, N)),
        ),
    ],
    "command_cost": [
        Run(
            f"gan_digits.yaml --least 0 {SHORT} --trainer.callbacks=CurvePlotter",
            (
                r'"row": "gan_digits.yaml", "cpu_seconds": \d',
                *(row(part, r"\d+\.\d\d", N) for part in ("training: forward", "training: backward", "validation")),
                *(row(part, r"\d+\.\d\d", N) for part in ("parser and recipes", "CurvePlotter", "RunCSVLogger")),
                row("all", N, "100"),
            ),
        )
    ],
    "data_path": [
        Run(
            "--images 128 --batch_size 64 --rounds 1 --seconds 0 --workers 0",
            (rf'"row": "1x28x28", .*"ratio": {N}', rf'"row": "3x32x32", .*"ratio": {N}'),
        )
    ],
    "diffusion_peer": [
        Run(
            "--root {data} --steps 1 --seeds 2 --n 3 --n_val 2 --evaluations 5 --lr 1e-3 1e-4 --dim 8 --out samples "
            f"{CPU} --model.network=UNet --model.network.widths=[8] --data.batch_size=2 --data.val_size=59900",
            (
                rf'"row": "peer, lr 0.001, raw weights, validation", "fd": {N}',
                rf'"row": "ours, by class", "seed": 1, "fd": {N}',
                rf"chosen on validation images: [\d.e-]+; floor {MEAN}",
                row("ours, by class", "10", MEAN),
                row("ours, without classes", "10", MEAN),
                row("peer, raw weights", "5", MEAN),
                row("peer, average like ours", "5", MEAN),
            ),
            writes="samples/peer_raw_weights_1.png",
        )
    ],
    "diffusion_physics": [
        Run(
            "--n 50 --steps 5 --seeds 2 --out physics.png",
            (row("floor", MEAN), row("2D grad ln p, full noise (the lecture's)", MEAN)),
            writes="physics.png",
        ),
        Run("--n 50 --steps 5 --seeds 1 --out physics.png", (row("floor", N),)),
    ],
    "diffusion_quality": [
        Run(
            f"diffusion.yaml --seeds 1 --draws 2 --solvers euler heun --evaluations 2 3 --guidance_scale 0 1 "
            f"{DIFFUSION}",
            (
                row("euler, 1", N, N),
                row("heun, 0", "", N),
                rf'"row": "heun, guidance 1", "seed": 0, "fd_3": {N}, "label_accuracy_3": {N}',
                rf'"row": "test", "seed": 0, "fd": {N}, "label_accuracy": {N}, .*"cpu_seconds": {N}',
                "own settings",
                rf"\n\| {N} \| {N} \|",
            ),
        ),
        Run(
            "--ckpt_path {digits} --draws 1 --solvers euler --evaluations 2",
            (rf'"row": "test floor", "seed": 0, "fd": {N}, "std": {N}', row("euler, 0", N)),
        ),
        Run(
            f"consistency.yaml --model.teacher {{digits}} --seeds 1 --draws 1 --evaluations 1 2 {SHORT}",
            (row("consistency model, 0", N, N),),
        ),
    ],
    "disk_cache": [
        Run(
            "--images 300 --size 8 --files 20 --batch_size 64 --rounds 1 --seconds 0",
            (
                r'"row": "build", "seconds": \d',
                r'"row": "decoding", .*"files_per_s": \d',
                r'"row": "memory"',
                r'"row": "disk"',
                rf'"memory": \d+, "disk": \d+, "ratio": {N}',
            ),
        )
    ],
    "editing_figure": [
        Run("--ckpt_path {digits} --steps 3 --resamples 1 --out editing.png", ("wrote",), writes="editing.png")
    ],
    "finetune": [
        Run(
            "--epochs 1 --widths 4 8 --images 10 --steps 6 --seeds 2",
            (
                rf'"row": "pretraining", "seed": 1, "val_acc": {N}',
                rf'"row": "from scratch, lr 0.01", "seed": 1, "acc_10": {N}',
                row("from scratch", "0.01", MEAN),
                row("head first, then all layers, layer_decay 0.75", "0.003", MEAN),
            ),
        ),
        Run(
            "--epochs 1 --widths 4 --images 10 --steps 2 --rows scratch --lr 0.1 --choose",
            (row("from scratch", "0.1", N),),
        ),
    ],
    "gan_quality": [
        Run(
            "digits --models without_classes by_class --seeds 2 --max_steps 1",
            (row("without_classes, average", MEAN, MEAN), row("by_class, no average", MEAN, MEAN)),
        ),
        Run(
            "digits --models textbook --lr 0.001 --seeds 1 --max_steps 1",
            (
                row("textbook, lr 0.0002, no average", N, N),
                rf"\| textbook, lr 0.001, (no )?average \| {N} \| {N} \|\n",
            ),
        ),
        Run("digits --models dcgan --lr 0.0002 --seeds 1 --max_steps 1", (row("dcgan, lr 0.0002, no average", N, N),)),
        Run(
            "points --seeds 1 --max_steps 1",
            (row("ring", "0", r"\d of 8", N, N, N), row("grid", "0", r"\d+ of 25", N, N, N)),
        ),
    ],
    "gradient_flow_cost": [
        Run(
            "--rounds 1 --blocks 2 --period 2 --batch_size 2",
            (rf"MLP, .*: {N} ms per step", rf"convolutional, .*: {N} ms per step", rf"inside the callback {N} ms"),
        )
    ],
    "growth": [
        Run(
            "--axes image_size length --recipes gan.yaml vit.yaml --most 16 --out growth.png",
            (
                rf'"row": "gan.yaml, image_size 8", "seconds": {N}, "set_up_seconds": {N}, "megabytes": {N}',
                rf'"row": "logging, length 4", .*"checkpoint_megabytes": {N}',
                row("image_size", "gan.yaml", *[N] * 4),
                row("image_size", "vit.yaml", *[N] * 4),
            ),
            writes="growth.png",
        ),
        Run(
            "--axes processes --recipes gan.yaml --most 2 --steps 3",
            (
                rf'"row": "gan.yaml, processes 2", "seconds": {N}, "set_up_seconds": {N}, "megabytes": {N}',
                row("processes", "gan.yaml", *[N] * 4),
            ),
        ),
    ],
    "language_model": [
        Run(
            f"quality shakespeare_cpu.yaml --path {{text}} --seeds 2 {SHORT} {TRANSFORMER}",
            (row("best", MEAN), row("last", MEAN)),
        ),
        Run(
            f"speed shakespeare_cpu.yaml --path {{text}} --turns 1 --steps 6 --window 2 {TRANSFORMER}",
            (rf"median ratio: {N}",),
        ),
    ],
    "optimizer_quality": [
        Run(
            "--steps 1 --batch_size 2 --seeds 2 --optimizers SGD",
            (row("MLP 2x256", "SGD, momentum 0.9", N, MEAN, MEAN), row("ResNet-8", "SGD, momentum 0.9", N, MEAN, MEAN)),
        ),
        Run(
            "--text {text} --steps 1 --batch_size 2 --seeds 1 --optimizers Adam",
            (row("Transformer", "AdamW, decay 0.05", N, N, N),),
        ),
    ],
    "optimizer_speed": [
        Run(
            "--tensors 4 --width 2 --rounds 2",
            (row("Adam, foreach", N, f"{N} to {N}", "1.00"), row("ScalarAdam, group", N, f"{N} to {N}", N)),
        )
    ],
    "overhead": [
        Run(
            "--recipes gan_digits mlp --blocks 2 --scale 0.1",
            (row("gan_digits", N, N, N), row("mlp", N, N, N), r'"quartiles": \[\d'),
        )
    ],
    "reproduce": [Run("--list", (r"gan-digits/recipe +108 +fd 3.69 ± 0.54",))],
    "soak": [
        Run(
            f"gan_digits.yaml --minutes 0.02 --every 0.1 --model.latent_dim=8 --trainer.val_check_interval=100 {CPU}",
            (row("resident_mib", N, N, r"[-+]\d+\.\d"), row("threads", N, N, r"[-+]\d+\.\d")),
        )
    ],
    "threads": [
        Run(
            "--recipes gan_digits --threads 1 2 --blocks 1 --scale 0.02",
            (row("gan_digits", r"2\.2", "1", *[N] * 3),),
        )
    ],
    "tables": [Run("--check", (r"\d+ tables in \d+ pages agree with their data",))],
    "train_extractors": [
        Run(
            "digits --epochs 1 --out .",
            (r"digits: test accuracy \d+\.\d\d%", rf"at n 297: training from test images {N}"),
            writes="digits.safetensors",
        ),
        Run("digits --evaluate", (rf"at n 297: training from test images {N}",)),
        Run(
            "cifar10_jpeg --cifar10_jpeg {jpegs} --epochs 1 --out .",
            (r"cifar10_jpeg: test accuracy \d+\.\d\d%", rf"at n 1000: training from test images {N}"),
            writes="cifar10_jpeg.safetensors",
        ),
    ],
    "train_models": [
        Run(
            "gan-digits --out models --trainer.max_steps=2 --trainer.val_check_interval=2 --trainer.accelerator=cpu",
            (rf"models/gan-digits: test/fd {N}, test/precision {N}",),
            writes="models/gan-digits/model.safetensors",
        )
    ],
    "vanishing_gradient": [
        Run(
            "--steps 1 --batch_size 2 --out gradient.png",
            (row("54", "torch's default", "plain", N, N), row("54", "He's", "residual_batch_norm", N, N)),
            writes="gradient.png",
        )
    ],
}


@pytest.fixture
def paths(tmp_path: Path, checkpoint: Callable[[str], str], request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Function from a name in the arguments of a run to a path."""

    def jpegs() -> str:
        """Random pictures of 32x32 pixels, of two classes: 140 to train on and 20 to test on."""
        generator = np.random.default_rng(0)
        for split, count in {"train": 70, "test": 10}.items():
            for kind in ("cats", "dogs"):
                folder = tmp_path / "jpegs" / split / kind
                folder.mkdir(parents=True)
                for index, pixels in enumerate(generator.integers(256, size=(count, 32, 32, 3), dtype=np.uint8)):
                    Image.fromarray(pixels).save(folder / f"{index}.jpg")
        return str(tmp_path / "jpegs")

    known: dict[str, Callable[[], str]] = {
        "jpegs": jpegs,
        "data": lambda: str(request.getfixturevalue("shared_data")),
        "text": lambda: textwrap.__file__,
        "digits": lambda: checkpoint("diffusion"),
    }
    return lambda name: known[name]()


@pytest.fixture
def load_script(
    monkeypatch: pytest.MonkeyPatch, in_an_empty_folder: Path, cheap_reports: None
) -> Iterator[Callable[[str], Any]]:
    """Function that imports a script; afterwards its global settings are undone.

    A script is imported anew, and what other tests have imported is put back: what they replace in it is in theirs.
    """
    imported = {name: module for name, module in sys.modules.items() if name.startswith("benchmarks.")}
    threads, logger = torch.get_num_threads(), logging.getLogger("lightning.pytorch")
    level = logger.level
    for name, module in peer_library().items():
        monkeypatch.setitem(sys.modules, name, module)
    yield lambda name: import_module(f"benchmarks.{name}")
    for name in SCRIPTS:
        sys.modules.pop(f"benchmarks.{name}", None)
    for name, module in imported.items():
        sys.modules[name] = module
        package, _, attribute = name.rpartition(".")
        setattr(sys.modules[package], attribute, module)
    torch.set_num_threads(threads)
    logger.setLevel(level)


def peer_library() -> dict[str, ModuleType]:
    """Stand-ins for the libraries that diffusion_peer compares with, with as much of them as it uses."""

    class Unet(nn.Module):
        def __init__(self, dim: int, dim_mults: tuple[int, ...], channels: int, flash_attn: bool) -> None:
            super().__init__()
            self.layer = nn.Conv2d(channels, channels, 3, padding=1)

    class GaussianDiffusion(nn.Module):
        def __init__(self, network: Unet, image_size: int) -> None:
            super().__init__()
            self.network, self.image_size = network, image_size
            self.num_timesteps = self.sampling_timesteps = 1000

        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[1:] == (1, self.image_size, self.image_size)
            assert x.min() >= 0
            return (self.network.layer(x) - x).square().mean()

        def sample(self, batch_size: int) -> Tensor:
            assert self.sampling_timesteps == 1000
            return torch.rand(batch_size, 1, self.image_size, self.image_size)

        def ddim_sample(self, shape: tuple[int, ...]) -> Tensor:
            assert self.sampling_timesteps < 1000
            return torch.rand(shape)

    class EMA(nn.Module):
        def __init__(self, model: nn.Module, beta: float, update_every: int, **options: float) -> None:
            super().__init__()
            self.ema_model = model

        def update(self) -> None:
            pass

    peer, ema = ModuleType("denoising_diffusion_pytorch"), ModuleType("ema_pytorch")
    peer.__dict__.update(Unet=Unet, GaussianDiffusion=GaussianDiffusion)
    ema.__dict__.update(EMA=EMA)
    return {module.__name__: module for module in (peer, ema)}


@pytest.mark.parametrize(
    ("script", "run"),
    [
        pytest.param(script, run, id=f"{script}-{number}")
        for script in SCRIPTS
        for number, run in enumerate(RUNS.get(script, ()))
    ],
)
def test_it_prints_its_result(script, run, load_script, paths, capsys, cheap_layout):
    if script == "soak" and not Path("/proc/self/fd").is_dir():
        pytest.skip("soak reads /proc, which is Linux's")
    args = re.sub(r"\{(\w+)\}", lambda name: paths(name[1]), run.args).split()
    load_script(script).main(args)
    printed = capsys.readouterr().out
    for pattern in run.prints:
        assert re.search(pattern, printed), f"{pattern} is not in\n{printed}"
    assert not run.writes or Path(run.writes).stat().st_size > 0


def test_the_options_of_every_row_of_the_classifiers_train(load_script):
    """Those of which no run above trains a row: the tables have too many rows for a training and a test of each."""
    tables = load_script("classifier_quality").TABLES
    small = {"mlp": ["--model.width=8"], "resnet": ["--model.widths=[4,4,4]"]}
    trained = set()
    for table, rows in tables.items():
        recipe = table.split("_")[0]
        for options in dict.fromkeys(row.options for row in rows):
            if options and not {"--model.backbone=cifar", "--model.lr_scheduler=null"} & set(options):
                args = ["--data=Digits", "--data.batch_size=64", "--trainer.fast_dev_run=true", *small[recipe]]
                main(["fit", f"--config={recipe}.yaml", *args, "--trainer.accelerator=cpu", *options])
                trained.add(options)
    assert len(trained) == 9


def test_every_script_has_a_run():
    assert set(SCRIPTS) == set(RUNS), "a script in benchmarks/ without a run, or the opposite: see RUNS"


@pytest.mark.parametrize("script", SCRIPTS)
def test_its_help_describes_every_option(script, load_script, capsys):
    with pytest.raises(SystemExit) as stop:
        load_script(script).main(["--help"])
    assert stop.value.code == 0
    options = re.split(r"\n(?=  \S)", capsys.readouterr().out.partition("\noptions:\n")[2].rstrip())
    undescribed = [option for option in options if not re.search(r"\S(  +|\n +)\S", option)]
    assert len(options) > 1
    assert not undescribed
