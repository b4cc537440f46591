"""Checks of a model: what every LightningModule of the zoo, and of a plugin, must do."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Collection, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from zoo.testing.answers import difference, explained, first_of, holds, plain
from zoo.testing.inference import check_predictions, check_samples
from zoo.testing.ranks import on_ranks, rank_options
from zoo.testing.runs import SAVED_AFTER, Case, Run, SaveAfter, linked, quiet, run_checks, seeded, train


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
        ContractError: a check fails, an AssertionError; one sentence says what does not hold and how to mend it.
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
    holds(not changed, f"{name} leaves {first_of(changed)} with another requires_grad; restore it after each step")
    owned = {id(p): k for k, o in enumerate(run.trainer.optimizers) for g in o.param_groups for p in g["params"]}
    lost = [n for n, p in after.items() if p.requires_grad and id(p) not in owned]
    holds(
        not lost,
        f"{name} has no optimizer for {first_of(lost)}; add it to configure_optimizers, or set requires_grad False",
    )
    for index, _ in enumerate(run.trainer.optimizers):
        own = [n for n, p in after.items() if owned.get(id(p)) == index]
        moved = any(not torch.equal(after[n], run.before[n]) for n in own)
        which = f"optimizer {index} of {name}" if len(run.trainer.optimizers) > 1 else f"the optimizer of {name}"
        holds(
            moved, f"{which} moves no parameter in eight batches; check that its loss depends on them and that it steps"
        )
    frozen = [n for n, p in after.items() if id(p) in owned and p.requires_grad and id(p) not in run.with_gradient]
    holds(
        not frozen, f"{name} never gives {first_of(frozen)} a gradient; use it in the loss, or set requires_grad False"
    )
    metrics = {metric: value for metric, value in run.trainer.callback_metrics.items() if metric.startswith("train/")}
    holds(
        any("loss" in metric for metric in metrics),
        f"{name} logs no train/loss; log it in training_step: checkpoints and plots look for it",
    )
    bad = [metric for metric, value in run.trainer.callback_metrics.items() if not torch.isfinite(value).all()]
    holds(not bad, f"{name} logs {first_of(bad)} as NaN or Inf after eight batches; leave out what cannot be measured")


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
    holds(not cast, f"{subject.name} changes the dtype of {first_of(cast)} in bf16-mixed; leave parameters as they are")


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
    holds(not odd, f"{name} has the hyperparameter {first_of(odd)}, which is no plain value; {_IGNORE}")
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
        not odd, f"{subject.name} has {first_of(odd)} in its state dict, which is no tensor; use register_buffer for it"
    )


def check_sampling(subject: Subject) -> None:
    """Samples have the right shape and range, are reproducible, and leave training untouched."""
    check_samples(subject.name, *subject.fresh())


def check_prediction(subject: Subject) -> None:
    """A classifier's prediction has probabilities and uncertainties, and leaves training untouched."""
    check_predictions(subject.name, *subject.fresh())


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


def _check_finite(name: str, run: Run, where: str) -> None:
    bad = [k for k, loss in enumerate(run.losses) if not torch.isfinite(loss).all()]
    holds(
        not bad, f"{name} has a loss of NaN or Inf{where}, the first in backward pass {bad and bad[0] + 1}; {_STABLE}"
    )
    broken = [n for n, p in run.model.named_parameters() if not torch.isfinite(p).all()]
    holds(not broken, f"{name} has NaN or Inf{where} in {first_of(broken)}; {_STABLE}")


_STABLE = "lower the learning rate, and check logarithms, divisions and roots"


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
