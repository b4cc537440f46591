"""What all models have from their base."""

import warnings

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from zoo import MLPClassifier
from zoo.datamodules import Digits


class Norms(Callback):
    """The norm of the gradients that the optimizer is given, and of what they were before they were clipped."""

    def __init__(self):
        self.before, self.after = [], []

    def on_after_backward(self, trainer, pl_module):
        self.before.append(torch.nn.utils.get_total_norm([p.grad for p in pl_module.network.parameters()]).item())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.after.append(torch.nn.utils.get_total_norm([p.grad for p in pl_module.network.parameters()]).item())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_clipped_at_any_precision_and_for_fused_optimizers(precision, fused):
    warnings.filterwarnings("ignore")
    seed_everything(0, verbose=False)
    model = MLPClassifier((1, 8, 8), 10, width=16, depth=1, optimizer=lambda p: torch.optim.AdamW(p, fused=fused))
    norms = Norms()
    shown = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(
        accelerator="cpu", max_steps=3, logger=False, limit_val_batches=0, gradient_clip_val=0.01, precision=precision,
        callbacks=[norms], **shown,
    )  # fmt: skip
    trainer.fit(model, Digits(batch_size=32))
    assert min(norms.before) > 0.02
    assert norms.after == pytest.approx([0.01] * 3, rel=1e-3)
