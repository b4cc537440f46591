"""A GAN with a loss and with optimizers of one's own."""

from functools import partial

import pytest
import torch

from tests.helpers.networks import mlps
from tests.unit.training import MemoryLogger, quiet_trainer
from zoo import GAN
from zoo.checkpoints.reading import load_model
from zoo.datamodules import Digits
from zoo.errors import UserError
from zoo.models.gan.losses import ADVERSARIAL_LOSSES, AdversarialLoss, paired

SMALL = {"input_shape": (1, 8, 8), "num_classes": 10, "latent_dim": 4, **mlps(16)}


def fit(model: GAN, batches: int = 4, path=None, **options):
    trainer = quiet_trainer(**({"limit_val_batches": 0, "max_steps": batches} | options))
    trainer.fit(model, datamodule=Digits(batch_size=32), ckpt_path=path, weights_only=True)
    return trainer


def weights(model: GAN) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.named_parameters() if not name.startswith("ema")}


# Losses


def test_probability_and_value_are_those_of_the_logits_meaning():
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0])
    d_real, d_fake = ADVERSARIAL_LOSSES["minimax"].probability(real, fake)
    torch.testing.assert_close(d_real, real.sigmoid())
    torch.testing.assert_close(d_fake, fake.sigmoid())
    d_real, d_fake = ADVERSARIAL_LOSSES["relativistic"].probability(real + 7, fake + 7)
    torch.testing.assert_close(d_real, (real - fake).sigmoid())
    torch.testing.assert_close(d_fake, 1 - d_real)
    assert ADVERSARIAL_LOSSES["hinge"].probability(real, fake) is None
    assert ADVERSARIAL_LOSSES["wasserstein"].value(real, fake) is None


def test_the_value_of_indistinguishable_logits_is_minus_log_4_for_every_loss_that_has_one():
    same = torch.full((3,), 0.0)
    values = [loss.value(same, same) for loss in ADVERSARIAL_LOSSES.values()]
    assert [value.item() for value in values if value is not None] == pytest.approx([-1.3862944] * 3)


@pytest.mark.parametrize("loss", ADVERSARIAL_LOSSES)
def test_the_discriminator_sees_data_in_the_generators_step_only_if_the_loss_needs_it(loss):
    model = GAN(**SMALL, loss=loss, penalty="none")
    passes = []
    model.discriminator.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    fit(model, 1)
    generator_step = passes[1:]  # after one pass of the discriminator's own step, over data and samples
    assert passes[0] == 64
    assert generator_step == ([32, 32] if loss == "relativistic" else [32])


def test_whether_a_loss_needs_logits_of_data_is_what_its_formula_says():
    fake = torch.randn(5)
    for name, loss in ADVERSARIAL_LOSSES.items():
        first, second = (loss.generator(real, fake) for real in (torch.zeros(5), torch.randn(5)))
        assert loss.needs_real == (not torch.equal(first, second)), name


class Normalizing(torch.nn.Module):
    """A discriminator with batch norm, which remembers the batches that it has seen."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 1), torch.nn.BatchNorm1d(1))
        self.seen = []

    def forward(self, x, labels=None):
        self.seen.append(x.detach())
        return self.layers(x).squeeze(1)


@pytest.mark.parametrize("penalty", ["none", "r1_r2"])
def test_a_discriminator_with_batch_norm_sees_data_and_samples_in_batches_of_their_own(penalty):
    """Normalized together, data and samples would be told apart by what the generator's step, without data, lacks."""
    model = GAN(**(SMALL | {"discriminator": Normalizing}), loss="non_saturating", penalty=penalty)
    model.discriminator.seen.clear()
    fit(model, 1)
    real, *fakes = model.discriminator.seen
    assert [len(x) for x in (real, *fakes)] == [32, 32, 32], "data, samples, and samples of the generator's step"
    assert real.unique().numel() == 17, "the digits have 17 levels of gray"
    assert all(x.unique().numel() > 17 for x in fakes)


def least_squares() -> AdversarialLoss:
    """Mao et al. 2017 (arXiv 1611.04076), eq. 8 with a = 0, b = c = 1."""
    return AdversarialLoss(
        lambda real, fake: ((real - 1).square().mean() + fake.square().mean()) / 2,
        lambda real, fake: (fake - 1).square().mean() / 2,
    )


def test_a_loss_of_ones_own_trains_and_is_handed_in_again_on_loading(tmp_path):
    logger = MemoryLogger()
    model = GAN(**SMALL, loss=least_squares(), penalty="none", optimizer_d=partial(torch.optim.SGD, lr=0.0))
    trainer = fit(model, 2, logger=logger, log_every_n_steps=1)
    assert model.adversarial_loss.offset(torch.ones(2), torch.ones(2)) == 0
    assert {"train/logit_real", "train/loss_g"} <= set(logger.rows[0][1])
    assert "train/d_real" not in logger.rows[0][1], "its logits are scores, not probabilities"
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    with pytest.raises(UserError, match=r"trained with a loss of your own: hand it in again, loss=\.\.\."):
        load_model(str(tmp_path / "model.ckpt"))
    loaded = load_model(str(tmp_path / "model.ckpt"), loss=least_squares())
    assert loaded.adversarial_loss.needs_real is False


def test_a_loss_that_compares_pairs_has_a_free_offset():
    loss = AdversarialLoss(lambda r, f: (f - r).mean(), lambda r, f: (r - f).mean(), paired, needs_real=True)
    assert loss.offset(torch.tensor([3.0, 5.0]), torch.tensor([1.0, 3.0])) == 3


# Optimizers


def test_any_number_of_parameter_groups_is_trained_clipped_and_scheduled():
    def groups(parameters, lr=0.01):
        parameters = list(parameters)
        return torch.optim.Adam([{"params": [p], "lr": lr / (k + 1)} for k, p in enumerate(parameters)])

    model = GAN(**SMALL, loss="minimax", optimizer_g=groups, optimizer_d=groups, gradient_clip_val=0.1)
    before = weights(model)
    trainer = fit(model, 4)
    assert all(not torch.equal(before[name], value) for name, value in weights(model).items())
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in trainer.optimizers]
    assert rates[0] == pytest.approx([0.001 / (k + 1) for k in range(6)]), "each group falls to a tenth"


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
def test_muon_trains_the_matrices_and_leaves_the_rest_without_stale_gradients():
    def muon(parameters):
        return torch.optim.Muon([p for p in parameters if p.ndim == 2], lr=0.02)

    model = GAN(**SMALL, optimizer_g=muon, optimizer_d=muon, gradient_clip_val=1.0)
    before = weights(model)
    fit(model, 3)
    for name, value in weights(model).items():
        assert torch.equal(before[name], value) == (value.ndim < 2), name
    assert all(p.grad is None for p in model.generator.parameters())


class Averaging(torch.optim.SGD):
    """Trains at other weights than those it has in eval mode, as schedule-free optimizers do; never mixes them."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        self.param_groups[0]["training"] = False
        self.switches = []

    def _shift(self, training):
        if self.param_groups[0]["training"] != training:
            self.switches.append(training)
            with torch.no_grad():
                for p in self.param_groups[0]["params"]:
                    p.add_(1.0 if training else -1.0)
        self.param_groups[0]["training"] = training

    def train(self):
        self._shift(True)

    def eval(self):
        self._shift(False)

    def step(self, closure=None):
        assert self.param_groups[0]["training"], "stepped in eval mode"
        return super().step(closure)


def test_optimizers_with_a_mode_train_in_one_and_are_validated_and_saved_in_the_other(tmp_path):
    def run(steps, path=None, **options):
        torch.manual_seed(0)
        model = GAN(**SMALL, optimizer_g=Averaging, optimizer_d=Averaging, lr_scheduler_g=None, lr_scheduler_d=None)
        modes, step = [], model.validation_step

        def validate(*batch):
            modes.append(model.trainer.optimizers[0].param_groups[0]["training"])
            step(*batch)

        model.validation_step = validate
        every = {"limit_val_batches": 1, "val_check_interval": 2, "check_val_every_n_epoch": None}
        trainer = fit(model, steps, path, num_sanity_val_steps=1, **(every | options))
        return model, trainer, modes

    whole, trainer, modes = run(4)
    assert modes == [False, False, False], "in the sanity check and in both validations"
    assert trainer.optimizers[0].switches == [True, False, True, False, True, False]
    _, trainer, _ = run(2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _, _ = run(4, tmp_path / "half.ckpt")
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value), name


def test_without_a_moving_average_samples_come_from_the_generator():
    model = GAN(**SMALL, ema_half_life=0)
    fit(model, 2)
    assert model.ema is None
    z = torch.randn(3, 4)
    assert torch.equal(model(z), model.generator(z, None))
