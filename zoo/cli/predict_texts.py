"""The command `predict --texts`: maps texts to texts with a trained sequence-to-sequence model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zoo.cli.options import CKPT_HELP, CONFIG_HELP, DEVICE_HELP, MODEL_CLASS_HELP, MODEL_HELP, name_checkpoint
from zoo.cli.program import program
from zoo.errors import UserError

DESCRIPTION = (
    "Maps texts to texts with a trained sequence-to-sequence model, by greedy decoding, and prints a line for each: "
    "the text, an arrow, and the answer."
)


def run_predict_texts(words: Sequence[str]) -> None:
    """Parses the options of `predict --texts` and prints a line for each text."""
    from zoo.cli.parser import OneLineParser

    parser = OneLineParser(prog=f"{program()} predict", description=DESCRIPTION)
    parser.add_argument("--texts", type=str, nargs="+", action="extend", help="texts, such as 31524 2026.")
    parser.add_argument("--ckpt_path", type=str, help=CKPT_HELP)
    parser.add_argument("--device", type=str, default="auto", help=DEVICE_HELP)
    parser.add_argument("--model", type=str, help=MODEL_HELP)
    parser.add_argument("--model_class", type=str, help=MODEL_CLASS_HELP)
    parser.add_argument("--config", type=str, help=CONFIG_HELP)
    given = parser.parse_args(name_checkpoint(words)).as_dict()
    del given["model"]
    print(predict_texts(**given))


def predict_texts(
    texts: list[str] | None, ckpt_path: str | None, device: str, model_class: str | None, config: str | None
) -> str:
    """Maps texts to texts; the arguments are the options of the command.

    Returns:
        A line for each text.
    """
    from zoo.cli.own_networks import load_model_with_config
    from zoo.contracts import SequenceMapping, offers
    from zoo.hub.loading import find_checkpoint, find_device

    if not texts:
        raise UserError("--texts must be given: one text or several, such as --texts 31524 2026")
    if not ckpt_path:
        raise UserError("--ckpt_path or --model must be given: a checkpoint, a folder, or the name of a trained model")
    target = find_device(device, "--device")
    model = load_model_with_config(str(find_checkpoint(Path(ckpt_path))), model_class, config).to(target)
    if not offers(model, SequenceMapping):
        raise UserError(f"{ckpt_path} holds a {type(model).__name__}, which does not map texts to texts")
    answers = model.predict(texts)
    return "\n".join(f"{text} -> {answer}" for text, answer in zip(texts, answers, strict=True))
