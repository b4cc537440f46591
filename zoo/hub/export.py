"""Export of a trained model, to be run without this package: ONNX, torch.export, or weights.

What is exported is the code that runs in Python, with the weights that are used for inference, so that a file computes
what the model does. That is checked before the file is written.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zoo.checkpoints.format import TrainingData, versions
from zoo.contracts import Exportable, offers
from zoo.errors import UserError, check_choice
from zoo.files import check_output, write_output
from zoo.hub.export_formats import FORMATS, Run
from zoo.models.base import eval_mode
from zoo.models.exports import Export, export_forward, run_once

#: Numbers of samples at which a file is compared with the model, and the fraction of the longest sequences.
CHECKED = ((1, 0.5), (3, 1.0))
#: Largest difference, relative to the largest output or to 1, whichever is larger.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class ExportReport:
    """What was exported.

    Attributes:
        path: file that was written.
        format: format of the file.
        size: size of the file, in bytes.
        metadata: what the file says about itself.
        runtime: name and version of the package by which the file was compared with the model; None if it is not
            installed, empty for weights, which cannot be run.
        difference: largest difference between file and model; None if they were not compared.
    """

    path: Path
    format: str
    size: int
    metadata: Mapping[str, Any]
    runtime: str | None
    difference: float | None

    def __str__(self) -> str:
        kind = f"{FORMATS[self.format].title}, {self.size / 1e6:.2g} MB"
        settings = ", ".join(f"{name} {value}" for name, value in self.metadata["settings"].items())
        name = self.metadata["model_class"].rpartition(".")[2]
        lines = [f"{self.metadata['part']} of {name} in {self.path} ({kind})"]
        values = {**self.metadata["inputs"], **self.metadata["outputs"]} if self.format != "safetensors" else {}
        for input_name, value in values.items():
            about = f"  {value['about']}" if "about" in value else ""
            lines.append(f"  {input_name:<14}{value['dtype']} ({', '.join(map(str, value['shape']))}){about}")
        lines += [f"  {'settings':<14}{settings}"] if settings else []
        lines += [f"  note: {self.metadata['note']}"] if self.metadata["note"] else []
        return "\n".join([*lines, self._checked()])

    def _checked(self) -> str:
        if self.difference is not None:
            sizes = " and ".join(str(batch) for batch, _ in CHECKED)
            return f"checked with {self.runtime} on {sizes} samples: largest difference {self.difference:.2g}"
        return "not checked: pip install onnxruntime" if self.runtime is None else "weights of the network alone"


def export(
    model: Any,
    path: str | Path,
    format: str | None = None,
    part: str | None = None,
    overwrite: bool = False,
    **options: Any,
) -> ExportReport:
    """Exports a trained model to a file that runs without this package.

        zoo.export(zoo.load("runs/diffusion/version_0"), "sampler.onnx", steps=8)

    The batch size is free, and so is the length of sequences. The file is run again before it is written, if its
    runtime is installed, and compared with the model.

    Args:
        model: model of the zoo, or any LightningModule with `input_shape` and `forward`.
        path: file to write.
        format: "onnx", "torch_export" or "safetensors", which holds weights only; by the ending of `path` by default:
            .onnx, .pt2 or .safetensors.
        part: part of the model, see its attribute `exports`; the first by default.
        overwrite: replace the file if it exists.
        **options: keyword arguments of the model's method `export_<part>`.

    Raises:
        UserError: the file exists or has another ending, the model has no such part, it cannot be expressed in the
            format, a package is missing, or the file computes something else than the model.
    """
    path = check_output(Path(path), overwrite)
    format = find_format(path, format)
    chosen = find_part(model, part)
    with eval_mode(model):
        built = build_part(model, chosen, options)
        metadata = describe(model, chosen, built)
        content = FORMATS[format].write(built, json.dumps(metadata))
        runtime = FORMATS[format].runtime()
        difference = _compare(built, FORMATS[format].run(content)) if runtime else None
    with write_output(path, overwrite) as file:
        file.write(content)
    return ExportReport(path, format, len(content), metadata, runtime, difference)


def find_format(path: Path, format: str | None) -> str:
    """Name of the format of a file; raises a `UserError` if its ending is of another one, or of none."""
    if format is not None:
        check_choice("format", format, FORMATS)
        if path.suffix != FORMATS[format].ending:
            raise UserError(f"{path} must end in {FORMATS[format].ending} for the format {format}")
        return format
    for name, known in FORMATS.items():
        if path.suffix == known.ending:
            return name
    endings = ", ".join(f"{known.ending} for {name}" for name, known in FORMATS.items())
    raise UserError(f"{path} must end in one of {endings}")


def part_methods(model: Any) -> dict[str, Callable[..., Export]]:
    """Methods that build the parts of a model, by the names of these; the default first."""
    if not offers(model, Exportable):
        return {"forward": lambda: export_forward(model)}
    return {name: getattr(model, f"export_{name}") for name in model.exports}


def find_part(model: Any, part: str | None) -> str:
    """Name of a part, the default one if it is None; raises a `UserError` if the model has no such part."""
    parts = list(part_methods(model))
    if part is not None and part not in parts:
        raise UserError(f"{type(model).__name__} has no part {part}; it has {', '.join(parts)}")
    return part or parts[0]


def build_part(model: Any, part: str, options: Mapping[str, Any]) -> Export:
    """Builds a part; raises a `UserError` for an option that it does not have."""
    method = part_methods(model)[part]
    known = inspect.signature(method).parameters
    if unknown := next((name for name in options if name not in known), None):
        has = f"its options are {', '.join(known)}" if known else "it has no options"
        raise UserError(f"the part {part} of {type(model).__name__} has no option {unknown}; {has}")
    return method(**options)


def describe(model: Any, part: str, built: Export) -> dict[str, Any]:
    """What a file says about itself, as plain values.

    Returns:
        model_class, part, settings and note; inputs and outputs with their shapes; class_names, preprocessing and
        mirror_symmetric of the training data; the model's config; versions of the packages.

    Raises:
        UserError: the part does not run.
    """
    output = run_once(built, f"the part {part} of {type(model).__name__}")
    values = [(name, value.shape, value.dtype, value.about) for name, value in built.inputs.items()]
    return {
        "model_class": f"{type(model).__module__}.{type(model).__qualname__}",
        "part": part,
        "settings": dict(built.settings),
        "note": built.note,
        "inputs": {name: {**_type(shape, dtype), "about": about} for name, shape, dtype, about in values},
        "outputs": {built.output: _type(built.output_shape, output.dtype)},
        **getattr(model, "trained_on", TrainingData()).plain(),
        "config": json.loads(json.dumps(dict(getattr(model, "hparams", {})), default=str)),
        "versions": dict(versions()),
    }


def _type(shape: tuple[int | str, ...], dtype: torch.dtype) -> dict[str, Any]:
    return {"shape": ["batch", *shape], "dtype": str(dtype).removeprefix("torch.")}


def _compare(built: Export, run: Run) -> float:
    """Largest difference between a file's outputs and the model's; raises a `UserError` if it is too large."""
    largest = 0.0
    for batch, fraction in CHECKED:
        inputs = built.examples(batch, fraction)
        with torch.no_grad():
            expected, found = built.module(*inputs), run(*inputs)
        if found.shape != expected.shape:
            raise UserError(f"the file computes {tuple(found.shape)} and the model {tuple(expected.shape)}")
        difference = (found.to(expected) - expected).abs().max().item()
        allowed = TOLERANCE * max(1.0, expected.abs().max().item())
        if not difference <= allowed:  # NaN is too large as well
            raise UserError(
                f"the file computes something else than the model: the difference is {difference:.2g} on {batch} "
                f"samples, and may be {allowed:.2g}; nothing is written"
            )
        largest = max(largest, difference)
    return largest
