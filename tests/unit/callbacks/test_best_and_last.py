"""BestAndLastCheckpoint: best.ckpt is of the best validation, last.ckpt of the last step."""

import torch

from tests.unit.training import quiet_trainer
from zoo import MLPClassifier
from zoo.callbacks import BestAndLastCheckpoint
from zoo.datamodules import Digits


class RisingMetric(MLPClassifier):
    """Logs a metric that rises with every epoch, so that its minimum is in the first one."""

    def on_validation_epoch_end(self):
        self.log("val/rising", float(self.current_epoch))


def train(folder, monitor="val/rising", mode="min", ckpt_path=None, **options):
    keep = BestAndLastCheckpoint(monitor, mode)
    trainer = quiet_trainer(default_root_dir=folder, callbacks=[keep], enable_checkpointing=True, **options)
    trainer.fit(RisingMetric((1, 8, 8), 10, width=8, depth=1), Digits(batch_size=200), ckpt_path=ckpt_path)
    return keep


def step_of(path):
    return torch.load(path, weights_only=True)["global_step"]


def test_last_is_of_the_last_step_even_if_the_first_validation_was_the_best(tmp_path):
    keep = train(tmp_path, max_epochs=3)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert step_of(keep.best_model_path) == 6, "an epoch of six batches"
    assert step_of(keep.last_model_path) == 18


def test_best_follows_the_metric(tmp_path):
    keep = train(tmp_path, mode="max", max_epochs=3)
    assert step_of(keep.best_model_path) == step_of(keep.last_model_path) == 18


def test_a_run_that_ends_between_two_validations_resumes_from_its_last_step(tmp_path):
    keep = train(tmp_path, max_steps=8)
    assert step_of(keep.last_model_path) == 8
    resumed = train(tmp_path, max_steps=10, ckpt_path="last")
    assert step_of(resumed.last_model_path) == 10
    assert step_of(resumed.best_model_path) == 6


def test_fast_dev_run_writes_nothing(tmp_path):
    train(tmp_path, fast_dev_run=True)
    assert not list(tmp_path.iterdir())
