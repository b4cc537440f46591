"""Going on with a run: to the bit, in its own folder, from the newest checkpoint that is whole, also after a signal."""

import csv
import itertools
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image

from tests.helpers.command import CHECKOUT, fails
from tests.helpers.kill_and_resume import Runs, differences, recipe
from tests.helpers.models import MODELS, tiny_arguments
from tests.helpers.wandb_reader import read_offline_run
from zoo import seeding
from zoo.callbacks import SampleLogger
from zoo.callbacks.signals import Stopped
from zoo.checkpoints.resume import find_last
from zoo.checkpoints.writing import AtomicCheckpointIO
from zoo.cli.fit import run_trainer
from zoo.cli.main import main
from zoo.datamodules.loading import ResumableLoader, ResumableSampler
from zoo.errors import UserError
from zoo.files import atomic_write
from zoo.tracking.run_folders import RunLock


class Interruption(Callback):
    """Sends this process a signal in a batch."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")


def arguments(model: str, name: str, *options: str) -> list[str]:
    """Of a short run that validates, logs and draws at steps of their own."""
    import yaml

    Path("run.yaml").write_text(yaml.safe_dump(recipe(model)))
    return ["fit", "--config", "run.yaml", *tiny_arguments(model, Path.cwd()), f"--run.name={name}",
            "--trainer.max_steps=45", *options]  # fmt: skip


def folder_of(name: str, version: int = 0) -> Path:
    return Path("runs") / name / f"version_{version}"


def interrupted_by(number: int, step: int) -> list[str]:
    return [
        "--trainer.callbacks+=tests.test_resume.Interruption",
        f"--trainer.callbacks.step={step}", f"--trainer.callbacks.number={number}",
    ]  # fmt: skip


# Exactly


@pytest.mark.slow
def test_runs_of_all_models_that_are_killed_end_as_if_nothing_had_happened():
    command = [sys.executable, "-m", "tests.helpers.kill_and_resume", "--kills", "1"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.count("1 of 1 identical") == len(MODELS)


def test_a_run_that_is_killed_ends_as_if_nothing_had_happened():
    command = [sys.executable, "-m", "tests.helpers.kill_and_resume", "--kills", "2", "--models", "GAN"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "2 of 2 identical, 2 of them from a checkpoint" in done.stdout


@pytest.mark.slow
def test_runs_of_two_processes_that_are_killed_end_as_if_nothing_had_happened():
    command = [sys.executable, "-m", "tests.helpers.kill_and_resume", "--kills", "1", "--processes", "2"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.count("1 of 1 identical") == len(MODELS)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_that_fails_is_not_passed_over(rank, tmp_path, monkeypatch):
    def fail(arguments):
        if os.environ["RANK"] == rank:
            sys.exit(2)

    monkeypatch.setattr("tests.helpers.kill_and_resume.main", fail)
    with pytest.raises(RuntimeError, match="a run ended with"):
        Runs("MLPClassifier", tmp_path, 2).finish("run")


def test_the_film_of_a_run_that_goes_on_is_made_by_one_process_only():
    folder = Path("run") / "samples"
    folder.mkdir(parents=True)
    names = ["step_0000000.png", "step_0000010.png"]
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name)
    films = []
    for rank in (1, 0):
        callback = SampleLogger(n=4)
        trainer = SimpleNamespace(
            global_step=10, is_global_zero=rank == 0, log_dir="run", loggers=[None], fast_dev_run=False, strategy=None
        )
        model = SimpleNamespace(sample=len)
        callback.setup(trainer, model, "fit")
        callback.load_state_dict({"last_step": 10, "pictures": names})
        callback.on_train_start(trainer, model)
        trainer.loggers = []
        callback.on_train_end(trainer, model)
        films.append((folder / "film.gif").exists())
    assert films == [False, True]


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (23, "between two validations"),
        (21, "in a batch that validation follows"),
        (34, "in the last batch of an epoch"),
    ],
)
def test_a_run_that_is_stopped_by_a_signal_saves_and_goes_on_exactly(step, why, capsys):
    main(arguments("Diffusion", "undisturbed"))
    with pytest.raises(Stopped) as stopped:
        main(arguments("Diffusion", "stopped", *interrupted_by(signal.SIGTERM, step)))
    assert stopped.value.code == 128 + 15
    last = folder_of("stopped") / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == step + 1, "the batch is finished"
    main(arguments("Diffusion", "stopped", "--ckpt_path=last"))
    assert differences(folder_of("undisturbed"), folder_of("stopped")) == [], why
    assert not folder_of("stopped", 1).exists()


def test_ctrl_c_has_the_exit_code_of_the_shell_and_handlers_are_given_back(caplog):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with caplog.at_level("INFO"), pytest.raises(Stopped) as stopped:
        main(arguments("MLPClassifier", "stopped", *interrupted_by(signal.SIGINT, 10)))
    assert stopped.value.code == 130
    last = folder_of("stopped") / "checkpoints" / "last.ckpt"
    assert f"Stopped by SIGINT after 11 steps; {last} goes on from here" in caplog.text
    assert before == {number: signal.getsignal(number) for number in before}


def test_slurm_is_asked_to_requeue_the_job(monkeypatch, tmp_path):
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked.txt\n')
    program.chmod(0o755)
    slurm = {"JOB_ID": "4711", "NTASKS": "1", "NTASKS_PER_NODE": "1", "JOB_NAME": "train", "PROCID": "0",
             "LOCALID": "0", "NODEID": "0", "NNODES": "1", "NODELIST": "localhost"}  # fmt: skip
    for name, value in {**{f"SLURM_{k}": v for k, v in slurm.items()}, "PATH": f"{program.parent}:/bin"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Stopped) as stopped:
        main(arguments("MLPClassifier", "queued", *interrupted_by(signal.SIGUSR1, 5)))
    assert stopped.value.code == 128 + signal.SIGUSR1
    assert (tmp_path / "asked.txt").read_text() == "requeue 4711\n"
    assert torch.load(folder_of("queued") / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6


@pytest.mark.slow
def test_two_processes_stop_together_save_and_end_with_the_code_of_the_signal(tmp_path):
    options = arguments(
        "TransformerLM", "run", "--trainer.max_steps=100000", "--trainer.devices=2", "--trainer.strategy=ddp"
    )
    log = (tmp_path / "log.txt").open("w")
    program = subprocess.Popen([sys.executable, str(CHECKOUT / "cli.py"), *options], stdout=log, stderr=log)
    last = folder_of("run") / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.is_file() and time.monotonic() < deadline:
        time.sleep(0.2)
    program.terminate()  # the first process alone
    assert program.wait(timeout=60) == 143
    said = (tmp_path / "log.txt").read_text()
    steps = torch.load(last, weights_only=True)["global_step"]
    assert f"Stopped by SIGTERM after {steps} steps" in said
    assert "Traceback" not in said


# The same run


def test_metrics_go_on_without_gaps_or_doubles_whatever_was_logged_after_the_checkpoint():
    with pytest.raises(Stopped):
        main(arguments("MLPClassifier", "run", *interrupted_by(signal.SIGTERM, 23)))
    table = folder_of("run") / "metrics.csv"
    rows = list(csv.DictReader(table.open()))
    with table.open("a") as file:  # what the run would have logged, had it been killed later
        file.write(table.read_text().splitlines()[-1] + "\n" + table.read_text().splitlines()[-1][:7])
    main(arguments("MLPClassifier", "run", "--ckpt_path=last"))
    after = list(csv.DictReader(table.open()))
    assert after[: len(rows)] == rows
    steps = [int(row["step"]) for row in after]
    assert steps == sorted(steps)
    assert [int(row["step"]) for row in after if row["train/loss"]] == list(range(4, 45, 5))
    assert [int(row["step"]) for row in after if row["val/loss"]] == list(range(6, 45, 7))


def test_the_wandb_run_goes_on_under_its_id_and_logs_nothing_twice(monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    main(arguments("GAN", "undisturbed"))
    wandb.finish()
    with pytest.raises(Stopped):
        main(arguments("GAN", "run", *interrupted_by(signal.SIGTERM, 23)))
    wandb.finish()
    counted = folder_of("run") / "wandb" / "rows_logged.txt"
    done = int(counted.read_text())
    counted.write_text(str(done + 1))  # as if it had been killed after one more
    main(arguments("GAN", "run", "--ckpt_path=last"))
    wandb.finish()
    files = {name: sorted(folder_of(name).glob("wandb/offline-run-*/*.wandb")) for name in ("undisturbed", "run")}
    assert len(files["run"]) == 2
    assert len({path.name for path in files["run"]}) == 1, "one id"
    rows = {name: [len(read_offline_run(path)[1]) for path in paths] for name, paths in files.items()}
    assert rows["run"][0] == done
    assert sum(rows["run"]) + 1 == rows["undisturbed"][0]


def test_what_was_typed_is_kept_each_time():
    with pytest.raises(Stopped):
        main(arguments("MLPClassifier", "run", *interrupted_by(signal.SIGTERM, 3)))
    first = (folder_of("run") / "config.yaml").read_text()
    main(arguments("MLPClassifier", "run", "--ckpt_path=last", "--trainer.max_steps=8"))
    assert (folder_of("run") / "config.yaml").read_text() == first
    assert "max_steps: 8" in (folder_of("run") / "config-1.yaml").read_text()


def test_a_run_that_still_goes_is_not_gone_on_with(capsys):
    main(arguments("MLPClassifier", "run", "--trainer.max_steps=8"))
    handle = os.open(folder_of("run"), os.O_RDONLY)
    import fcntl

    fcntl.flock(handle, fcntl.LOCK_EX)  # as another process has it
    try:
        line = fails(capsys, *arguments("MLPClassifier", "run", "--ckpt_path=last"))
    finally:
        os.close(handle)
    assert line.startswith("the run in runs/run/version_0 is still going")
    assert (folder_of("run") / "checkpoints" / "last.ckpt").is_file()


def test_a_checkpoint_that_is_named_starts_a_run_of_its_own():
    main(arguments("MLPClassifier", "run", "--trainer.max_steps=8"))
    before = {path: path.read_bytes() for path in folder_of("run").rglob("*.c*")}
    path = folder_of("run") / "checkpoints" / "last.ckpt"
    trainer = run_trainer(arguments("MLPClassifier", "run", f"--ckpt_path={path}", "--trainer.max_steps=12")).trainer
    assert Path(trainer.log_dir) == folder_of("run", 1)
    assert trainer.global_step == 12
    assert before == {path: path.read_bytes() for path in before}
    RunLock.release()


def test_a_run_that_early_stopping_has_ended_stays_at_its_end(caplog):
    # A learning rate of zero: the metric never falls.
    still = ("--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0", "--trainer.callbacks+=EarlyStopping",
             "--trainer.callbacks.monitor=val/acc", "--trainer.callbacks.mode=max",
             "--trainer.callbacks.patience=1")  # fmt: skip
    main(arguments("MLPClassifier", "run", *still))
    last = folder_of("run") / "checkpoints" / "last.ckpt"
    steps = torch.load(last, weights_only=True)["global_step"]
    assert steps == 14, "two validations"
    before, rows = last.read_bytes(), (folder_of("run") / "metrics.csv").read_text()
    with caplog.at_level("INFO"):
        main(arguments("MLPClassifier", "run", *still, "--ckpt_path=last"))
    assert "had been stopped early by val/acc" in caplog.text
    assert last.read_bytes() == before
    assert (folder_of("run") / "metrics.csv").read_text() == rows


# The newest checkpoint that is whole


@pytest.fixture
def run():
    main(arguments("MLPClassifier", "run", "--trainer.max_steps=8"))
    return folder_of("run") / "checkpoints"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(200)
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def anything(path: Path) -> None:
    """A check that every run passes."""


def test_of_runs_of_one_name_the_newest_that_fits_is_gone_on_with(caplog):
    main(arguments("MLPClassifier", "run", "--trainer.max_steps=8"))
    main(arguments("MLPClassifier", "run", "--trainer.max_steps=8", "--model.width=24"))
    other = (
        "--data=ImageFolder",
        "--data.root=pictures",
        "--data.image_size=8",
        "--data.channels=1",
        "--data.val_size=2",
    )
    for kind in "0123456789":
        folder = Path("pictures") / kind
        folder.mkdir(parents=True)
        for index in range(4):
            Image.new("L", (8, 8), 20 * int(kind) + index).save(folder / f"{index}.png")
    main(arguments("MLPClassifier", "run", "--trainer.max_steps=8", *other))
    with caplog.at_level("INFO"):
        main(arguments("MLPClassifier", "run", "--trainer.max_steps=12", "--ckpt_path=last"))
    assert "version_2/checkpoints/last.ckpt is left out, since it is of another run (its data is" in caplog.text
    assert "version_1/checkpoints/last.ckpt is left out, since it is of another run" in caplog.text
    assert "Going on with runs/run/version_0 from last.ckpt, after 8 steps" in caplog.text
    assert torch.load(folder_of("run") / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 12
    assert not folder_of("run", 3).exists()


@pytest.mark.parametrize("spoil", [cut, damage, empty])
def test_a_checkpoint_that_is_not_whole_is_named_and_the_one_before_it_taken(run, spoil, caplog):
    with caplog.at_level("INFO"):
        assert find_last("runs", "run", anything).path == run / "last.ckpt"
        spoil(run / "last.ckpt")
        with pytest.warns(UserWarning, match=r"last\.ckpt is left out, since it is no whole checkpoint"):
            found = find_last("runs", "run", anything)
    assert found.path == run / "best.ckpt"
    assert found.logged["RunCSVLogger"] > 0
    assert f"Going on with {run.parent} from best.ckpt, after 7 steps" in caplog.text


def test_where_there_is_none_the_run_starts_and_says_so(caplog):
    with caplog.at_level("INFO"):
        main(arguments("MLPClassifier", "run", "--ckpt_path=last", "--trainer.max_steps=8"))
    assert "--ckpt_path last: in runs/run is no checkpoint of it, so the run starts from the beginning" in caplog.text
    assert (folder_of("run") / "checkpoints" / "last.ckpt").is_file()


def test_last_is_for_fit_alone(run, capsys):
    assert "--ckpt_path last is for fit" in fails(
        capsys, "validate", *arguments("MLPClassifier", "run")[1:-1], "--ckpt_path=last"
    )


# Files that are whole


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write():
        with atomic_write(path, "w") as file:
            file.write("new")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_last_checkpoint_and_says_the_way_out(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state": torch.ones(10)}, path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"last\.ckpt cannot be written: File too large; .* is whole"):
            AtomicCheckpointIO().save_checkpoint({"state": torch.ones(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# Parts


def test_an_epoch_has_the_order_of_torchs_own_sampler():
    dataset = list(range(20))
    torch.manual_seed(3)
    expected = list(torch.utils.data.RandomSampler(dataset))
    torch.manual_seed(3)
    assert list(ResumableSampler(dataset)) == expected


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_an_epoch_without_overlap_or_loss(processes):
    samplers = [ResumableSampler(range(60), processes, rank) for rank in range(processes)]
    for epoch in range(2):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        parts = [list(sampler) for sampler in samplers]
        assert sorted(itertools.chain(*parts)) == list(range(60))
    assert parts != [list(range(60))[rank::processes] for rank in range(processes)]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_loader_goes_on_in_the_middle_of_an_epoch(processes):
    def loader() -> ResumableLoader:
        dataset = torch.arange(40)
        return ResumableLoader(dataset, batch_size=4, sampler=ResumableSampler(dataset, processes, 0))

    torch.manual_seed(1)
    first = loader()
    batches = []
    for batch in first:
        batches.append(batch.tolist())
        if len(batches) == 3:
            state, random = first.state_dict(), torch.get_rng_state()
    second_epoch = [batch.tolist() for batch in first]
    torch.manual_seed(99)
    second = loader()
    second.load_state_dict(state)
    torch.set_rng_state(random)
    assert [batch.tolist() for batch in second] == batches[3:]
    assert [batch.tolist() for batch in second] == second_epoch


def test_random_states_come_back_through_a_checkpoint(tmp_path):
    import random

    import numpy as np

    def draw() -> tuple:
        return torch.randn(3).tolist(), np.random.normal(size=3).tolist(), random.random()

    np.random.normal()  # of a pair of which the second is kept for the next time
    torch.save(seeding.capture(torch.device("cpu")), tmp_path / "states.pt")
    expected = draw()
    seeding.restore(torch.load(tmp_path / "states.pt", weights_only=True), torch.device("cpu"))
    assert draw() == expected


def test_a_trainer_that_trains_again_has_lightnings_own_loop():
    from lightning.pytorch import Trainer

    from zoo import MLPClassifier
    from zoo.callbacks import StopOnSignal
    from zoo.datamodules import Digits

    shown = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", max_steps=2, logger=False, callbacks=[StopOnSignal()], **shown)
    trainer.fit(MLPClassifier((1, 8, 8), 10, width=8, depth=1), Digits())
    assert "on_advance_end" not in vars(trainer.fit_loop.epoch_loop)
