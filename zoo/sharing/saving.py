"""Saving a model as a folder: `config.json`, `model.safetensors`, and a model card with samples."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from zoo.checkpoints.format import describe_model
from zoo.checkpoints.pretrained import write_pretrained
from zoo.contracts import Averaged, Decoding, Generative, attached_trainer, is_conditional, offers
from zoo.errors import UserError
from zoo.files import atomic_folder
from zoo.plotting.samples import render_samples
from zoo.sharing.card import Facts, model_card
from zoo.sharing.training import read_training, run_of

CARD = "README.md"
PICTURE = "samples.png"
TRAINING = "training.yaml"
POINTS = 1000  # in the picture of a model of points


def save_pretrained(
    model: Any,
    folder: str | Path,
    *,
    name: str | None = None,
    license: str | None = None,
    run: str | Path | None = None,
    facts: Facts | None = None,
    averages_only: bool = False,
    overwrite: bool = False,
) -> Path:
    """Saves a model as a folder, from which `zoo.load` and `from_pretrained` load it.

    The folder holds `config.json`, `model.safetensors`, the model card `README.md`, `samples.png` of a generative model
    of images or points, and `training.yaml`, the configuration of its run. It is complete or not there at all.

    Args:
        model: LightningModule of the zoo or of a plugin, on any device, with or without a Trainer.
        folder: folder to be written; its parents are created.
        name: name under which the card says the model is loaded, "owner/name" (default: the folder's).
        license: identifier of the license for the card, such as "mit", "apache-2.0", "cc-by-4.0" or "other".
        run: folder of the run, for the card (default: that in which the model was trained or its checkpoint lies).
        facts: what the card says besides: data and its license, results on the test split, limits.
        averages_only: save the moving average of the weights and not the weights that it was made from, which is about
            half the bytes. Predictions and samples are the same; a training that starts from the folder starts from the
            average. A model without a moving average is saved as it is.
        overwrite: replace the files of a model that is in the folder; other files are kept.

    Returns:
        The folder.

    Raises:
        UserError: the folder exists, cannot be written, or the model has hyperparameters that are no plain values.
    """
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise UserError(f"license is {license!r}; give an identifier in lower case, such as mit, apache-2.0 or other")
    target = Path(folder)
    description = describe(model)
    training = read_training(_run_folder(model, run), description["monitor"])
    with atomic_folder(target, overwrite) as partial:
        averaged = averages_only and offers(model, Averaged)
        write_pretrained(partial, description, model.averaged_state_dict() if averaged else model.state_dict())
        picture, text = _draw(model, partial)
        if training.config:
            (partial / TRAINING).write_text(yaml.safe_dump(training.config, sort_keys=False), encoding="utf-8")
        card = model_card(model, name or str(folder), description, training, license, picture, text, facts)
        (partial / CARD).write_text(card, encoding="utf-8")
    return target


def describe(model: Any) -> dict[str, Any]:
    """Entries of `config.json`: those that describe the model in a checkpoint, and its hyperparameters."""
    trainer, origin = attached_trainer(model), getattr(model, "origin", None)
    described = describe_model(model, trainer)
    if trainer is None and origin is not None:
        described["monitor"] = origin.monitor
    return {**described, "hyper_parameters": dict(model.hparams)}


def _run_folder(model: Any, run: str | Path | None) -> Path | None:
    """Folder of the run in which a model was trained, if it is known."""
    if run is not None:
        if not (Path(run) / "config.yaml").is_file():
            raise UserError(f"run is {run}, which is not the folder of a run: it has no config.yaml")
        return Path(run)
    trainer, origin = attached_trainer(model), getattr(model, "origin", None)
    if trainer is not None:
        # Not trainer.log_dir, which all ranks must ask for.
        folder = getattr(trainer.checkpoint_callback, "dirpath", None)
        return run_of(Path(folder) / "best.ckpt") if folder else None
    return run_of(origin.path) if origin is not None else None


def _draw(model: Any, folder: Path) -> tuple[str | None, str | None]:
    """Draws from a generative model; returns the name of the picture, or a text."""
    if not offers(model, Generative):
        return None, None
    sample: Any = model.sample
    generator = torch.Generator().manual_seed(0)
    if offers(model, Decoding):
        return None, model.decode(sample(1, generator=generator))[0]
    shape: tuple[int, ...] = getattr(model, "input_shape", ())
    if len(shape) == 3 and shape[0] not in (1, 3):
        return None, None
    if len(shape) < 3:
        image = render_samples(sample(POINTS, generator=generator))
    elif is_conditional(model):  # two rows, a class in each column
        columns = min(model.num_classes, 10)
        labels = torch.arange(columns).repeat(2)
        image = render_samples(sample(len(labels), labels=labels, generator=generator), columns)
    else:
        image = render_samples(sample(16, generator=generator))
    Image.fromarray(image).save(folder / PICTURE)
    return PICTURE, None
