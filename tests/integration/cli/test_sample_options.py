"""The options of `sample` are the keyword arguments of the model in the checkpoint, of the zoo or of a plugin."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from tests.helpers.checkpoints import save_untrained
from tests.helpers.command import fails
from tests.helpers.models import teacher_checkpoint
from zoo import ConsistencyModel
from zoo.cli.main import main
from zoo.registry import entries
from zoo.tokenizers import ByteTokenizer

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


def run_help(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """What `sample --help` prints, in one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["sample", *args, "--help"])
    assert not stop.value.code
    return " ".join(capsys.readouterr().out.split())


# Models of the zoo

GENERATIVE = {
    entry.name: entry.load()
    for entry in entries("models")
    if any(hasattr(entry.load(), method) for method in ("sample", "stream"))
}
#: A checkpoint of `tests.helpers.checkpoints` for each model.
CHECKPOINTS = {"Diffusion": "diffusion", "GAN": "gan", "TransformerLM": "letters"}
#: A value of each option that is not its default.
VALUES: dict[str, Any] = {
    "steps": 2,
    "solver": "heun",
    "guidance_scale": 0.5,
    "frames": 3,
    "prompt": "a",
    "max_new_tokens": 4,
    "temperature": 0.5,
    "top_k": 2,
    "top_p": 0.75,
}
FILLED_IN = {"self", "n", "rows", "labels", "generator", "seeds"}


def arguments(model_class: type, method: str) -> list[str]:
    """Arguments of a method that are the user's to give."""
    filled_in = FILLED_IN | ({"steps"} if method == "interpolate" else set())
    return [name for name in inspect.signature(getattr(model_class, method)).parameters if name not in filled_in]


CALLS = [
    (name, method)
    for name, model_class in GENERATIVE.items()
    for method in (("stream",) if hasattr(model_class, "stream") else ("sample", "trajectory", "interpolate"))
    if hasattr(model_class, method)
]
REQUESTS = {
    "sample": ["--n=2", "--out=grid.png"],
    "trajectory": ["--n=2", "--out=film.gif"],
    "interpolate": ["--n=2", "--interpolate=3", "--out=ways.png"],
    "stream": ["--n=2", "--out=text.txt"],
}


@pytest.fixture
def path_of(checkpoint, tmp_path_factory) -> Callable[[str], str]:
    """Function from the name of a model in the registry to the path of a tiny checkpoint."""

    def path_of(name: str) -> str:
        if name == "ConsistencyModel":
            folder = tmp_path_factory.mktemp("consistency")
            save_untrained(
                ConsistencyModel((1, 8, 8), 10, teacher=teacher_checkpoint(folder)), folder / "consistency.ckpt"
            )
            return str(folder / "consistency.ckpt")
        if name not in CHECKPOINTS:
            pytest.fail(f"{name} has a method sample: name a checkpoint of it in CHECKPOINTS")
        return checkpoint(CHECKPOINTS[name])

    return path_of


@pytest.fixture
def called(monkeypatch) -> Callable[[type, str], dict[str, Any]]:
    """Function that records the keyword arguments of a method from now on."""

    def record(model_class: type, method: str) -> dict[str, Any]:
        function, seen = getattr(model_class, method), {}

        @functools.wraps(function)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            seen.update(kwargs)
            return function(*args, **kwargs)

        monkeypatch.setattr(model_class, method, recorded)
        return seen

    return record


@pytest.mark.parametrize(("name", "method"), CALLS)
def test_every_keyword_argument_of_a_method_is_an_option_that_reaches_it(name, method, path_of, called, capsys):
    path, model_class = path_of(name), GENERATIVE[name]
    given = {argument: VALUES[argument] for argument in arguments(model_class, method)}
    seen = called(model_class, method)
    main(["sample", f"--ckpt_path={path}", *REQUESTS[method], *(f"--{key}={value}" for key, value in given.items())])
    assert {key: seen[key] for key in given} == given
    assert set(seen) <= FILLED_IN | set(given)
    assert Path(REQUESTS[method][-1].removeprefix("--out=")).stat().st_size > 0
    seen.clear()
    Path(REQUESTS[method][-1].removeprefix("--out=")).unlink()
    if name != "TransformerLM":  # 1000 tokens take a while
        main(["sample", f"--ckpt_path={path}", *REQUESTS[method]])
        assert not set(given) & set(seen), "the model knows its defaults"


@pytest.mark.parametrize("name", GENERATIVE)
def test_help_shows_the_options_of_the_model_with_a_description_each(name, path_of, capsys):
    shown = run_help(capsys, "--ckpt_path", path_of(name))
    options = {argument for model, method in CALLS if model == name for argument in arguments(GENERATIVE[name], method)}
    for option in options:
        assert f"--{option} {option.upper()} " in shown
        described = shown.split(f" --{option} {option.upper()} ")[-1]
        assert described.index("(type:") > 15, "a description before the type"
    for other in set(VALUES) - options:
        assert f"--{other} " not in shown
    assert ("--labels" in shown) == (name == "Diffusion"), "the only one here that is conditional"
    assert ("--interpolate" in shown) == hasattr(GENERATIVE[name], "interpolate")
    assert ("--trajectory" in shown) == hasattr(GENERATIVE[name], "trajectory")


def test_help_without_a_checkpoint_says_how_to_see_the_options_of_the_model(capsys):
    shown = run_help(capsys)
    assert "--ckpt_path FILE --help, or --model NAME --help, lists the options of a model" in shown
    for option in (
        "ckpt_path",
        "model",
        "model_class",
        "out",
        "n",
        "seed",
        "labels",
        "per_class",
        "interpolate",
        "trajectory",
    ):
        assert f"--{option} " in shown
    for option in VALUES:
        assert f"--{option} " not in shown


# Models of a plugin


class Flat(LightningModule):
    """Images of one brightness: the least that a plugin's generative model must have, and options of every type."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(()))

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        brightness: float = 0.0,
        sign: Literal["plus", "minus"] = "plus",
        mirror: bool = False,
        sizes: list[int] | None = None,
        name: str = "",
        rows=2,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Draws images.

        Args:
            n: number of samples.
            labels: not used.
            generator: not used.
            brightness: brightness of all pixels,
                100% at 1.
            sign: whether the brightness is negated.
            mirror: whether the left half is white.
            sizes: height and width.
            name: name of the artist.
        """
        height, width = sizes or (rows, 2)
        x = self.offset + torch.full((n, 1, height, width), brightness) * (1 if sign == "plus" else -1)
        if mirror:
            x[..., : width // 2] = 1
        return x


class Choosy(LightningModule):
    """A model with an option without a default, and classes that it draws itself."""

    conditional, num_classes = True, 3

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(()))

    def sample(
        self, n: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None, style: int
    ) -> Tensor:
        labels = torch.zeros(n) if labels is None else labels
        return (labels - style).view(-1, 1, 1, 1).expand(n, 1, 2, 2)


class Talker(LightningModule):
    """A text model."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(()))
        self.tokenizer = ByteTokenizer()

    def stream(
        self, n: int = 1, *, generator: torch.Generator | None = None, word: str = "hello", times: int = 1
    ) -> Iterator[Tensor]:
        yield from self.tokenizer.encode(word * times)[:, None]


@pytest.fixture
def plugin(monkeypatch, tmp_path_factory) -> Callable[[type], list[str]]:
    """Function that saves a plugin's model, and returns the options that name its checkpoint."""
    monkeypatch.setattr("zoo.registry.load_plugins", lambda: [Flat, Choosy, Talker])

    def save(model_class: type) -> list[str]:
        path = tmp_path_factory.mktemp("plugin") / "model.ckpt"
        save_untrained(model_class(), path)
        return ["--ckpt_path", str(path), f"--model_class={model_class.__name__}"]

    return save


@pytest.mark.parametrize(
    ("args", "pixels"),
    [
        ([], [[128, 128], [128, 128]]),
        (["--brightness=1"], [[255, 255], [255, 255]]),
        (["--brightness", "1", "--sign", "minus"], [[0, 0], [0, 0]]),
        (["--mirror=true", "--sizes=[1, 4]"], [[255, 255, 128, 128]]),
        (["--rows=1", "--brightness=-1"], [[0, 0]]),
    ],
)
def test_a_plugins_option_reaches_its_sample(args, pixels, plugin, capsys):
    main(["sample", *plugin(Flat), "--n=3", "--out=raw.npz", *args])
    assert capsys.readouterr().out == "3 samples of Flat in raw.npz\n"
    with np.load("raw.npz") as file:
        assert file.files == ["arr_0"], "it has no classes"
        assert file["arr_0"].shape[0] == 3
        assert np.abs(file["arr_0"][2, :, :, 0].astype(int) - pixels).max() <= 1


def test_a_plugins_options_are_in_the_help(plugin, capsys):
    shown = run_help(capsys, *plugin(Flat))
    assert "--brightness BRIGHTNESS brightness of all pixels, 100% at 1. (type: float, default: 0.0)" in shown
    assert "--sign {plus,minus} whether the brightness is negated." in shown
    assert "--mirror {true,false} whether the left half is white." in shown
    assert "--rows ROWS (type: int, default: 2)" in shown
    for absent in ("mask", "labels", "per_class", "interpolate", "trajectory", "seeds", "generator"):
        assert f"--{absent}" not in shown


def test_labels_and_an_option_without_a_default_reach_a_plugins_sample(plugin, capsys):
    options = plugin(Choosy)
    assert "--style STYLE (must be given) (type: int" in run_help(capsys, *options)
    assert fails(capsys, "sample", *options) == "--style must be given: Choosy.sample has no default for it"
    main(["sample", *options, "--style=1", "--labels=[0, 2]", "--n=3", "--out=raw.npz"])
    with np.load("raw.npz") as file:
        assert file["arr_0"][:, 0, 0, 0].tolist() == [0, 255, 0]
        assert file["arr_1"].tolist() == [0, 2, 0]
    main(["sample", *options, "--style=0", "--per_class=true", "--n=2", "--out=classes.npz"])
    with np.load("classes.npz") as file:
        assert file["arr_1"].tolist() == [0, 0, 1, 1, 2, 2]
    main(["sample", *options, "--style=0", "--n=2", "--out=own.npz"])
    with np.load("own.npz") as file:
        assert file.files == ["arr_0"], "labels that the model draws itself are not known"


def test_options_of_a_plugins_text_model_are_those_of_stream(plugin, capsys):
    options = plugin(Talker)
    main(["sample", *options, "--word=ho ", "--times", "2", "--out=said.txt"])
    assert Path("said.txt").read_text() == "ho ho \n"
    assert "--word WORD (type: str, default: hello)" in run_help(capsys, *options)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--brightnes=1", "--brightnes has no effect on a Flat; did you mean --brightness?"),
        ("--steps=3", "--steps has no effect on a Flat: leave it out; its own options are --brightness, --sign, "
         "--mirror, --sizes, --name, --rows"),
        ("--mask=x", "--mask cannot be given on the command line: leave it out, or call Flat.sample"),
        ("--brightness=x", "--brightness x is not possible; it must be of type float"),
        ("--sign=times", "--sign times is not possible; choose one of plus, minus"),
        ("--mirror=perhaps", "--mirror perhaps is not possible; it must be of type bool"),
        ("--labels=[1]", "the model was trained without labels, so it cannot draw by class: leave out --labels"),
        ("--interpolate=3", "Flat has no latent vectors to interpolate between: leave out --interpolate"),
        ("--trajectory=a.gif", "Flat has no trajectory to animate: leave out --trajectory"),
        ("--out=a.gif", "Flat has no trajectory to animate; let --out end in .png or .npz"),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_in_one_line_that_names_the_plugins_model(args, message, plugin, capsys):
    assert fails(capsys, "sample", *plugin(Flat), args) == message
    assert not list(Path().iterdir())
