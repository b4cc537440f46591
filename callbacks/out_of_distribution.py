"""Out-of-distribution detection by a classifier's uncertainty."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torchmetrics.classification import BinaryAUROC

from zoo.contracts import Data, Ensemble, PredictiveClassifier, offers, require
from zoo.errors import UserError


class OutOfDistribution(Callback):
    """Measures at `test` how well a classifier's uncertainty separates a second data set from the test set.

    It logs the area under the ROC curve of the predictive entropy (`test/ood_auroc`) and, for an ensemble, of the
    mutual information (`test/ood_auroc_mi`): 0.5 is chance, 1 is perfect separation. No method guarantees higher
    uncertainty far from the data; this measures it.

    For any LightningModule that offers `zoo.contracts.PredictiveClassifier`, as the zoo's classifiers do.

    Args:
        data: out-of-distribution data of the same shape, whose test split is used.
    """

    def __init__(self, data: LightningDataModule) -> None:
        self.data: Any = data
        self._scores: dict[str, BinaryAUROC] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "test":
            return
        require(self, pl_module, PredictiveClassifier, remedy="use a classifier")
        require(self, self.data, Data)
        own, foreign = tuple(pl_module.input_shape), tuple(self.data.input_shape)  # type: ignore[arg-type]
        if own != foreign:
            raise UserError(f"OutOfDistribution's data has the shape {foreign}, and the model takes {own}")
        if trainer.is_global_zero:
            self.data.prepare_data()
        trainer.strategy.barrier("foreign data")
        self.data.setup("test")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._scores = {name: BinaryAUROC().to(pl_module.device) for name in ("entropy", "mutual_information")}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._update(outputs, foreign=False)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        start = 0
        for index, batch in enumerate(self.data.test_dataloader()):
            places = torch.arange(start, start := start + len(batch[0]))
            if index % trainer.world_size != trainer.global_rank:
                continue
            x, _ = self.data.on_after_batch_transfer(tuple(t.to(pl_module.device) for t in batch), 0)
            with trainer.precision_plugin.forward_context():
                self._update(pl_module.predictive(x, places), foreign=True)  # type: ignore[operator]
        values = {name: score.compute() for name, score in self._scores.items()}
        pl_module.log("test/ood_auroc", values["entropy"])
        if _disagree(pl_module):
            pl_module.log("test/ood_auroc_mi", values["mutual_information"])

    def _update(self, predictive: Any, foreign: bool) -> None:
        for name, score in self._scores.items():
            values = getattr(predictive, name)
            # AUROC depends on ranks only; torchmetrics would treat values above 1 as logits and round large ones.
            score.update(values / (1 + values), torch.full_like(values, int(foreign), dtype=torch.long))


def _disagree(model: LightningModule) -> bool:
    """Whether the model averages several members, which can disagree."""
    return offers(model, Ensemble) and bool(model.mc_samples or model.ensemble)
