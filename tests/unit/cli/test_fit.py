"""The command predict and its table of predictions."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from tests.helpers.command import fails
from tests.unit.training import quiet_trainer
from zoo import MLPClassifier
from zoo.cli.fit import ZooCLI, run_trainer
from zoo.cli.main import main
from zoo.datamodules import Digits


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> list[str]:
    """Two untrained classifiers of digits."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for seed in range(2):
        torch.manual_seed(seed)
        trainer = quiet_trainer()
        trainer.strategy.connect(MLPClassifier((1, 8, 8), 10, width=8, depth=1))
        trainer.save_checkpoint(folder / f"{seed}.ckpt")
    return [str(folder / f"{seed}.ckpt") for seed in range(2)]


OPTIONS = [
    "--config=mlp.yaml",
    "--trainer.accelerator=cpu",
    "--data=Digits",
    "--model.width=8",
    "--model.depth=1",
    "--model.batch_norm=false",
]


def test_predict_writes_a_new_table_each_time_unless_it_is_to_overwrite_one(checkpoints, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["predict", *OPTIONS, "--ckpt_path", checkpoints[0], "--model.mc_samples=3"]
    main([*command, f"--model.ensemble=[{checkpoints[1]}]"])
    assert [p.name for p in tmp_path.iterdir()] == ["predictions.csv"]
    text = Path("predictions.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    _, labels = Digits().load_split(train=False)
    assert [int(row["index"]) for row in rows] == list(range(297))
    assert [int(row["label"]) for row in rows] == labels.tolist()
    assert all(float(row["mutual_information"]) > 0 for row in rows)
    main([*command, "--trainer.limit_predict_batches=1"])
    assert Path("predictions.csv").read_text() == text
    first = Path("predictions-1.csv").read_text()
    message = fails(capsys, *command, "--out", "predictions.csv")
    assert message == "predictions.csv exists already; choose another name, or replace the file with --overwrite"
    main([*command, "--trainer.limit_predict_batches=1", "--out", "predictions.csv", "--overwrite"])
    assert Path("predictions.csv").read_text() == first


# Devices


class ParsedError(Exception):
    """Ends a command when its options are complete."""


@pytest.fixture
def devices_of(monkeypatch, in_an_empty_folder):
    """Function that returns the devices with which a command would build its Trainer."""

    def stop(self):
        raise ParsedError(self.config[self.subcommand].trainer.devices)

    def devices(*words: str, command: str = "fit"):
        with pytest.raises(ParsedError) as end:
            run_trainer([command, "--model=MLPClassifier", "--data=Digits", *words])
        return str(end.value.args[0])  # what is typed is text

    monkeypatch.setattr(ZooCLI, "instantiate_classes", stop)
    return devices


def test_a_run_is_on_one_device_unless_a_strategy_an_overlay_or_the_user_says_otherwise(devices_of, caplog):
    Path("mine.yaml").write_text("trainer:\n  strategy: ddp\n  devices: 2\n")
    assert devices_of() == devices_of("--config=mlp.yaml") == devices_of("--trainer.strategy=auto") == "1"
    assert [devices_of(command=command) for command in ("validate", "test", "predict")] == ["1"] * 3
    assert devices_of("--trainer.devices=auto") == "auto"
    assert devices_of("--config=ddp.yaml") == devices_of("--config", "fsdp.yaml") == "auto"
    assert devices_of("--config=mine.yaml") == "2"
    assert devices_of("--trainer.strategy=ddp", "--trainer.devices", "1") == "1"
    assert "all devices" not in caplog.text


@pytest.mark.parametrize("variables", [{"WORLD_SIZE": "2"}, {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "train"}])
def test_a_run_of_several_processes_is_on_all_devices(variables, devices_of, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert devices_of() == "auto"
    assert devices_of("--trainer.devices=1") == "1"
    monkeypatch.setenv(next(iter(variables)), "1")
    assert devices_of() == "1"


@pytest.mark.parametrize("value", ["", "0", "two", "-3"])
def test_a_variable_that_counts_no_processes_leaves_the_default(value, devices_of, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", value)
    assert devices_of() == "1"


def test_a_strategy_without_devices_is_on_all_of_them_and_says_so(devices_of, caplog):
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        assert devices_of("--trainer.strategy=ddp") == "auto"
    assert caplog.messages[-1] == "Running on all devices of the machine; for fewer, give --trainer.devices"
