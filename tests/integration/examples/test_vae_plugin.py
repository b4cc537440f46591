"""The example of a plugin: installed, it has the commands of the zoo, and its own tests pass."""

from __future__ import annotations

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from tests.helpers.command import TINY, fails
from tests.helpers.plugin import write_metadata
from zoo.cli.main import main
from zoo.datamodules import Digits


@pytest.fixture
def plugin(enter, monkeypatch):
    """The plugin, with the metadata that its installation writes."""
    example = enter("vae_plugin")
    site = example.folder / "site"
    site.mkdir()
    write_metadata(example.folder, site)
    monkeypatch.syspath_prepend(site)
    return example


@pytest.mark.usefixtures("cheap_reports")
def test_the_plugin_has_a_line_in_list_a_recipe_and_options_of_its_own(plugin, capsys):
    main(["list"])
    assert re.search(r"^  VAE +Variational autoencoder", capsys.readouterr().out, re.MULTILINE)

    fit, sample = plugin.commands
    plugin.run(fit, *TINY, "--data.repeats=1")
    plugin.run(sample)
    assert Image.open("digits.png").size == (8 * 34 + 2, 10 * 34 + 2), "ten classes, eight samples of each"
    path = "runs/vae/version_0/checkpoints/best.ckpt"
    assert torch.load(path, weights_only=True)["model_class"] == "vae_plugin.module.VAE"

    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["sample", "--ckpt_path", path, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Options of VAE: --temperature TEMPERATURE standard deviation of the latent vectors" in shown
    message = "temperature is -1.0; it must be at least 0"
    assert fails(capsys, "sample", "--ckpt_path", path, "--temperature=-1") == message


def test_its_own_tests_pass(plugin):
    spec = spec_from_file_location("test_vae", plugin.folder / "tests" / "test_vae.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert len(tests) >= 4
    for test in tests:
        test()


@pytest.mark.slow
def test_digits_get_better(plugin):
    from vae_plugin import VAE

    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    at_first = trainer.validate(VAE((1, 8, 8), 10, conditional=True), Digits(), verbose=False)[0]["val/fd"]
    plugin.run(plugin.commands[0], "--trainer.accelerator=cpu", "--trainer.max_steps=1500")
    best = torch.load("runs/vae/version_0/checkpoints/best.ckpt", weights_only=True)
    (kept,) = [state for name, state in best["callbacks"].items() if name.startswith("BestAndLastCheckpoint")]
    assert kept["best_model_score"] < 10 < at_first / 5, "the floor is 1.7"
    assert len(list(Path("runs/vae/version_0/samples").glob("*.png"))) == 5
