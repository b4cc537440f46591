"""SampleLogger: when it draws, what it writes, and to which loggers."""

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from tests.unit.training import quiet_trainer
from zoo.callbacks import SampleLogger, samples
from zoo.datamodules import Digits
from zoo.errors import UserError


class BrightnessModel(LightningModule):
    """Samples images as bright as the number of its steps; has nothing of the zoo's base class."""

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


def fit(model, callback, folder, **options):
    defaults = {"max_steps": 10, "logger": CSVLogger(folder, name="", version=""), "limit_val_batches": 0}
    trainer = quiet_trainer(callbacks=[callback], **(defaults | options))
    trainer.fit(model, datamodule=Digits())


def test_images_are_drawn_every_n_steps_and_before_and_after_training(tmp_path):
    fit(BrightnessModel(), SampleLogger(n=4, every_n_steps=4), tmp_path)
    images = sorted((tmp_path / "samples").glob("*.png"))
    assert [p.stem for p in images] == ["step_0000000", "step_0000004", "step_0000008", "step_0000010"]
    brightness = [Image.open(p).getpixel((10, 10))[0] for p in images]
    assert brightness == [0, 102, 204, 255]
    assert Image.open(tmp_path / "samples" / "film.gif").n_frames >= 4


def test_existing_images_are_not_overwritten(tmp_path):
    for _ in range(2):
        fit(BrightnessModel(), SampleLogger(n=4, every_n_steps=100), tmp_path)
    names = {p.name for p in (tmp_path / "samples").iterdir()}
    assert {"step_0000010.png", "step_0000010-1.png", "film.gif", "film-1.gif"} <= names


def test_each_class_of_a_conditional_model_is_a_column(tmp_path):
    class Labelled(BrightnessModel):
        conditional, num_classes = True, 5

        def sample(self, n, *, labels=None, generator=None):
            return (labels.float() / 2 - 1).reshape(n, 1, 1, 1).expand(n, 1, 8, 8)

    fit(Labelled(), SampleLogger(n=10), tmp_path, max_steps=1)
    image = Image.open(tmp_path / "samples" / "step_0000000.png")
    assert image.size == (5 * 34 + 2, 2 * 34 + 2)
    rows = [[image.getpixel((34 * k + 10, y))[0] for k in range(5)] for y in (10, 44)]
    assert rows[0] == rows[1] == [0, 64, 128, 191, 255]


def test_the_samples_of_a_single_class_are_a_square(tmp_path):
    class OneClass(BrightnessModel):
        conditional, num_classes = True, 1

        def trajectory(self, n, *, labels=None, generator=None):
            return self.sample(n).expand(2, n, 1, 8, 8)

    fit(OneClass(), SampleLogger(n=49), tmp_path, max_steps=1)
    for name in ("step_0000000.png", "trajectory.gif"):
        assert Image.open(tmp_path / "samples" / name).size == (7 * 34 + 2, 7 * 34 + 2)


def test_images_are_sent_to_loggers_with_log_image(tmp_path):
    class ImageLogger(CSVLogger):
        images = []

        def log_image(self, key, images, step=None):
            self.images.append((key, images[0].shape, step))

    logger = ImageLogger(tmp_path, name="", version="")
    fit(BrightnessModel(), SampleLogger(n=4), tmp_path, logger=logger, max_steps=2)
    assert logger.images == [("samples", (70, 70, 3), 0), ("samples", (70, 70, 3), 2)]


@pytest.mark.parametrize("known", [True, False])
def test_points_are_drawn_over_training_points_if_the_data_have_any(tmp_path, known, monkeypatch, caplog):
    class Sampler(BrightnessModel):
        def sample(self, n, *, labels=None, generator=None):
            return torch.zeros(n, 2)

    class Unknown(Digits):
        reference = None

    drawn = []
    monkeypatch.setattr(samples, "render_samples", lambda x, columns, data: drawn.append(data) or black_pixel)
    black_pixel = np.zeros((1, 1, 3), dtype=np.uint8)
    trainer = quiet_trainer(max_steps=1, limit_val_batches=0, logger=CSVLogger(tmp_path), callbacks=[SampleLogger(4)])
    with caplog.at_level("INFO"):
        trainer.fit(Sampler(), datamodule=Digits() if known else Unknown())
    line = "SampleLogger on Unknown leaves out training points behind the samples (no reference())"
    assert caplog.messages.count(line) == (0 if known else 1)
    assert [data is not None for data in drawn] == [known, known]


def test_a_model_without_sample_is_refused(tmp_path):
    class WithoutSample(BrightnessModel):
        sample = None

    with pytest.raises(UserError, match=r"SampleLogger needs sample\(\), which WithoutSample does not have"):
        fit(WithoutSample(), SampleLogger(), tmp_path)
