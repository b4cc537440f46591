"""Every recipe runs: once by `fast_dev_run`, once for real on tiny settings, and it is documented."""

import csv
from pathlib import Path

import pytest
import yaml

from tests.helpers.command import TINY, run_program
from tests.helpers.models import teacher_checkpoint
from zoo.cli.main import main
from zoo.registry import recipe_files

RECIPES = sorted(recipe_files())
# Recipes that change one thing are stacked on one that is whole, as their first line says.
STACKED = {
    "fashion_mnist.yaml": ["gan.yaml"],
    "ddp.yaml": ["gan.yaml"],
    "fsdp.yaml": ["transformer.yaml"],
    "gpu.yaml": ["gan.yaml"],
}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")


def arguments(recipe: str, request: pytest.FixtureRequest) -> list[str]:
    args = ["fit"]
    for name in [*STACKED.get(recipe, []), recipe]:
        args += ["--config", name]
    if recipe == "fashion_mnist.yaml":
        args.append(f"--data.root={request.getfixturevalue('shared_data')}")
    if recipe in ("mlp.yaml", "resnet.yaml", "resnet20.yaml", "diffusion_fashion.yaml", "vit.yaml"):
        args += ["--data=Digits", "--data.batch_size=64"]  # what every machine has
    if recipe == "consistency.yaml":
        args.append(f"--model.teacher={teacher_checkpoint(Path.cwd())}")
    if recipe == "shakespeare.yaml":  # made for a GPU
        args += ["--model.layers=1", "--model.width=96", "--data.context_length=64"]
    return [*args, *TINY, "--trainer.devices=1"]


def run(recipe: str, args: list[str]) -> None:
    """In this process, but for a process group, which would stay in it."""
    if recipe in ("ddp.yaml", "fsdp.yaml"):
        done = run_program(*args, cwd=Path.cwd(), WANDB_MODE="disabled")
        assert done.returncode == 0, done.stderr
    else:
        main(args)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_passes_a_fast_dev_run(recipe, request):
    run(recipe, [*arguments(recipe, request), "--trainer.fast_dev_run=true"])
    assert not Path("runs").exists()


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_trains_for_real_and_what_it_monitors_is_logged(recipe, request):
    run(recipe, [*arguments(recipe, request), "--trainer.limit_val_batches=2"])
    name = Path((STACKED.get(recipe) or [recipe])[0]).stem
    folder = Path("runs") / name / "version_0"
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    monitors = [c.get("init_args", {}).get("monitor") for c in config["trainer"]["callbacks"]]
    for monitor in filter(None, monitors):
        assert [row["step"] for row in rows if row[monitor]] == ["2", "5"], "validated after the third and sixth batch"
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_first_line_of_a_recipe_says_what_it_is(recipe):
    first = recipe_files()[recipe].read_text(encoding="utf-8").split("\n")[0]
    assert first.startswith("# ")
    assert len(first) > 30


@pytest.mark.slow
def test_gan_recipe_makes_digits():
    """The default recipe, shortened to half: the published figure is a Fréchet distance of at most 8 after 6,000."""
    main(["fit", "--config", "gan.yaml", "--trainer.max_steps=3000", "--trainer.accelerator=cpu"])
    with Path("runs/gan/version_0/metrics.csv").open() as file:
        distances = [float(row["val/fd"]) for row in csv.DictReader(file) if row["val/fd"]]
    assert min(distances) < 8
    assert distances[-1] < distances[0]


@pytest.mark.slow
def test_theory_recipe_reaches_the_equilibrium():
    import json

    main(["fit", "--config", "gan_theory.yaml", "--trainer.accelerator=cpu", "--trainer.max_steps=4000"])
    rows = json.loads(Path("runs/gan_theory/version_0/equilibrium.json").read_text())
    assert rows["value"]["measured"] == pytest.approx(rows["value"]["theory"], abs=0.02)
    assert rows["d_real"]["measured"] == pytest.approx(0.5, abs=0.02)
    assert rows["wasserstein_1"]["measured"] < 0.1
    assert rows["two_sample_accuracy"]["measured"] < 0.56
