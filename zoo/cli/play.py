"""The command `play`: a page in the browser on which a trained model is tried out."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from zoo.cli.options import (
    CKPT_HELP,
    CONFIG_HELP,
    DEVICE_HELP,
    MODEL_CLASS_HELP,
    MODEL_HELP,
    name_checkpoint,
    typed_options,
)
from zoo.cli.output import has_screen
from zoo.cli.program import program
from zoo.errors import UserError
from zoo.play.serving import PORT, check_port, prepare_environment

DESCRIPTION = (
    "Serves a page on this machine, on which a trained model is tried out in the browser: samples and the way between "
    "them, edits, classes of pictures that are drawn with the mouse, text. Without --model and --ckpt_path, the page "
    "has a list of the trained models of the zoo. Ctrl-C ends it."
)


def run_play(args: Sequence[str]) -> None:
    """Parses the command line, loads the model, and serves the page until a signal ends it."""
    words = list(args[1:])
    given = _parse(name_checkpoint(words))
    port, shown = given["port"], given["open"]
    if find_spec("gradio") is None:
        raise UserError('play needs Gradio, which is not installed: pip install "lightning-zoo[play]"')
    check_port(port)
    page = _build(given, typed_options(words).get("model"))
    _serve(page, port, shown)


def _parse(words: list[str]) -> dict[str, Any]:
    from zoo.cli.parser import OneLineParser

    parser = OneLineParser(prog=f"{program()} play", description=DESCRIPTION)
    parser.add_argument("--ckpt_path", type=str, help=CKPT_HELP)
    parser.add_argument("--model", type=str, help=MODEL_HELP)
    parser.add_argument("--model_class", type=str, help=MODEL_CLASS_HELP)
    parser.add_argument("--config", type=str, help=CONFIG_HELP)
    parser.add_argument("--port", type=int, default=PORT, help="port of the page on 127.0.0.1.")
    parser.add_argument("--open", type=bool, default=False, help="open the page in the browser.")
    parser.add_argument("--device", type=str, default="auto", help=DEVICE_HELP)
    return parser.parse_args(words).as_dict()


def _build(given: dict[str, Any], name: str | None) -> Any:
    """The page for the model that is named, or for a choice of the trained ones."""
    from zoo.cli.own_networks import load_model_with_config
    from zoo.hub.loading import find_device, load
    from zoo.hub.trained import list_models

    device = find_device(given["device"], "--device")
    ckpt_path = given["ckpt_path"]
    if not ckpt_path:
        for option in ("model_class", "config"):
            if given[option]:
                raise UserError(f"--{option} needs a checkpoint: give --ckpt_path, or leave it out")
        prepare_environment()
        from zoo.play.page import build_choice

        return build_choice(list_models(), lambda name: load(name, device))
    model = load_model_with_config(ckpt_path, given["model_class"], given["config"]).to(device)
    from zoo.play.abilities import abilities_of

    abilities_of(model)  # before Gradio is imported, which takes seconds
    prepare_environment()
    from zoo.play.page import build_page

    return build_page(model, name or str(ckpt_path))


def _serve(page: Any, port: int, shown: bool) -> None:
    """Serves the page until a signal raises `zoo.distributed.signals.Stopped`."""
    from zoo.play.serving import start

    try:
        address = start(page, port)
        print(f"{address} has the page; Ctrl-C ends it", flush=True)
        if shown and has_screen():
            import webbrowser

            webbrowser.open(address)
        _wait()
    finally:
        page.close(verbose=False)


def _wait() -> None:
    """Waits until the handler of a signal raises an exception here."""
    threading.Event().wait()
