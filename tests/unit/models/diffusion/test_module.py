"""The diffusion model: its loss, its samples and what validation measures."""

import math
import warnings
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from tests.helpers.networks import residual_mlp
from tests.unit.models.diffusion.conftest import TEMPERATURE
from tests.unit.models.diffusion.small import SMALL, fit, trained
from tests.unit.training import quiet_trainer
from zoo import Diffusion
from zoo.checkpoints.reading import load_model
from zoo.datamodules import Digits, Points
from zoo.datamodules.base import identity_collate
from zoo.datamodules.evaluation import evaluation_loader
from zoo.datamodules.points import MIXTURES
from zoo.errors import UserError
from zoo.models import ResidualMLP, UNet
from zoo.models.diffusion.denoiser import IdealDenoiser
from zoo.models.diffusion.process import Process

# Loss and force


def test_the_loss_is_the_squared_error_of_the_force_with_edms_weight():
    """In the lecture's units: (sigma^2 + sd^2) sigma^2 / (4 (k_B T)^2 sd^2) |f_theta - f|^2, with f for one sample."""
    model = trained(temperature=1.8, conditional=True)
    x, labels, sigma = torch.randn(6, 1, 8, 8), torch.arange(6), torch.linspace(0.1, 5, 6)
    noisy = x + sigma.view(-1, 1, 1, 1) * torch.randn_like(x)
    with torch.no_grad():
        loss = model.denoiser.loss(x, noisy, sigma, labels)
        target = IdealDenoiser(x, torch.arange(6), temperature=1.8).force(noisy, sigma, labels)
        error = (model.force(noisy, sigma, labels) - target).square().flatten(1).mean(1)
    variance = model.denoiser.sigma_data**2
    weight = (sigma**2 + variance) * sigma**2 / (4 * 1.8**2 * variance)
    torch.testing.assert_close(loss, weight * error, rtol=1e-3, atol=1e-5)


def test_it_learns_the_force_of_a_known_density(mixture_checkpoint):
    model, mixture = load_model(mixture_checkpoint), MIXTURES["gaussians"]
    exact = IdealDenoiser(mixture.centers, weights=mixture.weights, std=mixture.std, temperature=TEMPERATURE)
    # At low noise the loss depends less on the force, which is learned later there.
    for sigma, share in ((0.3, 0.06), (0.5, 0.02), (2.0, 0.003)):
        x = mixture.sample(2000, torch.Generator().manual_seed(0))[0]
        x = x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            learned, truth = model.force(x, sigma), exact.force(x, sigma)
        assert ((learned - truth).square().mean() / truth.square().mean()).item() < share, sigma
    samples = model.sample(5000, generator=torch.Generator().manual_seed(2))
    near = mixture.sample(5000, torch.Generator().manual_seed(3))[0]
    assert (samples.sort(0).values - near.sort(0).values).abs().mean().item() < 0.08


def test_flow_matching_learns_the_same_force():
    seed_everything(1, verbose=False)
    options = {"parametrization": "flow", "noise_mean": 0.0, "noise_std": 1.4, "excess_samples": 0}
    model = Diffusion((1,), network=residual_mlp(64, 2), **options)
    fit(model, 400, Points("gaussians", num_train=20_000, batch_size=512))
    mixture = MIXTURES["gaussians"]
    exact = IdealDenoiser(mixture.centers, weights=mixture.weights, std=mixture.std)
    for sigma, share in ((0.3, 0.1), (0.5, 0.03), (2.0, 0.01)):
        x = mixture.sample(2000, torch.Generator().manual_seed(0))[0]
        x = x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            learned, truth = model.eval().force(x, sigma), exact.force(x, sigma)
        assert ((learned - truth).square().mean() / truth.square().mean()).item() < share, sigma


# Labels and guidance


def test_guidance_extrapolates_from_the_unconditional_to_the_conditional_denoiser():
    model = trained(conditional=True)
    x, labels = torch.randn(4, 1, 8, 8), torch.tensor([1, 2, 3, 4])
    labelled, free = model.denoise(x, 0.6, labels), model.denoise(x, 0.6)
    assert not torch.allclose(labelled, free)
    torch.testing.assert_close(model.denoise(x, 0.6, labels, guidance_scale=1.5), labelled + 1.5 * (labelled - free))


def test_without_labels_the_class_for_dropped_labels_is_used():
    model = trained(conditional=True)
    x, none = torch.randn(4, 1, 8, 8), torch.full((4,), 10)
    torch.testing.assert_close(model.denoise(x, 0.6), model.denoise(x, 0.6, none))


def test_an_unconditional_model_ignores_labels():
    model = trained()
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(model.denoise(x, 0.6, torch.tensor([1, 2])), model.denoise(x, 0.6))


# Sampling


@pytest.mark.parametrize("solver", ["deis", "ancestral"])
def test_the_same_seed_gives_the_same_sample_in_any_batch(solver):
    model = trained(conditional=True)
    seeds, labels = torch.tensor([5, 6, 7, 8, 9]), torch.tensor([0, 1, 2, 3, 4])
    together = model.sample(5, seeds=seeds, labels=labels, solver=solver)
    alone = torch.cat(
        [model.sample(1, seeds=seeds[i : i + 1], labels=labels[i : i + 1], solver=solver) for i in range(5)]
    )
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=0.1)


def test_the_reversed_film_runs_in_the_models_own_time_and_its_samples_do_not_depend_on_it(monkeypatch):
    """sigma^2 = 2Dt: the film begins at the time 80^2 / 2D."""
    seen, reverse = [], Process.reverse

    def recorded(self, x, score, times, **options):
        seen.append((self.diffusivity, self.temperature, times[0]))
        return reverse(self, x, score, times, **options)

    monkeypatch.setattr(Process, "reverse", recorded)
    seeds, state = torch.arange(3), trained().state_dict()
    samples = []
    for diffusivity, temperature in ((1.0, 1.0), (4.0, 0.3)):
        model = Diffusion(**SMALL, ema_half_life=0, diffusivity=diffusivity, temperature=temperature)
        model.load_state_dict(state)
        samples.append(model.sample(3, seeds=seeds, steps=5, solver="reverse_process"))
        assert seen[-4] == (diffusivity, temperature, pytest.approx(80**2 / (2 * diffusivity)))
    torch.testing.assert_close(*samples, rtol=0, atol=1e-3)


def test_sampling_changes_neither_mode_nor_random_state():
    model = trained(conditional=True).train()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a = model.sample(3, generator=torch.Generator().manual_seed(1))
    b = model.sample(3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.network.modules())
    assert not torch.equal(model.sample(3), model.sample(3)), "different samples without a generator"


def test_interpolations_without_a_generator_differ():
    model = trained()
    assert not torch.equal(model.interpolate(1, 3), model.interpolate(1, 3))


def test_samples_of_an_untrained_model_are_finite():
    assert Diffusion(**SMALL).sample(2).isfinite().all()


def test_samples_have_the_shape_dtype_and_range_of_the_contract():
    samples = trained().sample(7)
    assert samples.shape == (7, 1, 8, 8)
    assert samples.dtype == torch.float32
    assert samples.abs().max().item() <= 1
    assert Diffusion(input_shape=(3,), network=residual_mlp(8), sigma_data=1.0).sample(2).shape == (2, 3)


def test_steps_are_evaluations_of_the_network_and_guidance_doubles_them():
    model = trained(conditional=True)
    batch_sizes = []
    model.denoiser.network.register_forward_hook(lambda _, args, __: batch_sizes.append(len(args[0])))
    model.sample(3, steps=7)
    assert batch_sizes == [3] * 7
    batch_sizes.clear()
    model.sample(3, guidance_scale=0.5)
    assert batch_sizes == [3] * 20


def test_a_trajectory_starts_with_noise_scaled_to_the_data_and_ends_with_the_sample():
    model = trained()
    seeds = torch.arange(4)
    states = model.trajectory(4, frames=13, seeds=seeds)
    assert states.shape == (13, 4, 1, 8, 8)
    torch.testing.assert_close(states[-1], model.sample(4, seeds=seeds, steps=12))
    wide = model.trajectory(500, frames=3, seeds=torch.arange(500))[0]
    assert (wide - wide.mean(0)).std().item() == pytest.approx(model.denoiser.sigma_data.item(), rel=0.3), (
        "up to clamping"
    )


def test_neighbours_in_an_interpolation_are_closer_than_its_ends():
    model = trained(conditional=True)
    paths = model.interpolate(2, 5, labels=torch.tensor([3, 3]), generator=torch.Generator().manual_seed(0))
    assert paths.shape == (2, 5, 1, 8, 8)
    steps = (paths[:, 1:] - paths[:, :-1]).flatten(2).norm(dim=2)
    whole = (paths[:, 0] - paths[:, -1]).flatten(1).norm(dim=1)
    assert (steps < whole.unsqueeze(1)).all()


# Validation


def test_validation_measures_loss_excess_distance_and_memorization():
    seed_everything(0, verbose=False)
    model = Diffusion(**SMALL, conditional=True)
    fit(model, 80)
    data, trainer = Digits(val_size=150), quiet_trainer()
    before, again = (trainer.validate(model, data, verbose=False)[0] for _ in range(2))
    for name in ("loss", "force_loss", "excess", "distance_to_ideal", "near_copies", "fd", "fd_floor"):
        assert math.isfinite(before[f"val/{name}"]), name
    # On held-out data the learned denoiser is better than the ideal one of the training data.
    assert before["val/excess"] < 0
    assert before["val/distance_to_ideal"] > 0.05
    assert again["val/loss"] == pytest.approx(before["val/loss"], rel=1e-5), "every validation draws the same noise"


def test_validation_measures_a_model_of_patches_on_fewer_training_than_validation_images():
    model = Diffusion(**SMALL | {"network": partial(UNet, widths=[16], patch_size=2)}, steps=2)
    data = Digits(val_size=1400, eval_batch_size=150)
    measured = quiet_trainer(limit_val_batches=2).validate(model, data, verbose=False)[0]
    assert math.isfinite(measured["val/distance_to_ideal"]) and math.isfinite(measured["val/excess"])


def test_a_memorizing_model_is_reported():
    """A model that is the ideal denoiser has no distance from it and no excess over it, and a warning is given."""
    data = Digits(val_size=150)
    data.setup("fit")
    ideal = IdealDenoiser(*data.split("train"))

    class Memorizing(Diffusion):
        def denoise(self, x, sigma, labels=None, guidance_scale=0.0):
            return ideal.denoise(x, sigma, labels).to(x.dtype)

    model = Memorizing(**SMALL, conditional=True, sigma_data=0.5, steps=20, ema_half_life=0)
    trainer = quiet_trainer(limit_val_batches=None)
    warnings.simplefilter("always")
    with pytest.warns(
        UserWarning, match=r"\d\d% of the samples .* than 99% .* 1%: the model repeats its training data"
    ):
        measured = trainer.validate(model, datamodule=data, verbose=False)[0]
    assert measured["val/distance_to_ideal"] == pytest.approx(0, abs=1e-6)
    assert measured["val/excess"] == pytest.approx(0, abs=1e-6)
    assert measured["val/near_copies"] > 0.9


class Recorded(Callback):
    """Keeps what every validation logs."""

    def __init__(self):
        self.validations = []

    def on_validation_end(self, trainer, pl_module):
        self.validations.append({k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("val/")})


def test_every_validation_of_a_run_draws_the_same_noise():
    """With weights that do not move, every step measures the same numbers."""
    seed_everything(0, verbose=False)
    model = Diffusion(**SMALL, conditional=True, steps=2, optimizer=partial(torch.optim.SGD, lr=0.0), lr_scheduler=None)
    recorded = Recorded()
    fit(
        model, 3, Digits(batch_size=32, val_size=40), limit_val_batches=None, val_check_interval=1, callbacks=[recorded]
    )
    first, *others = recorded.validations
    assert len(others) == 2
    assert {"val/loss", "val/fd", "val/excess", "val/distance_to_ideal"} <= set(first)
    for name, value in first.items():
        assert [other[name] for other in others] == pytest.approx([value] * 2, rel=1e-4), name


def test_the_sanity_check_leaves_out_the_ideal_denoiser(monkeypatch):
    calls = []

    def denoise(self, x, sigma, labels=None):
        calls.append(model.trainer.sanity_checking)
        return x

    monkeypatch.setattr(IdealDenoiser, "denoise", denoise)
    monkeypatch.setattr(
        "zoo.models.diffusion.module.nearest_distances",
        lambda x, _: calls.append(model.trainer.sanity_checking) or x[:, 0, 0, 0],
    )
    model = Diffusion(**SMALL, conditional=True, steps=2)
    fit(model, 1, Digits(batch_size=32, val_size=40), limit_val_batches=1, num_sanity_val_steps=1, val_check_interval=1)
    assert calls == [False] * 4, "excess, distance, and the nearest neighbours of samples and of held-out data"


def test_validation_does_not_change_training():
    states = []
    for limit in (0, None):
        seed_everything(3, verbose=False)
        model = Diffusion(**SMALL, conditional=True)
        options = {"limit_val_batches": limit, "val_check_interval": 2, "check_val_every_n_epoch": None}
        fit(model, 6, Digits(batch_size=32, val_size=80), **options)
        states.append(torch.cat([p.detach().flatten() for p in model.network.parameters()]))
    assert torch.equal(*states)


# Options, precision and resuming


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "rk4"}, "solver is 'rk4'; choose one of euler"),
        ({"steps": 0}, "steps is 0"),
        (
            {"network": partial(UNet, patch_size=3)},
            r"patch_size 3 and 1 widths divide .* by 3, which images of 8x8",
        ),
        ({"network": partial(UNet, widths=(16, 16, 16, 16, 16))}, "divide the sides by 16"),
        ({"network": partial(UNet, widths=(40,))}, "use multiples of 16"),
        ({"network": partial(ResidualMLP, width=0)}, "width is 0 and blocks 3; both must be at least 1"),
        ({"network": "unet", "input_shape": (2,)}, r"a U-Net needs images, not the shape \(2,\); use mlp"),
        ({"network": "dit", "input_shape": (2,)}, r"a DiT needs images, not the shape \(2,\); use mlp"),
        ({"network": "unit"}, "network unit is not a network of the zoo; did you mean unet"),
        ({"parametrization": "vp"}, "parametrization is 'vp'; choose one of edm, flow"),
        ({"sigma_min": 5.0, "sigma_max": 1.0}, "sigma_min 5.0 and sigma_max 1.0"),
        ({"sigma_max": math.inf}, "sigma_max inf must be above 0, finite"),
        ({"guidance_scale": math.inf}, "guidance_scale is inf; it must be a finite number"),
        ({"steps": 10**12}, "steps is 1000000000000; it must be at most 100000"),
        ({"guidance_scale": 1.0}, "trained with conditional true"),
        ({"guidance_scale": 1.0, "conditional": True, "class_dropout": 0.0}, "trained with class_dropout above 0"),
        ({"class_dropout": 1.5}, "class_dropout is 1.5"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"noise_std": 0.0}, "noise_std is 0.0"),
        ({"ema_half_life": -1.0}, "ema_half_life is -1.0"),
    ],
)
def test_invalid_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        Diffusion(**(SMALL | options))


def test_training_and_validation_in_bfloat16_agree_with_float32():
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        seed_everything(0, verbose=False)
        model = Diffusion(**SMALL, conditional=True)
        trainer = fit(model, 32, Digits(batch_size=32, val_size=450), precision=precision, limit_val_batches=None)
        losses.append(trainer.callback_metrics["val/loss"].item())
        assert model.sample(2).dtype == torch.float32
    assert losses[1] == pytest.approx(losses[0], rel=0.03)
    assert losses[1] != losses[0]


class Reseed(Callback):
    """Seeds the random numbers of each epoch."""

    def on_train_epoch_start(self, trainer, pl_module):
        torch.manual_seed(100 + trainer.current_epoch)


class InOrder(Digits):
    """Digits in the same order in every epoch."""

    def train_dataloader(self):
        return evaluation_loader(self.dataset("train"), self.batch_size, identity_collate, None)


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path):
    def train(epochs: int, **options) -> tuple[Diffusion, Trainer]:
        seed_everything(5, verbose=False)
        model = Diffusion(**SMALL, conditional=True, excess_samples=0, lr_scheduler=None)
        trainer = quiet_trainer(max_epochs=epochs, limit_val_batches=1, callbacks=[Reseed()])
        data = InOrder(batch_size=200, eval_batch_size=20, val_size=900)
        trainer.fit(model, datamodule=data, **options)
        return model, trainer

    whole, _ = train(2)
    _, trainer = train(1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, trainer = train(2, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert trainer.global_step == 6
    assert resumed.ema.images == whole.ema.images == 1200
    for name, value in whole.state_dict().items():
        if torch.is_tensor(value):
            assert torch.equal(resumed.state_dict()[name], value), name
