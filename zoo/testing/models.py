"""Checks of a model: what every LightningModule of the zoo, and of a plugin, must do."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Collection, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from zoo.contracts import (
    ClassPrediction,
    Decoding,
    Generative,
    Interpolating,
    PredictiveClassifier,
    Trajectories,
    accepts,
    is_conditional,
    lacking,
    offers,
)
from zoo.seeding import capture_random_state
from zoo.testing.ranks import on_ranks, rank_options
from zoo.testing.runs import (
    SAVED_AFTER,
    Case,
    Run,
    SaveAfter,
    difference,
    explained,
    holds,
    linked,
    plain,
    quiet,
    run_checks,
    seeded,
    train,
)

N = 6  # samples that are drawn


def check_model(
    cls: Callable[..., LightningModule],
    data: Any = None,
    *,
    processes: int = 2,
    checks: Collection[str] | None = None,
    **arguments: Any,
) -> None:
    """Checks that a model keeps the contracts of the zoo, by short runs on the CPU.

    | check | what must hold |
    | --- | --- |
    | training | losses are finite, parameters move, every trainable parameter has an optimizer |
    | bare_data | it trains on a data module that has batches and nothing else |
    | mixed_precision | losses are finite in bf16-mixed, and parameters stay in float32 |
    | resume | a run that is resumed in the middle of an epoch ends with the same weights, bit for bit |
    | checkpoint | it loads with `weights_only=True`, gives the same weights, and its hyperparameters are plain values |
    | state | the state dict holds tensors only |
    | sampling | (a model with `sample`) sampling leaves training untouched, is reproducible, and has the right shapes |
    | prediction | (a classifier) probabilities and uncertainties have the right shapes, and training is untouched |
    | processes | all ranks end with the same parameters and metrics, and draw random numbers of their own |

    Example:
        >>> def test_my_model_keeps_the_contract():
        ...     check_model(MyModel, data=MyData, width=16)

    Args:
        cls: class of the model, or a function that builds it.
        data: class of the data module, or a function without arguments that builds it, or a data module, which is
            copied for every run (default: `Digits` with a batch size of 32). Make it small: each check trains for
            eight batches at most.
        processes: number of processes of the check of that name; 1 leaves it out.
        checks: names of the checks to run; None for all.
        **arguments: arguments of the model; `input_shape`, `num_classes`, `tokenizer` and `output_length` come from the
            data, as on the command line.

    Raises:
        AssertionError: a check fails; one sentence says what does not hold and how to mend it.
        UserError: there is no check of a name.
    """
    if data is None:
        from zoo.datamodules import Digits

        data = partial(Digits, batch_size=32)
    case = Case(cls, data, arguments, name=getattr(cls, "__name__", type(cls).__name__))
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(case, Path(folder), processes)
        with explained(f"{case.name} cannot be built", "name its other arguments in check_model"), quiet(), seeded(0):
            case.build()
        run_checks(MODEL_CHECKS, checks, subject)


class Subject:
    """A model that is checked, and one uninterrupted run that several checks look at.

    Args:
        case: model and data.
        folder: folder for checkpoints.
        processes: number of processes.
    """

    def __init__(self, case: Case, folder: Path, processes: int) -> None:
        self.case, self.folder, self.processes = case, folder, processes
        self.name = case.name
        self.path = folder / "mid.ckpt"

    @cached_property
    def whole(self) -> Run:
        """A run of two epochs, which writes a checkpoint after its third batch."""
        with explained(f"{self.name} does not train", "run Trainer.fit with it by itself to see the whole error"):
            return train(self.case, self.folder, callbacks=[SaveAfter(self.path)])

    @cached_property
    def checkpoint(self) -> dict[str, Any]:
        """The checkpoint of that run."""
        holds(self.whole and self.path.is_file(), f"{self.name} ends its training before the third batch")
        remedy = "put only tensors, numbers, strings, lists and dictionaries into it and into the hyperparameters"
        with explained(f"the checkpoint of {self.name} does not load with weights_only=True", remedy):
            return torch.load(self.path, weights_only=True)

    def fresh(self) -> tuple[Any, Any]:
        """A new model, in training mode but for its last submodule, and its data."""
        with quiet(), seeded(0):
            model, data = self.case.build()
        model.train()
        list(model.modules())[-1].eval()
        return model, data


def check_training(subject: Subject) -> None:
    """Losses are finite, parameters move, and every trainable parameter belongs to an optimizer."""
    name, run = subject.name, subject.whole
    holds(run.losses, f"{name} has no backward pass; return a loss from training_step, or call manual_backward")
    _check_finite(name, run, "")
    after = dict(run.model.named_parameters())
    changed = [n for n, p in after.items() if p.requires_grad != run.required[n]]
    holds(not changed, f"{name} leaves {_first(changed)} with another requires_grad; restore it after each step")
    owned = {id(p): k for k, o in enumerate(run.trainer.optimizers) for g in o.param_groups for p in g["params"]}
    lost = [n for n, p in after.items() if p.requires_grad and id(p) not in owned]
    holds(
        not lost,
        f"{name} has no optimizer for {_first(lost)}; add it to configure_optimizers, or set requires_grad False",
    )
    for index, _ in enumerate(run.trainer.optimizers):
        own = [n for n, p in after.items() if owned.get(id(p)) == index]
        moved = any(not torch.equal(after[n], run.before[n]) for n in own)
        which = f"optimizer {index} of {name}" if len(run.trainer.optimizers) > 1 else f"the optimizer of {name}"
        holds(
            moved, f"{which} moves no parameter in eight batches; check that its loss depends on them and that it steps"
        )
    frozen = [n for n, p in after.items() if id(p) in owned and p.requires_grad and id(p) not in run.with_gradient]
    holds(not frozen, f"{name} never gives {_first(frozen)} a gradient; use it in the loss, or set requires_grad False")
    metrics = {metric: value for metric, value in run.trainer.callback_metrics.items() if metric.startswith("train/")}
    holds(
        any("loss" in metric for metric in metrics),
        f"{name} logs no train/loss; log it in training_step: checkpoints and plots look for it",
    )
    bad = [metric for metric, value in run.trainer.callback_metrics.items() if not torch.isfinite(value).all()]
    holds(not bad, f"{name} logs {_first(bad)} as NaN or Inf after eight batches; leave out what cannot be measured")


def check_bare_data(subject: Subject) -> None:
    """Trains and validates on a data module without optional attributes."""
    remedy = "ask zoo.contracts.offers before you use an attribute of the data module, and work without it"
    with explained(f"{subject.name} does not train on a data module that has only batches", remedy):
        run = train(subject.case, subject.folder, bare=True, max_epochs=1)
    _check_finite(subject.name, run, " on a data module that has only batches")


def check_mixed_precision(subject: Subject) -> None:
    """Trains in bf16-mixed with finite losses and parameters in float32."""
    remedy = "cast to float32 what needs it, or disable autocast around it"
    with explained(f"{subject.name} does not train in bf16-mixed", remedy):
        run = train(subject.case, subject.folder, max_epochs=1, precision="bf16-mixed")
    _check_finite(subject.name, run, " in bf16-mixed")
    before = {n: p.dtype for n, p in run.before.items()}
    cast = [n for n, p in run.model.named_parameters() if p.dtype != before[n]]
    holds(not cast, f"{subject.name} changes the dtype of {_first(cast)} in bf16-mixed; leave parameters as they are")


def check_resume(subject: Subject) -> None:
    """A run that is resumed in the middle of an epoch ends as the uninterrupted one, bit for bit."""
    whole, _ = subject.whole, subject.checkpoint
    remedy = "restore in on_load_checkpoint what on_save_checkpoint saves, and only that"
    with explained(f"{subject.name} does not resume from its checkpoint", remedy):
        # Another seed, as the process that resumes has other random numbers.
        resumed = train(subject.case, subject.folder, seed=1, resume=subject.path)
    different = difference(whole.state, resumed.state)
    holds(
        different is None,
        f"{subject.name} resumed after batch {SAVED_AFTER} ends with another {different}; subclass "
        "zoo.models.base.ZooModule, or save in on_save_checkpoint everything that training depends on: counters, "
        "buffers, random states (zoo.seeding)",
    )


def check_checkpoint(subject: Subject) -> None:
    """A checkpoint is read safely in a fresh process and gives the same model."""
    name, checkpoint = subject.name, subject.checkpoint
    hparams = checkpoint.get("hyper_parameters", {})
    odd = [key for key, value in hparams.items() if not plain(value)]
    holds(not odd, f"{name} has the hyperparameter {_first(odd)}, which is no plain value; {_IGNORE}")
    loader = subject.case.model
    if not inspect.isclass(loader):  # a function that builds the model
        loader = type(subject.whole.model)
    data = subject.fresh()[1]
    given = linked(subject.case.model, data, subject.case.arguments)
    again = {argument: value for argument, value in given.items() if argument not in hparams}
    with explained(f"{name} is not built from its checkpoint", "call save_hyperparameters in its constructor"), quiet():
        model = loader.load_from_checkpoint(subject.path, map_location="cpu", weights_only=True, **again)
    different = difference(checkpoint["state_dict"], model.state_dict())
    holds(different is None, f"{name} loaded from a checkpoint has another {different}; {_REGISTER}")


_IGNORE = "name it in the argument ignore of save_hyperparameters, and build it from plain values"
_REGISTER = "build the network from the hyperparameters alone"


def check_state(subject: Subject) -> None:
    """The state dict holds tensors only, so that safetensors can hold it."""
    odd = [key for key, value in subject.checkpoint["state_dict"].items() if not isinstance(value, Tensor)]
    holds(
        not odd, f"{subject.name} has {_first(odd)} in its state dict, which is no tensor; use register_buffer for it"
    )


def check_sampling(subject: Subject) -> None:
    """Samples have the right shape and range, are reproducible, and leave training untouched."""
    model, data = subject.fresh()
    if not offers(model, Generative):
        return
    name, sample = subject.name, cast(Any, model.sample)  # with arguments of its own
    labels = torch.arange(N) % model.num_classes if is_conditional(model) else None
    remedy = "sample takes n and the keyword arguments labels and generator, and needs no Trainer"
    with explained(f"{name} does not sample", remedy):
        first = _untouched(name, model, lambda: sample(N, labels=labels, generator=_generator()))
        second = sample(N, labels=labels, generator=_generator())
    _check_samples(name, model, data, first)
    holds(
        torch.equal(first, second), f"{name} draws other samples from the same generator; draw from it and nothing else"
    )
    if accepts(sample, "seeds"):
        seeds = torch.arange(N)
        with explained(f"{name} does not sample by seeds", "seeds is int64 (n,), a seed for each sample"):
            whole = sample(N, labels=labels, seeds=seeds)
            part = sample(2, labels=None if labels is None else labels[2:4], seeds=seeds[2:4])
        close = torch.allclose(whole[2:4], part, rtol=1e-3, atol=1e-3)
        holds(close, f"{name} draws other samples by the same seeds in another batch; use zoo.seeding.SampleNoise")
    _check_histories(name, model, data)


def _check_samples(name: str, model: Any, data: Any, samples: Tensor) -> None:
    """Shape, range and gradient of samples."""
    holds(not samples.requires_grad, f"{name} draws samples with gradients; use torch.no_grad in sample")
    if offers(model, Decoding):
        whole = samples.ndim == 2 and len(samples) == N and not samples.is_floating_point()
        holds(whole, f"{name} draws {_described(samples)}; return tokens, int64 ({N}, T) for n={N}")
        texts = model.decode(samples)
        right = isinstance(texts, list) and len(texts) == N and all(isinstance(text, str) for text in texts)
        holds(right, f"{name} does not decode {N} samples to {N} strings; decode(tokens) returns a list of str")
        return
    shape = (N, *data.input_shape)
    holds(
        samples.shape == shape and samples.is_floating_point(),
        f"{name} draws {_described(samples)}; return floats {shape} for n={N}",
    )
    holds(samples.isfinite().all(), f"{name} draws samples with NaN or Inf; check them without training")
    if len(data.input_shape) == 3:
        low, high = samples.min().item(), samples.max().item()
        holds(low >= -1 and high <= 1, f"{name} draws images from {low:.3g} to {high:.3g}; clamp them to [-1, 1]")


def _check_histories(name: str, model: Any, data: Any) -> None:
    """Shapes of trajectories and interpolations, if the model has them."""
    labels = torch.zeros(2, dtype=torch.int64) if is_conditional(model) else None
    shape = tuple(data.input_shape)
    if offers(model, Trajectories):
        options = {"frames": 3} if accepts(model.trajectory, "frames") else {}
        with explained(f"{name} has no trajectory of two samples", "trajectory takes n, labels and generator"):
            states = model.trajectory(2, labels=labels, generator=_generator(), **options)
        inner = ", ".join(map(str, shape))
        right = states.ndim == len(shape) + 2 and states.shape[1:] == (2, *shape)
        holds(right, f"{name} has a trajectory of {_described(states)}; return (frames, 2, {inner}) for n=2")
    if offers(model, Interpolating):
        with explained(f"{name} does not interpolate", "interpolate takes rows, steps, labels and generator"):
            between = model.interpolate(2, 3, labels=labels, generator=_generator())
        holds(between.shape == (2, 3, *shape), f"{name} interpolates {_described(between)}; return {(2, 3, *shape)}")


def check_prediction(subject: Subject) -> None:
    """A classifier's prediction has probabilities and uncertainties, and leaves training untouched."""
    model, data = subject.fresh()
    if not offers(model, PredictiveClassifier):
        return
    name = subject.name
    x = torch.rand(N, *data.input_shape, generator=_generator()) * 2 - 1
    with explained(f"{name} does not predict", "predictive(x, seed) takes samples and needs no Trainer"):
        first = _untouched(name, model, lambda: model.predictive(x, seed=1))
        second = model.predictive(x, seed=1)
    missing = lacking(first, ClassPrediction)
    holds(not missing, f"{name} predicts without {_first(missing)}; return a zoo.contracts.ClassPrediction")
    p = first.probabilities
    total = p.shape == (N, data.num_classes) and torch.allclose(p.sum(1), torch.ones(N), atol=1e-4) and (p >= 0).all()
    holds(total, f"{name} predicts {_described(p)}; return probabilities ({N}, {data.num_classes}) with rows of sum 1")
    for part in ("entropy", "mutual_information"):
        value = getattr(first, part)
        right = value.shape == (N,) and value.isfinite().all() and (value >= -1e-5).all()
        holds(right, f"{name} predicts {part} {_described(value)}; return {N} numbers of 0 or more, in nats")
    holds(
        torch.equal(p, second.probabilities), f"{name} predicts something else by the same seed; seed its dropout masks"
    )


def check_processes(subject: Subject) -> None:
    """All ranks end with the same parameters and metrics, and draw random numbers of their own."""
    name, processes = subject.name, subject.processes
    if processes < 2:
        return
    remedy = "use every parameter in each loss, and call the same collectives on every rank"
    with explained(f"{name} does not train on {processes} processes", remedy):
        first, *others = on_ranks(partial(_train_on_rank, subject.case, subject.folder, processes), processes)
    for other in others:
        different = difference(first["parameters"], other["parameters"])
        holds(different is None, f"{name} ends with another {different} on another rank; {_SYNCHRONIZE}")
        different = difference(first["metrics"], other["metrics"])
        holds(
            different is None,
            f"{name} logs another {different} on another rank; log torchmetrics objects, or use sync_dist=True",
        )
        holds(
            first["random"] != other["random"],
            f"{name} draws the same random numbers on every rank; subclass zoo.models.base.ZooModule, or in "
            "on_train_start call torch.manual_seed(torch.initial_seed() + self.global_rank)",
        )


_SYNCHRONIZE = "change parameters by optimizer steps alone, in which gradients are averaged, or alike on every rank"


def _train_on_rank(case: Case, folder: Path, processes: int) -> dict[str, Any]:
    """What a rank finds after a short run."""
    last = DrawAtEnd()
    run = train(case, folder, callbacks=[last], max_epochs=1, **rank_options(processes))
    metrics = {n: v.item() for n, v in run.trainer.callback_metrics.items() if not n.startswith("train/")}
    return {"parameters": dict(run.model.state_dict()), "metrics": metrics, "random": last.number}


class DrawAtEnd(Callback):
    """Draws a random number at the end of training."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.number = torch.rand(()).item()


# Parts


def _untouched(name: str, model: Any, call: Callable[[], Any]) -> Any:
    """Calls a function that must change neither modes, parameters nor the global random state."""
    modes = {n: m.training for n, m in model.named_modules()}
    state = {n: v.clone() if isinstance(v, Tensor) else v for n, v in model.state_dict().items()}
    grads = {n: p.requires_grad for n, p in model.named_parameters()}
    random = capture_random_state(torch.device("cpu"))
    result = call()
    changed = [n or "the model" for n, m in model.named_modules() if m.training != modes[n]]
    holds(not changed, f"{name} leaves {_first(changed)} in another mode; use zoo.models.base.eval_mode")
    library = (difference(random, capture_random_state(torch.device("cpu"))) or "").split(".")[0]
    holds(not library, f"{name} changes the global random state of {library}; draw from the generator or by seeds")
    different = difference(state, dict(model.state_dict()))
    holds(different is None, f"{name} changes {different} by sampling or predicting; change nothing but in training")
    changed = [n for n, p in model.named_parameters() if p.requires_grad != grads[n]]
    holds(not changed, f"{name} leaves {_first(changed)} with another requires_grad; restore it")
    return result


def _check_finite(name: str, run: Run, where: str) -> None:
    bad = [k for k, loss in enumerate(run.losses) if not torch.isfinite(loss).all()]
    holds(
        not bad, f"{name} has a loss of NaN or Inf{where}, the first in backward pass {bad and bad[0] + 1}; {_STABLE}"
    )
    broken = [n for n, p in run.model.named_parameters() if not torch.isfinite(p).all()]
    holds(not broken, f"{name} has NaN or Inf{where} in {_first(broken)}; {_STABLE}")


_STABLE = "lower the learning rate, and check logarithms, divisions and roots"


def _first(names: list[str]) -> str:
    """The first of several names, and how many there are."""
    more = len(names) - 1
    return f"{names[0]}{f' and {more} more' if more else ''}" if names else ""


def _described(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


#: Checks of `check_model`, by name, in the order in which they run.
MODEL_CHECKS: Mapping[str, Callable[[Subject], None]] = {
    "training": check_training,
    "bare_data": check_bare_data,
    "mixed_precision": check_mixed_precision,
    "resume": check_resume,
    "checkpoint": check_checkpoint,
    "state": check_state,
    "sampling": check_sampling,
    "prediction": check_prediction,
    "processes": check_processes,
}
