"""The GAN's training loop, its options and its samples."""

import copy
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision

from tests.helpers.networks import mlps
from tests.unit.training import LossRecorder, MemoryLogger, quiet_trainer
from zoo import GAN
from zoo.callbacks import SampleLogger
from zoo.datamodules import Digits
from zoo.errors import UserError
from zoo.models import ConvDiscriminator, MLPGenerator
from zoo.models.gan import module
from zoo.models.gan.losses import zero_centered_gradient_penalty
from zoo.seeding import SampleNoise, sample_seeds

SMALL = {"input_shape": (1, 8, 8), "num_classes": 10, "latent_dim": 4, **mlps(16)}


def sgd(parameters, lr=0.1):
    return torch.optim.SGD(parameters, lr=lr)


def zero_lr(parameters):
    return sgd(parameters, lr=0.0)


def plain(**options) -> GAN:
    """A small GAN with plain SGD and constant learning rates."""
    defaults = {"optimizer_g": sgd, "optimizer_d": sgd, "lr_scheduler_g": None, "lr_scheduler_d": None}
    return GAN(**(SMALL | defaults | options))


def quiet(**options) -> Trainer:
    """A quiet Trainer, by default without validation."""
    return quiet_trainer(**({"limit_val_batches": 0} | options))


def fit(model: GAN, batches: int = 4, batch_size: int = 32, **options) -> Trainer:
    trainer = quiet(max_epochs=1, limit_train_batches=batches, **options)
    trainer.fit(model, datamodule=Digits(batch_size=batch_size))
    return trainer


class Events(Callback):
    """Records backward passes and optimizer steps, and the networks that had gradients at each step."""

    def __init__(self):
        self.seen = []

    def on_before_backward(self, trainer, pl_module, loss):
        self.seen.append("backward")

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        networks = {"g": pl_module.generator, "d": pl_module.discriminator}
        with_gradients = [n for n, m in networks.items() if any(p.grad is not None for p in m.parameters())]
        stepped = "d" if optimizer.param_groups[0]["params"][0] is next(networks["d"].parameters()) else "g"
        self.seen.append((stepped, with_gradients))


# Training


def test_backward_and_step_of_one_network_precede_those_of_the_other():
    events = Events()
    fit(plain(), batches=2, callbacks=[events])
    one_batch = ["backward", ("d", ["d"]), "backward", ("g", ["g"])]
    assert events.seen == one_batch * 2


def test_the_generator_steps_once_every_n_critic_steps():
    events = Events()
    fit(plain(n_critic=3), batches=6, callbacks=[events])
    assert [e[0] for e in events.seen if e != "backward"] == ["d", "d", "d", "g", "d", "d", "d", "g"]


def test_with_accumulation_both_networks_step_after_the_last_batch_of_a_window():
    events = Events()
    trainer = fit(plain(accumulate_grad_batches=3), batches=7, callbacks=[events])
    window = ["backward"] * 3 + [("d", ["d"])] + ["backward"] * 3 + [("g", ["g"])]
    rest = ["backward", ("d", ["d"]), "backward", ("g", ["g"])]  # the seventh batch ends the epoch
    assert events.seen == window * 2 + rest
    assert trainer.global_step == 3


def test_accumulated_gradients_equal_those_of_the_whole_batch(monkeypatch):
    noise = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    states = []
    for size, accumulate in ((64, 1), (16, 4)):
        position = 0

        def latents(self, n, generator=None):
            nonlocal position
            start, position = position % 64, position + n
            return noise[start : start + n]

        monkeypatch.setattr(GAN, "latents", latents)
        seed_everything(0, verbose=False)
        model = plain(accumulate_grad_batches=accumulate, penalty="r1", penalty_interval=1, loss="non_saturating")
        fit(model, batches=accumulate, batch_size=size)
        states.append({k: v for k, v in model.state_dict().items() if k.startswith(("generator", "discriminator"))})
    for name, whole in states[0].items():
        torch.testing.assert_close(states[1][name], whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("n_critic", [1, 2])
def test_global_step_and_max_steps_count_batches(n_critic):
    trainer = quiet(max_steps=7)
    trainer.fit(plain(n_critic=n_critic), datamodule=Digits(batch_size=32))
    assert trainer.global_step == 7
    assert trainer.fit_loop.total_batch_idx + 1 == 7


def test_callback_periods_count_batches(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    fit(plain(), batches=10, callbacks=[checkpoint], enable_checkpointing=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step=3.ckpt", "step=6.ckpt", "step=9.ckpt"]


def test_after_a_step_all_parameters_are_trainable_and_have_no_gradients():
    model = plain()
    fit(model, batches=2)
    for network in (model.generator, model.discriminator):
        assert all(p.requires_grad and p.grad is None for p in network.parameters())


def test_a_lazy_penalty_has_the_mean_weight_of_one_at_every_step():
    """Over eight steps, the penalty at every fourth times its factor adds up to the penalty at every step."""
    means = {}
    for every in (1, 4):
        totals = []

        class Recorder(Callback):
            def on_before_backward(self, trainer, pl_module, loss, totals=totals):
                totals.append(loss.item())

        seed_everything(0, verbose=False)
        model = plain(
            penalty="r1", penalty_weight=10.0, penalty_interval=every, optimizer_g=zero_lr, optimizer_d=zero_lr
        )
        model.adversarial_loss = replace(model.adversarial_loss, discriminator=lambda real, fake: real.sum() * 0)
        # One batch is the whole training set, so that the penalty is the same number in every epoch.
        trainer = quiet(max_epochs=8, callbacks=[Recorder()])
        trainer.fit(model, datamodule=Digits(batch_size=1200))
        penalties = totals[::2]
        assert sum(penalty > 0 for penalty in penalties) == 8 // every
        means[every] = sum(penalties) / 8
    assert means[4] == pytest.approx(means[1], rel=1e-4)


@pytest.mark.parametrize("penalty", ["r1", "r2", "r1_r2", "gradient_penalty"])
def test_the_penalty_is_in_the_loss_with_its_factor(penalty):
    torch.manual_seed(0)
    model = plain(penalty=penalty, penalty_weight=3.0, penalty_interval=5)
    x = torch.rand(16, 1, 8, 8) * 2 - 1
    fake = model.sample(16, generator=torch.Generator().manual_seed(1))

    def square(points):
        points = points.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model.discriminator(points).sum(), points)
        return gradient.flatten(1).square().sum(1).mean().item()

    expected = {"r1": square(x), "r2": square(fake), "r1_r2": square(x) + square(fake)}
    *_, measured = model._penalized_logits(x.clone(), fake.clone(), None)
    if penalty in expected:
        assert measured.item() == pytest.approx(expected[penalty], rel=1e-5)
    losses = []
    model.manual_backward = lambda loss, **_: losses.append(loss.item())
    trainer = quiet(max_epochs=1, limit_train_batches=1)
    model.adversarial_loss = replace(model.adversarial_loss, discriminator=lambda r, f: r.sum() * 0)
    seen = []
    original = model._penalized_logits
    model._penalized_logits = lambda *a: seen.append(original(*a)) or seen[-1]
    trainer.fit(model, datamodule=Digits(batch_size=16))
    factor = 3.0 * 5 * (1.0 if penalty == "gradient_penalty" else 0.5)
    assert losses[0] == pytest.approx(factor * seen[0][2].item(), rel=1e-5)


def test_a_penalized_step_differentiates_the_logits_once_and_leaves_the_batch_as_it_is(monkeypatch):
    grad, passes = torch.autograd.grad, []
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **options: passes.append(1) or grad(*args, **options))
    x = torch.zeros(4, 1, 8, 8)
    plain(penalty="r1_r2")._penalized_logits(x, torch.ones_like(x), None)
    assert len(passes) == 1
    assert not x.requires_grad


def test_16_bit_training_clips_and_logs_unscaled_gradients():
    """A fused optimizer removes the scale in its own step."""
    norms = []
    for scale, fused in ((None, False), (4096.0, False), (4096.0, True)):
        seed_everything(0, verbose=False)
        scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
        plugin = MixedPrecision("16-mixed" if scale else "bf16-mixed", "cpu", scaler)
        optimizer = partial(torch.optim.SGD, lr=1.0, fused=fused)
        model = plain(gradient_clip_val=0.01, optimizer_g=optimizer, optimizer_d=optimizer)
        before = copy.deepcopy(model.generator)
        trainer = fit(model, batches=2, plugins=[plugin], log_every_n_steps=1)
        moved = zip(model.generator.parameters(), before.parameters(), strict=True)
        length = torch.stack([(a - b).norm() for a, b in moved]).norm()
        assert 0.01 < length <= 2 * 0.01 * 1.01, "of two steps, each of which is clipped to 0.01"
        norms.append([float(trainer.callback_metrics[f"train/grad_norm_{name}"]) for name in "gd"])
    assert norms[1] == pytest.approx(norms[0], rel=0.1)
    assert norms[2] == pytest.approx(norms[1], rel=0.01)


def test_gradient_clip_val_bounds_the_update_of_both_networks():
    model = plain(gradient_clip_val=0.01, optimizer_g=lambda p: sgd(p, 1.0), optimizer_d=lambda p: sgd(p, 1.0))
    before = {k: v.clone() for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
    fit(model, batches=1)
    for name in ("generator", "discriminator"):
        moves = [v - before[k] for k, v in model.state_dict().items() if k.startswith(f"{name}.")]
        norm = torch.cat([m.flatten() for m in moves]).norm().item()
        assert 0 < norm <= 0.01 * 1.001


def test_learning_rates_fall_to_their_final_value_over_the_run():
    model = GAN(**SMALL)
    trainer = quiet(max_steps=20)
    trainer.fit(model, datamodule=Digits(batch_size=32))
    for optimizer in trainer.optimizers:
        assert optimizer.param_groups[0]["lr"] == pytest.approx(5e-5)


def test_the_schedule_of_an_accumulating_run_counts_optimizer_steps():
    model = GAN(**SMALL, accumulate_grad_batches=5)
    fit(model, batches=20)
    assert model.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(5e-5)


def test_the_moving_average_is_of_the_generator_only_and_in_the_checkpoint(tmp_path):
    model = plain()
    trainer = fit(model, batches=3)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    state = torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"]
    names = {name.split(".")[0] for name in state}
    assert names == {"generator", "discriminator", "ema"}
    assert model.ema.images == 3 * 32
    loaded = GAN.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    torch.testing.assert_close(loaded.sample(4, generator=generators[0]), model.sample(4, generator=generators[1]))
    assert loaded.ema.images == 96


def test_samples_are_those_of_the_average_not_of_the_generator_that_is_trained():
    model = plain()
    fit(model, batches=3)
    z = SampleNoise(sample_seeds(5, torch.Generator().manual_seed(0)), (4,))()
    drawn = [
        model.sample(5, generator=torch.Generator().manual_seed(0)),
        model.interpolate(5, 2, generator=torch.Generator().manual_seed(0))[:, 0],
        model.trajectory(5, 2, generator=torch.Generator().manual_seed(0))[0],
    ]
    with torch.no_grad():
        averaged, raw = model.ema.network(z, None), model.generator(z, None)
    assert not torch.allclose(averaged, raw), "the two differ after training"
    for samples in drawn:
        torch.testing.assert_close(samples, averaged)


def test_both_networks_see_a_batch_and_its_samples_with_the_labels_of_the_batch():
    model = plain(conditional=True, loss="non_saturating", penalty="none")
    batches, generated, judged = LossRecorder(), [], []
    for network, calls in ((model.generator, generated), (model.discriminator, judged)):
        network.register_forward_hook(lambda module, inputs, output, calls=calls: calls.append((*inputs, output)))
    fit(model, batches=2, callbacks=[batches])
    assert len(generated) == len(judged) == 4, "a call in each step of either network"
    for step, (_, labels, fake) in enumerate(generated):
        x, y = batches.batches[step // 2]
        seen, by, _ = judged[step]
        assert torch.equal(labels, y)
        discriminators_step = step % 2 == 0
        assert torch.equal(seen, torch.cat([x, fake]) if discriminators_step else fake)
        assert torch.equal(by, torch.cat([y, y]) if discriminators_step else y)


@pytest.mark.parametrize("loss", ["minimax", "non_saturating", "hinge", "wasserstein", "relativistic"])
def test_every_loss_logs_its_own_metrics(loss):
    trainer = fit(plain(loss=loss), batches=8, log_every_n_steps=2)
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    common = {"loss_d", "loss_g", "penalty", "grad_norm_d", "grad_norm_g", "images_per_second"}
    specific = {"logit_real", "logit_fake"} if loss in ("hinge", "wasserstein") else {"d_real", "d_fake", "value"}
    assert {f"train/{name}" for name in common | specific} <= set(logged)
    assert all(math.isfinite(value) for value in logged.values())
    if "train/value_optimum" in logged:
        assert logged["train/value_optimum"] == pytest.approx(-math.log(4))
        assert 0 < logged["train/d_real"] < 1


def test_a_penalized_step_computes_no_gradients_at_the_samples(monkeypatch):
    samples = []

    def keep(logits, *inputs):
        samples.extend(inputs)
        return zero_centered_gradient_penalty(logits, *inputs)

    monkeypatch.setattr(module, "zero_centered_gradient_penalty", keep)
    fit(plain(penalty="r1_r2", penalty_interval=2), batches=4)
    assert len(samples) == 4  # data and samples of two steps
    assert all(x.requires_grad and x.grad is None for x in samples)


def test_bfloat16_training_computes_penalties_in_float32():
    model = plain()
    dtypes = []
    original = model._penalized_logits

    def spy(real, fake, labels):
        result = original(real, fake, labels)
        dtypes.append((real.dtype, result[2].dtype, torch.is_autocast_enabled("cpu")))
        return result

    model._penalized_logits = spy
    trainer = fit(model, batches=5, precision="bf16-mixed", log_every_n_steps=1)
    assert dtypes[0] == (torch.float32, torch.float32, False)
    assert trainer.callback_metrics["train/loss_d"].isfinite()


def test_with_log_every_n_steps_0_it_trains_and_logs_nothing():
    logger = MemoryLogger()
    model = plain()
    before = copy.deepcopy(model.state_dict())
    trainer = fit(model, batches=3, logger=logger, log_every_n_steps=0)
    assert trainer.global_step == 3
    assert not logger.rows
    assert not any(name.startswith("train/") for name in trainer.callback_metrics)
    for name in ("generator.out.weight", "discriminator.head.linear.weight"):
        assert (model.state_dict()[name] != before[name]).any()


def test_training_is_bitwise_the_same_with_validation_and_sample_logger(tmp_path: Path):
    curves = []
    for observed in (False, True):
        seed_everything(0, verbose=False)
        model = GAN(**SMALL)
        curve = LossRecorder()
        options = {"max_epochs": 3, "limit_train_batches": 10}
        if observed:
            options |= {"limit_val_batches": 1.0, "logger": True, "default_root_dir": tmp_path}
        callbacks = [curve, SampleLogger(n=9, every_n_steps=3)] if observed else [curve]
        quiet(callbacks=callbacks, **options).fit(model, datamodule=Digits())
        curves.append(curve.losses)
    assert len(curves[0]) == 60
    assert curves[0] == curves[1]
    assert list(tmp_path.rglob("step_0000030.png")), "the second run did draw samples"


# Samples and options


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64), (1, 15, 9), (1,), (2,)])
def test_samples_have_the_shape_and_range_of_the_data_without_a_trainer(shape):
    model = GAN(input_shape=shape)
    samples = model.sample(5)
    assert samples.shape == (5, *shape)
    assert model.discriminator(samples).shape == (5,)
    if len(shape) == 3:
        assert samples.abs().max() <= 1


def test_sampling_is_reproducible_and_changes_neither_modes_nor_random_state():
    model = GAN(**SMALL)
    model.generator.eval()
    state = torch.get_rng_state()
    first, second = (model.sample(6, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training and not model.generator.training and model.discriminator.training


def test_samples_and_logits_of_a_conditional_model_depend_on_the_label():
    model = GAN(**SMALL, conditional=True)
    noise = [torch.Generator().manual_seed(0) for _ in range(2)]
    zeros, ones = (model.sample(3, labels=torch.full((3,), k), generator=g) for k, g in enumerate(noise))
    assert not torch.allclose(zeros, ones)
    judged = [model.discriminator(zeros, torch.full((3,), k)) for k in range(2)]
    assert not torch.allclose(*judged)
    fit(model, batches=2)


def test_invalid_options_are_named():
    with pytest.raises(UserError, match="loss is 'ns'; choose one of minimax"):
        GAN(input_shape=(2,), loss="ns")
    with pytest.raises(UserError, match=r"generator: convolutions need images .* \(1, 8, 8\); use mlp"):
        GAN(input_shape=(1, 8, 8), generator="conv")
    with pytest.raises(UserError, match=r"discriminator: depth 5 halves .* at most 2 times"):
        GAN(input_shape=(1, 28, 28), discriminator=partial(ConvDiscriminator, depth=5))
    with pytest.raises(UserError, match="n_critic is 0"):
        GAN(input_shape=(2,), n_critic=0)
    with pytest.raises(UserError, match="generator: width is -3"):
        GAN(input_shape=(2,), generator=partial(MLPGenerator, width=-3))
    with pytest.raises(UserError, match="penalty_weight is -1"):
        GAN(input_shape=(2,), penalty_weight=-1)


def test_interpolations_start_at_samples_and_trajectories_are_closed():
    model = GAN(**SMALL)
    ways = model.interpolate(3, 5, generator=torch.Generator().manual_seed(0))
    assert ways.shape == (3, 5, 1, 8, 8)
    torch.testing.assert_close(ways[:, 0], model.sample(3, generator=torch.Generator().manual_seed(0)))
    states = model.trajectory(2, frames=8, generator=torch.Generator().manual_seed(0))
    assert states.shape == (8, 2, 1, 8, 8)
    torch.testing.assert_close(states[0], model.sample(2, generator=torch.Generator().manual_seed(0)))
    steps = (states - states.roll(1, 0)).flatten(2).norm(dim=-1)
    assert steps[0].max() < 3 * steps[1:].mean(), "the last state is as near to the first as two neighbours"
