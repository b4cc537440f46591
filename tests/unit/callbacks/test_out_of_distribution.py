"""Foreign data told from one's own: the area under the curve against scikit-learn's."""

from __future__ import annotations

import warnings

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.metrics import roc_auc_score

from zoo import MLPClassifier
from zoo.callbacks import OutOfDistribution
from zoo.datamodules import Digits, InMemoryDataModule, Points
from zoo.errors import UserError
from zoo.models.classifier import Predictive


class Scores(InMemoryDataModule):
    """Samples that say themselves how uncertain they are: (entropy, mutual information)."""

    input_shape, num_classes, class_names = (2,), 2, ("a", "b")

    def __init__(self, x: torch.Tensor, **options):
        super().__init__(**options)
        self.values = x

    def load_split(self, train):
        if train:
            return torch.zeros(10, 2), torch.zeros(10, dtype=torch.long)
        return self.values, torch.zeros(len(self.values), dtype=torch.long)


class Told(LightningModule):
    """As uncertain as the samples say."""

    input_shape = (2,)

    def __init__(self, mc_samples: int = 0, ensemble: tuple[str, ...] = ()):
        super().__init__()
        self.mc_samples, self.ensemble = mc_samples, ensemble
        self.seeds: list[int] = []

    def predictive(self, x, seed=0):
        self.seeds.append(seed)
        return Predictive(torch.full((len(x), 2), 0.5), x[:, 0], x[:, 1])

    def test_step(self, batch, batch_idx):
        return self.predictive(batch[0], seed=batch_idx)


def scores(n: int, shift: float, scale: float = 1.0) -> torch.Tensor:
    """Positive, with ties, more of them the more they are rounded."""
    generator = torch.Generator().manual_seed(n)
    return (
        ((torch.randn(n, 2, generator=generator).abs() + torch.tensor([shift, 0.5 * shift])) * 10).round() / 10 * scale
    )


def test(model, own, foreign) -> dict[str, float]:
    warnings.filterwarnings("ignore")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    callback = OutOfDistribution(foreign)
    trainer = Trainer(accelerator="cpu", callbacks=[callback], enable_model_summary=False, **quiet)
    (metrics,) = trainer.test(model, datamodule=own, verbose=False) or [{}]
    return metrics


test.__test__ = False  # the Trainer's word, not pytest's


@pytest.mark.parametrize("scale", [0.01, 1.0, 1000.0])
@pytest.mark.parametrize("shift", [0.0, 0.7, -0.4])
def test_the_area_is_that_of_scikit_learn_whatever_the_scale(shift, scale):
    own, foreign = scores(53, 1.0, scale), scores(31, 1.0 + shift, scale)
    metrics = test(Told(mc_samples=4), Scores(own, eval_batch_size=10), Scores(foreign, eval_batch_size=7))
    labels = [0] * 53 + [1] * 31
    values = torch.cat([own, foreign])
    assert metrics["test/ood_auroc"] == pytest.approx(roc_auc_score(labels, values[:, 0]), abs=1e-6)
    assert metrics["test/ood_auroc_mi"] == pytest.approx(roc_auc_score(labels, values[:, 1]), abs=1e-6)
    assert (metrics["test/ood_auroc"] > 0.5) == (shift > 0) or shift == 0


def test_all_and_nothing():
    low, high = torch.rand(20, 2), 1 + torch.rand(20, 2)
    assert test(Told(), Scores(low), Scores(high))["test/ood_auroc"] == 1
    assert test(Told(), Scores(high), Scores(low))["test/ood_auroc"] == 0
    assert test(Told(), Scores(torch.ones(9, 2)), Scores(torch.ones(9, 2)))["test/ood_auroc"] == 0.5


@pytest.mark.parametrize(
    ("model", "several"),
    [(Told(), False), (Told(mc_samples=2), True), (Told(ensemble=("a.ckpt",)), True)],
    ids=["one network", "passes", "an ensemble"],
)
def test_mutual_information_is_reported_where_there_are_several_members(model, several):
    metrics = test(model, Scores(scores(9, 0.0)), Scores(scores(8, 0.0)))
    assert set(metrics) == {"test/ood_auroc", *(["test/ood_auroc_mi"] if several else [])}


def test_every_batch_of_the_foreign_data_has_masks_of_its_own():
    model = Told()
    test(model, Scores(scores(20, 0.0), eval_batch_size=10), Scores(scores(21, 0.0), eval_batch_size=7))
    assert model.seeds == [0, 1, 0, 1, 2]


def test_a_second_test_starts_anew():
    warnings.filterwarnings("ignore")
    callback = OutOfDistribution(Scores(torch.ones(5, 2)))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", callbacks=[callback], enable_model_summary=False, **quiet)
    for value, area in ((0.0, 1.0), (2.0, 0.0)):
        (metrics,) = trainer.test(Told(), datamodule=Scores(torch.full((5, 2), value)), verbose=False)
        assert metrics["test/ood_auroc"] == area


def test_data_of_another_shape_are_refused():
    message = r"OutOfDistribution's data have the shape \(2,\), and the model takes \(1, 8, 8\)"
    with pytest.raises(UserError, match=message):
        test(MLPClassifier((1, 8, 8), 10, width=4, depth=1), Digits(), Points("moons"))


def test_a_model_without_a_predictive_distribution_is_refused():
    class Other(LightningModule):
        def test_step(self, batch, batch_idx):
            pass

    with pytest.raises(UserError, match="OutOfDistribution needs a classifier, and Other is none"):
        test(Other(), Scores(scores(5, 0.0)), Scores(scores(5, 0.0)))


class Noise(Digits):
    """Digits whose pixels are shuffled, every picture in its own way."""

    def load_split(self, train):
        x, y = super().load_split(train)
        generator = torch.Generator().manual_seed(0)
        order = torch.rand(len(x), 64, generator=generator).argsort(1)
        return x.flatten(1).gather(1, order).view_as(x), y


def test_a_trained_classifier_tells_digits_from_noise_and_not_from_digits():
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    model = MLPClassifier((1, 8, 8), 10, width=64, depth=1, mc_samples=8)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    Trainer(accelerator="cpu", max_steps=150, enable_model_summary=False, **quiet).fit(model, datamodule=Digits())
    foreign, same = (test(model, Digits(), data) for data in (Noise(), Digits()))
    assert foreign["test/ood_auroc"] > 0.8
    assert same["test/ood_auroc"] == pytest.approx(0.5, abs=1e-6)
    assert foreign["test/acc"] == same["test/acc"] > 0.8
