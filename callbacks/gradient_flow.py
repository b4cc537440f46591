"""Vanishing and exploding gradients made visible during training, over depth and over time."""

from __future__ import annotations

import csv
import io
import math
import statistics
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from PIL import Image
from torch import Tensor, nn
from torch.optim import Optimizer

from zoo._lightning import compiled_modules, unscaled_by_step
from zoo.callbacks.run_folder import run_folder
from zoo.errors import UserError
from zoo.files import atomic_write, unused_path
from zoo.gradients import (
    Layer,
    Verdict,
    by_depth,
    dense,
    first_last_ratio,
    layers_of,
    networks_of,
    norms_of,
    parameters_of,
    verdict,
    watch_order,
)
from zoo.plotting.gradient_flow import plot_gradient_flow
from zoo.plotting.images import RGBImage


class Row(NamedTuple):
    """One layer at one step: norms of gradient and weights, and length of the update by the latter.

    nan where there is none; a gradient that is not finite has the norm inf.
    """

    gradient: float
    weight: float
    update: float


NOTHING = Row(math.nan, math.nan, math.nan)
HEADER = "step,network,depth,layer,gradient_norm,weight_norm,update_ratio\n"


@dataclass
class Measurement:
    """One network at one step, on the host.

    Attributes:
        step: optimizer steps before this one, as Lightning counts them.
        network: its name.
        layers: their names, the first one first.
        rows: one for each layer.
        dead_relus: share of the rectified units that were zero throughout the batch; nan without any.
    """

    step: int
    network: str
    layers: tuple[str, ...]
    rows: list[Row]
    dead_relus: float = math.nan

    def with_gradient(self) -> list[Row]:
        """The rows of the layers that have a gradient."""
        return [row for row in self.rows if not math.isnan(row.gradient)]

    def judge(self, **thresholds: float) -> Verdict:
        """The verdict on it; see `zoo.gradients.verdict`."""
        rows = self.with_gradient()
        return verdict([row.gradient for row in rows], [row.weight for row in rows], **thresholds)

    def scalars(self) -> dict[str, float]:
        """What is logged: the finite ones of `first_last_ratio`, `update_ratio` (the layers' median), `dead_relus`."""
        rows = self.with_gradient()
        updates = [row.update for row in rows if math.isfinite(row.update)]
        numbers = {
            "first_last_ratio": first_last_ratio([row.gradient for row in rows]),
            "update_ratio": statistics.median(updates) if updates else math.nan,
            "dead_relus": self.dead_relus,
        }
        return {name: number for name, number in numbers.items() if math.isfinite(number)}


def _lines(measurements: list[Measurement]) -> str:
    """Rows of the table."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    for m in measurements:
        for depth, (layer, row) in enumerate(zip(m.layers, m.rows, strict=True), start=1):
            if not math.isnan(row.gradient):
                numbers = ["" if math.isnan(number) else f"{number:.6g}" for number in row]
                writer.writerow([m.step, m.network, depth, layer, *numbers])
    return file.getvalue()


class _OptimizerStep:
    """The gradients, the weights and the update of one step, measured on the device without waiting for it.

    Args:
        optimizer: that is about to step.
        layers: whose weights it may own.
        scale: that the gradients are still multiplied by, if any.
    """

    def __init__(self, optimizer: Optimizer, layers: list[Layer], scale: Tensor | None) -> None:
        owned = {id(p) for p in parameters_of(optimizer)}
        pairs = [(layer, w) for layer in layers for w in layer.weights if id(w) in owned and w.grad is not None]
        self.layers = [layer for layer, _ in pairs]
        self._weights = [w.detach() for _, w in pairs]
        self._before = [w.clone() for w in self._weights]
        gradients = norms_of([dense(w.grad) for _, w in pairs], double=True)
        self._gradients = gradients if scale is None else [norm / scale for norm in gradients]
        self._sizes = norms_of(self._before)
        self._updates: list[Tensor] = []
        self._handle = optimizer.register_step_post_hook(self._after)

    def _after(self, *_: Any) -> None:
        if self._weights and not self._updates:  # of several steps in one batch the first
            torch._foreach_sub_(self._before, self._weights)
            self._updates = norms_of(self._before)

    def norms(self) -> list[Tensor]:
        """The norms of the gradients, of the weights and of the updates, (layers,) each."""
        gradients = torch.stack(self._gradients)
        weights = torch.stack(self._sizes).to(gradients.dtype)
        updates = torch.stack(self._updates).to(weights) if self._updates else torch.full_like(weights, math.nan)
        return [gradients, weights, updates]

    def remove(self) -> None:
        self._handle.remove()


class _Probe:
    """All hooks of one batch, and what they see.

    Args:
        model: the LightningModule.
        every: its layers.
        due: those to be measured.
        unordered: those of them whose place in the order of execution is not known yet.
        order: of execution; is added to.
    """

    def __init__(
        self, model: nn.Module, every: list[Layer], due: list[Layer], unordered: list[Layer], order: list[nn.Module]
    ) -> None:
        self._due = due
        self._steps: dict[int, _OptimizerStep] = {}
        self._dead: list[tuple[Layer, Tensor, int]] = []
        compiled = compiled_modules(model)
        self._handles = watch_order([la.module for la in unordered if la.module not in compiled], order)
        for module, layer in _rectifiers(model, every):
            if layer in due and module not in compiled:
                self._handles.append(module.register_forward_hook(partial(self._note_dead, layer)))

    def _note_dead(self, layer: Layer, module: nn.Module, inputs: Any, output: Tensor) -> None:
        # Passes that keep no gradient, such as those that only draw samples, are not what is trained here.
        if not torch.compiler.is_compiling() and torch.is_grad_enabled() and output.numel():
            self._dead.append((layer, *_count_dead(output, layer.module)))

    def before_step(self, optimizer: Optimizer, scale: Tensor | None) -> None:
        """Measures the step that the optimizer is about to take, if it is its first in this batch."""
        if id(optimizer) not in self._steps:
            self._steps[id(optimizer)] = _OptimizerStep(optimizer, self._due, scale)

    def remove(self) -> None:
        """Removes all hooks."""
        for handle in self._handles:
            handle.remove()
        for step in self._steps.values():
            step.remove()

    def read(self) -> tuple[dict[Layer, Row], dict[Layer, tuple[int, int]]]:
        """Fetches everything from the device at once.

        Returns:
            For each layer that stepped its row; for each layer with rectifiers behind it, how many of their units are
            dead, of how many.
        """
        norms = [norm for step in self._steps.values() if step.layers for norm in step.norms()]
        if not norms:
            return {}, {}
        counts = [count.to(norms[0].dtype).unsqueeze(0) for _, count, _ in self._dead]
        numbers = iter(torch.cat([*norms, *counts]).tolist())
        parts: dict[Layer, list[Row]] = {}
        for step in self._steps.values():
            columns = [[next(numbers) for _ in step.layers] for _ in Row._fields]
            for layer, *row in zip(step.layers, *columns, strict=True):
                parts.setdefault(layer, []).append(Row(*row))
        dead_units: dict[Layer, tuple[int, int]] = {}
        for layer, _, units in self._dead:
            dead, total = dead_units.get(layer, (0, 0))
            dead_units[layer] = (dead + int(next(numbers)), total + units)
        return {layer: _joined(rows) for layer, rows in parts.items()}, dead_units


def _joined(rows: list[Row]) -> Row:
    """The row of a layer out of those of its weights, whose updates are still lengths."""
    gradient, weight, update = (math.hypot(*column) for column in zip(*rows, strict=True))
    return Row(gradient if math.isfinite(gradient) else math.inf, weight, update / weight if weight else math.nan)


def _rectifies(module: nn.Module) -> bool:
    return isinstance(module, nn.ReLU | nn.ReLU6) or (isinstance(module, nn.LeakyReLU) and module.negative_slope == 0)


def _rectifiers(model: nn.Module, layers: list[Layer]) -> list[tuple[nn.Module, Layer]]:
    """The modules that rectify, each with the layer registered before it: in the same child, if that has layers."""
    found = []
    for index, (path, module) in enumerate(model.named_modules()):
        if _rectifies(module) and layers:
            child = path.partition(".")[0]
            near = [layer for layer in layers if layer.child == child] or layers
            found.append((module, ([layer for layer in near if layer.index < index] or near[:1])[-1]))
    return found


def _count_dead(output: Tensor, layer: nn.Module) -> tuple[Tensor, int]:
    """How many units of an activation are zero for every sample and at every position, and how many units it has.

    Units are the channels behind a convolution, (..., C, *positions), and the last dimension behind anything else,
    (..., D).
    """
    kernel: Any = getattr(layer, "kernel_size", ())
    unit = output.ndim - 1 - (len(kernel) if output.ndim > 2 else 0)
    others = [dim for dim in range(output.ndim) if dim != unit]
    largest = output.detach().amax(others) if others else output.detach()
    return (largest <= 0).sum(), largest.numel()


class GradientFlow(Callback):
    """Shows how the gradient fades or grows on its way through the layers, and says whether it vanishes or explodes.

    For any LightningModule. Every `every_n_steps` optimizer steps, for each network (see `zoo.gradients.networks_of`)
    and each of its layers in the order of execution:

    - the norm of the gradient, as the optimizer's step finds it: summed up over accumulated batches and ranks, without
      the scale of 16-bit training, before the Trainer's clipping. What a module with manual optimization does to its
      gradients by itself, before it calls `step`, is in it;
    - the norm of the weights, and the update ratio: length of the step that the optimizer really took, by that norm.

    For each network: `first_last_ratio` (see there), the median update ratio, and the share of dead ReLUs, units that
    are zero for every sample and at every position of the batch (the last one, where several are accumulated; the
    first rank's). They are seen in modules (`nn.ReLU`, `nn.ReLU6`, `nn.LeakyReLU(0)`), not where a network calls
    `F.relu`.

    The three are logged as `gradient_flow/<network>/...`. In the run's folder, `gradient_flow.csv` has a row for each
    step and layer, and `gradient_flow_<network>.png` is a picture of it. Checkpoints hold the measurements, so the
    table of a run that is taken up from one is whole, without gaps, and nothing in it twice: it goes on with the one in
    the folder where that begins with the same measurements; where it does not, new files get a number. The verdict is
    printed at the first measured step, when it changes, and at the end of training; `verdicts` has them by network. At
    the first step layers may get no gradient by design, behind an output or in a residual block that starts at zero.

    A measurement takes one transfer from the device; between two of them nothing is done and no hook is set. In
    networks that torch.compile runs, the order is that of registration and dead ReLUs are not counted: a hook would be
    ignored or would make it compile again. Where 16-bit gradients overflow, so that the step is not taken, the next one
    is measured instead.

    Args:
        every_n_steps: optimizer steps, as `global_step` counts them, from one measurement to the next. A network that
            steps more rarely is measured at its first step in each such period.
        vanishing: see `zoo.gradients.verdict`, as for the next two.
        exploding: the other threshold of the ratio.
        overwhelming: threshold of the whole gradient's length, in lengths of the weights.
        every_seconds: least time from one picture to the next; there is always one at the end.
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        vanishing: float = 0.01,
        exploding: float = 100.0,
        overwhelming: float = 1000.0,
        every_seconds: float = 60.0,
    ) -> None:
        if every_n_steps < 1:
            raise UserError(f"GradientFlow needs every_n_steps of at least 1, not {every_n_steps}")
        if not 0 <= vanishing < exploding:
            raise UserError(f"GradientFlow needs vanishing below exploding, not {vanishing} and {exploding}")
        self.every_n_steps = every_n_steps
        self.thresholds = {"vanishing": vanishing, "exploding": exploding, "overwhelming": overwhelming}
        self.every_seconds = every_seconds
        self._start()

    def _start(self) -> None:
        self.measurements: list[Measurement] = []
        self.verdicts: dict[str, Verdict] = {}
        self._folder: Path | None = None
        self._table: Path | None = None
        self._drawn = -math.inf
        self._said: dict[str, int] = {}
        self._step = 0
        self._period = -1
        self._layers: list[Layer] = []
        self._networks: dict[str, list[Layer]] = {}
        self._due: set[str] = set()
        self._order: list[nn.Module] = []
        self._ordered: set[str] = set()
        self._probe: _Probe | None = None

    @property
    def verdict(self) -> str:
        """The last verdict, in one line; with several networks, that of each behind its name."""
        if len(self.verdicts) == 1:
            return str(*self.verdicts.values())
        return "; ".join(f"{name} {said}" for name, said in self.verdicts.items()) or "unknown: nothing is measured yet"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._start()
        self._folder = run_folder(trainer)

    # Around a step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not trainer.is_global_zero:
            return
        self._step = trainer.global_step
        period = self._step // self.every_n_steps
        if period != self._period:
            self._period = period
            self._layers = layers_of(pl_module)
            self._networks = networks_of(self._layers, trainer.optimizers)
            measured = {m.network: m.step // self.every_n_steps for m in self.measurements}
            self._due = {name for name in self._networks if measured.get(name) != period}
        if self._due:
            due = [layer for name in self._due for layer in self._networks[name]]
            unordered = [layer for name in self._due - self._ordered for layer in self._networks[name]]
            self._probe = _Probe(pl_module, self._layers, due, unordered, self._order)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._probe:
            self._probe.before_step(optimizer, unscaled_by_step(trainer, optimizer))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._probe is None:
            return
        probe, self._probe = self._probe, None
        probe.remove()
        rows, dead_units = probe.read()
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if scaled and not all(math.isfinite(row.gradient) for row in rows.values()):
            return  # no step was taken: 16-bit training looks for its scale
        for name in sorted(self._due):
            layers = by_depth(self._networks[name], self._order)
            if any(layer in rows for layer in layers):
                self._due.discard(name)
                self._ordered.add(name)
                dead, units = (sum(dead_units.get(layer, (0, 0))[k] for layer in layers) for k in range(2))
                names = tuple(layer.name.removeprefix(f"{name}.") for layer in layers)
                found = [rows.get(layer, NOTHING) for layer in layers]
                self._keep(trainer, Measurement(self._step, name, names, found, dead / units if units else math.nan))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._probe:
            self._probe.remove()
            self._probe = None

    # What is left of it

    def _keep(self, trainer: Trainer, measurement: Measurement) -> None:
        network = measurement.network
        before = self.verdicts.get(network)
        self.measurements.append(measurement)
        self.verdicts[network] = measurement.judge(**self.thresholds)
        if before is None or before.state != self.verdicts[network].state:
            self._say(measurement)
        self._write(measurement)
        scalars = {f"gradient_flow/{network}/{name}": number for name, number in measurement.scalars().items()}
        for logger in trainer.loggers if scalars else []:
            logger.log_metrics(scalars, step=measurement.step)

    def _say(self, measurement: Measurement) -> None:
        network = measurement.network
        self._said[network] = measurement.step
        rank_zero_info(f"Gradient flow in {network} at step {measurement.step} is {self.verdicts[network]}")

    def _last(self) -> dict[str, Measurement]:
        return {measurement.network: measurement for measurement in self.measurements}

    def _write(self, measurement: Measurement) -> None:
        """Adds to the table; it starts with what was measured before the run was taken up from a checkpoint."""
        if self._folder is None:
            return
        if self._table is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / "gradient_flow.csv"
            before = HEADER + _lines(self.measurements[:-1])
            own = len(self.measurements) > 1 and path.is_file() and path.read_text(encoding="utf-8").startswith(before)
            self._table = path if own else unused_path(path)
            with atomic_write(self._table, "w", encoding="utf-8") as file:
                file.write(before)
        with self._table.open("a", encoding="utf-8") as file:
            file.write(_lines([measurement]))

    def pictures(self) -> dict[str, RGBImage]:
        """For each network its picture; see `zoo.plotting.images.plot_gradient_flow`."""
        drawn = {}
        for network, last in self._last().items():
            history = [m for m in self.measurements if m.network == network]
            columns = [dict(zip(m.layers, m.rows, strict=True)) for m in history]
            norms = np.array([[column.get(name, NOTHING).gradient for column in columns] for name in last.layers])
            title = f"Gradient flow in {network} is {self.verdicts[network]}"
            drawn[network] = plot_gradient_flow(norms, [m.step for m in history], last.layers, title)
        return drawn

    def _draw(self) -> dict[str, RGBImage]:
        pictures = self.pictures()
        if self._table:
            for network, picture in pictures.items():
                # Renewed on purpose: the picture shows the run as far as it has come.
                Image.fromarray(picture).save(self._table.with_name(f"{self._table.stem}_{network}.png"))
        self._drawn = time.monotonic()
        return pictures

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        due = time.monotonic() - self._drawn >= self.every_seconds
        if due and self._table and not trainer.sanity_checking and trainer.state.fn == "fit":
            self._draw()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        for measurement in self._last().values():
            if self._said.get(measurement.network) != measurement.step:
                self._say(measurement)
        if not self.measurements:
            rank_zero_warn("GradientFlow measured nothing: no optimizer stepped on a layer with a gradient")
        galleries = [logger for logger in trainer.loggers if hasattr(logger, "log_image")]
        if self._table or galleries:
            for network, picture in self._draw().items():
                for logger in galleries:
                    logger.log_image(f"gradient_flow/{network}", [picture], step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        # Plain values, so that the checkpoint loads with weights_only=True.
        return {"measurements": [{**vars(m), "rows": [tuple(row) for row in m.rows]} for m in self.measurements]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        saved = state_dict["measurements"]
        self.measurements = [
            Measurement(**{**values, "rows": [Row(*row) for row in values["rows"]]}) for values in saved
        ]
        self.verdicts = {network: last.judge(**self.thresholds) for network, last in self._last().items()}
