"""Each check of `check_callback` finds the break that it is for, and nothing in a callback that keeps the contract."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from zoo import MLPClassifier
from zoo.callbacks.run_folder import run_folder
from zoo.contracts import PredictiveClassifier, require
from zoo.testing import CALLBACK_CHECKS, check_callback


class Good(Callback):
    """Counts batches, logs their number and writes it into the run's folder."""

    def __init__(self, every_n_steps: int = 1) -> None:
        self.every_n_steps = every_n_steps
        self.count = 0

    def setup(self, trainer, pl_module, stage):
        require(self, pl_module, PredictiveClassifier)
        self.folder = run_folder(trainer)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.count += 1
        if trainer.global_step % self.every_n_steps == 0:
            torch.rand(3, generator=torch.Generator().manual_seed(0))
            pl_module.log("train/count", float(self.count))

    def on_train_end(self, trainer, pl_module):
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "count.txt").write_text(f"{self.count}\n")

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state_dict):
        self.count = state_dict["count"]


def test_a_callback_that_keeps_the_contract_passes_every_check():
    check_callback(Good, every_n_steps=2)


# Breaks. The name of each class says what it does wrong.


class DrawsGlobally(Good):
    def on_train_batch_end(self, *args):
        super().on_train_batch_end(*args)
        torch.rand(())


class LeavesEvalMode(Good):
    def on_train_batch_end(self, trainer, pl_module, *args):
        super().on_train_batch_end(trainer, pl_module, *args)
        pl_module.eval()


class Fails(Good):
    def on_train_start(self, trainer, pl_module):
        raise KeyError("no such thing")


class ChangesTheTest(Good):
    def on_test_start(self, trainer, pl_module):
        torch.nn.init.zeros_(next(pl_module.parameters()))


class FailsAtTest(Good):
    def on_test_start(self, trainer, pl_module):
        Path(self.no_such_thing)


class SavesItself(Good):
    def state_dict(self):
        return {"count": self.count, "of": type(self)}


class Forgets(Good):
    def state_dict(self):
        return {}

    def load_state_dict(self, state_dict):
        pass


class ForgetsWhatItHasWritten(Forgets):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.count += 1


class DoesNotLoad(Good):
    def load_state_dict(self, state_dict):
        self.count = state_dict["number"]


class RestoresTooMuch(Good):
    def load_state_dict(self, state_dict):
        self.count = state_dict["count"] + 1


class AssumesAClassifier(Good):
    def setup(self, trainer, pl_module, stage):
        super().setup(trainer, MLPClassifier((2,), 2, 2, 1), stage)
        len(pl_module.input_shape)


class RefusesLate(Good):
    def setup(self, trainer, pl_module, stage):
        self.folder = run_folder(trainer)

    def on_train_batch_end(self, trainer, pl_module, *args):
        require(self, pl_module, PredictiveClassifier)


class FailsOnRank1(Good):
    def on_train_start(self, trainer, pl_module):
        if trainer.global_rank == 1:
            raise KeyError("only here")


class DrawsOnRank1(Good):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_rank == 1:
            torch.rand(())


BREAKS = [
    ("training", DrawsGlobally, "changes training: it ends with another network"),
    ("training", LeavesEvalMode, "restore modes (zoo.models.base.eval_mode)"),
    ("training", Fails, "training fails with Fails (KeyError: 'no such thing')"),
    ("test", ChangesTheTest, "with ChangesTheTest the test measures another test/"),
    ("test", FailsAtTest, "test fails with FailsAtTest (AttributeError"),
    ("checkpoint", SavesItself, "a checkpoint with the state of SavesItself does not load with weights_only=True"),
    ("resume", Forgets, "a run resumed after batch 3 ends with other metrics"),
    ("resume", ForgetsWhatItHasWritten, "a run resumed after batch 3 ends with other files (count.txt)"),
    (
        "resume",
        DoesNotLoad,
        "DoesNotLoad does not resume (UserError: the state of the callback DoesNotLoad is damaged",
    ),
    ("resume", RestoresTooMuch, "a run resumed after batch 3 ends with other state (0.count)"),
    ("other_models", AssumesAClassifier, "fails on a LightningModule without the methods it uses (AttributeError"),
    ("other_models", RefusesLate, "refuses a model after 1 steps"),
    ("processes", FailsOnRank1, "does not work on 2 processes (RankError: on rank 1, KeyError: 'only here')"),
    ("processes", DrawsOnRank1, "changes training on rank 0 of 2"),
]


@pytest.mark.parametrize(("check", "callback", "sentence"), BREAKS, ids=[f"{c}-{b.__name__}" for c, b, _ in BREAKS])
def test_a_break_is_found_by_its_check(check, callback, sentence):
    with pytest.raises(AssertionError, match=re.escape(sentence)) as error:
        check_callback(callback, checks=[check])
    message = str(error.value)
    assert callback.__name__ in message
    assert "\n" not in message
    assert "; " in message, "what to do about it"


def test_every_check_has_a_break_that_it_finds():
    assert {check for check, *_ in BREAKS} == set(CALLBACK_CHECKS)


def test_a_model_that_does_not_resume_by_itself_is_not_taken_for_a_fault_of_the_callback():
    class Counts(MLPClassifier):
        batches = 0

        def training_step(self, batch, batch_idx):
            self.batches += 1
            return super().training_step(batch, batch_idx) / self.batches

    def model(input_shape, num_classes):
        return Counts(input_shape, num_classes, width=4, depth=1)

    with pytest.raises(AssertionError, match="the model that Good is checked with does not resume exactly by itself"):
        check_callback(Good, model=model, checks=["resume"])
