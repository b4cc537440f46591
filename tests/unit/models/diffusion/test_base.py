"""Calibration, noise levels and labels in training."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from tests.helpers.networks import residual_mlp
from tests.unit.models.diffusion.small import SMALL, fit, untrained
from zoo import Diffusion
from zoo.checkpoints.reading import load_model
from zoo.datamodules import Digits


def test_mean_and_deviation_of_the_data_are_measured_once_and_kept_in_the_checkpoint(tmp_path):
    model = Diffusion(**SMALL)
    assert not model.calibrated
    trainer = fit(model, 1)
    x, _ = trainer.datamodule.split("train")
    torch.testing.assert_close(model.denoiser.mean, x.mean(0))
    torch.testing.assert_close(model.denoiser.sigma_data, (x - x.mean(0)).square().mean().sqrt())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = load_model(str(tmp_path / "a.ckpt"))
    assert torch.equal(loaded.denoiser.mean, model.denoiser.mean)
    assert torch.equal(loaded.denoiser.sigma_data, model.denoiser.sigma_data)
    assert loaded.calibrated
    fit(loaded, 1, Digits(seed=1))
    assert torch.equal(loaded.denoiser.mean, model.denoiser.mean), (
        "not measured again, since the weights depend on them"
    )
    loaded = load_model(str(tmp_path / "a.ckpt"))
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(loaded.denoise(x, 0.7), model.eval().denoise(x, 0.7))


def test_calibration_is_of_the_trained_denoiser_and_of_its_average():
    model = Diffusion(**SMALL)
    model.calibrate(3 + 2 * torch.randn(500, 1, 8, 8))
    assert model.averaged is not model.denoiser
    for denoiser in (model.denoiser, model.averaged):
        assert denoiser.mean.mean().item() == pytest.approx(3, abs=0.1)
        assert denoiser.sigma_data.item() == pytest.approx(2, abs=0.1)


def test_without_reference_data_mean_and_deviation_are_measured_on_the_first_batch():
    class Foreign(LightningDataModule):
        def train_dataloader(self):
            generator = torch.Generator().manual_seed(0)
            data = [(3 + 2 * torch.randn(2, generator=generator), torch.tensor(0)) for _ in range(640)]
            return DataLoader(data, batch_size=320)

    model = Diffusion(input_shape=(2,), network=residual_mlp(16))
    fit(model, 2, Foreign())
    assert model.denoiser.mean.tolist() == pytest.approx([3, 3], abs=0.4)
    assert model.denoiser.sigma_data.item() == pytest.approx(2, abs=0.2)


def test_noise_levels_of_a_batch_are_stratified():
    model = untrained()
    sigma = model.stratified_sigmas(200)
    quantiles = torch.special.ndtr((sigma.log() + 1.2) / 1.2)
    assert (quantiles * 200).floor().long().tolist() == list(range(200))


def test_ranks_draw_noise_levels_from_different_strata():
    model = untrained()
    parts = []
    for rank in range(2):
        torch.manual_seed(rank)
        model.trainer = SimpleNamespace(world_size=2, global_rank=rank)
        parts.append(torch.special.ndtr((model.stratified_sigmas(50).log() + 1.2) / 1.2))
    intervals = (torch.cat(parts) * 100).floor().long()
    assert sorted(intervals.tolist()) == list(range(100))


def test_labels_are_dropped_with_the_given_probability():
    seen = []
    model = Diffusion(**SMALL, conditional=True, class_dropout=0.25)
    model.denoiser.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
    fit(model, 40)
    dropped = (torch.cat(seen) == 10).float().mean().item()
    assert dropped == pytest.approx(0.25, abs=0.05)
