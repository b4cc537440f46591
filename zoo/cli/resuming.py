"""Whether a run is resumed with the options that it was started with.

Options of the model and of the data decide what is trained: a run with others is another run. Some may change, and are
reported; those of the Trainer, loggers and callbacks may change without a word.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info

from zoo.checkpoints.reading import check_checkpoint, read_checkpoint
from zoo.cli.recipes import read_mapping
from zoo.errors import UserError

CONFIG = "config.yaml"
#: Sections that are compared, but for the options in `FREE`; of the section `trainer`, the options in `REPORTED`.
SECTIONS = ("seed_everything", "matmul_precision", "model", "data")
#: Options that change the course of training, but not what is trained.
REPORTED = {
    "data.batch_size",
    "data.drop_last",
    "matmul_precision",
    "model.accumulate_grad_batches",
    "model.gradient_clip_val",
    "trainer.accumulate_grad_batches",
    "trainer.gradient_clip_algorithm",
    "trainer.gradient_clip_val",
    "trainer.limit_train_batches",
    "trainer.overfit_batches",
    "trainer.precision",
}
#: Likewise, but the checkpoint holds them: a learning rate is that of the optimizer's state.
RESTORED = re.compile(r"model\.(optimizer|lr_scheduler)(_\w+)?\.")
#: Options of the model and the data that change neither training nor its metrics.
FREE = {
    "data.cache",
    "data.cache_dir",
    "data.eval_batch_size",
    "model.activation_checkpointing",
    "model.channels_last",
    "model.compile",
    "model.ensemble",
    "model.likelihood_probes",
    "model.likelihood_samples",
    "model.mc_samples",
    "model.mc_seed",
}
#: Name of an option, its value in the run, its value now.
Change = tuple[str, Any, Any]


def difference(config: Mapping[str, Any], folder: Path) -> str:
    """The first option by which the run in a folder is another one, in words; empty if it can be resumed.

    Args:
        config: resolved options of now, as plain values.
        folder: folder of the run. If it has no config.yaml, there is nothing to compare.

    Raises:
        UserError: config.yaml cannot be read.
    """
    changes = _changes(config, folder)
    return next((_words(*change) for change in changes if not _may_change(change[0])), "")


def reported_changes(config: Mapping[str, Any], folder: Path) -> list[str]:
    """Options in which the run that is resumed differs, in words; see `difference`."""
    kept = "; the checkpoint holds it, so it stays"
    return [_words(*change) + (kept if RESTORED.match(change[0]) else "") for change in _changes(config, folder)]


def check_resumable(path: Path, model: LightningModule, data: object) -> None:
    """Checks that a checkpoint of a run fits the model and the data.

    Args:
        path: path to the checkpoint, `<run>/checkpoints/<name>.ckpt`.
        model: model to be trained.
        data: data module that it is to be trained on.

    Raises:
        UserError: see `check_checkpoint`; or the run has no config.yaml, and the model in the checkpoint has other
            hyperparameters.
    """
    check_checkpoint(path, model, data, resumes=True)
    folder = path.parent.parent
    if not (folder / CONFIG).is_file():
        rank_zero_info(f"{folder} has no {CONFIG}, so the options of its data are not compared")
        held = read_checkpoint(path).get("hyper_parameters") or {}
        for change in _differences("model", {"init_args": held}, {"init_args": dict(model.hparams)}):
            if change[0] not in FREE:
                raise UserError(_words(*change))


def _may_change(option: str) -> bool:
    return option in REPORTED or bool(RESTORED.match(option))


def _changes(config: Mapping[str, Any], folder: Path) -> Iterator[Change]:
    """Options that are not those of the run, without those that make no difference."""
    path = folder / CONFIG
    if not path.is_file():
        return
    try:
        read_mapping(str(path), "the configuration of a run", "model: GAN")
    except UserError as error:
        raise UserError(f"{error}; mend the file, or remove it to resume the run without comparing its data") from error
    before = yaml.safe_load(path.read_text(encoding="utf-8"))
    for section in SECTIONS:
        changes = _differences(section, before.get(section), config.get(section))
        yield from (change for change in changes if change[0] not in FREE)
    changes = _differences("trainer", before.get("trainer") or {}, config.get("trainer") or {})
    yield from (change for change in changes if change[0] in REPORTED)


def _differences(name: str, there: Any, here: Any) -> Iterator[Change]:
    """Options in which two sections differ, by the names under which they are typed."""
    if not (isinstance(there, Mapping) and isinstance(here, Mapping)):
        if not _same(there, here):
            yield name, there, here
    elif not _same_class(there.get("class_path"), here.get("class_path")):
        yield name, there.get("class_path"), here.get("class_path")
    else:
        for key in sorted({**there, **here}.keys() - {"class_path"}):
            if key == "init_args":
                # An argument that the run does not know has been added to the class since, with a default.
                known = there.get(key) or {}
                yield from _differences(name, known, {k: v for k, v in (here.get(key) or {}).items() if k in known})
            elif key == "dict_kwargs":
                yield from _differences(name, there.get(key) or {}, here.get(key) or {})
            else:
                yield from _differences(f"{name}.{key}", there.get(key), here.get(key))


def _same_class(there: Any, here: Any) -> bool:
    """Whether two import paths are of one class; nothing is imported for a path that stands in a file."""
    if there == here or not (isinstance(there, str) and isinstance(here, str)):
        return bool(there == here)
    (module, _, name), (other, _, other_name) = there.rpartition("."), here.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    return found is not None and found is getattr(sys.modules.get(other), other_name, None)


def _same(there: Any, here: Any) -> bool:
    if isinstance(there, str) and isinstance(here, str):  # a path can be written in several ways
        return there == here or os.path.realpath(there) == os.path.realpath(here)
    if isinstance(there, (list, tuple)) and isinstance(here, (list, tuple)):
        pairs = zip(there, here, strict=False)
        return len(there) == len(here) and not any(True for pair in pairs for _ in _differences("", *pair))
    return bool(there == here)


def _words(option: str, there: Any, here: Any) -> str:
    first, second = (value if isinstance(value, str) else json.dumps(value, default=str) for value in (there, here))
    return f"{option}: {first[:80]} in the run, {second[:80]} now"
