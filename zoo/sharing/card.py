"""The model card of a saved model: a README.md with the metadata that the Hugging Face Hub reads.

Written from what is known, and from nothing else: a line without a source is left out. The metadata are described in
https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from zoo.contracts import Decoding, Generative, PredictiveClassifier, SequenceMapping, is_conditional, offers
from zoo.registry import entries
from zoo.sharing.training import Training

LIBRARY = "lightning-zoo"
#: Names of metrics on the Hugging Face Hub, where it has one.
HUB_METRICS = {"acc": "accuracy", "perplexity": "perplexity"}
MOST_CLASSES = 20  # that are named
#: Options of a recipe that are told in the card; the others are in training.yaml.
TOLD = ("max_epochs", "max_steps", "precision", "accumulate_grad_batches", "gradient_clip_val")


@dataclass(frozen=True)
class Result:
    """A metric that was measured once, when the training was over.

    Attributes:
        metric: name of the metric, such as "test/acc".
        value: its value.
        floor: value of a perfect model, such as the distance of other real images; None if there is none.
    """

    metric: str
    value: float
    floor: float | None = None


@dataclass(frozen=True)
class Facts:
    """What the folder of a run does not say of a model.

    Attributes:
        command: command that made the model.
        data: sentences on the data, with its license.
        limits: sentences on what the model is not good for.
        results: metrics on a split that nothing was chosen by.
        samples: number of samples of that split; 0 if it is not known.
        remarks: sentences on the results, such as published values beside them.
    """

    command: str = ""
    data: str = ""
    limits: str = ""
    results: Sequence[Result] = ()
    samples: int = 0
    remarks: str = ""


def task_of(model: Any) -> str | None:
    """The task of a model by its name on the Hugging Face Hub, `pipeline_tag`; None if the Hub has none for it."""
    image = len(getattr(model, "input_shape", ())) == 3
    if offers(model, PredictiveClassifier):
        return "image-classification" if image else None
    if offers(model, Generative):
        return "text-generation" if offers(model, Decoding) else "unconditional-image-generation" if image else None
    return None


def model_card(
    model: Any,
    name: str,
    description: Mapping[str, Any],
    training: Training,
    license: str | None = None,
    picture: str | None = None,
    text: str | None = None,
    facts: Facts | None = None,
) -> str:
    """The card as text in Markdown.

    Args:
        model: the model.
        name: name by which it is loaded: the folder, or "owner/name".
        description: entries of `config.json`.
        training: what is known of the training.
        license: identifier of the license.
        picture: name of the file with samples.
        text: a generated text.
        facts: what is known besides.
    """
    facts = facts or Facts()
    parts = [
        f"---\n{yaml.safe_dump(_metadata(model, name, training, license), sort_keys=False, allow_unicode=True)}---",
        f"# {name.rpartition('/')[2]}",
        _summary(model),
        f"![Samples of the model, drawn with seed 0, not selected]({picture})" if picture else "",
        f"Generated with seed 0, not selected:\n\n{_indented(text)}" if text else "",
        f"## Use\n\n{_usage(model, name, description)}",
        f"## Model\n\n{_model(model, description)}",
        _titled("Data", facts.data),
        _titled("Training", _joined(facts.command and f"Made by `{facts.command}`.", _training(training))),
        _titled("Results", _joined(_measured(facts), facts.remarks, _results(description, training))),
        _titled("Limits", facts.limits),
        _titled("Versions", _table(description.get("versions") or {})),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(model: Any, name: str, training: Training, license: str | None) -> dict[str, Any]:
    task = task_of(model)
    known: dict[str, Any] = {
        "library_name": LIBRARY,
        "license": license,
        "pipeline_tag": task,
        "tags": [LIBRARY, "pytorch-lightning", type(model).__name__],
    }
    data = training.section("data")[0].rpartition(".")[2]
    if task and data and training.metrics:
        metrics = [
            {
                "type": HUB_METRICS.get(metric.rpartition("/")[2], metric.rpartition("/")[2]),
                "name": metric,
                "value": value,
            }
            for metric, value in training.metrics.items()
        ]
        dataset = {"name": data, "type": data.lower(), "split": "validation"}
        result = {"task": {"type": task}, "dataset": dataset, "metrics": metrics}
        known["model-index"] = [{"name": name.rpartition("/")[2], "results": [result]}]
    return {key: value for key, value in known.items() if value is not None}


def _summary(model: Any) -> str:
    first = (inspect.getdoc(type(model)) or "").split("\n")[0].rstrip(".")
    return f"`{type(model).__name__}` of {LIBRARY}{f': {first}' if first else ''}."


def _usage(model: Any, name: str, description: Mapping[str, Any]) -> str:
    known = {path for entry in entries("networks") for path in (entry.name, entry.import_path)}
    values = description["hyper_parameters"].items()
    paths = {role: str(value.get("class_path", "")) for role, value in values if isinstance(value, Mapping)}
    own = {role: path for role, path in paths.items() if path and path not in known}
    handed = "".join(f", {role}={path.rpartition('.')[2]}" for role, path in own.items())
    lines = [
        *(["import torch"] if offers(model, Generative) and is_conditional(model) else []),
        "import zoo",
        *(f"from {path.rpartition('.')[0]} import {path.rpartition('.')[2]}" for path in own.values()),
        "",
        f'model = zoo.load("{name}"{handed})',
        *_calls(model, description.get("data") or {}),
    ]
    install = f'`pip install "{LIBRARY}[hub]"`' if "/" in name else f"`pip install {LIBRARY}`"
    package = type(model).__module__.partition(".")[0]
    if package != "zoo":
        install += f", and the package `{package}`, which adds the model"
    return install + "\n\n```python\n" + "\n".join(lines) + "\n```"


def _calls(model: Any, data: Mapping[str, Any]) -> list[str]:
    """Lines of Python that use the model."""
    shape = ", ".join(map(str, getattr(model, "input_shape", ())))
    if offers(model, PredictiveClassifier) and callable(getattr(model, "predict", None)):
        given = '"picture.png")' if data.get("preprocessing") else f"x)  # floats (N, {shape})"
        return [f"predictions = model.predict({given}", "predictions[0].class_name, predictions[0].probabilities"]
    if offers(model, SequenceMapping):
        return ['print(model.predict(["31524", "2026"]))'] if "1" in (data.get("class_names") or ()) else []
    if offers(model, Decoding) and offers(model, Generative):
        return ["print(model.decode(model.sample(1))[0])"]
    if offers(model, Generative):
        of_a_class = ", labels=torch.zeros(16, dtype=torch.int64)" if is_conditional(model) else ""
        return [f"samples = model.sample(16{of_a_class})  # (16, {shape})"]
    return []


def _model(model: Any, description: Mapping[str, Any]) -> str:
    data = description.get("data") or {}
    preprocessing = data.get("preprocessing")
    facts: dict[str, Any] = {
        "class": f"`{description['model_class']}`",
        "trainable parameters": f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,}",
        "input": _shape(getattr(model, "input_shape", ())),
        "classes": _classes(data.get("class_names") or ()),
        "temperature": _temperature(model),
        "preprocessing": preprocessing and ", ".join(f"{key} {_plain(value)}" for key, value in preprocessing.items()),
    }
    return _table(facts) + "\n\nAll hyperparameters are in `config.json`."


def _temperature(model: Any) -> str:
    """Temperature of a calibrated classifier."""
    value = getattr(model, "temperature", 1.0)
    if not offers(model, PredictiveClassifier) or float(value) == 1:
        return ""
    return f"{float(value):.4g}, by which logits are divided; fitted on the validation split"


def _training(training: Training) -> str:
    if not training.config:
        return ""
    data, options = training.section("data")
    trainer = training.config.get("trainer") or {}
    optimizers = {key: value for key, value in training.section("model")[1].items() if key.startswith("optimizer")}
    facts = {
        "recipe": training.recipe,
        "data": data and f"`{data}`",
        "options of the data": ", ".join(
            f"{key} {_plain(value)}" for key, value in options.items() if value is not None
        ),
        **{key: trainer[key] for key in TOLD if trainer.get(key) not in (None, -1, 1)},
        **{key: _optimizer(value) for key, value in optimizers.items() if isinstance(value, Mapping)},
        "seed": training.config.get("seed_everything"),
    }
    command = "To repeat it: `zoo fit --config training.yaml`. Absolute paths in that file are cut to their last part."
    return f"{_table(facts)}\n\n{command}"


def _optimizer(value: Mapping[str, Any]) -> str:
    options = {key: one for key, one in (value.get("init_args") or {}).items() if one not in (None, False)}
    return f"`{value.get('class_path')}`, " + ", ".join(f"{key} {_plain(one)}" for key, one in options.items())


def _results(description: Mapping[str, Any], training: Training) -> str:
    if not training.metrics:
        return ""
    seed = training.config.get("seed_everything")
    run = "one run" if seed is None else f"one run with seed {seed}"
    monitor = description.get("monitor")
    chosen = f" The best checkpoint is chosen by `{monitor['metric']}`." if monitor else ""
    rows = _table({f"`{name}`": f"{value:.6g}" for name, value in training.metrics.items()})
    return f"{rows}\n\nMeasured on validation data in {run}.{chosen}"


def _measured(facts: Facts) -> str:
    """Metrics on a split that nothing was chosen by, each beside its floor."""
    if not facts.results:
        return ""
    split = {"val": "validation"}.get(name := facts.results[0].metric.partition("/")[0], name)
    count = f", {facts.samples:,} samples" if facts.samples else ""
    measured = f"Measured once on the {split} split{count}."
    if all(one.floor is None for one in facts.results):
        rows = [f"| `{one.metric}` | {one.value:.4g} |" for one in facts.results]
        return "\n".join(["| metric | value |", "| --- | --- |", *rows]) + f"\n\n{measured}"
    rows = [
        f"| `{one.metric}` | {one.value:.4g} | {'' if one.floor is None else f'{one.floor:.4g}'} |"
        for one in facts.results
    ]
    head = ["| metric | value | floor |", "| --- | --- | --- |"]
    return "\n".join([*head, *rows]) + f"\n\n{measured} The floor is the value of real data."


def _classes(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_CLASSES} more, in `config.json`" if len(names) > MOST_CLASSES else ""
    return f"{len(names)}: {', '.join(names[:MOST_CLASSES])}{more}" if names else ""


def _shape(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})" if shape else ""


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(facts: Mapping[str, Any]) -> str:
    """A table of two columns without a head; facts that are None or empty are left out."""
    cells = {
        name: " ".join(str(value).split()).replace("|", "\\|") for name, value in facts.items() if value is not None
    }
    rows = [f"| {name} | {cell} |" for name, cell in cells.items() if cell]
    return "\n".join(["| | |", "| --- | --- |", *rows]) if rows else ""


def _joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def _titled(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
