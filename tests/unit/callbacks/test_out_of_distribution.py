"""OutOfDistribution against scikit-learn's area under the ROC curve."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningModule
from sklearn.metrics import roc_auc_score

from tests.unit.training import quiet_trainer
from zoo import MLPClassifier
from zoo.callbacks import OutOfDistribution
from zoo.datamodules import Digits, InMemoryDataModule, Points
from zoo.errors import UserError
from zoo.models.predictions import Predictions


class Scores(InMemoryDataModule):
    """Samples that are pairs of entropy and mutual information."""

    input_shape, num_classes, class_names = (2,), 2, ("a", "b")

    def __init__(self, x: torch.Tensor, **options):
        super().__init__(**options)
        self.values = x

    def load_split(self, train):
        if train:
            return torch.zeros(10, 2), torch.zeros(10, dtype=torch.long)
        return self.values, torch.zeros(len(self.values), dtype=torch.long)


class GivenUncertainty(LightningModule):
    """Takes its uncertainty from the samples."""

    input_shape = (2,)

    def __init__(self, mc_samples: int = 0, ensemble: tuple[str, ...] = ()):
        super().__init__()
        self.mc_samples, self.ensemble = mc_samples, ensemble
        self.places: list[int] = []

    def predictive(self, x, places=None):
        self.places += [] if places is None else places.tolist()
        return Predictions(torch.full((len(x), 2), 0.5), x[:, 0], x[:, 1], ("a", "b"))

    def test_step(self, batch, batch_idx):
        return self.predictive(batch[0])


def scores(n: int, shift: float, scale: float = 1.0) -> torch.Tensor:
    """Positive numbers (n, 2), rounded so that there are ties."""
    generator = torch.Generator().manual_seed(n)
    return (
        ((torch.randn(n, 2, generator=generator).abs() + torch.tensor([shift, 0.5 * shift])) * 10).round() / 10 * scale
    )


def evaluate(model, own, foreign) -> dict[str, float]:
    """Metrics of `Trainer.test` on `own` data with OutOfDistribution on `foreign` data."""
    trainer = quiet_trainer(callbacks=[OutOfDistribution(foreign)])
    (metrics,) = trainer.test(model, datamodule=own, verbose=False) or [{}]
    return metrics


@pytest.mark.parametrize("scale", [0.01, 1.0, 1000.0])
@pytest.mark.parametrize("shift", [0.0, 0.7, -0.4])
def test_auroc_equals_scikit_learns_at_any_scale(shift, scale):
    own, foreign = scores(53, 1.0, scale), scores(31, 1.0 + shift, scale)
    metrics = evaluate(
        GivenUncertainty(mc_samples=4), Scores(own, eval_batch_size=10), Scores(foreign, eval_batch_size=7)
    )
    labels = [0] * 53 + [1] * 31
    values = torch.cat([own, foreign])
    assert metrics["test/ood_auroc"] == pytest.approx(roc_auc_score(labels, values[:, 0]), abs=1e-6)
    assert metrics["test/ood_auroc_mi"] == pytest.approx(roc_auc_score(labels, values[:, 1]), abs=1e-6)
    assert (metrics["test/ood_auroc"] > 0.5) == (shift > 0) or shift == 0


def test_auroc_of_separated_and_of_identical_scores():
    low, high = torch.rand(20, 2), 1 + torch.rand(20, 2)
    assert evaluate(GivenUncertainty(), Scores(low), Scores(high))["test/ood_auroc"] == 1
    assert evaluate(GivenUncertainty(), Scores(high), Scores(low))["test/ood_auroc"] == 0
    assert evaluate(GivenUncertainty(), Scores(torch.ones(9, 2)), Scores(torch.ones(9, 2)))["test/ood_auroc"] == 0.5


@pytest.mark.parametrize(
    ("model", "several"),
    [
        (GivenUncertainty(), False),
        (GivenUncertainty(mc_samples=2), True),
        (GivenUncertainty(ensemble=("a.ckpt",)), True),
    ],
    ids=["one network", "passes", "an ensemble"],
)
def test_mutual_information_is_reported_for_ensembles_only(model, several):
    metrics = evaluate(model, Scores(scores(9, 0.0)), Scores(scores(8, 0.0)))
    assert set(metrics) == {"test/ood_auroc", *(["test/ood_auroc_mi"] if several else [])}


def test_dropout_masks_of_the_foreign_data_are_drawn_by_the_samples_places():
    model = GivenUncertainty()
    evaluate(model, Scores(scores(20, 0.0), eval_batch_size=10), Scores(scores(21, 0.0), eval_batch_size=8))
    assert model.places == list(range(21))


def test_a_second_test_discards_earlier_scores():
    trainer = quiet_trainer(callbacks=[OutOfDistribution(Scores(torch.ones(5, 2)))])
    for value, area in ((0.0, 1.0), (2.0, 0.0)):
        (metrics,) = trainer.test(GivenUncertainty(), datamodule=Scores(torch.full((5, 2), value)), verbose=False)
        assert metrics["test/ood_auroc"] == area


def test_data_of_another_shape_is_refused():
    message = r"OutOfDistribution's data has the shape \(2,\), and the model takes \(1, 8, 8\)"
    with pytest.raises(UserError, match=message):
        evaluate(MLPClassifier((1, 8, 8), 10, width=4, depth=1), Digits(), Points("moons"))


def test_a_model_without_a_predictive_distribution_is_refused():
    class Other(LightningModule):
        def test_step(self, batch, batch_idx):
            pass

    with pytest.raises(
        UserError,
        match=r"needs input_shape and predictive\(\), which Other does not have: use a classifier",
    ):
        evaluate(Other(), Scores(scores(5, 0.0)), Scores(scores(5, 0.0)))


class ShuffledDigits(Digits):
    """Digits whose pixels are shuffled, each image by a permutation of its own."""

    def load_split(self, train):
        x, y = super().load_split(train)
        generator = torch.Generator().manual_seed(0)
        order = torch.rand(len(x), 64, generator=generator).argsort(1)
        return x.flatten(1).gather(1, order).view_as(x), y


def test_a_trained_classifier_separates_digits_from_shuffled_digits_and_not_from_digits():
    torch.manual_seed(0)
    model = MLPClassifier((1, 8, 8), 10, width=64, depth=1, mc_samples=8)
    quiet_trainer(max_steps=150, limit_val_batches=0).fit(model, datamodule=Digits())
    foreign, same = (evaluate(model, Digits(), data) for data in (ShuffledDigits(), Digits()))
    assert foreign["test/ood_auroc"] > 0.8
    assert same["test/ood_auroc"] == pytest.approx(0.5, abs=1e-6)
    assert foreign["test/acc"] == same["test/acc"] > 0.75
