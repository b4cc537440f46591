"""Vanishing and exploding gradients, measured during training over depth and steps."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from zoo._lightning import unscaled_by_step
from zoo.callbacks.gradient_probe import EMPTY_ROW, BatchProbe, Measurement, Row
from zoo.callbacks.run_folder import run_folder, takes_part
from zoo.contracts import ImageLogger, offers
from zoo.errors import UserError
from zoo.files import atomic_write, unused_path
from zoo.gradients import Layer, Verdict, find_layers, group_networks, sort_by_execution
from zoo.plotting.gradient_flow import plot_gradient_flow
from zoo.plotting.images import RGBImage, save_png

MOST = 500  # measurements of a network that are kept in memory and in checkpoints
HEADER = "step,network,depth,layer,gradient_norm,weight_norm,update_ratio\n"


class GradientFlow(Callback):
    """Measures gradient norms by depth and reports whether gradients vanish or explode.

    For any LightningModule. Every `every_n_steps` optimizer steps, for each network (see
    `zoo.gradients.group_networks`) and each of its layers in order of execution:

    - gradient norm, as the optimizer's step finds it: accumulated over batches, reduced over ranks, without the loss
      scale of 16-bit precision, before the Trainer's clipping. In manual optimization it includes what the module does
      to its gradients before it calls `step`;
    - weight norm, and update ratio: norm of the update that the optimizer made, divided by the weight norm.

    For each network: `first_last_ratio` (see `zoo.gradients.first_last_ratio`), the median update ratio, and the
    fraction of dead ReLUs, units that are zero for every sample and at every position of the batch (with accumulation,
    of the last batch; on rank 0). ReLUs are found as modules (`nn.ReLU`, `nn.ReLU6`, `nn.LeakyReLU(0)`), not as calls
    of `F.relu`.

    These three are logged as `gradient_flow/<network>/...`. The run's folder gets `gradient_flow.csv`, with a row per
    step and layer, and `gradient_flow_<network>.png`. The verdict is printed at the first measured step, when it
    changes, and at the end of training; `verdicts` holds it for each network. At the first step layers can have no
    gradient by design: those before a residual block or an output layer that is initialized to zero.

    The table of a resumed run is complete and has no duplicates: it goes on where the checkpoint was written, if the
    file has the same rows up to there. Otherwise a new file with a number begins with the measurements in the
    checkpoint. These are at most `MOST` of a network, from which the plot is made: every one, every second, every
    fourth of the run, and the last, so that neither memory nor checkpoints grow with its length.

    Under FSDP all ranks measure together, and the norms are those of the whole tensors.

    A measurement costs one transfer from the device; between measurements there are no hooks and no cost. In compiled
    networks the layers are in order of registration and dead ReLUs are not counted, because torch.compile ignores hooks
    or recompiles for them. If 16-bit gradients overflow, so that the step is skipped, the next step is measured.

    Args:
        every_n_steps: optimizer steps between measurements, as `global_step` counts them. A network that steps less
            often is measured at its first step in each such period.
        vanishing: `first_last_ratio` below which gradients are called vanishing; see `zoo.gradients.verdict`.
        exploding: `first_last_ratio` above which gradients are called exploding.
        max_relative_norm: gradient norm divided by weight norm, above which gradients are called exploding.
        every_seconds: minimum time between plots, in seconds; the last plot is always drawn after training.
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        vanishing: float = 0.01,
        exploding: float = 100.0,
        max_relative_norm: float = 1000.0,
        every_seconds: float = 60.0,
    ) -> None:
        if every_n_steps < 1:
            raise UserError(f"GradientFlow needs every_n_steps of at least 1, not {every_n_steps}")
        if not 0 <= vanishing < exploding:
            raise UserError(f"GradientFlow needs vanishing below exploding, not {vanishing} and {exploding}")
        self.every_n_steps = every_n_steps
        self.thresholds = {"vanishing": vanishing, "exploding": exploding, "max_relative_norm": max_relative_norm}
        self.every_seconds = every_seconds
        self._reset()

    def _reset(self) -> None:
        self.measurements: list[Measurement] = []
        self.verdicts: dict[str, Verdict] = {}
        self._folder: Path | None = None
        self._table: Path | None = None
        self._written = Written()
        self._last_plot = -math.inf
        self._reported: dict[str, int] = {}
        self._step = 0
        self._period = -1
        self._layers: list[Layer] = []
        self._networks: dict[str, list[Layer]] = {}
        self._due: set[str] = set()
        self._order: list[nn.Module] = []
        self._ordered: set[str] = set()
        self._probe: BatchProbe | None = None

    @property
    def verdict(self) -> str:
        """Latest verdict in one line; with several networks, one for each, after the network's name."""
        if len(self.verdicts) == 1:
            return str(*self.verdicts.values())
        verdicts = [f"{network} {verdict}" for network, verdict in self.verdicts.items()]
        return "; ".join(verdicts) or "unknown: nothing is measured yet"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._reset()
        folder = run_folder(trainer)  # on every rank
        self._folder = folder if trainer.is_global_zero else None

    # Measurement

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not takes_part(trainer):
            return
        self._step = trainer.global_step
        period = self._step // self.every_n_steps
        if period != self._period:
            self._period = period
            self._layers = find_layers(pl_module)
            self._networks = group_networks(self._layers, trainer.optimizers)
            measured = {m.network: m.step // self.every_n_steps for m in self.measurements}
            self._due = {name for name in self._networks if measured.get(name) != period}
        if self._due:
            # In the same order on all ranks, whose norms of shards are added up.
            due = [layer for name in sorted(self._due) for layer in self._networks[name]]
            unordered = [layer for name in sorted(self._due - self._ordered) for layer in self._networks[name]]
            self._probe = BatchProbe(pl_module, self._layers, due, unordered, self._order)

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
        rows, units = probe.read()
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if scaled and not all(math.isfinite(row.gradient) for row in rows.values()):
            return  # the GradScaler has skipped the step
        for name in sorted(self._due):
            layers = sort_by_execution(self._networks[name], self._order)
            if any(layer in rows for layer in layers):
                self._due.discard(name)
                self._ordered.add(name)
                dead, total = (sum(units.get(layer, (0, 0))[k] for layer in layers) for k in range(2))
                names = tuple(layer.name.removeprefix(f"{name}.") for layer in layers)
                found = [rows.get(layer, EMPTY_ROW) for layer in layers]
                self._record(trainer, Measurement(self._step, name, names, found, dead / total if total else math.nan))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._probe:
            self._probe.remove()
            self._probe = None

    # Output

    def _record(self, trainer: Trainer, measurement: Measurement) -> None:
        """Keeps a measurement, and writes it to the table and the loggers."""
        network = measurement.network
        before = self.verdicts.get(network)
        measurement.number = max((m.number + 1 for m in self.measurements if m.network == network), default=0)
        self.measurements = _thinned([*self.measurements, measurement], network)
        self.verdicts[network] = measurement.verdict(**self.thresholds)
        if before is None or before.state != self.verdicts[network].state:
            self._report(measurement)
        self._write(measurement)
        scalars = {f"gradient_flow/{network}/{name}": scalar for name, scalar in measurement.scalars().items()}
        for logger in trainer.loggers if scalars else []:
            logger.log_metrics(scalars, step=measurement.step)

    def _report(self, measurement: Measurement) -> None:
        network = measurement.network
        self._reported[network] = measurement.step
        rank_zero_info(f"Gradient flow in {network} at step {measurement.step} is {self.verdicts[network]}")

    def _latest(self) -> dict[str, Measurement]:
        """Last measurement of each network."""
        return {measurement.network: measurement for measurement in self.measurements}

    def _write(self, measurement: Measurement) -> None:
        """Appends a measurement to the table, which begins with those from before the run was resumed."""
        if self._folder is None:
            return
        if self._table is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / "gradient_flow.csv"
            before = self._written.of(path)
            if before is None:
                before = (HEADER + _csv_rows(self.measurements[:-1])).encode()
                path = unused_path(path)
            self._table, self._written = path, Written()
            with atomic_write(path, "wb") as file:
                file.write(before)
            self._written.add(before)
        rows = _csv_rows([measurement]).encode()
        with self._table.open("ab") as file:
            file.write(rows)
        self._written.add(rows)

    def render(self) -> dict[str, RGBImage]:
        """Plots each network; see `zoo.plotting.gradient_flow.plot_gradient_flow`."""
        plots = {}
        for network, last in self._latest().items():
            history = [m for m in self.measurements if m.network == network]
            columns = [dict(zip(m.layers, m.rows, strict=True)) for m in history]
            norms = np.array([[column.get(name, EMPTY_ROW).gradient for column in columns] for name in last.layers])
            title = f"Gradient flow in {network} is {self.verdicts[network]}"
            plots[network] = plot_gradient_flow(norms, [m.step for m in history], last.layers, title)
        return plots

    def _save_plots(self) -> dict[str, RGBImage]:
        plots = self.render()
        if self._table:
            for network, image in plots.items():
                # Overwritten on purpose: the plot shows the whole run so far.
                save_png(self._table.with_name(f"{self._table.stem}_{network}.png"), image, overwrite=True)
        self._last_plot = time.monotonic()
        return plots

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        due = time.monotonic() - self._last_plot >= self.every_seconds
        if due and self._table and not trainer.sanity_checking and trainer.state.fn == "fit":
            self._save_plots()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        for measurement in self._latest().values():
            if self._reported.get(measurement.network) != measurement.step:
                self._report(measurement)
        if not self.measurements:
            rank_zero_warn("GradientFlow measured nothing: no optimizer stepped on a layer with a gradient")
        image_loggers = [logger for logger in trainer.loggers if offers(logger, ImageLogger)]
        if self._table or image_loggers:
            for network, image in self._save_plots().items():
                for logger in image_loggers:
                    logger.log_image(f"gradient_flow/{network}", [image], step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        # Plain values, so that the checkpoint loads with weights_only=True.
        rows = [{**vars(m), "rows": [tuple(row) for row in m.rows]} for m in self.measurements]
        return {"measurements": rows, "bytes": self._written.bytes, "sha256": self._written.digest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        saved = state_dict["measurements"]
        self.measurements = [
            Measurement(**{**values, "rows": [Row(*row) for row in values["rows"]]}) for values in saved
        ]
        self._written = Written(state_dict["bytes"], state_dict["sha256"])
        self.verdicts = {network: last.verdict(**self.thresholds) for network, last in self._latest().items()}


class Written:
    """What was written to a file: the number of bytes, and their SHA-256.

    Args:
        bytes: number of bytes.
        digest: their SHA-256, as hexadecimal digits.
    """

    def __init__(self, bytes: int = 0, digest: str = "") -> None:
        self.bytes, self.digest = bytes, digest
        self._hash = hashlib.sha256()

    def add(self, data: bytes) -> None:
        """Adds what was written next, to an object that began with nothing."""
        self._hash.update(data)
        self.bytes, self.digest = self.bytes + len(data), self._hash.hexdigest()

    def of(self, path: Path) -> bytes | None:
        """What was written, from a file that begins with it; None if there is no such file."""
        if not self.bytes or not path.is_file():
            return None
        with path.open("rb") as file:
            data = file.read(self.bytes)
        return data if hashlib.sha256(data).hexdigest() == self.digest else None


def _thinned(measurements: list[Measurement], network: str) -> list[Measurement]:
    """Of a network's measurements, those at the least distance 1, 2, 4, ... for which `MOST` suffice, and the last."""
    last = max(m.number for m in measurements if m.network == network)
    distance = 1
    while last // distance + 1 >= MOST:
        distance *= 2
    return [m for m in measurements if m.network != network or m.number % distance == 0 or m.number == last]


def _csv_rows(measurements: list[Measurement]) -> str:
    """Rows of the table, one per measurement and layer."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    for m in measurements:
        for depth, (layer, row) in enumerate(zip(m.layers, m.rows, strict=True), start=1):
            if not math.isnan(row.gradient):
                numbers = ["" if math.isnan(number) else f"{number:.6g}" for number in row]
                writer.writerow([m.step, m.network, depth, layer, *numbers])
    return file.getvalue()
