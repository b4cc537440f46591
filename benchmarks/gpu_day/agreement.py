"""Whether runs resume bit for bit on the device, whether it agrees with the CPU, and where it is waited for."""

from __future__ import annotations

import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from benchmarks.gpu_day.checkout import CHECKOUT
from benchmarks.gpu_day.loops import precision_of
from benchmarks.gpu_day.recipes import RECIPES, Setup, set_up
from benchmarks.gpu_day.results import Options, Part
from zoo import Classifier, Diffusion, Seq2Seq, TransformerLM
from zoo.models.base import eval_mode
from zoo.testing.answers import difference
from zoo.testing.runs import Case, SaveAfter, quiet, train

SYNC = "called a synchronizing CUDA operation"


def parts(options: Options) -> dict[str, Part]:
    """For every model: a resumed run beside a whole one, and the device beside the CPU."""
    found: dict[str, Part] = {}
    for name, recipe in RECIPES.items():
        found[f"resume: {name}"] = partial(resume, recipe, options)
        found[f"CPU and {options.device}: {name}"] = partial(compare_with_cpu, recipe, options)
    return found


def resume(recipe: str, options: Options) -> dict[str, Any]:
    """Trains for eight batches, twice, and once by resuming from the checkpoint after the third."""
    setup = set_up(recipe, options)
    case = Case(setup.model, setup.data)
    with tempfile.TemporaryDirectory() as name:
        folder, path = Path(name), Path(name) / "third.ckpt"
        run = partial(train, case, folder, accelerator=options.accelerator)
        whole = run(callbacks=[SaveAfter(path)]).state
        again = run().state
        resumed = run(seed=1, resume=path).state
    return {
        "same again": difference(whole, again) is None,
        "resumed the same": difference(whole, resumed) is None,
        "first difference": difference(whole, resumed) or "",
        "largest difference again": largest_difference(whole, again),
        "largest difference resumed": largest_difference(whole, resumed),
        "data": setup.source,
    }


def largest_difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
    """Largest absolute difference between tensors of the same name."""
    pairs = [
        (a, second[name]) for name, a in first.items() if isinstance(a, Tensor) and isinstance(second.get(name), Tensor)
    ]
    return max(((a.double().cpu() - b.double().cpu()).abs().max().item() for a, b in pairs if a.numel()), default=0.0)


def compare_with_cpu(recipe: str, options: Options) -> dict[str, Any]:
    """Samples or outputs, likelihoods and validation metrics of one model on the CPU and on the device."""
    # One probe: the exact divergence takes minutes on the CPU.
    setup = set_up(recipe, options, {"likelihood_probes": 1} if recipe == RECIPES["Diffusion"] else {})
    with tempfile.TemporaryDirectory() as folder, precision_of("fp32"):
        case = Case(setup.model, setup.data)
        model = train(case, Path(folder), accelerator=options.accelerator, limit_val_batches=0).model.cpu()
        on_cpu = _answers(model, setup, Options("cpu", options.tiny, options.data), folder)
        on_device = _answers(model, setup, options, folder)
    differences = {
        name: f"{(a - on_device[name]).abs().max().item():.1e} of {a.abs().max().item():.3g}"
        for name, a in on_cpu.items()
    }
    return {"largest difference of largest value": differences, "data": setup.source}


def _answers(model: Any, setup: Setup, options: Options, folder: str) -> dict[str, Tensor]:
    """What a model says on a device, float64 on the CPU, by name."""
    data = setup.data()
    with quiet():
        data.setup("validate")
    x, y = next(iter(data.val_dataloader()))
    x, y = (part[:8].to(options.device) for part in (x, y))
    if x.dtype == torch.uint8:
        x = x / 127.5 - 1
    model = model.to(options.device)
    found: dict[str, Tensor] = {}
    with eval_mode(model):
        if isinstance(model, Classifier | TransformerLM):
            found["logits"] = model(x)
        elif isinstance(model, Seq2Seq):
            found["decoded tokens"] = model.greedy_decode(x)
        else:
            found["samples"] = model.sample(8, seeds=torch.arange(8))
        if isinstance(model, Diffusion):
            labels = y if model.conditional else None
            found["log-likelihood"] = model.log_likelihood(x, labels, torch.Generator().manual_seed(0)).log_prob
    with quiet():
        trainer = setup.trainer(options, folder, limit_val_batches=2)
        metrics = trainer.validate(model, datamodule=setup.data(), verbose=False)[0]
    found |= {name: torch.tensor(value) for name, value in metrics.items() if "per_second" not in name}
    return {name: value.detach().double().cpu() for name, value in found.items()}


# Waiting for the device


def sync_parts(options: Options) -> dict[str, Part]:
    """For every model: the places that wait for the device in 60 training steps."""
    return {name: partial(count_syncs, recipe, options) for name, recipe in RECIPES.items()}


def count_syncs(recipe: str, options: Options) -> dict[str, Any]:
    """Trains after a warm-up under torch's sync debug mode, with a logger and without validation."""
    setup, warmup, steps = set_up(recipe, options), options.steps(20, 1), options.steps(60, 2)
    model, data = setup.build()
    places: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, quiet():
        watch = WatchSyncs(warmup, warmup + steps, places, options.device == "cuda")
        trainer = setup.trainer(
            options,
            folder,
            max_steps=warmup + steps + 1,
            limit_val_batches=0,
            logger=CSVLogger(folder),
            callbacks=[watch],
        )
        trainer.fit(model, datamodule=data)
    found = [f"{count} x {place}" for place, count in places.most_common(12)]
    return {"steps": steps, "syncs": places.total(), "per step": round(places.total() / steps, 2), "places": found}


class WatchSyncs(Callback):
    """Counts the synchronizations from one step to another by the lines that cause them."""

    def __init__(self, first: int, last: int, places: Counter[str], cuda: bool) -> None:
        self.first, self.last, self.places, self.cuda = first, last, places, cuda
        self._watching: Any = nullcontext()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step = trainer.fit_loop.total_batch_idx
        if step == self.first:
            self._watching = recorded_syncs(self.places, self.cuda)
            self._watching.__enter__()
        elif step == self.last:
            self._watching.__exit__(None, None, None)
            self._watching = nullcontext()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._watching.__exit__(None, None, None)


@contextmanager
def recorded_syncs(places: Counter[str], cuda: bool = True) -> Iterator[None]:
    """Counts warnings of synchronizing operations inside the context by the innermost lines that cause them.

    Args:
        places: counter that is filled: the line itself, and the innermost line of this repository.
        cuda: switch on the warnings.
    """

    def record(message: Warning | str, *_: Any, **__: Any) -> None:
        if SYNC in str(message):
            frames = [f for f in traceback.extract_stack()[:-1] if not f.filename.endswith("warnings.py")]
            own = [f for f in frames if f.filename.startswith(str(CHECKOUT)) and "/.venv" not in f.filename]
            lines = [f"{_short(f.filename)}:{f.lineno} {f.line}" for f in (frames[-1], *own[-1:])]
            places[", called by ".join(dict.fromkeys(lines))] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = record  # which catch_warnings restores
        if cuda:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            if cuda:
                torch.cuda.set_sync_debug_mode("default")


def _short(path: str) -> str:
    """A path below the checkout or the folder of installed packages."""
    return path.removeprefix(f"{CHECKOUT}/").rpartition("site-packages/")[2]
