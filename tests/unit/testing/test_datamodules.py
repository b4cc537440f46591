"""Each check of `check_datamodule` finds the break that it is for, and nothing in data that keep the contract."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from zoo.datamodules import InMemoryDataModule
from zoo.datamodules.evaluation import evaluation_loader
from zoo.datamodules.loading import training_loader
from zoo.errors import UserError
from zoo.testing import DATAMODULE_CHECKS, check_datamodule


def images(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(256, (n, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return x, torch.randint(3, (n,), generator=generator)


class Good(InMemoryDataModule):
    """Noise in three classes."""

    input_shape, num_classes, class_names = (1, 4, 4), 3, ("a", "b", "c")

    def __init__(self, batch_size: int = 8, val_size: float = 31) -> None:
        super().__init__(batch_size, 10, val_size)

    def load_split(self, train):
        return images(100 if train else 25, seed=int(train))


class Foreign(LightningDataModule):
    """Has nothing of the zoo but its loaders, no test split and no predictions."""

    input_shape, num_classes = (16,), 3

    def setup(self, stage):
        x, y = images(100, 0)
        x = x.flatten(1).float() / 255
        self.train, self.val = TensorDataset(x[:80], y[:80]), TensorDataset(x[80:], y[80:])

    def train_dataloader(self):
        return training_loader(self.train, 8, True, torch.utils.data.default_collate, self.trainer)

    def val_dataloader(self):
        return evaluation_loader(self.val, 7, torch.utils.data.default_collate, self.trainer)

    def test_dataloader(self):
        raise UserError("there is no test split")


@pytest.mark.parametrize("data", [Good, Foreign])
def test_data_that_keep_the_contract_pass_every_check(data):
    check_datamodule(data)


# Breaks. The name of each class says what it does wrong.


class HasNoShape(Foreign):
    input_shape = None


class HasAShapeOfOneNumber(Foreign):
    input_shape = 16


class HasTooFewNames(Good):
    class_names = ("a", "b")


class LearnsItsClassesInSetup(Good):
    num_classes, class_names = 2, ("a", "b")

    def setup(self, stage=None):
        self.num_classes = 3
        super().setup(stage)


class HasOddPreprocessing(Good):
    preprocessing = {"size": torch.ones(2)}


class LeavesBytes(Good):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch


class LeavesTheRangeOfBytes(Good):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[0].float(), batch[1]


class ReturnsAnotherShape(Foreign):
    input_shape = (4, 4)


class HasFloatLabels(Good):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y = super().on_after_batch_transfer(batch, dataloader_idx)
        return x, y.float()


class HasMoreClasses(Foreign):
    num_classes = 2


class ReturnsNoPairs(Good):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[0]


class HasBytesInItsSplits(Good):
    def split(self, name):
        return images(10, 0)


class HasRandomReferences(Good):
    def reference(self, n):
        return torch.rand(n, 1, 4, 4)


class DrawsAtRandom(Good):
    def training_samples(self, n, *, labels=None, seed=0):
        return torch.rand(n, 1, 4, 4)


class ValidatesOnTrainingData(Good):
    def val_dataloader(self):
        return evaluation_loader(self.train_dataloader().dataset, 10, lambda batch: batch, self.trainer)


class TestsOnValidationData(Good):
    __test__ = False

    def load_split(self, train):
        return images(100, seed=1)


class SplitsByChance(Foreign):
    seeds = itertools.count()

    def setup(self, stage):
        super().setup(stage)
        order = torch.randperm(100, generator=torch.Generator().manual_seed(next(self.seeds)))
        x, y = (torch.cat(pair) for pair in zip(self.train.tensors, self.val.tensors, strict=True))
        self.train, self.val = (TensorDataset(x[i], y[i]) for i in (order[:80], order[80:]))


class ReadsTestInFit(Good):
    def setup(self, stage=None):
        self.load_split(train=False)
        super().setup(stage)


class PredictsAfterFitOnly(Good):
    def predict_dataloader(self):
        return self.val_dataloader()


class HoldsALambda(Good):
    def __init__(self) -> None:
        super().__init__()
        self.change = lambda x: x


class ForgetsItsSizeInPickles(Good):
    def __getstate__(self):
        return {**self.__dict__, "val_size": 20}


class IsRepeatedOverRanks(Foreign):
    def val_dataloader(self):
        return DataLoader(torch.utils.data.Subset(self.val, range(19)), batch_size=7)


class IsNotShared(Foreign):
    def train_dataloader(self):
        return training_loader(self.train, 8, True, torch.utils.data.default_collate, None)


BREAKS = [
    ("attributes", HasNoShape, "has no input_shape before setup(); set it in the class or its constructor"),
    ("attributes", HasAShapeOfOneNumber, "has the input_shape 16; use a tuple of positive integers"),
    ("attributes", HasTooFewNames, "has 2 class_names for 3 classes; use one string for each"),
    ("attributes", LearnsItsClassesInSetup, "changes input_shape, num_classes or class_names in setup()"),
    ("attributes", HasOddPreprocessing, "has a preprocessing that is no plain value"),
    ("batches", LeavesBytes, "have samples of torch.uint8; use float32 after on_after_batch_transfer"),
    ("batches", LeavesTheRangeOfBytes, "have pixels from 1 to 253; scale them to [-1, 1]"),
    ("batches", ReturnsAnotherShape, "have samples of the shape (16,); make them those of input_shape, (4, 4)"),
    ("batches", HasFloatLabels, "have labels of torch.float32; use int64"),
    ("batches", HasMoreClasses, "have labels from 0 to 2; use 0 to 1, or correct num_classes"),
    ("batches", ReturnsNoPairs, "has train batches of the type Tensor; return two tensors, (x, y)"),
    ("splits", HasBytesInItsSplits, "the samples of split('train') of HasBytesInItsSplits have samples of torch.uint8"),
    ("splits", HasRandomReferences, "returns other reference samples at each call"),
    ("splits", DrawsAtRandom, "draws other training samples by the same seed"),
    ("disjoint", ValidatesOnTrainingData, "has 64 of 69 val samples in the train split as well; hold them out of it"),
    ("disjoint", TestsOnValidationData, "test samples in the train split as well"),
    ("reproducible", SplitsByChance, "samples when built again; split by a seed of its own"),
    ("held_out_test", ReadsTestInFit, "reads the test split in setup('fit'); read it for test and predict only"),
    ("prediction", PredictsAfterFitOnly, "has no prediction batches after setup('predict') (UserError"),
    ("pickling", HoldsALambda, "HoldsALambda cannot be pickled ("),
    ("pickling", ForgetsItsSizeInPickles, "has other train and val samples; pickle all options"),
    ("processes", IsRepeatedOverRanks, "shows 2 ranks 20 val samples instead of each of the 19 once"),
    ("processes", IsNotShared, "gives 80 of 80 training samples to both ranks"),
]


@pytest.mark.parametrize(("check", "data", "sentence"), BREAKS, ids=[f"{c}-{d.__name__}" for c, d, _ in BREAKS])
def test_a_break_is_found_by_its_check(check, data, sentence):
    with pytest.raises(AssertionError, match=re.escape(sentence)) as error:
        check_datamodule(data, checks=[check])
    message = str(error.value)
    assert data.__name__ in message
    assert "\n" not in message
    assert "; " in message, "what to do about it"


def test_every_check_has_a_break_that_it_finds():
    assert {check for check, *_ in BREAKS} == set(DATAMODULE_CHECKS)


def test_data_that_cannot_be_built_are_named():
    with pytest.raises(AssertionError, match=r"Good cannot be built .*; name its arguments in check_datamodule"):
        check_datamodule(Good, root="nowhere")
