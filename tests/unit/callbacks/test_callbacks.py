"""The callbacks on their own, with models that are made for the purpose."""

import csv
import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from zoo import GAN
from zoo.callbacks import CurvePlotter, EquilibriumReport, ModeCoverage, SampleLogger
from zoo.callbacks.curves import read_metrics
from zoo.callbacks.equilibrium import two_sample_accuracy
from zoo.callbacks.mode_coverage import mode_coverage
from zoo.datamodules import Digits, Points
from zoo.errors import UserError


class Painter(LightningModule):
    """Paints images as bright as it has taken steps, and knows nothing of the zoo's base class."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0].flatten(1)[:, :1]).square().mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def sample(self, n, *, labels=None, generator=None):
        return torch.full((n, 1, 8, 8), self.global_step / 5 - 1)


def trainer(tmp_path, callbacks, **options):
    warnings.filterwarnings("ignore")
    defaults = {"max_steps": 10, "logger": CSVLogger(tmp_path, name="", version=""), "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    return Trainer(accelerator="cpu", callbacks=callbacks, **(defaults | quiet | options))


def test_sample_logger_draws_at_its_steps_and_at_both_ends(tmp_path):
    trainer(tmp_path, [SampleLogger(n=4, every_n_steps=4)]).fit(Painter(), datamodule=Digits())
    pictures = sorted((tmp_path / "samples").glob("*.png"))
    assert [p.stem for p in pictures] == ["step_0000000", "step_0000004", "step_0000008", "step_0000010"]
    brightness = [Image.open(p).getpixel((10, 10))[0] for p in pictures]
    assert brightness == [0, 102, 204, 255]
    assert Image.open(tmp_path / "samples" / "film.gif").n_frames >= 4


def test_sample_logger_overwrites_nothing(tmp_path):
    for _ in range(2):
        trainer(tmp_path, [SampleLogger(n=4, every_n_steps=100)]).fit(Painter(), datamodule=Digits())
    names = {p.name for p in (tmp_path / "samples").iterdir()}
    assert {"step_0000010.png", "step_0000010-1.png", "film.gif", "film-1.gif"} <= names


def test_sample_logger_draws_the_classes_of_a_conditional_model_in_columns(tmp_path):
    class Labelled(Painter):
        conditional, num_classes = True, 5

        def sample(self, n, *, labels=None, generator=None):
            return (labels.float() / 2 - 1).reshape(n, 1, 1, 1).expand(n, 1, 8, 8)

    trainer(tmp_path, [SampleLogger(n=10)], max_steps=1).fit(Labelled(), datamodule=Digits())
    picture = Image.open(tmp_path / "samples" / "step_0000000.png")
    assert picture.size == (5 * 34 + 2, 2 * 34 + 2)
    rows = [[picture.getpixel((34 * k + 10, y))[0] for k in range(5)] for y in (10, 44)]
    assert rows[0] == rows[1] == [0, 64, 128, 191, 255]


def test_sample_logger_sends_pictures_to_a_logger_that_takes_them(tmp_path):
    class Gallery(CSVLogger):
        pictures = []

        def log_image(self, key, images, step=None):
            self.pictures.append((key, images[0].shape, step))

    logger = Gallery(tmp_path, name="", version="")
    trainer(tmp_path, [SampleLogger(n=4)], logger=logger, max_steps=2).fit(Painter(), datamodule=Digits())
    assert logger.pictures == [("samples", (70, 70, 3), 0), ("samples", (70, 70, 3), 2)]


def test_sample_logger_needs_a_model_that_samples(tmp_path):
    class Silent(Painter):
        sample = None

    with pytest.raises(UserError, match="Silent has none"):
        trainer(tmp_path, [SampleLogger()]).fit(Silent(), datamodule=Digits())


class Logging(Painter):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("train/loss", loss)
        self.log("train/nothing", math.nan)
        return loss


def test_curves_are_drawn_from_what_was_logged(tmp_path):
    trainer(tmp_path, [CurvePlotter()], log_every_n_steps=2).fit(Logging(), datamodule=Digits())
    assert Image.open(tmp_path / "curves.png").size[0] > 100
    metrics = read_metrics(tmp_path / "metrics.csv")
    assert [step for step, _ in metrics["train/loss"]] == [1, 3, 5, 7, 9]
    assert "train/nothing" not in metrics
    with (tmp_path / "metrics.csv").open() as file:
        assert "train/nothing" in next(csv.reader(file))


def test_curves_of_a_long_run_cost_no_more_memory(tmp_path):
    rows = [f"{step},{step / 2},{'7' if step % 1000 == 999 else ''}" for step in range(20_000)]
    (tmp_path / "metrics.csv").write_text("\n".join(["step,train/loss,val/loss", *rows]))
    metrics = read_metrics(tmp_path / "metrics.csv")
    steps = [step for step, _ in metrics["train/loss"]]
    assert 500 < len(steps) <= 1001
    assert steps[0] == 0 and steps[-1] == 19_999, "the ends are there"
    assert len({b - a for a, b in pairwise(steps[:-1])}) == 1, "evenly thinned out"
    assert all(value == step / 2 for step, value in metrics["train/loss"])
    assert [step for step, _ in metrics["val/loss"]] == list(range(999, 20_000, 1000)), "rare values all stay"


@pytest.mark.parametrize(("every_seconds", "pictures"), [(0, 6), (1e6, 2)])
def test_curves_are_drawn_during_training_but_not_more_often_than_told(every_seconds, pictures, tmp_path, monkeypatch):
    drawn = []

    def draw(metrics):
        drawn.append(metrics)
        return np.zeros((2, 2, 3), dtype=np.uint8)

    monkeypatch.setattr("zoo.callbacks.curves.plot_curves", draw)
    options = {"limit_val_batches": 1, "val_check_interval": 2, "num_sanity_val_steps": 0, "log_every_n_steps": 1}
    trainer(tmp_path, [CurvePlotter(every_seconds)], **options).fit(Logging(), datamodule=Digits())
    assert len(drawn) == pictures, "after the first validation, the others where it is time, and at the end"


def test_mode_coverage_counts_modes_and_good_samples():
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = torch.tensor([[0.0, 0.29], [0.0, 0.31], [10.0, 0.0], [5.0, 5.0]])
    assert mode_coverage(points, centers, std=0.1) == (2, 0.5)
    data = Points("grid")
    generator = torch.Generator().manual_seed(0)
    modes, share = mode_coverage(data.sample_points(20_000, generator), data.centers, data.std)
    assert modes == 25
    assert share == pytest.approx(1 - math.exp(-4.5), abs=0.003), "within 3 sigma in two dimensions"


def test_mode_coverage_needs_known_modes(tmp_path):
    with pytest.raises(UserError, match="Digits has no centers"):
        trainer(tmp_path, [ModeCoverage()]).fit(GAN(input_shape=(1, 8, 8)), datamodule=Digits())


def test_two_sample_test_is_fooled_by_equals_only():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(4000, 1, generator=generator), torch.randn(4000, 1, generator=generator)
    assert two_sample_accuracy(x, y) == pytest.approx(0.5, abs=0.03)
    # The best classifier of N(0, 1) against N(1, 1) is right with probability Phi(1/2) = 0.6915.
    assert two_sample_accuracy(x, y + 1) == pytest.approx(0.6915, abs=0.03)


class PerfectGAN(GAN):
    """Its generator is the data, and its discriminator is undecided."""

    def __init__(self, data, **options):
        super().__init__(input_shape=(1,), **options)
        self.data = data
        self.discriminator = torch.nn.Flatten(0)
        self.discriminator.forward = lambda x: 0 * x[:, 0] + 7 * (self.loss_name == "relativistic")

    def sample(self, n, *, labels=None, generator=None):
        return self.data.sample_points(n, generator)


@pytest.mark.parametrize("loss", ["minimax", "relativistic"])
def test_equilibrium_report_of_a_perfect_gan_meets_theory_and_floors(loss):
    data = Points("gaussians")
    rows = EquilibriumReport(n=4000).measure(PerfectGAN(data, loss=loss), data)
    assert rows["value"]["measured"] == pytest.approx(-math.log(4), abs=1e-5)
    assert rows["d_real"]["measured"] == rows["d_fake"]["measured"] == pytest.approx(0.5)
    assert "floor" not in rows["value"], "there theory is the floor"
    assert rows["wasserstein_1"]["measured"] < 3 * rows["wasserstein_1"]["floor"]
    assert abs(rows["two_sample_accuracy"]["measured"] - 0.5) < 4 * rows["two_sample_accuracy"]["standard_error"]


def test_equilibrium_report_tells_a_bad_generator():
    data = Points("gaussians")
    rows = EquilibriumReport(n=2000).measure(GAN(input_shape=(1,), loss="minimax"), data)
    assert rows["wasserstein_1"]["measured"] > 10 * rows["wasserstein_1"]["floor"]
    assert rows["two_sample_accuracy"]["measured"] > 0.7
