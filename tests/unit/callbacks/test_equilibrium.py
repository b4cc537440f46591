"""EquilibriumReport against a perfect and an untrained GAN."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy

from tests.helpers.networks import mlps
from tests.unit.training import quiet_trainer
from zoo import GAN
from zoo.callbacks import EquilibriumReport
from zoo.callbacks.equilibrium import TRIAL
from zoo.datamodules import Points


class PerfectGAN(GAN):
    """Its generator samples the data, and its discriminator cannot tell both apart."""

    def __init__(self, data, **options):
        super().__init__(input_shape=(1,), **options)
        self.data = data
        self.discriminator = torch.nn.Flatten(0)
        shift = 7 if self.hparams["loss"] == "relativistic" else 0
        self.discriminator.forward = lambda x: 0 * x[:, 0] + shift

    def sample(self, n, *, labels=None, generator=None):
        return self.data.sample_points(n, generator)[0]


@pytest.mark.parametrize("loss", ["minimax", "relativistic"])
def test_a_perfect_gan_reaches_the_theory_and_the_floors(loss):
    data = Points("gaussians")
    rows = EquilibriumReport(n=1000).measure(PerfectGAN(data, loss=loss), data)
    assert rows["value"]["measured"] == pytest.approx(-math.log(4), abs=1e-5)
    assert rows["d_real"]["measured"] == rows["d_fake"]["measured"] == pytest.approx(0.5)
    assert "floor" not in rows["value"], "the theoretical value is reached, so there is no floor"
    assert rows["wasserstein_1"]["measured"] < 3 * rows["wasserstein_1"]["floor"]
    assert abs(rows["two_sample_accuracy"]["measured"] - 0.5) < 4 * rows["two_sample_accuracy"]["standard_error"]


def test_an_untrained_generator_is_far_from_its_floors():
    data = Points("gaussians")
    rows = EquilibriumReport(n=1000).measure(GAN(input_shape=(1,), loss="minimax"), data)
    assert rows["wasserstein_1"]["measured"] > 10 * rows["wasserstein_1"]["floor"]
    assert rows["two_sample_accuracy"]["measured"] > 0.7


class ConditionalGAN(GAN):
    """Draws the points of the classes exactly, or, if `mixed`, those of any class whatever the label says."""

    def __init__(self, data, mixed=False):
        super().__init__(input_shape=(1,), num_classes=3, conditional=True, **mlps(8, 1))
        self.data = data
        self.mixed = mixed

    def sample(self, n, *, labels=None, generator=None):
        chosen = labels[torch.randperm(n, generator=generator)] if self.mixed else labels
        return self.data.centers[chosen] + self.data.std * torch.randn(n, 1, generator=generator)


def test_the_two_sample_test_of_a_conditional_model_sees_whether_samples_are_of_their_class():
    data = Points("gaussians")
    exact, mixed = (EquilibriumReport(n=1000).measure(ConditionalGAN(data, m), data) for m in (False, True))
    for rows in (exact, mixed):
        assert rows["wasserstein_1"]["measured"] < 4 * rows["wasserstein_1"]["floor"], "the points by themselves"
    assert abs(exact["two_sample_accuracy"]["measured"] - 0.5) < 4 * exact["two_sample_accuracy"]["standard_error"]
    assert mixed["two_sample_accuracy"]["measured"] > 0.65


def fit(model, report, folder, **options):
    data = Points("gaussians", num_train=1000, num_test=300, val_size=200, batch_size=32)
    quiet_trainer(
        max_steps=2, limit_val_batches=0, callbacks=[report], logger=True, default_root_dir=folder, **options
    ).fit(model, datamodule=data)


def test_the_report_of_a_conditional_gan_is_written(tmp_path, cheap_reports):
    model = GAN(input_shape=(1,), num_classes=3, conditional=True, latent_dim=2, **mlps(8, 1))
    fit(model, EquilibriumReport(n=100), tmp_path)
    (path,) = tmp_path.rglob("equilibrium.json")
    assert all(math.isfinite(row["measured"]) for row in json.loads(path.read_text()).values())
    assert path.with_suffix(".png").is_file()


def test_what_cannot_be_measured_fails_before_the_training(tmp_path):
    model = GAN(input_shape=(1,), latent_dim=2, **mlps(8, 1))
    network, seen = model.discriminator, []

    def fails_on_the_trial(module, inputs):
        seen.append(len(inputs[0]))
        if len(inputs[0]) == TRIAL:
            raise RuntimeError("no such points")

    network.register_forward_pre_hook(fails_on_the_trial)
    with pytest.raises(RuntimeError, match="no such points"):
        fit(model, EquilibriumReport(n=100), tmp_path)
    assert seen == [TRIAL], "no batch was trained on"


def test_the_discriminator_is_measured_in_eval_mode_and_left_in_its_own():
    data, model = Points("gaussians"), GAN(input_shape=(1,), loss="minimax", **mlps(8, 1))
    model.discriminator = torch.nn.Sequential(torch.nn.BatchNorm1d(1), torch.nn.Flatten(0))
    model.discriminator[1].eval()
    mean = model.discriminator[0].running_mean.clone()
    EquilibriumReport(n=100).measure(model, data)
    assert torch.equal(model.discriminator[0].running_mean, mean)
    assert [module.training for module in model.discriminator] == [True, False]


def test_all_ranks_of_a_sharded_model_measure_and_rank_0_alone_of_another(monkeypatch):
    measured = []
    report = EquilibriumReport(n=100)
    monkeypatch.setattr(report, "measure", lambda *args, **options: measured.append(args))
    for strategy in (FSDPStrategy(), None):
        trainer = SimpleNamespace(is_global_zero=False, strategy=strategy, datamodule=Points("ring"))
        report.on_train_start(trainer, None)
        report.on_train_end(trainer, None)
    assert len(measured) == 2, "at the start and at the end"
