"""Training loops whose steps are timed: Lightning's, and one of plain torch on the same network, optimizer and data."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_day.recipes import Setup
from benchmarks.gpu_day.results import Options
from zoo import GAN, Classifier, Diffusion, Seq2Seq, TransformerLM
from zoo.models.gan.losses import zero_centered_gradient_penalty
from zoo.optim import parameter_groups
from zoo.testing.runs import quiet

#: Precision of the Trainer, and whether float32 may be multiplied as TF32.
PRECISIONS = {"fp32": ("32-true", False), "TF32": ("32-true", True), "bf16-mixed": ("bf16-mixed", True)}


@contextmanager
def precision_of(name: str) -> Iterator[str]:
    """Allows TF32 or not inside the context, which has the Trainer's precision."""
    trainer_precision, tf32 = PRECISIONS[name]
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield trainer_precision
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def wait_for(device: torch.device) -> None:
    """Waits until a GPU has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Meter:
    """Times steps on the device and on the host, and then profiles some more.

    Args:
        options: device and size.
        warmup: steps before.
        timed: steps that are timed.
        profiled: steps that are profiled after them.
    """

    def __init__(self, options: Options, warmup: int = 20, timed: int = 100, profiled: int = 20) -> None:
        self.warmup, self.timed, self.profiled = (options.steps(n, 2) for n in (warmup, timed, profiled))
        self.device = torch.device(options.device)
        self.cuda = self.device.type == "cuda"
        self._count = 0
        self._start = self._waited = 0.0
        self._host: list[float] = []
        self._events: list[torch.cuda.Event] = []
        self._profile: Any = None
        self._profiled_seconds = 0.0

    @property
    def total(self) -> int:
        """Number of steps."""
        return self.warmup + self.timed + self.profiled

    def before_step(self) -> None:
        """To be called before every step."""
        step, self._count = self._count, self._count + 1
        if step == 0:
            self._start = time.perf_counter()
        if step == self.warmup:
            wait_for(self.device)
            self._warmup_seconds = time.perf_counter() - self._start
        if self.warmup <= step <= self.warmup + self.timed:
            self._mark()
        if step == self.warmup + self.timed:
            wait_for(self.device)
            self._timed_seconds = time.perf_counter() - self._host[0]
            if self.cuda:
                self._profile = profile(activities=[ProfilerActivity.CUDA])
                self._profile.__enter__()
            self._start = time.perf_counter()

    def finish(self) -> None:
        """To be called after the last step."""
        wait_for(self.device)
        self._profiled_seconds = time.perf_counter() - self._start
        if self._profile is not None:
            self._profile.__exit__(None, None, None)

    def summary(self) -> dict[str, Any]:
        """Times of a step in milliseconds, kernels per step, and the share of time in which the GPU is busy.

        The device's time is the median between two events; the host's that between two starts of steps; "ms_mean" is
        the time of all steps, the wait for the device at the end included. "startup_s" is what the warm-up took beyond
        as many steps.
        """
        host = [1000 * (b - a) for a, b in zip(self._host, self._host[1:], strict=False)]
        found: dict[str, Any] = {"host_ms": round(statistics.median(host), 3)}
        mean = 1000 * self._timed_seconds / self.timed
        found["ms_mean"] = round(mean, 3)
        found["startup_s"] = round(max(0.0, self._warmup_seconds - self.warmup * mean / 1000), 2)
        if self.cuda:
            device = [a.elapsed_time(b) for a, b in zip(self._events, self._events[1:], strict=False)]
            kernels = [e for e in self._profile.key_averages() if e.device_type == DeviceType.CUDA]
            busy = sum(e.self_device_time_total for e in kernels if not getattr(e, "is_user_annotation", False)) / 1e6
            found["device_ms"] = round(statistics.median(device), 3)
            found["busy"] = round(busy / self._profiled_seconds, 3)
            found["kernels"] = round(sum(e.count for e in kernels) / self.profiled)
        return found

    def _mark(self) -> None:
        self._host.append(time.perf_counter())
        if self.cuda:
            self._events.append(torch.cuda.Event(enable_timing=True))
            self._events[-1].record()


class MeterCallback(Callback):
    """Times the steps of a Trainer."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.meter.before_step()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.meter.finish()


def lightning_loop(setup: Setup, options: Options, precision: str, meter: Meter) -> dict[str, Any]:
    """Trains as the recipe does, with a CSVLogger and without validation and checkpoints."""
    model, data = setup.build()
    with precision_of(precision) as trainer_precision, tempfile.TemporaryDirectory() as folder, quiet():
        trainer = setup.trainer(
            options, folder, max_steps=meter.total, limit_val_batches=0, precision=trainer_precision,
            logger=CSVLogger(folder), callbacks=[MeterCallback(meter)],
        )  # fmt: skip
        trainer.fit(model, datamodule=data)
    return meter.summary()


def bare_loop(setup: Setup, options: Options, precision: str, meter: Meter, **compiled: Any) -> dict[str, Any]:
    """Trains by plain torch: no Trainer, nothing logged, a constant learning rate.

    Args:
        setup: recipe.
        options: device and size.
        precision: name in `PRECISIONS`.
        meter: what times the steps.
        **compiled: options of `torch.compile` for the network; none to leave it as it is.
    """
    model, data = setup.build()
    with precision_of(precision) as trainer_precision:
        step = new_step(model.to(options.device).train(), setup, trainer_precision == "bf16-mixed", compiled)
        batches = transferred_batches(data, torch.device(options.device))
        for _ in range(meter.total):
            meter.before_step()
            step(*next(batches))
        meter.finish()
    return meter.summary()


def transferred_batches(data: Any, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Training batches on a device without end, as the model sees them."""
    data.trainer = SimpleNamespace(
        training=True, precision_plugin=Precision(), strategy=SimpleNamespace(root_device=device), num_devices=1,
        local_rank=0, world_size=1, global_rank=0, state=SimpleNamespace(fn="fit"),
    )  # fmt: skip
    data.prepare_data()
    data.setup("fit")
    loader = data.train_dataloader()
    while True:
        for batch in loader:
            yield data.on_after_batch_transfer(tuple(t.to(device, non_blocking=True) for t in batch), 0)


Step = Callable[[Tensor, Tensor], None]


def new_step(model: Any, setup: Setup, bf16: bool, compiled: dict[str, Any]) -> Step:
    """A training step of a model's network on a batch (x, y)."""
    if isinstance(model, GAN):
        return _gan_step(model, bf16)
    optimizer = model.optimizer(parameter_groups(model.network))
    clip = setup.recipe["trainer"].get("gradient_clip_val")
    loss_of = next(function for kind, function in LOSSES.items() if isinstance(model, kind))
    if compiled:
        model.network.compile(**compiled)

    def step(x: Tensor, y: Tensor) -> None:
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=bf16):
            loss = loss_of(model, x, y)
        optimizer.zero_grad()
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.network.parameters(), clip)
        optimizer.step()
        if model.ema is not None:
            model.ema.update(model.network, len(x))

    return step


def _classifier_loss(model: Any, x: Tensor, y: Tensor) -> Tensor:
    if model.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    return F.cross_entropy(model.network(x).float(), y, label_smoothing=model.label_smoothing)


def _diffusion_loss(model: Any, x: Tensor, y: Tensor) -> Tensor:
    if not model.calibrated:
        model.calibrate(x)
    sigma = model.stratified_sigmas(len(x))
    noisy = x + sigma.view(-1, 1, 1, 1) * torch.randn_like(x)
    return model.denoiser.loss(x, noisy, sigma, y if model.conditional else None).mean()


def _language_model_loss(model: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model.network(x).float().flatten(0, 1), y.flatten())


def _seq2seq_loss(model: Any, x: Tensor, y: Tensor) -> Tensor:
    shifted = torch.cat([torch.full_like(y[:, :1], model.start), y[:, :-1]], dim=1)
    logits = model(x, shifted).float()
    return F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=model.padding)


LOSSES: dict[type, Callable[[Any, Tensor, Tensor], Tensor]] = {
    Classifier: _classifier_loss,
    Diffusion: _diffusion_loss,
    TransformerLM: _language_model_loss,
    Seq2Seq: _seq2seq_loss,
}


def _gan_step(model: Any, bf16: bool) -> Step:
    """A step of the discriminator, every few ones with R1 and R2 in float32, and one of the generator."""
    generator, discriminator, loss = model.generator, model.discriminator, model.adversarial_loss
    optimizer_g, optimizer_d = model.optimizer_g(generator.parameters()), model.optimizer_d(discriminator.parameters())
    count = 0

    def step(x: Tensor, y: Tensor) -> None:
        nonlocal count
        penalized = count % model.penalty_interval == 0
        count += 1
        labels, both = (y, torch.cat([y, y])) if model.conditional else (None, None)
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=bf16):
            with torch.no_grad():
                fake = generator(torch.randn(len(x), model.latent_dim, device=x.device), labels)
            real, fake = (part.float().detach().requires_grad_(penalized) for part in (x, fake))
            with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=bf16 and not penalized):
                logits = discriminator(torch.cat([real, fake]), both)
            loss_d = loss.discriminator(*logits.chunk(2))
        if penalized:
            penalty = zero_centered_gradient_penalty(logits, real, fake)
            loss_d = loss_d + penalty * (model.penalty_weight * 0.5 * model.penalty_interval)
        _descend(optimizer_d, loss_d)
        discriminator.requires_grad_(False)
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=bf16):
            fake = generator(torch.randn(len(x), model.latent_dim, device=x.device), labels)
            fake_logits = discriminator(fake, labels)
            with torch.no_grad():
                real_logits = discriminator(x, labels)
            loss_g = loss.generator(real_logits, fake_logits)
        _descend(optimizer_g, loss_g)
        discriminator.requires_grad_(True)
        if model.ema is not None:
            model.ema.update(generator, len(x))

    return step


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
