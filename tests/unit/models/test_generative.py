"""The distance between samples and data, and the interpolation of latent vectors."""

import math
from functools import partial

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from tests.helpers.networks import mlps, unet
from tests.unit.training import quiet_trainer
from zoo import GAN, Diffusion
from zoo.datamodules import Digits, Points
from zoo.errors import UserError
from zoo.models.generative import slerp

SMALL = {"input_shape": (1, 8, 8), "num_classes": 10, "latent_dim": 4, **mlps(16)}


def test_slerp_keeps_the_norm_and_is_exact_for_equal_vectors():
    start, end = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    torch.testing.assert_close(slerp(start, end, 0.5), torch.full((1, 2), math.sqrt(2)))
    torch.testing.assert_close(slerp(start, start, 0.3), start)


def test_the_distance_of_images_is_at_its_floor_for_test_images_as_samples():
    data = Digits()
    data.setup()

    class Copies(GAN):
        """Returns test images as samples."""

        def sample(self, n, *, labels=None, generator=None, seeds=None):
            return data.split("test")[0][torch.arange(n) % 297]

    results = {}
    for model in (GAN(**SMALL), Copies(**SMALL)):
        (metrics,) = quiet_trainer(limit_val_batches=1.0).validate(model, datamodule=Digits(), verbose=False)
        results[type(model)] = metrics
    assert results[GAN]["val/fd_floor"] == results[Copies]["val/fd_floor"]
    assert 0 < results[Copies]["val/fd_floor"] < 5
    assert results[Copies]["val/fd"] < 5
    assert results[GAN]["val/fd"] > 30


def test_the_distance_of_points_is_logged_as_w1_with_its_floor():
    data = Points(distribution="gaussians", num_train=21_000)
    model = GAN(input_shape=(1,))
    (metrics,) = quiet_trainer(limit_val_batches=1.0).validate(model, datamodule=data, verbose=False)
    assert metrics["val/w1_floor"] < 0.1 < metrics["val/w1"]


def test_without_an_extractor_no_distance_is_logged():
    model = GAN(**SMALL, extractor="none")
    (metrics,) = quiet_trainer(limit_val_batches=1.0).validate(model, datamodule=Digits(), verbose=False) or [{}]
    assert not metrics


# Data of one's own


class Bare(LightningDataModule):
    """Batches and nothing else."""

    def __init__(self, *tensors):
        super().__init__()
        self.tensors = tensors

    def train_dataloader(self):
        return DataLoader(TensorDataset(*self.tensors), 16)

    val_dataloader = train_dataloader


def fit(model, data):
    trainer = quiet_trainer(max_steps=2, limit_val_batches=1)
    trainer.fit(model, data)
    return trainer


def images(n=32):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(
    ("build", "left_out"),
    [
        (lambda: GAN(**SMALL), "GAN on Bare leaves out the floor of val/fd (no reference())"),
        (
            lambda: Diffusion((1, 8, 8), 10, network=unet(8), steps=2),
            "Diffusion on Bare leaves out the floor of val/fd and mean and deviation of the data from more than the "
            "first batch (no reference()), the comparison with the ideal denoiser and the search for copies of "
            "training data (no split())",
        ),
    ],
    ids=["gan", "diffusion"],
)
def test_data_with_nothing_but_unlabelled_batches_trains_with_one_line_on_what_is_left_out(build, left_out, caplog):
    with caplog.at_level("INFO"):
        trainer = fit(build(), Bare(images()))
    assert [line for line in caplog.messages if "leaves out" in line] == [left_out]
    assert trainer.callback_metrics["val/fd"] > 0
    assert "val/fd_floor" not in trainer.callback_metrics


@pytest.mark.parametrize(
    ("options", "tensors", "message"),
    [
        ({"conditional": True}, (images(),), "conditional is true, but the batches have no labels"),
        ({}, (images(), images(), images()), "a batch is a list of Tensor, Tensor, Tensor; it must be"),
        ({}, (images()[..., :4],), r"samples have the shape \(1, 8, 4\), and the model is for \(1, 8, 8\)"),
        ({}, (images().mul(100).byte(),), r"samples are torch\.uint8; they must be floats"),
    ],
)
def test_batches_that_do_not_fit_are_named(options, tensors, message):
    with pytest.raises(UserError, match=message):
        quiet_trainer(max_steps=1, limit_val_batches=0).fit(GAN(**SMALL, **options), Bare(*tensors))


def test_every_validation_draws_from_the_same_noise_and_every_sample_from_its_own():
    """With a learning rate of 0 the samples are the same to the bit in every validation."""
    still = partial(torch.optim.SGD, lr=0.0)
    model, drawn = GAN(**SMALL, optimizer_g=still, optimizer_d=still), []
    model.inspect_samples = lambda fake, *_: drawn.append(fake)
    trainer = quiet_trainer(max_steps=4, val_check_interval=2, check_val_every_n_epoch=None)
    trainer.fit(model, datamodule=Digits(eval_batch_size=100))
    first, second = (torch.cat(drawn[start : start + 3]) for start in (0, 3))
    assert len(drawn) == 6
    assert torch.equal(first, second)
    assert len(first.unique(dim=0)) == len(first) == 300


@pytest.mark.parametrize("model", [GAN, Diffusion])
@pytest.mark.parametrize("num_classes", [0, 1])
def test_a_condition_on_fewer_than_two_classes_is_refused(model, num_classes):
    message = f"conditional is true, but num_classes is {num_classes}, .* at least 2 classes: set conditional to false"
    with pytest.raises(UserError, match=message):
        model((1, 8, 8), num_classes, conditional=True)
    model((1, 8, 8), num_classes, conditional=False)


def test_batches_by_name_are_refused_with_their_names():
    with pytest.raises(UserError, match="a batch is a dict with the keys image, label; it must be"):
        GAN(**SMALL).unpack({"image": images(), "label": None})


def test_images_in_another_range_are_a_warning(recwarn):
    GAN(**SMALL).on_train_batch_start(images(), 0)
    assert not list(recwarn)
    model, positive = GAN(**SMALL), (images() + 1) / 2
    with pytest.warns(UserWarning, match=r"images of the first batch are in \[\S+, 1\], and the model draws in"):
        model.on_train_batch_start(positive, 0)
    recwarn.clear()
    model.on_train_batch_start(positive, 1)
    assert not list(recwarn), "only the first batch is looked at, since this waits for the device"
