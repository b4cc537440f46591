"""The diffusion model: what it learns, how it is measured, and how it draws."""

import math
import warnings

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from torch.utils.data import DataLoader

from zoo import Diffusion
from zoo.checkpoints.reading import load_model
from zoo.datamodules import Digits, Points
from zoo.datamodules.base import TensorBatches, identity_collate
from zoo.datamodules.evaluation import evaluation_loader
from zoo.datamodules.points import MIXTURES
from zoo.errors import UserError
from zoo.models.diffusion.denoiser import IdealDenoiser
from zoo.models.diffusion.network import ResidualMLP, UNet

SMALL = {"input_shape": (1, 8, 8), "num_classes": 10, "widths": (16,), "blocks": 1}


def quiet(**options) -> Trainer:
    warnings.filterwarnings("ignore")
    defaults = {"logger": False, "enable_checkpointing": False, "limit_val_batches": 0}
    shown = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return Trainer(accelerator="cpu", **(defaults | shown | options))


def fit(model: Diffusion, steps: int = 4, data: LightningDataModule | None = None, **options) -> Trainer:
    trainer = quiet(max_steps=steps, **options)
    trainer.fit(model, datamodule=data or Digits(batch_size=32))
    return trainer


def untrained(**options) -> Diffusion:
    seed_everything(0, verbose=False)
    return Diffusion(**(SMALL | {"sigma_data": 0.5} | options)).eval()


def trained(**options) -> Diffusion:
    """A few steps from the start, so that labels and noise make a difference."""
    seed_everything(0, verbose=False)
    model = Diffusion(**(SMALL | {"ema_half_life": 0, "lr_scheduler": None} | options))
    fit(model, 30)
    return model.eval()


# Preconditioning and loss


def test_before_training_it_is_the_exact_denoiser_of_a_gaussian():
    model = untrained()
    model.mean.fill_(0.3)
    x = torch.randn(5, 1, 8, 8)
    for sigma in (0.01, 0.5, 20.0):
        share = 0.25 / (0.25 + sigma**2)
        torch.testing.assert_close(model.denoise(x, sigma), 0.3 + share * (x - 0.3))


def test_what_the_network_gets_and_is_to_give_has_unit_variance_at_every_noise_level():
    model, seen = untrained(sigma_data=0.7), []
    x = 0.7 * torch.randn(4000, 1, 8, 8)

    def network(inputs, c_noise, labels):
        seen.append(inputs)
        return torch.zeros_like(inputs)

    for sigma in (0.02, 0.7, 30.0):
        sigmas = torch.full((len(x),), sigma)
        loss = model.weighted_loss(network, x, x + sigma * torch.randn_like(x), sigmas, None)
        assert seen[-1].std().item() == pytest.approx(1, abs=0.01)
        assert loss.mean().item() == pytest.approx(1, abs=0.01), "of a network that gives nothing"


def test_the_loss_is_the_squared_error_of_the_force_with_edms_weight():
    """In the lecture's units: (sigma^2 + sd^2) sigma^2 / (4 (k_B T)^2 sd^2) |f_theta - f|^2, f that of one sample."""
    model = trained(temperature=1.8, conditional=True)
    x, labels, sigma = torch.randn(6, 1, 8, 8), torch.arange(6), torch.linspace(0.1, 5, 6)
    noisy = x + sigma.view(-1, 1, 1, 1) * torch.randn_like(x)
    with torch.no_grad():
        loss = model.weighted_loss(model.network, x, noisy, sigma, labels)
        target = IdealDenoiser(x, torch.arange(6), temperature=1.8).force(noisy, sigma, labels)
        error = (model.force(noisy, sigma, labels) - target).square().flatten(1).mean(1)
    variance = model.sigma_data**2
    weight = (sigma**2 + variance) * sigma**2 / (4 * 1.8**2 * variance)
    torch.testing.assert_close(loss, weight * error, rtol=1e-3, atol=1e-5)


def test_mean_and_standard_deviation_are_measured_on_the_training_data_and_kept(tmp_path):
    model = Diffusion(**SMALL)
    assert not model.calibrated
    trainer = fit(model, 1)
    x, _ = trainer.datamodule.split("train")
    torch.testing.assert_close(model.mean, x.mean(0))
    torch.testing.assert_close(model.sigma_data, (x - x.mean(0)).square().mean().sqrt())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = load_model(str(tmp_path / "a.ckpt"))
    assert torch.equal(loaded.mean, model.mean)
    assert torch.equal(loaded.sigma_data, model.sigma_data)
    assert loaded.calibrated
    fit(loaded, 1, Digits(seed=1))
    assert torch.equal(loaded.mean, model.mean), "measured once: other values would spoil what was learned"
    loaded = load_model(str(tmp_path / "a.ckpt"))
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(loaded.denoise(x, 0.7), model.eval().denoise(x, 0.7))


def test_with_a_foreign_data_module_they_are_measured_on_the_first_batch():
    class Foreign(LightningDataModule):
        def train_dataloader(self):
            generator = torch.Generator().manual_seed(0)
            data = [(3 + 2 * torch.randn(2, generator=generator), torch.tensor(0)) for _ in range(640)]
            return DataLoader(data, batch_size=320)

    model = Diffusion(input_shape=(2,), widths=(16,), blocks=1)
    fit(model, 2, Foreign())
    assert model.mean.tolist() == pytest.approx([3, 3], abs=0.4)
    assert model.sigma_data.item() == pytest.approx(2, abs=0.2)


def test_noise_levels_of_a_batch_are_one_from_each_of_equally_likely_intervals():
    model = untrained()
    sigma = model.stratified_sigmas(200)
    quantiles = torch.special.ndtr((sigma.log() + 1.2) / 1.2)
    assert (quantiles * 200).floor().long().tolist() == list(range(200))


def test_the_ranks_share_the_intervals_between_them():
    model = untrained()
    parts = []
    for rank in range(2):
        torch.manual_seed(rank)
        model._trainer = type("Ranks", (), {"world_size": 2, "global_rank": rank})()
        parts.append(torch.special.ndtr((model.stratified_sigmas(50).log() + 1.2) / 1.2))
    intervals = (torch.cat(parts) * 100).floor().long()
    assert sorted(intervals.tolist()) == list(range(100))


def test_it_learns_the_force_of_a_known_density():
    mixture = MIXTURES["gaussians"]
    seed_everything(1, verbose=False)
    model = Diffusion(input_shape=(1,), widths=(64,), blocks=2, ema_half_life=20_000, temperature=2.0)
    fit(model, 1000, Points(distribution="gaussians", num_train=20_000, batch_size=256))
    exact = IdealDenoiser(mixture.centers, weights=mixture.weights, std=mixture.std, temperature=2.0)
    # The less noise, the less of the loss is in the force's own error, and the later it is learned.
    for sigma, share in ((0.3, 0.06), (0.5, 0.02), (2.0, 0.003)):
        x = mixture.sample(2000, torch.Generator().manual_seed(0))[0]
        x = x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        learned, truth = model.eval().force(x, sigma), exact.force(x, sigma)
        assert ((learned - truth).square().mean() / truth.square().mean()).item() < share, sigma
    samples = model.sample(5000, generator=torch.Generator().manual_seed(2))
    near = mixture.sample(5000, torch.Generator().manual_seed(3))[0]
    assert (samples.sort(0).values - near.sort(0).values).abs().mean().item() < 0.08


# Labels and guidance


def test_guidance_adds_a_multiple_of_the_difference_that_the_label_makes():
    model = trained(conditional=True)
    x, labels = torch.randn(4, 1, 8, 8), torch.tensor([1, 2, 3, 4])
    labelled, free = model.denoise(x, 0.6, labels), model.denoise(x, 0.6)
    assert not torch.allclose(labelled, free)
    torch.testing.assert_close(model.denoise(x, 0.6, labels, guidance_scale=1.5), labelled + 1.5 * (labelled - free))


def test_no_label_is_what_was_trained_with_hidden_ones():
    model = trained(conditional=True)
    x, none = torch.randn(4, 1, 8, 8), torch.full((4,), 10)
    torch.testing.assert_close(model.denoise(x, 0.6), model.denoise(x, 0.6, none))


def test_as_many_labels_are_hidden_as_it_was_told():
    seen = []
    model = Diffusion(**SMALL, conditional=True, class_dropout=0.25)
    inner = model.network.forward
    model.network.forward = lambda x, c, labels: seen.append(labels) or inner(x, c, labels)
    fit(model, 40)
    hidden = (torch.cat(seen) == 10).float().mean().item()
    assert hidden == pytest.approx(0.25, abs=0.05)


def test_a_model_without_labels_does_not_look_at_them():
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


def test_sampling_keeps_mode_and_random_numbers_as_they_were():
    model = trained(conditional=True).train()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a = model.sample(3, generator=torch.Generator().manual_seed(1))
    b = model.sample(3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.network.modules())
    assert not torch.equal(model.sample(3), model.sample(3)), "without a generator they are new ones"


def test_without_a_generator_ways_are_new_ones_every_time():
    model = trained()
    assert not torch.equal(model.interpolate(1, 3), model.interpolate(1, 3))


def test_an_untrained_model_draws_noise_within_the_range():
    assert Diffusion(**SMALL).sample(2).isfinite().all()


def test_samples_are_of_the_contracts_shape_and_range():
    samples = trained().sample(7)
    assert samples.shape == (7, 1, 8, 8)
    assert samples.dtype == torch.float32
    assert samples.abs().max().item() <= 1
    assert Diffusion(input_shape=(3,), widths=(8,), sigma_data=1.0).sample(2).shape == (2, 3)


def test_steps_are_evaluations_of_the_network_and_guidance_doubles_them():
    model = trained(conditional=True)
    asked = []
    inner = model.network.forward
    model.network.forward = lambda *args: asked.append(len(args[0])) or inner(*args)
    model.sample(3, steps=7)
    assert asked == [3] * 7
    asked.clear()
    model.sample(3, guidance_scale=0.5)
    assert asked == [3] * 20


def test_the_film_begins_with_noise_of_the_datas_contrast_and_ends_with_the_sample():
    model = trained()
    seeds = torch.arange(4)
    film = model.trajectory(4, frames=13, seeds=seeds)
    assert film.shape == (13, 4, 1, 8, 8)
    torch.testing.assert_close(film[-1], model.sample(4, seeds=seeds, steps=12))
    wide = model.trajectory(500, frames=3, seeds=torch.arange(500))[0]
    assert (wide - wide.mean(0)).std().item() == pytest.approx(model.sigma_data.item(), rel=0.3), "but for the clamp"


def test_the_ways_between_two_noises_begin_and_end_at_them():
    model = trained(conditional=True)
    ways = model.interpolate(2, 5, labels=torch.tensor([3, 3]), generator=torch.Generator().manual_seed(0))
    assert ways.shape == (2, 5, 1, 8, 8)
    steps = (ways[:, 1:] - ways[:, :-1]).flatten(2).norm(dim=2)
    whole = (ways[:, 0] - ways[:, -1]).flatten(1).norm(dim=1)
    assert (steps < whole.unsqueeze(1)).all()


# Validation


def test_validation_measures_loss_excess_distance_and_memorization():
    seed_everything(0, verbose=False)
    model = Diffusion(**(SMALL | {"widths": (32,), "blocks": 2}), conditional=True)
    fit(model, 120)
    before, again = (quiet(limit_val_batches=None).validate(model, Digits(), verbose=False)[0] for _ in range(2))
    for name in ("loss", "force_loss", "excess", "distance_to_ideal", "nn_ratio", "fd", "fd_floor"):
        assert math.isfinite(before[f"val/{name}"]), name
    assert before["val/excess"] < 0, "on held-out data the learned force is better than the memorizing one"
    assert before["val/distance_to_ideal"] > 0.05
    assert again["val/loss"] == pytest.approx(before["val/loss"], rel=1e-5), "the same noise every time"


def test_a_model_that_is_the_analytic_force_is_found_out():
    """No distance from it, no excess over it, and the alarm of memorization."""
    data = Digits()
    data.setup("fit")
    analytic = IdealDenoiser(*data.split("train"))

    class Memorizing(Diffusion):
        def denoise(self, x, sigma, labels=None, guidance_scale=0.0):
            return analytic.denoise(x, sigma, labels).to(x.dtype)

    model = Memorizing(**SMALL, conditional=True, sigma_data=0.5, steps=20, ema_half_life=0)
    trainer = quiet(limit_val_batches=None)
    warnings.simplefilter("always")
    with pytest.warns(UserWarning, match="repeats what it has learned"):
        measured = trainer.validate(model, datamodule=data, verbose=False)[0]
    assert measured["val/distance_to_ideal"] == pytest.approx(0, abs=1e-6)
    assert measured["val/excess"] == pytest.approx(0, abs=1e-6)
    assert measured["val/nn_ratio"] < 0.05


def test_training_goes_on_alike_with_and_without_validation():
    states = []
    for limit in (0, None):
        seed_everything(3, verbose=False)
        model = Diffusion(**SMALL, conditional=True)
        fit(model, 6, limit_val_batches=limit, val_check_interval=2, check_val_every_n_epoch=None)
        states.append(torch.cat([p.detach().flatten() for p in model.network.parameters()]))
    assert torch.equal(*states)


# Networks


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 8, 8), {"widths": (32,), "blocks": 3, "num_classes": 10}),
        ((1, 28, 28), {"widths": (16, 32, 48), "blocks": 2, "attention": True}),
        ((3, 32, 32), {"widths": (32, 64), "blocks": 1, "patch_size": 4, "num_classes": 3}),
    ],
)
def test_the_unet_keeps_the_shape_and_starts_as_nothing(shape, options):
    network = UNet(shape[0], **options)
    x, labels = torch.randn(2, *shape), torch.zeros(2, dtype=torch.long) if "num_classes" in options else None
    out = network(x, torch.zeros(2), labels)
    assert out.shape == x.shape
    assert out.abs().max().item() == 0


def test_the_unet_has_as_many_parameters_as_its_layers_add_up_to():
    w, wider, condition, classes = 32, 48, 64, 10

    def conv(a, b, k):
        return a * b * k * k + b

    def block(a, b):
        shortcut = conv(a, b, 1) if a != b else 0
        return 2 * a + conv(condition, 2 * a, 1) + conv(a, b, 3) + conv(b, b, 3) + shortcut

    expected = conv(32, condition, 1) + conv(condition, condition, 1) + (classes + 1) * condition
    expected += conv(4, w, 3) + 2 * block(w, w) + conv(w, wider, 2) + 2 * block(wider, wider)
    expected += conv(wider, w, 2) + block(2 * w, w) + block(w, w) + 2 * w + conv(w, 4, 3)
    network = UNet(1, (w, wider), blocks=2, patch_size=2, num_classes=classes)
    assert sum(p.numel() for p in network.parameters()) == expected


def test_the_unets_levels_see_what_is_far_away():
    network = UNet(1, (16, 16, 16), blocks=1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(1, 1, 32, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(x, torch.zeros(1))[0, 0, 16, 16], x)
    assert (gradient[0, 0, 0] != 0).any()


def test_the_mlp_is_told_noise_level_and_label():
    network = ResidualMLP((2,), 16, 2, num_classes=3)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, c, y = torch.randn(4, 2), torch.zeros(4), torch.zeros(4, dtype=torch.long)
    base = network(x, c, y)
    assert base.shape == (4, 2)
    assert not torch.allclose(base, network(x, c + 0.5, y))
    assert not torch.allclose(base, network(x, c, y + 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "rk4"}, "solver is 'rk4'; choose one of euler"),
        ({"steps": 0}, "steps is 0"),
        ({"patch_size": 3}, "patch 3 and 1 widths divide the sides by 3, which the images of 8x8 pixels do not allow"),
        ({"widths": (16, 16, 16, 16, 16)}, "divide the sides by 16"),
        ({"widths": (40,)}, "use multiples of 16"),
        ({"architecture": "mlp", "widths": (16, 32)}, "the MLP has one width"),
        ({"architecture": "unet", "input_shape": (2,)}, "architecture unet needs images"),
        ({"sigma_min": 5.0, "sigma_max": 1.0}, "sigma_min 5.0 and sigma_max 1.0"),
        ({"guidance_scale": 1.0}, "trained with conditional true"),
        ({"guidance_scale": 1.0, "conditional": True, "class_dropout": 0.0}, "trained with some class_dropout"),
        ({"class_dropout": 1.5}, "class_dropout is 1.5"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"noise_std": 0.0}, "noise_std is 0.0"),
        ({"ema_half_life": -1.0}, "ema_half_life is -1.0"),
        ({"conditional": True, "num_classes": 0}, "num_classes is 0"),
    ],
)
def test_what_cannot_be_built_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        Diffusion(**(SMALL | options))


# Precision and resuming


def test_it_trains_and_validates_in_bf16_close_to_float32():
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        seed_everything(0, verbose=False)
        model = Diffusion(**SMALL, conditional=True)
        trainer = fit(model, 37, precision=precision, limit_val_batches=None)
        losses.append(trainer.callback_metrics["val/loss"].item())
        assert model.sample(2).dtype == torch.float32
    assert losses[1] == pytest.approx(losses[0], rel=0.03)
    assert losses[1] != losses[0]


class Reseed(Callback):
    """The same random numbers in an epoch, whatever was drawn before it."""

    def on_train_epoch_start(self, trainer, pl_module):
        torch.manual_seed(100 + trainer.current_epoch)


class InOrder(Digits):
    """Digits in the same order in every epoch."""

    def train_dataloader(self):
        return evaluation_loader(TensorBatches(*self._splits["train"]), self.batch_size, identity_collate, None)


def test_a_resumed_run_ends_with_the_weights_of_one_that_was_not_interrupted(tmp_path):
    def train(epochs: int, **options) -> tuple[Diffusion, Trainer]:
        seed_everything(5, verbose=False)
        model = Diffusion(**SMALL, conditional=True, excess_samples=0, lr_scheduler=None)
        trainer = quiet(max_epochs=epochs, callbacks=[Reseed()])
        trainer.fit(model, datamodule=InOrder(batch_size=200), **options)
        return model, trainer

    whole, _ = train(2)
    _, trainer = train(1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, trainer = train(2, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert trainer.global_step == 12
    assert resumed.ema.images == whole.ema.images == 2400
    for name, value in whole.state_dict().items():
        if torch.is_tensor(value):
            assert torch.equal(resumed.state_dict()[name], value), name
