"""The commands fit, validate, test, sample and list: what a run leaves, what each command does, and plugins."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.helpers.command import CHECKOUT, GAN_RUN, MLP_RUN, TINY, fails, read_rows, run_program
from tests.helpers.wandb_reader import read_offline_run
from zoo import GAN
from zoo.cli.main import main
from zoo.tracking.wandb import wandb_id
from zoo.tracking.wandb_file import rows_on_disk

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of one short run, made by `python cli.py` without an API key of W&B, and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    options = ["--model.conditional=true", "--wandb.log_model=true"]
    done = run_program(*GAN_RUN, *options, cwd=folder, NETRC=str(folder / "no_netrc"))
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "gan_digits" / "version_0", done.stdout + done.stderr


# What a run leaves


def test_a_run_leaves_everything_in_a_folder_of_its_own(run):
    folder, _ = run
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if "wandb" not in str(p.relative_to(folder))}
    expected = {"config.yaml", "metrics.csv", "curves.png", "checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    expected |= {"report.html", "report/facts.json", "report/nearest.json"}
    assert expected | {"samples/step_0000000.png", "samples/step_0000006.png", "samples/film.gif"} <= names
    for picture in ("curves.png", "samples/step_0000006.png"):
        assert np.asarray(Image.open(folder / picture)).std() > 5, "a picture with something in it"


def test_the_last_lines_say_where_the_pictures_are_and_what_to_type_next(run):
    _, output = run
    last = [line for line in output.splitlines() if line.strip()][-5:]
    assert "runs/gan_digits/version_0" in last[0]
    assert "stopped early" in last[1]
    assert "best val/fd" in last[2]
    names = [word.rpartition("/")[2] for word in last[3].strip().removeprefix("to look at: ").split(", ")]
    assert "runs/gan_digits/version_0/samples" in last[3] and names == ["report.html", "samples", "curves.png"]
    command = r"sample --ckpt_path runs/gan_digits/version_0/checkpoints/\w+\.ckpt --n 8 --per_class true"
    assert re.search(rf"^Next: \S+ \S+cli\.py {command}$", last[4])


def test_the_report_says_what_was_typed_what_came_of_it_and_what_to_type_next(run):
    folder, _ = run
    page = (folder / "report.html").read_text(encoding="utf-8")
    facts = json.loads((folder / "report" / "facts.json").read_text(encoding="utf-8"))
    typed = ["cli.py", *GAN_RUN, "--model.conditional=true", "--wandb.log_model=true"]
    assert facts["command"].endswith(" ".join(typed))
    assert facts["recipes"] == ["gan_digits.yaml"]
    changes = {option: (recipe, value) for option, recipe, value in facts["changed"]}
    assert changes["trainer.max_steps"] == ("6000", "6") and changes["model.conditional"] == (None, "true")
    assert changes["data.repeats"] == ("20", "1") and "model.loss" not in changes
    best = min(float(row["val/fd"]) for row in read_rows(folder) if row["val/fd"])
    for expected in (f"{best:.4g}", "max_steps 6 reached", "nearest of 1,200 training pictures", "Samples at step 6"):
        assert expected in page, expected
    for command in ("sample", "test", "validate", "export"):
        words = rf"{command} --ckpt_path runs/gan_digits/version_0/checkpoints/best\.ckpt"
        assert re.search(rf"<code>\S+ \S+cli\.py {words}", page), command
    assert re.search(r"cli\.py fit --config runs/gan_digits/version_0/config\.yaml --ckpt_path last</code>", page)


def test_without_the_option_there_is_no_report(reports, caplog):
    main([*MLP_RUN, "--report=false", "--trainer.max_steps=3"])
    folder = Path("runs/mlpclassifier/version_0")
    assert not (folder / "report.html").exists() and not (folder / "report").exists()


def test_the_distance_is_named_with_its_extractor_hash_and_floor(run):
    _, output = run
    assert re.search(
        r"val/fd is the Fréchet distance .* of the classifier digits, weights [0-9a-f]{8}; floor, .*: \d", output
    )


def test_metrics_are_in_the_csv_under_their_names(run):
    rows = read_rows(run[0])
    names = ["loss_d", "loss_g", "penalty", "d_real", "d_fake", "value", "value_optimum"]
    names += ["grad_norm_d", "grad_norm_g", "images_per_second"]
    for name in [*(f"train/{name}" for name in names), "val/fd", "val/fd_floor"]:
        assert any(row[name] for row in rows), name
    assert [row["step"] for row in rows if row["val/fd"]] == ["2", "5"], "validation after every third batch"


def test_config_repeats_the_run(run, cheap_reports):
    config = yaml.safe_load((run[0] / "config.yaml").read_text())
    assert config["model"]["class_path"].endswith("GAN")
    assert config["trainer"]["max_steps"] == 6
    main(["fit", "--config", str(run[0] / "config.yaml"), "--run.name", "again"])
    first, again = (read_rows(folder) for folder in (run[0], Path("runs/again/version_0")))
    assert [r["val/fd"] for r in first] == [r["val/fd"] for r in again]


def test_two_runs_never_share_a_folder():
    for _ in range(2):
        main([*MLP_RUN, "--trainer.max_steps=3"])
    assert sorted(p.name for p in Path("runs/mlpclassifier").iterdir()) == ["version_0", "version_1"]
    for version in (0, 1):
        assert (Path("runs/mlpclassifier") / f"version_{version}" / "checkpoints" / "last.ckpt").is_file()


def test_fast_dev_run_writes_nothing():
    main([*GAN_RUN, "--trainer.fast_dev_run=true"])
    assert not list(Path.cwd().iterdir())


def test_offline_run_of_wandb_holds_nested_config_scalars_and_images(run):
    (file,) = (run[0] / "wandb").glob("offline-run-*/*.wandb")
    config, history, artifacts = read_offline_run(file)
    assert config["model"]["init_args"]["loss"] == "relativistic"
    assert config["data"]["init_args"]["batch_size"] == 64
    assert config["model"]["init_args"]["input_shape"] == [1, 8, 8], "linked arguments are included"
    scalars = [row["val/fd"] for row in history if "val/fd" in row]
    assert len(scalars) == 2 and all(np.isfinite(scalars))
    assert any("train/loss_d" in row for row in history)
    images = [row["samples"] for row in history if "samples" in row]
    assert len(images) == 2
    for image in images:
        path = file.parent / "files" / image["filenames"][0]
        assert np.asarray(Image.open(path)).std() > 5
    assert set(artifacts) == {"best.ckpt", "last.ckpt"}, "asked for by --wandb.log_model"
    assert "best" in artifacts["best.ckpt"]["aliases"] and artifacts["last.ckpt"]["aliases"] == {"latest"}
    assert artifacts["best.ckpt"]["score"] == min(scalars)
    assert artifacts["best.ckpt"]["BestAndLastCheckpoint"]["monitor"] == "val/fd"


def test_without_a_key_wandb_goes_offline_by_itself_and_says_so(run):
    folder, output = run
    assert re.search(r"wandb sync runs/gan_digits/version_0/wandb/offline-run-\*", output)
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.slow
def test_a_checkpoint_loads_in_a_fresh_process_without_jsonargparse(run, tmp_path):
    script = f"""
import sys
sys.modules["jsonargparse"] = None  # an import raises ImportError
from zoo import GAN
model = GAN.load_from_checkpoint({str(run[0] / "checkpoints" / "last.ckpt")!r}, weights_only=True)
assert model.input_shape == (1, 8, 8) and model.conditional and model.num_classes == 10
print(tuple(model.sample(3).shape))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "(3, 1, 8, 8)", done.stderr


# Data and model


@pytest.mark.parametrize(
    ("data", "shape", "classes"),
    [(["--data=Digits"], (1, 8, 8), 10), (["--data=Points", "--data.distribution=ring"], (2,), 8)],
)
def test_shape_and_classes_of_the_data_reach_the_model(data, shape, classes):
    """Also: --data replaces the data of a recipe."""
    options = ["--trainer.max_steps=1", "--model.conditional=true", "--trainer.callbacks=ModelCheckpoint"]
    main(["fit", "--config", "gan_digits.yaml", *data, *TINY, *options, "--trainer.callbacks.every_n_train_steps=1"])
    (path,) = Path("runs").rglob("*.ckpt")
    model = GAN.load_from_checkpoint(path, weights_only=True)
    assert model.input_shape == shape
    assert model.num_classes == classes
    assert model.generator.latent.embedding.num_embeddings == classes


# validate and test


@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_checkpoint_is_measured_with_the_configuration_of_its_run(run, command, capsys):
    main([command, "--ckpt_path", str(run[0] / "checkpoints" / "last.ckpt")])
    output = capsys.readouterr().out
    split = {"validate": "val", "test": "test"}[command]
    assert f"{split}/fd" in output and f"{split}/fd_floor" in output
    assert not Path("runs").exists(), "measuring makes no run"


@pytest.mark.slow
def test_the_test_of_a_classifier_is_reported_in_the_folder_and_the_wandb_run_of_its_checkpoint(tmp_path):
    main([*MLP_RUN, "--wandb.mode=offline"])
    folder = Path("runs/mlpclassifier/version_0")
    counted = rows_on_disk(folder / "wandb", str(wandb_id(folder)))
    # In another process, as the run of a user.
    options = ["--model.calibrate=true", "--wandb.mode=offline"]
    done = run_program("test", f"--ckpt_path={folder}/checkpoints/best.ckpt", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "macro average" in done.stdout and "test/ece_uncalibrated" in done.stdout
    assert {path.name for path in (folder / "test").iterdir()} == {"classes.csv", "confusion.csv", "confusion.png"}
    runs = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(runs) == 2 and len({path.name for path in runs}) == 1, "the same id"
    logged = {name for row in read_offline_run(runs[-1])[1] for name in row}
    assert {"test/acc", "test/f1", "test/classes", "test/confusion"} <= logged
    counts = counted, rows_on_disk(folder / "wandb", str(wandb_id(folder)))
    assert counts[0] == counts[1] > 0, "a resumed run skips rows of training only"


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


def test_sample_interpolates_and_makes_animations(run):
    sample(run, "--n", "3", "--interpolate", "6", "--out", "paths.png")
    assert Image.open("paths.png").size == (6 * 34 + 2, 3 * 34 + 2)
    sample(run, "--n", "3", "--interpolate", "6", "--out", "paths.npz")
    labels = np.load("paths.npz")["arr_1"].reshape(3, 6)
    assert (labels == labels[:, :1]).all(), "a path stays in its class"
    sample(run, "--n", "4", "--frames", "9", "--out", "trajectory.gif")
    assert Image.open("trajectory.gif").n_frames == 9


def test_sample_overwrites_nothing_unasked(run, capsys):
    Path("mine.png").write_text("precious")
    args = ["sample", "--ckpt_path", str(run[0] / "checkpoints" / "last.ckpt"), "--n=1"]
    answer = "mine.png exists already; choose another name, or replace the file with --overwrite"
    assert fails(capsys, *args, "--out", "mine.png") == answer
    assert Path("mine.png").read_text() == "precious"
    main([*args, "--out", "mine.png", "--overwrite"])
    assert Image.open("mine.png").size == (32, 32)


def test_the_command_that_is_printed_next_can_be_typed_twice(run, capsys, monkeypatch):
    _, command = run[1].splitlines()[-1].split("Next: ")
    _, script, *words = shlex.split(command)
    monkeypatch.chdir(run[0].parents[2])
    assert Path(script).samefile(CHECKOUT / "cli.py")
    for name in ("samples.png", "samples-1.png"):
        main(words)
        assert capsys.readouterr().out.endswith(f"in {name}\n")
        assert Path(name).is_file()


# list and help


def test_list_names_everything_with_a_line_each(capsys):
    main(["list"])
    output = capsys.readouterr().out
    for name in ("GAN", "Digits", "ImageFolder", "SampleLogger", "gan_digits.yaml", "digits.safetensors"):
        assert re.search(rf"^  {re.escape(name)} +\S+", output, re.MULTILINE), name
    assert [line for line in output.splitlines() if line.endswith(":") and not line.startswith(" ")] == [
        "models:", "networks:", "data:", "callbacks:", "trained models:", "recipes:", "spaces:", "weights:",
    ]  # fmt: skip
    assert "InMemoryDataModule" not in output, "bases are no data modules"


def test_help_names_every_command(capsys):
    main([])
    output = capsys.readouterr().out
    assert all(
        f"  {command} " in output
        for command in ("fit", "validate", "test", "predict", "tune", "sample", "edit", "list")
    )


# Mistakes of sample; others are in test_bad_input.py


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--labels", "[3,12]"], r"--labels \[12\] are not among the classes 0 to 9"),
        (["--n", "0"], "--n is 0"),
        (["--interpolate", "1"], "--interpolate is 1; it must be at least 2"),
        (["--out", "f.gif", "--frames", "1"], "--frames is 1; it must be at least 2"),
    ],
)
def test_impossible_samples_are_refused(args, expected, run, capsys):
    path = str(run[0] / "checkpoints" / "last.ckpt")
    assert re.search(expected, fails(capsys, "sample", "--ckpt_path", path, *args))


def test_labels_need_a_conditional_model(checkpoint, capsys):
    message = fails(capsys, "sample", "--ckpt_path", checkpoint("gan"), "--per_class", "true")
    assert "trained without labels" in message


# Plugins


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Two installed plugins: a package with a model, and one that does not load."""
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
    monkeypatch.syspath_prepend(site)
    yield
    sys.modules.pop("fakeplugin", None)


@pytest.mark.filterwarnings("ignore:the plugin broken")
def test_a_plugin_is_found_and_a_broken_one_stops_nothing(plugin, capsys):
    message = r"the plugin broken \(there_is_no_such_module\) does not load: ModuleNotFoundError"
    with pytest.warns(UserWarning, match=message):
        main(["list"])
    assert re.search(r"^  FakeGAN +A plugin's model\.", capsys.readouterr().out, re.MULTILINE)
    options = ["--trainer.callbacks=ModelCheckpoint", "--data.repeats=1", "--trainer.logger=false"]
    main(["fit", "--config", "gan_digits.yaml", "--model", "FakeGAN", *TINY, *options])
    (path,) = Path.cwd().rglob("*.ckpt")
    assert torch.load(path, weights_only=True)["model_class"] == "fakeplugin.FakeGAN"
    capsys.readouterr()
    main(["sample", "--ckpt_path", str(path)])
    assert "64 samples of FakeGAN" in capsys.readouterr().out


def test_equilibrium_of_the_theory_recipe_is_reported_against_its_floors():
    report = ["--trainer.callbacks=EquilibriumReport", "--trainer.callbacks.n=2000"]
    main(["fit", "--config", "gan_theory.yaml", *TINY, "--trainer.max_steps=3", *report])
    rows = json.loads(Path("runs/gan_theory/version_0/equilibrium.json").read_text())
    assert set(rows) == {"value", "d_real", "d_fake", "wasserstein_1", "two_sample_accuracy"}
    assert rows["two_sample_accuracy"]["measured"] > 0.6, "after three steps the samples are easy to tell apart"
    assert abs(rows["two_sample_accuracy"]["floor"] - 0.5) < 0.03
    assert rows["wasserstein_1"]["measured"] > 5 * rows["wasserstein_1"]["floor"]
    assert Path("runs/gan_theory/version_0/equilibrium.png").is_file()
