"""best.ckpt is of the best validation, last.ckpt of the end, wherever that is."""

import warnings

import torch
from lightning.pytorch import Trainer

from zoo import MLPClassifier
from zoo.callbacks import BestAndLastCheckpoint
from zoo.datamodules import Digits


class Worsening(MLPClassifier):
    """Its metric rises with every epoch, so that the first validation is the best."""

    def on_validation_epoch_end(self):
        self.log("val/rising", float(self.current_epoch))


def train(folder, monitor="val/rising", mode="min", ckpt_path=None, **options):
    warnings.filterwarnings("ignore")
    keep = BestAndLastCheckpoint(monitor, mode)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", default_root_dir=folder, callbacks=[keep], **quiet, **options)
    trainer.fit(Worsening((1, 8, 8), 10, width=8, depth=1), Digits(batch_size=200), ckpt_path=ckpt_path)
    return keep


def step_of(path):
    return torch.load(path, weights_only=True)["global_step"]


def test_the_last_checkpoint_is_of_the_end_also_where_the_first_validation_was_the_best(tmp_path):
    keep = train(tmp_path, max_epochs=3)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert step_of(keep.best_model_path) == 6, "an epoch of six batches"
    assert step_of(keep.last_model_path) == 18


def test_the_best_one_follows_the_metric(tmp_path):
    keep = train(tmp_path, mode="max", max_epochs=3)
    assert step_of(keep.best_model_path) == step_of(keep.last_model_path) == 18


def test_a_run_that_ends_between_two_validations_keeps_its_end_and_goes_on_from_there(tmp_path):
    keep = train(tmp_path, max_steps=8)
    assert step_of(keep.last_model_path) == 8
    resumed = train(tmp_path, max_steps=10, ckpt_path="last")
    assert step_of(resumed.last_model_path) == 10
    assert step_of(resumed.best_model_path) == 6


def test_a_trial_of_one_batch_writes_nothing(tmp_path):
    train(tmp_path, fast_dev_run=True)
    assert not list(tmp_path.iterdir())
