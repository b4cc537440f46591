"""What the handling of signals replaces in Lightning; signals themselves are sent in the tests of the commands."""

from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from tests.unit.training import quiet_trainer
from zoo import MLPClassifier
from zoo.callbacks import StopOnSignal
from zoo.datamodules import Digits


def test_lightnings_own_broadcast_before_every_batch_is_off(monkeypatch):
    broadcasts = []
    monkeypatch.setattr(_TrainingEpochLoop, "_broadcast_sigterm_tensor", lambda self: broadcasts.append(self))
    for callbacks, expected in (([], 1), ([StopOnSignal()], 0)):
        broadcasts.clear()
        trainer = quiet_trainer(max_steps=1, limit_val_batches=0, callbacks=callbacks)
        trainer.fit(MLPClassifier((1, 8, 8), 10, width=4, depth=1), datamodule=Digits())
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor()  # which the loop calls if there are several processes
        assert len(broadcasts) == expected
