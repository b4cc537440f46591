"""Every recipe trains on tiny settings, logs what it monitors, and says in its first line what it is."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from tests.helpers.command import TINY, read_rows, run_program
from tests.helpers.models import teacher_checkpoint
from zoo.cli.main import main
from zoo.registry import recipe_files

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")

RECIPES = sorted(recipe_files())
#: Overlays are stacked on a recipe, as their first line says.
STACKED = {
    "fashion_mnist.yaml": "resnet.yaml",
    "ddp.yaml": "gan_digits.yaml",
    "fsdp.yaml": "transformer.yaml",
    "gpu.yaml": "gan_digits.yaml",
}
#: Options of recipes that need files, or more than a laptop.
OPTIONS = {
    **{
        f"{name}.yaml": ["--data=Digits", "--data.batch_size=64"]  # no files
        for name in ("mlp", "resnet20")
    },
    "vit.yaml": ["--data=Digits", "--data.batch_size=64", "--model.patch_size=4"],
    "diffusion_fashion.yaml": ["--data=Digits", "--data.batch_size=64", "--data.eval_batch_size=100"],
    # No folder of pictures, and nothing to download; its only epoch is that in which the backbone is unfrozen.
    "finetune.yaml": [
        *("--data=Digits", "--data.augment.crop=1", "--model.network=PooledResNet", "--model.network.widths=[4, 4, 4]"),
        "--trainer.callbacks.unfreeze_backbone_at_epoch=0",
    ],
    "gan.yaml": ["--data.eval_batch_size=100"],
    "gan_points.yaml": ["--data.eval_batch_size=1000"],
    "diffusion.yaml": ["--model.network.widths=[16]", "--model.network.blocks=1"],
    "seq2seq.yaml": ["--model.layers=1", "--model.width=32", "--model.heads=2"],
    "shakespeare.yaml": ["--model.layers=1", "--model.width=96", "--data.context_length=64"],  # for a GPU
}

#: Recipes that take more than five seconds, or of whose model a shorter one runs in the quick tests.
SLOW = ("diffusion_points.yaml", "fashion_mnist.yaml", "fsdp.yaml", "shakespeare_cpu.yaml", "transformer.yaml")


def arguments(recipe: str, request: pytest.FixtureRequest) -> list[str]:
    args = ["fit"]
    for name in (STACKED.get(recipe), recipe):
        args += ["--config", name] if name else []
    if recipe == "fashion_mnist.yaml":
        args.append(f"--data.root={request.getfixturevalue('shared_data')}")
    if recipe == "consistency.yaml":
        args.append(f"--model.teacher={teacher_checkpoint(Path.cwd())}")
    return [*args, *OPTIONS.get(recipe, []), *TINY, "--trainer.devices=1", "--trainer.limit_val_batches=2"]


@pytest.mark.parametrize(
    "recipe", [pytest.param(recipe, marks=pytest.mark.slow) if recipe in SLOW else recipe for recipe in RECIPES]
)
def test_recipe_trains_and_what_it_monitors_is_logged(recipe, request, cheap_reports):
    main(arguments(recipe, request))
    folder = Path("runs") / Path(STACKED.get(recipe, recipe)).stem / "version_0"
    rows = read_rows(folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    monitors = [c.get("init_args", {}).get("monitor") for c in config["trainer"]["callbacks"]]
    for monitor in filter(None, monitors):
        assert [row["step"] for row in rows if row[monitor]] == ["2", "5"], "validated after the third and sixth batch"
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert not torch.distributed.is_initialized(), "a process group would stay in this process"
    if recipe == "fashion_mnist.yaml":  # an overlay replaces the data and nothing else
        assert config["data"]["class_path"].endswith("FashionMNIST")
        assert config["data"]["init_args"]["batch_size"] == 128
        augment = config["data"]["init_args"]["augment"]["init_args"]
        assert (augment["flip"], augment["cutout"]) == (True, 8)


@pytest.mark.parametrize("recipe", RECIPES)
def test_first_line_of_a_recipe_says_what_it_is(recipe):
    first = recipe_files()[recipe].read_text(encoding="utf-8").split("\n")[0]
    assert first.startswith("# ")
    assert len(first) > 30


@pytest.fixture(scope="module")
def distances(tmp_path_factory) -> list[float]:
    """Fréchet distances of gan_digits.yaml, shortened to 1,500 steps, after each validation."""
    folder = tmp_path_factory.mktemp("gan")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "disabled")
        main(["fit", "--config", "gan_digits.yaml", "--trainer.max_steps=1500", "--trainer.accelerator=cpu"])
    return distances_of(folder / "runs" / "gan_digits" / "version_0")


STEPS_OF_CLOTHES = ["--trainer.max_steps=200", "--trainer.val_check_interval=200", "--trainer.limit_val_batches=4"]


def distances_of(run: Path) -> list[float]:
    return [float(row["val/fd"]) for row in read_rows(run) if row["val/fd"]]


@pytest.mark.slow
@pytest.mark.usefixtures("cheap_pictures")
def test_gan_recipe_makes_clothes():
    """The published figure is a tenth of this after 3,000 steps; with the learning rate of the digits it is above."""
    main(["fit", "--config", "gan.yaml", *STEPS_OF_CLOTHES, "--trainer.accelerator=cpu"])
    (distance,) = distances_of(Path("runs/gan/version_0"))
    assert distance < 40


@pytest.mark.slow
def test_gan_recipe_makes_digits(distances):
    """The published figure is a Fréchet distance of at most 8 after 6,000 steps; this is a quarter of them."""
    assert min(distances) < 8
    assert distances[-1] < distances[0]


@pytest.mark.slow
def test_gan_recipe_reaches_the_same_quality_on_two_ranks(distances, tmp_path):
    """The same number of images in every step: each rank takes half of every batch. Half of the run, as it is slow."""
    args = ["--config=gan_digits.yaml", "--config=ddp.yaml", "--trainer.devices=2", "--trainer.max_steps=750"]
    options = ["--data.batch_size=32", "--trainer.accelerator=cpu"]
    done = run_program("fit", *args, *options, cwd=tmp_path, timeout=900, WANDB_MODE="disabled")
    assert done.returncode == 0, done.stderr[-3000:]
    on_two_ranks = distances_of(tmp_path / "runs" / "gan_digits" / "version_0")
    assert len(on_two_ranks) == 2, "after every 375 steps"
    assert min(on_two_ranks) < 1.5 * min(distances[:2])


@pytest.mark.slow
@pytest.mark.usefixtures("cheap_pictures")
def test_theory_recipe_reaches_the_equilibrium():
    main(["fit", "--config", "gan_theory.yaml", "--trainer.accelerator=cpu", "--trainer.max_steps=1000"])
    rows = json.loads(Path("runs/gan_theory/version_0/equilibrium.json").read_text())
    assert rows["value"]["measured"] == pytest.approx(rows["value"]["theory"], abs=0.02)
    assert rows["d_real"]["measured"] == pytest.approx(0.5, abs=0.02)
    assert rows["wasserstein_1"]["measured"] < 0.1
    assert rows["two_sample_accuracy"]["measured"] < 0.56
