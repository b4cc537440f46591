"""The command `predict`: with --images, a table of predictions for files of pictures; else LightningCLI's.

With --texts it is that of `zoo.cli.predict_texts`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from zoo.cli.options import (
    CKPT_HELP,
    CONFIG_HELP,
    DEVICE_HELP,
    MODEL_CLASS_HELP,
    MODEL_HELP,
    OUT_HELP,
    add_overwrite,
    name_checkpoint,
    typed_options,
)
from zoo.cli.program import program
from zoo.distributed.signals import Stopped
from zoo.errors import UserError, check_at_least

#: Options that only the command with --images has.
OF_IMAGES = ("batch_size", "device", "ensemble", "mc_samples")
SHOWN = 200  # files from which a progress bar is shown
DESCRIPTION = (
    "Classifies pictures with a trained model and writes a table, one row for each file: its path, the most probable "
    "class, the probability of every class, the entropy and the mutual information in nats, and for a broken file why "
    "it cannot be read. With --texts instead, a sequence-to-sequence model maps texts to texts: predict --texts --help "
    "lists those options. Without either, predict runs on one split of a data module, as test does: predict --config "
    "RECIPE --ckpt_path FILE; predict --config RECIPE --help lists those options."
)


def run_predict(args: Sequence[str]) -> None:
    """Predicts files of pictures if --images is given, and a data module otherwise."""
    words = list(args[1:])
    typed = typed_options(words)
    if "texts" in typed and "images" not in typed:
        from zoo.cli.predict_texts import run_predict_texts

        run_predict_texts(words)
        return
    if "images" in typed or set(words) <= {"--help", "-h"}:
        _refuse_foreign(typed)
        given = _parse(name_checkpoint(words))
        del given["model"]
        print(predict_images(**given))
        return
    if name := next((name for name in OF_IMAGES if name in typed), None):
        raise UserError(
            f"--{name} needs --images: give a folder of pictures, or leave it out to predict a split of a data module"
        )
    from zoo.cli.fit import run_command

    run_command(list(args))


def _refuse_foreign(typed: Iterable[str]) -> None:
    """Raises a `UserError` for the first option of models, data or the Trainer, which LightningCLI would take."""
    for name in typed:
        section, _, argument = name.partition(".")
        if argument or section in ("data", "trainer"):
            remedy = f"with --images it is --{argument}" if argument in OF_IMAGES else "leave it out"
            raise UserError(f"--{name} is an option of predict without --images: {remedy}")


def _parse(words: list[str]) -> dict[str, Any]:
    from zoo.cli.parser import OneLineParser

    parser = OneLineParser(prog=f"{program()} predict", description=DESCRIPTION)
    several: dict[str, Any] = {"type": str, "nargs": "+", "action": "extend"}
    parser.add_argument(
        "--images", **several, help='folders (with all below), files, or patterns in quotes such as "photos/*.jpg".'
    )
    parser.add_argument("--ckpt_path", type=str, help=CKPT_HELP)
    parser.add_argument("--out", type=str | None, help=OUT_HELP)
    add_overwrite(parser)
    parser.add_argument("--batch_size", type=int, default=256, help="number of pictures that are predicted at a time.")
    parser.add_argument("--device", type=str, default="auto", help=DEVICE_HELP)
    parser.add_argument("--ensemble", **several, help="further checkpoints whose probabilities are averaged with it.")
    parser.add_argument(
        "--mc_samples", type=int, help="passes with dropout on that are averaged (default: as the model was trained)."
    )
    parser.add_argument("--model", type=str, help=MODEL_HELP)
    parser.add_argument("--model_class", type=str, help=MODEL_CLASS_HELP)
    parser.add_argument("--config", type=str, help=CONFIG_HELP)
    return parser.parse_args(words).as_dict()


def predict_images(
    images: list[str] | None,
    ckpt_path: str | None,
    out: str | None,
    overwrite: bool,
    batch_size: int,
    device: str,
    ensemble: list[str] | None,
    mc_samples: int | None,
    model_class: str | None,
    config: str | None,
) -> str:
    """Classifies pictures and writes a table; the arguments are the options of the command.

    Returns:
        A sentence that says what was written.
    """
    import torch
    from lightning.pytorch.utilities import rank_zero_info

    from zoo.callbacks.prediction_table import table_path
    from zoo.datamodules.sources import progress_bar
    from zoo.hub.loading import find_device
    from zoo.hub.predicting import write_predictions
    from zoo.pictures.files import find_pictures

    # What is quick to check comes first, so that a mistake is answered before anything is loaded.
    table = table_path(out, "--out", overwrite)
    check_at_least(1, **{"--batch_size": batch_size})
    if not images:
        raise UserError("--images must be given: folders, files or patterns of pictures")
    if not ckpt_path:
        raise UserError("--ckpt_path or --model must be given: a checkpoint, a folder, or the name of a trained model")
    target = find_device(device, "--device")
    paths = find_pictures(images)
    classifier = _load(ckpt_path, model_class, config, ensemble, mc_samples).to(target)
    if getattr(getattr(classifier, "trained_on", None), "class_names", None) is None:
        rank_zero_info(f"{ckpt_path} has no names of classes; they are numbered")
    try:
        with progress_bar(f"classifying {len(paths):,} pictures", len(paths), SHOWN) as advance:
            broken = write_predictions(classifier, paths, table, batch_size, advance, overwrite)
    except torch.OutOfMemoryError as error:
        raise UserError(f"--batch_size {batch_size} does not fit into the memory of {target}; give less") from error
    except Stopped as stop:
        raise Stopped(stop.number, f"{stop.message}; nothing is written to {table}") from stop
    unread = f"; {broken:,} file{'' if broken == 1 else 's'} cannot be read" if broken else ""
    done = len(paths) - broken
    return f"{done:,} prediction{'' if done == 1 else 's'} in {table}{unread}"


def _load(
    ckpt_path: str, model_class: str | None, config: str | None, ensemble: list[str] | None, mc_samples: int | None
) -> Any:
    """Loads a classifier, and checks that it has the options given."""
    from zoo.checkpoints.reading import read_checkpoint
    from zoo.cli.own_networks import load_model_with_config
    from zoo.contracts import PredictiveClassifier, lacking
    from zoo.hub.loading import find_checkpoint
    from zoo.hub.method_options import accepts
    from zoo.registry import find_class

    path = str(find_checkpoint(Path(ckpt_path)))
    name = model_class or read_checkpoint(path).get("model_class")
    found = find_class(name, "models") if name else None
    members = None if ensemble is None else [str(find_checkpoint(Path(member))) for member in ensemble]
    given = {"ensemble": members, "mc_samples": mc_samples}
    handed = {option: value for option, value in given.items() if value is not None}
    for option in handed:
        if found is not None and not accepts(found, "__init__", option):
            raise UserError(f"--{option} has no effect on a {found.__name__}: leave it out")
    classifier = load_model_with_config(path, model_class, config, **handed)
    if lacking(classifier, PredictiveClassifier):
        raise UserError(f"{path} holds a {type(classifier).__name__}, which is not a classifier of pictures")
    return classifier
