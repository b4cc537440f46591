"""AttentionMaps: when it plots, and what it writes."""

import pytest
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from tests.unit.training import quiet_trainer
from zoo import Seq2Seq
from zoo.callbacks import AttentionMaps
from zoo.datamodules import Sequences
from zoo.errors import UserError


def test_maps_are_plotted_every_n_steps_and_at_the_end_and_not_overwritten(tmp_path):
    class ImageLogger(CSVLogger):
        shown: list = []

        def log_image(self, key, images, step=None):
            self.shown.append((key, images[0].shape, step))

    data = Sequences("sort", digits=3, num_train=400, num_test=10, batch_size=32, val_size=100)
    for _ in range(2):
        logger = ImageLogger(tmp_path, name="", version="run")
        logger.shown = []
        trainer = quiet_trainer(
            max_steps=3, limit_val_batches=1, logger=logger, callbacks=[AttentionMaps(every_n_steps=2)]
        )
        model = Seq2Seq(data.input_shape, data.num_classes, data.output_length, layers=1, width=16, heads=2)
        trainer.fit(model, data)
        assert [(key, step) for key, _, step in logger.shown] == [("attention", 2), ("attention", 3)]
    names = sorted(path.name for path in (tmp_path / "run" / "attention").iterdir())
    assert names == sorted(f"step_000000{step}{again}.png" for step in (2, 3) for again in ("", "-1"))
    with Image.open(tmp_path / "run" / "attention" / "step_0000003.png") as image:
        assert image.width > image.height, "two heads side by side"
        assert len(image.getcolors(1 << 20)) > 20


def test_a_model_without_attention_and_invalid_options_are_refused():
    with pytest.raises(
        UserError,
        match=r"needs padding and attention\(\), which LightningModule does not have",
    ):
        AttentionMaps().setup(quiet_trainer(), LightningModule(), "fit")
    with pytest.raises(UserError, match="every_n_steps is 0"):
        AttentionMaps(0)
