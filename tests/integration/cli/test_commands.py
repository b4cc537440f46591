"""The command line, as its users meet it: what a run leaves, what each command does, how a mistake is answered."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.helpers.command import TINY, fails, run_program
from tests.helpers.wandb_reader import read_offline_run
from zoo import GAN
from zoo.cli.main import main

GAN_RUN = ["fit", "--config", "gan.yaml", *TINY, "--data.repeats=1"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of one short run, made by the program itself, and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    done = run_program(*GAN_RUN, "--model.conditional=true", "--wandb.log_model=true", cwd=folder, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "gan" / "version_0", done.stdout + done.stderr


# What a run leaves


def test_a_run_leaves_everything_in_a_folder_of_its_own(run):
    folder, _ = run
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if "wandb" not in str(p.relative_to(folder))}
    expected = {"config.yaml", "metrics.csv", "curves.png", "checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    assert expected | {"samples/step_0000000.png", "samples/step_0000006.png", "samples/film.gif"} <= names
    for picture in ("curves.png", "samples/step_0000006.png"):
        assert np.asarray(Image.open(folder / picture)).std() > 5, "a picture with something in it"


def test_the_last_lines_say_where_the_pictures_are_and_what_to_type_next(run):
    _, output = run
    last = [line for line in output.splitlines() if line.strip()][-5:]
    assert "runs/gan/version_0" in last[0]
    assert "stopped early" in last[1]
    assert "best val/fd" in last[2]
    assert "runs/gan/version_0/samples" in last[3] and "curves.png" in last[3]
    assert last[4].startswith("Next: python cli.py sample --ckpt_path runs/gan/version_0/checkpoints/")


def test_the_distance_is_named_with_its_extractor_hash_and_floor(run):
    _, output = run
    assert re.search(
        r"val/fd is the Fréchet distance .* of the classifier digits, weights [0-9a-f]{8}; floor, .*: \d", output
    )


def test_metrics_are_in_the_csv_under_their_names(run):
    with (run[0] / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = [
        "train/loss_d",
        "train/loss_g",
        "train/penalty",
        "train/d_real",
        "train/d_fake",
        "train/value",
        "train/value_optimum",
    ]
    names += ["train/grad_norm_d", "train/grad_norm_g", "train/images_per_second", "val/fd", "val/fd_floor"]
    for name in names:
        assert any(row[name] for row in rows), name
    assert [row["step"] for row in rows if row["val/fd"]] == ["2", "5"], "validation after every third batch"


def test_config_repeats_the_run(run, capsys):
    config = yaml.safe_load((run[0] / "config.yaml").read_text())
    assert config["model"]["class_path"].endswith("GAN")
    assert config["trainer"]["max_steps"] == 6
    main(["fit", "--config", str(run[0] / "config.yaml"), "--run.name", "again"])
    first, again = (list(csv.DictReader((f / "metrics.csv").open())) for f in (run[0], Path("runs/again/version_0")))
    assert [r["val/fd"] for r in first] == [r["val/fd"] for r in again]


def test_two_runs_never_share_a_folder(capsys):
    for _ in range(2):
        main([*GAN_RUN, "--trainer.max_steps=2"])
    assert sorted(p.name for p in Path("runs/gan").iterdir()) == ["version_0", "version_1"]


def test_a_run_without_loggers_leaves_only_its_checkpoint(capsys):
    main([*GAN_RUN, "--trainer.logger=false", "--trainer.callbacks=ModelCheckpoint"])
    assert [p.name for p in Path.cwd().rglob("*") if p.is_file()] == ["epoch=0-step=6.ckpt"]


def test_offline_run_of_wandb_holds_nested_config_scalars_and_images(run):
    (file,) = (run[0] / "wandb").glob("offline-run-*/*.wandb")
    config, history, artifacts = read_offline_run(file)
    assert config["model"]["init_args"]["loss"] == "relativistic"
    assert config["data"]["init_args"]["batch_size"] == 64
    assert config["model"]["init_args"]["input_shape"] == [1, 8, 8], "what was linked is there as well"
    scalars = [row["val/fd"] for row in history if "val/fd" in row]
    assert len(scalars) == 2 and all(np.isfinite(scalars))
    assert any("train/loss_d" in row for row in history)
    images = [row["samples"] for row in history if "samples" in row]
    assert len(images) == 2
    for image in images:
        path = file.parent / "files" / image["filenames"][0]
        assert np.asarray(Image.open(path)).std() > 5
    assert artifacts == {"best.ckpt", "last.ckpt"}, "asked for by --wandb.log_model"


def test_without_a_key_wandb_goes_offline_by_itself_and_says_so(tmp_path):
    done = run_program(*GAN_RUN, "--trainer.max_steps=2", cwd=tmp_path, HOME=str(tmp_path))
    assert done.returncode == 0
    assert re.search(r"wandb sync runs/gan/version_0/wandb/offline-run-\*", done.stdout + done.stderr)
    assert list(tmp_path.glob("runs/gan/version_0/wandb/offline-run-*/*.wandb"))


def test_a_checkpoint_loads_in_a_fresh_process_without_jsonargparse(run, tmp_path):
    import subprocess
    import sys

    script = f"""
import sys
sys.modules["jsonargparse"] = None  # whoever imports it gets an ImportError
from zoo import GAN
model = GAN.load_from_checkpoint({str(run[0] / "checkpoints" / "last.ckpt")!r}, weights_only=True)
assert model.input_shape == (1, 8, 8) and model.conditional and model.num_classes == 10
print(tuple(model.sample(3).shape))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "(3, 1, 8, 8)", done.stderr


# Links, from data to model


@pytest.mark.parametrize(
    ("data", "shape", "classes"),
    [(["--data=Digits"], (1, 8, 8), 10), (["--data=Points", "--data.distribution=ring"], (2,), 8)],
)
def test_shape_and_classes_of_the_data_reach_the_model(data, shape, classes):
    callbacks = '[{"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 1}}]'
    main(
        [
            *GAN_RUN[:3],
            *data,
            *TINY,
            "--trainer.max_steps=1",
            "--model.conditional=true",
            f"--trainer.callbacks={callbacks}",
        ]
    )
    (path,) = Path("runs").rglob("*.ckpt")
    model = GAN.load_from_checkpoint(path, weights_only=True)
    assert model.input_shape == shape
    assert model.num_classes == classes
    assert model.generator.latent.embedding.num_embeddings == classes


def test_data_can_be_changed_on_the_command_line(shared_data):
    main([*GAN_RUN[:3], "--data=FashionMNIST", f"--data.root={shared_data}", *TINY, "--trainer.fast_dev_run=true"])


def test_recipes_stack(shared_data):
    stacked = ["fit", "--config", "gan.yaml", "--config", "fashion_mnist.yaml", f"--data.root={shared_data}", *TINY]
    options = ["--trainer.limit_val_batches=2", "--trainer.max_steps=3"]
    main([*stacked, *options])
    config = yaml.safe_load(Path("runs/gan/version_0/config.yaml").read_text())
    assert config["data"]["class_path"].endswith("FashionMNIST")
    assert config["model"]["init_args"]["loss"] == "relativistic"
    model = GAN.load_from_checkpoint("runs/gan/version_0/checkpoints/last.ckpt", weights_only=True)
    assert model.sample(1).shape == (1, 1, 28, 28)


# Measuring a checkpoint


@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_checkpoint_is_measured_with_the_configuration_of_its_run(run, command, capsys):
    main([command, "--ckpt_path", str(run[0] / "checkpoints" / "last.ckpt")])
    output = capsys.readouterr().out
    split = {"validate": "val", "test": "test"}[command]
    assert f"{split}/fd" in output and f"{split}/fd_floor" in output
    assert not Path("runs").exists(), "measuring makes no run"


# sample


def sample(run, *args):
    main(["sample", "--ckpt_path", str(run[0] / "checkpoints" / "last.ckpt"), *args])


def test_sample_draws_a_grid_and_the_same_one_for_the_same_seed(run):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        sample(run, "--n", "16", "--seed", str(seed), "--out", f"{name}.png")
    a, b, c = (np.asarray(Image.open(f"{name}.png")) for name in "abc")
    assert a.shape == (4 * 34 + 2, 4 * 34 + 2, 3)
    assert (a == b).all() and (a != c).any()


def test_sample_writes_raw_samples_with_their_labels(run):
    sample(run, "--n", "5", "--labels", "[3,7]", "--out", "raw.npz")
    arrays = np.load("raw.npz")
    assert arrays["arr_0"].shape == (5, 8, 8, 1) and arrays["arr_0"].dtype == np.uint8
    assert arrays["arr_1"].tolist() == [3, 7, 3, 7, 3]


def test_more_samples_than_fit_at_once_are_all_there_and_all_different(run):
    sample(run, "--n", "2500", "--out", "many.npz")
    arrays = np.load("many.npz")
    assert arrays["arr_0"].shape == (2500, 8, 8, 1) and arrays["arr_1"].shape == (2500,)
    assert len(np.unique(arrays["arr_0"].reshape(2500, -1), axis=0)) > 2490
    assert len(np.unique(arrays["arr_1"])) == 10


def test_sample_draws_one_class_in_a_row(run):
    sample(run, "--n", "4", "--per_class", "true", "--out", "classes.npz")
    assert np.load("classes.npz")["arr_1"].tolist() == [k for k in range(10) for _ in range(4)]
    sample(run, "--n", "4", "--per_class", "true", "--out", "classes.png")
    assert Image.open("classes.png").size == (4 * 34 + 2, 10 * 34 + 2)


def test_sample_interpolates_and_makes_films(run):
    sample(run, "--n", "3", "--interpolate", "6", "--out", "ways.png")
    assert Image.open("ways.png").size == (6 * 34 + 2, 3 * 34 + 2)
    sample(run, "--n", "3", "--interpolate", "6", "--out", "ways.npz")
    labels = np.load("ways.npz")["arr_1"].reshape(3, 6)
    assert (labels == labels[:, :1]).all(), "a way stays in its class"
    sample(run, "--n", "4", "--frames", "9", "--out", "film.gif")
    assert Image.open("film.gif").n_frames == 9


def test_sample_overwrites_nothing(run, capsys):
    Path("mine.png").write_text("precious")
    args = ["sample", "--ckpt_path", str(run[0] / "checkpoints" / "last.ckpt"), "--out", "mine.png"]
    assert fails(capsys, *args) == "mine.png is there already and is not overwritten; choose another name"
    assert Path("mine.png").read_text() == "precious"


# list and help


def test_list_names_everything_with_a_line_each(capsys):
    main(["list"])
    output = capsys.readouterr().out
    for name in ("GAN", "Digits", "ImageFolder", "SampleLogger", "gan.yaml", "digits.safetensors"):
        assert re.search(rf"^  {re.escape(name)} +\S+", output, re.MULTILINE), name
    assert [line for line in output.splitlines() if line.endswith(":") and not line.startswith(" ")] == [
        "models:", "data:", "callbacks:", "recipes:", "weights:",
    ]  # fmt: skip
    assert "InMemoryDataModule" not in output, "bases are no data modules"


def test_help_names_every_command(capsys):
    main([])
    output = capsys.readouterr().out
    assert all(f"  {command} " in output for command in ("fit", "validate", "test", "predict", "sample", "list"))


# Impossible samples; other mistakes are in test_bad_input.py


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--labels", "[3,12]"], r"--labels \[12\] are not among the classes 0 to 9"),
        (["--n", "0"], "--n is 0"),
        (["--interpolate", "1"], "at least 2 steps"),
        (["--out", "f.gif", "--frames", "1"], "at least 2"),
    ],
)
def test_impossible_samples_are_refused(args, expected, run, capsys):
    path = str(run[0] / "checkpoints" / "last.ckpt")
    assert re.search(expected, fails(capsys, "sample", "--ckpt_path", path, *args))


def test_labels_need_a_conditional_model(capsys):
    main([*GAN_RUN, "--trainer.max_steps=1", "--run.name=plain"])
    path = "runs/plain/version_0/checkpoints/last.ckpt"
    assert "trained without labels" in fails(capsys, "sample", "--ckpt_path", path, "--per_class", "true")


# Plugins


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A package with a model, installed beside the zoo, and a broken one."""
    site = tmp_path / "site"
    package = site / "fakeplugin"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "from zoo import GAN\n\n\nclass FakeGAN(GAN):\n    '''A plugin's model.'''\n", encoding="utf-8"
    )
    for name, target in (("fakeplugin", "fakeplugin"), ("broken", "there_is_no_such_module")):
        info = site / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[zoo.plugins]\n{name} = {target}\n")
    return site


def test_a_plugin_is_found_and_a_broken_one_stops_nothing(plugin, tmp_path):
    done = run_program("list", cwd=tmp_path, PYTHONPATH=str(plugin))
    assert done.returncode == 0
    assert re.search(r"^  FakeGAN +A plugin's model\.", done.stdout, re.MULTILINE)
    assert "the plugin broken (there_is_no_such_module) does not load: ModuleNotFoundError" in done.stderr
    args = ["fit", "--config", "gan.yaml", "--model", "FakeGAN", *TINY, "--data.repeats=1"]
    done = run_program(*args, cwd=tmp_path, PYTHONPATH=str(plugin), WANDB_MODE="disabled")
    assert done.returncode == 0, done.stderr
    checkpoint = next(tmp_path.rglob("last.ckpt"))
    assert torch.load(checkpoint, weights_only=True)["model_class"] == "fakeplugin.FakeGAN"
    done = run_program("sample", "--ckpt_path", str(checkpoint), cwd=tmp_path, PYTHONPATH=str(plugin))
    assert "64 samples of FakeGAN" in done.stdout


def test_equilibrium_of_the_theory_recipe_is_reported_against_its_floors(capsys):
    main(["fit", "--config", "gan_theory.yaml", *TINY, "--trainer.max_steps=3"])
    rows = json.loads(Path("runs/gan_theory/version_0/equilibrium.json").read_text())
    assert set(rows) == {"value", "d_real", "d_fake", "wasserstein_1", "two_sample_accuracy"}
    assert rows["two_sample_accuracy"]["measured"] > 0.6, "after three steps anybody can tell them apart"
    assert abs(rows["two_sample_accuracy"]["floor"] - 0.5) < 0.03
    assert rows["wasserstein_1"]["measured"] > 5 * rows["wasserstein_1"]["floor"]
    assert Path("runs/gan_theory/version_0/equilibrium.png").is_file()
