"""Networks of one's own on the command line: from training to sampling, and what is answered to mistakes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.helpers.command import TINY, fails
from zoo.cli.main import main

SOURCE = '''"""A network of a user's."""

from torch import nn
import torch


class Maker(nn.Module):
    """Generator of one hidden layer.

    Args:
        shape: shape of a sample.
        latent_dim: length of z.
        num_classes: number of classes.
        width: units of the hidden layer.
    """

    def __init__(self, shape, latent_dim, num_classes, width: int = 4):
        super().__init__()
        self.shape = shape
        self.hidden = nn.Linear(latent_dim, width)
        self.out = nn.Linear(width, torch.Size(shape).numel())

    def forward(self, z, labels):
        return self.out(self.hidden(z).relu()).tanh().view(-1, *self.shape)
'''
OPTIONS = ["--model.generator=own_nets.Maker", "--model.generator.width=12", "--data.repeats=1"]
pytestmark = pytest.mark.usefixtures("in_an_empty_folder")
QUIET = ["--trainer.callbacks=ModelCheckpoint", "--wandb.mode=disabled", "--trainer.enable_progress_bar=false"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Folder of a short run of gan_digits.yaml with a generator of one's own."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_nets.py").write_text(SOURCE, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.chdir(folder)
        main(["fit", "--config", "gan_digits.yaml", *OPTIONS, *TINY, *QUIET])
    sys.modules.pop("own_nets", None)
    return folder / "runs/gan_digits/version_0"


@pytest.fixture
def importable(run, monkeypatch):
    monkeypatch.syspath_prepend(run.parents[2])
    yield
    sys.modules.pop("own_nets", None)


def checkpoint_of(run: Path) -> str:
    return str(next((run / "checkpoints").glob("*.ckpt")))


def test_the_options_reach_the_network_and_the_checkpoint_holds_plain_values(run):
    checkpoint = torch.load(checkpoint_of(run), weights_only=True)
    assert checkpoint["state_dict"]["generator.hidden.weight"].shape[0] == 12
    assert checkpoint["hyper_parameters"]["generator"] == {"class_path": "own_nets.Maker", "init_args": {"width": 12}}
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["generator"] == {"class_path": "own_nets.Maker", "init_args": {"width": 12}}


@pytest.mark.usefixtures("importable")
def test_nothing_that_a_checkpoint_names_is_imported_unless_the_user_gives_the_configuration(run, capsys):
    arguments = ["sample", "--ckpt_path", checkpoint_of(run), "--n", "4", "--out", "a.png"]
    line = fails(capsys, *arguments)
    assert "the generator is one of your own, own_nets.Maker" in line
    assert "--config .../config.yaml" in line
    assert "own_nets" not in sys.modules
    main([*arguments, "--config", str(run / "config.yaml")])
    assert Path("a.png").is_file()


@pytest.mark.usefixtures("importable")
def test_the_other_commands_import_nothing_from_a_configuration_that_came_with_a_checkpoint(run, capsys):
    arguments = ["validate", "--ckpt_path", checkpoint_of(run), "--trainer.enable_progress_bar=false"]
    line = fails(capsys, *arguments)
    assert "names 'own_nets.Maker', which is not of the zoo: it is imported only if you name the file, --config" in line
    assert "own_nets" not in sys.modules
    main([*arguments, "--config", str(run / "config.yaml")])
    assert "val/fd" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["data"].update(class_path="canary_config.Data"),
        lambda c: c["model"]["init_args"].update(optimizer_g="canary_config.step"),
        lambda c: c["model"]["init_args"].update(generator='{"class_path": "canary_config.Maker"}'),
        lambda c: c.update(model="model.yaml"),
        lambda c: c["trainer"].update(callbacks=[{"class_path": "canary_config.Callback"}]),
    ],
)
def test_no_part_of_such_a_configuration_is_imported(run, change, capsys, monkeypatch):
    Path("canary_config.py").write_text("raise SystemError('imported')")
    Path("model.yaml").write_text("class_path: canary_config.Maker")
    monkeypatch.syspath_prepend(Path.cwd())
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["init_args"]["generator"] = "auto"
    change(config)
    Path("got/checkpoints").mkdir(parents=True)
    Path("got/config.yaml").write_text(yaml.safe_dump(config))
    Path("got/checkpoints/best.ckpt").write_bytes(Path(checkpoint_of(run)).read_bytes())
    line = fails(capsys, "test", "--ckpt_path", "got/checkpoints/best.ckpt")
    assert "which is not of the zoo" in line
    assert "canary_config" not in sys.modules


def test_the_line_printed_after_training_names_the_configuration(run, importable, capsys, caplog):
    options = ["--run.root", "again", "--trainer.max_steps=3"]
    main(["fit", "--config", "gan_digits.yaml", *OPTIONS, *TINY, *QUIET, *options])
    printed = capsys.readouterr().out + capsys.readouterr().err + caplog.text
    assert "--config again/gan_digits/version_0/config.yaml" in printed


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c["model"]["init_args"].update(generator="auto"), "names no class for generator"),
        (
            lambda c: c["model"]["init_args"]["generator"].update(class_path="torch.nn.Linear"),
            "has the generator torch.nn.modules.linear.Linear, and the checkpoint was trained with own_nets.Maker",
        ),
        (lambda c: c["model"]["init_args"]["generator"].update(class_path="os.system"), "is not a torch.nn.Module"),
        (lambda c: c["model"]["init_args"]["generator"].update(class_path="gone.Maker"), "No module named 'gone'"),
        (lambda c: c.update(model="GAN"), "names no class for generator"),
    ],
)
def test_a_configuration_that_does_not_fit_the_checkpoint_is_one_line(run, change, expected, capsys):
    config = yaml.safe_load((run / "config.yaml").read_text())
    change(config)
    Path("other.yaml").write_text(yaml.safe_dump(config))
    line = fails(capsys, "sample", "--ckpt_path", checkpoint_of(run), "--config", "other.yaml")
    assert expected in line


NETWORK = ["fit", "--config", "gan_digits.yaml", *TINY, *QUIET]
CLASSIFIER = ["fit", "--model", "Classifier", "--data", "Digits", *TINY, *QUIET]


@pytest.mark.usefixtures("importable")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([*NETWORK, "--model.generator", "cnv"], "--model.generator cnv is neither a network of the zoo nor a class that "
         "can be imported; did you mean conv?"),
        ([*NETWORK, "--model.generator.width", "3"], "--model.generator.width is an option of a network: name its class "
         "first, such as --model.generator NAME --model.generator.width 3 (the command list names the networks)"),
        ([*NETWORK, "--model.generator", "own_nets.Makr"],
         "--model.generator own_nets.Makr cannot be imported (module 'own_nets' has no attribute 'Makr')"),
        ([*NETWORK, "--model.generator", "my_nets.Maker"], "--model.generator my_nets.Maker cannot be imported (No module "
         "named 'my_nets')"),
        ([*NETWORK, "--model.generator", "torch.optim.Adam"],
         "--model.generator torch.optim.Adam is not a network: it must be a class derived from torch.nn.Module, or return "
         "one"),
        ([*NETWORK, "--model.generator", "own_nets.Maker", "--model.generator.widht", "3"],
         "--model.generator.widht is not an option of Maker; did you mean width?"),
        ([*NETWORK, "--model.generator", "own_nets.Maker", "--model.generator.width", "x"],
         "--model.generator.width x is not possible; it must be of type int"),
        ([*NETWORK, "--model.loss", "relativstic"], "--model.loss relativstic is not possible; choose one of minimax, "
         "non_saturating, hinge, wasserstein, relativistic"),
        (CLASSIFIER, "--model.network must be given"),
        ([*CLASSIFIER, "--model.network", "PooledRes"], "--model.network PooledRes is neither a network of the zoo nor a "
         "class that can be imported; did you mean PooledResNet?"),
        ([*CLASSIFIER, "--model.network", "PooledResNet", "--model.network.depth", "9"],
         "depth 9 does not divide into 3 equal stages; try 8 or 11"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_network_is_answered_in_one_line(arguments, expected, capsys):
    assert fails(capsys, *arguments).startswith(expected)


def test_a_module_in_the_working_folder_is_named_as_the_cause(capsys):
    Path("here.py").write_text("raise SystemExit('not imported')", encoding="utf-8")
    hint = "; here is in this folder: set PYTHONPATH=. so that it is found"
    assert fails(capsys, *NETWORK, "--model.generator", "here.Maker").endswith(hint)
    assert fails(capsys, "fit", "--config", "gan_digits.yaml", "--data", "here.Data").endswith(hint)
