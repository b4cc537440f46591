"""The commands and the code of the pages are run: in their order, shortened, and in one process as far as possible."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from functools import partial, wraps
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers.command import CHECKOUT, TINY, fails, run_program
from tests.helpers.plugin import write_metadata
from tests.integration.docs.pages import PAGES, QUICK_TOUR
from zoo.cli import tour
from zoo.cli.main import main
from zoo.tour.sections import find_section

SHORT = ["--trainer.limit_val_batches=2"]
SHORT_EVALUATION = [f"--trainer.limit_{name}_batches=2" for name in ("val", "test", "predict")]
#: Files of which more than a header is expected.
LARGE = ("grid.png", "raw.npz", "ways.png", "walk.gif", "film.gif", "predictions.csv", "predictions.parquet")


def run_of(command: str) -> str:
    """Name of the run that a command begins or reads."""
    found = re.search(r"runs/(\w+?)(?:_tune)?/", command) or re.search(r"--config (?:[\w/]+/)?(\w+)\.yaml", command)
    return found[1] if found else "no_recipe"


def commands_by_run() -> dict[str, list[str]]:
    """The commands of all pages in order, each once, by the run that they are about."""
    commands: dict[str, list[str]] = {}
    for command in dict.fromkeys(command for page in PAGES for command in page.commands):
        commands.setdefault(run_of(command), []).append(command)
    return commands


COMMANDS = commands_by_run()
#: A distance is measured between 200 pictures: between 1,000 it would be most of the time of a fit.
FEW = "--data.eval_batch_size=100"
#: Options of smaller models, by recipe, for commands that name no part of the model themselves.
SMALL = {
    "gan.yaml": [FEW, "--model.generator=ConvGenerator", "--model.generator.width=4", "--model.latent_dim=8"],
    "diffusion.yaml": [FEW, "--model.network.widths=[16]", "--model.network.blocks=1"],
    "mlp.yaml": ["--model.width=16"],
    "transformer.yaml": ["--model.layers=1", "--model.width=32", "--model.heads=2"],
    "shakespeare_cpu.yaml": ["--model.layers=1", "--model.width=32", "--model.heads=2"],
}
#: Run of the plugin in examples/.
OF_PLUGIN = "vae"


@pytest.fixture
def folder(tmp_path, monkeypatch, shared_data) -> Path:
    """A working folder with the data that the pages name, which everybody has elsewhere."""
    for kind, green in {"cats": 20, "dogs": 200}.items():
        pictures = tmp_path / "my_pictures" / kind
        pictures.mkdir(parents=True)
        for index in range(100):
            Image.new("RGB", (70 + index, 90), (2 * index, green, 90)).save(pictures / f"{index}.jpg")
    (tmp_path / "data").symlink_to(shared_data)
    (tmp_path / "examples").symlink_to(CHECKOUT / "examples")
    for name in ("tinyshakespeare.txt", "my_text.txt"):
        (tmp_path / name).symlink_to(shared_data / "text" / "tinyshakespeare.txt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(sys, "argv", ["cli.py"])  # as the pages type it
    monkeypatch.setattr(sys, "orig_argv", ["python"])
    monkeypatch.setattr("zoo.cli.play._serve", lambda page, port, shown: None)  # until somebody types Ctrl-C
    return tmp_path


def shortened(command: str) -> list[str]:
    """Arguments of a command for a short run."""
    arguments = shlex.split(command)[2:]
    if arguments[0] == "tour":
        return [*arguments, *(QUICK_TOUR[arguments[1]] if arguments[1:] else ())]
    if "--images" in arguments or "--texts" in arguments:
        return arguments
    if arguments[0] in ("validate", "test", "predict"):
        return [*arguments, *SHORT_EVALUATION]
    if arguments[0] not in ("fit", "tune"):
        return arguments
    device = [] if "--trainer.accelerator" in command else TINY[:1]
    trials = ["--trials=1"] if arguments[0] == "tune" else []
    small = [] if "--model.network" in command else SMALL.get(arguments[2], [])
    return [*arguments, *small, *device, *TINY[1:], *SHORT, *trials]


def files_written(arguments: list[str]) -> list[str]:
    """Names of the files that a command must leave."""
    options = ("--out", "--compare", "--trajectory")
    named = [value for option, value in pairwise(arguments) if option in options]
    if arguments[0] == "tune":
        study = f"runs/{run_of(shlex.join(arguments))}_tune"
        return [f"{study}/{name}" for name in ("trials.csv", "trials.png", "best.yaml")]
    table = arguments[0] == "predict" and "--texts" not in arguments and not named
    return ["predictions.csv"] if table else named


def section_drawn_once(drawn: dict[str, Any], name: str) -> Callable[..., Any]:
    """The function of a section of the tour, which draws each figure once: commands that change one option of several
    have the same small settings."""
    draw = find_section(name)

    @wraps(draw)
    def draw_once(**options: Any) -> Any:
        settings = f"{name} {sorted(options.items())}"
        if settings not in drawn:
            drawn[settings] = draw(**options)
        return drawn[settings]

    return draw_once


def test_there_are_commands_about_many_runs():
    assert len(COMMANDS) > 10
    assert sum(map(len, COMMANDS.values())) > 40
    assert len(COMMANDS[OF_PLUGIN]) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("run", COMMANDS)
def test_commands_run_in_order(run, folder, monkeypatch, cheap_reports, reports, capsys, caplog):
    printed = {}
    monkeypatch.setattr(tour, "find_section", partial(section_drawn_once, {}))
    project = CHECKOUT / "examples" / "vae_plugin"
    if run == OF_PLUGIN:
        write_metadata(project, folder)
    for command in COMMANDS[run]:
        arguments = shortened(command)
        if run == OF_PLUGIN or "--trainer.devices" in command or "--wandb.mode offline" in command:
            # What would stay in this process: a plugin, a process group, a run of Weights & Biases.
            variables = {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{folder}:{project}"}
            done = run_program(*arguments, cwd=folder, **variables)
            assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"
        else:
            caplog.clear()
            try:
                main(arguments)
            except SystemExit as stop:
                pytest.fail(f"{command}\n{stop.code}\n{capsys.readouterr().err[-2000:]}")
            printed[command] = "\n".join([*capsys.readouterr(), *caplog.messages])
        for name in files_written(arguments):
            assert (folder / name).stat().st_size > (1000 if name in LARGE else 100), (
                f"{command} has not written {name}"
            )
        if arguments[0] == "fit":
            assert list(folder.glob("*/*/version_*/checkpoints/*.ckpt")), f"{command} has left no checkpoint"
    if run == "gan":
        assert_output_is_that_of_the_readme(printed["python cli.py fit --config gan.yaml"])


def assert_output_is_that_of_the_readme(output: str) -> None:
    """Every line that README.md shows of its first run is printed, but for the numbers and how early it stopped."""

    def lines(text: str) -> set[str]:
        return {re.sub(r"[\d.]+", "0", line) for line in text.splitlines() if "stopped early" not in line}

    (shown,) = (block.text for block in PAGES[0].blocks if block.language == "text")
    assert lines(shown) <= lines(output)


MISTAKES = [
    (command, answer)
    for page in PAGES
    for block in page.blocks
    for command, answer in re.findall(r"^\$ (python cli\.py .*)\n(zoo: error: .*)$", block.text, re.MULTILINE)
]


@pytest.mark.parametrize(("command", "answer"), MISTAKES)
def test_mistakes_are_answered_as_shown(command, answer, capsys):
    assert f"zoo: error: {fails(capsys, *shlex.split(command)[2:])}" == answer


CODE = [block.text for page in PAGES for block in page.blocks if block.language == "python" and not block.title]


#: What is asked after code that has a phrase, and the last line that it must print then.
ANSWERS = {
    "sevens = model.sample(": ("print(tuple(sevens.shape), sevens.abs().max().item() <= 1)", "(16, 1, 8, 8) True"),
    "zoo.list_models(": ("print(tuple(images.shape), images.abs().max().item() <= 1)", "(16, 1, 8, 8) True"),
    "half_way = wander(": ("print(half_way.ndim, half_way.shape[2], half_way.dtype)", "3 3 uint8"),
    "onnxruntime.InferenceSession(": (
        "print(samples.shape, abs(samples).max() <= 1, about['model_class'])",
        "(64, 1, 8, 8) True zoo.models.gan.module.GAN",
    ),
    "class Noise(InMemoryDataModule)": (
        "print(data.dataset('train').x.shape, len(data.split('val')[0]), data.split('val')[0].min().item() >= -1)",
        "torch.Size([5000, 1, 8, 8]) 500 True",
    ),
    'model.save_pretrained("my_model"': (
        "import os; print(*sorted(os.listdir('my_model')), type(same).__name__)",
        "README.md config.json model.safetensors samples.png GAN",
    ),
}


@pytest.mark.parametrize("code", CODE)
def test_code_runs(code, tmp_path, monkeypatch, capsys):
    answers = [answer for phrase, answer in ANSWERS.items() if phrase in code]
    assert answers, "say above what other code should give"
    ((question, answer),) = answers
    monkeypatch.chdir(tmp_path)
    exec(compile(f"{code}\n{question}", "page", "exec"), {"__name__": "page"})
    assert capsys.readouterr().out.strip().splitlines()[-1] == answer
