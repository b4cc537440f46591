"""The base of the data modules, on samples that are their own index."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DistributedSampler

from tests.unit.datamodules.test_contract import Linear
from tests.unit.training import quiet_trainer
from zoo.datamodules import Digits, InMemoryDataModule
from zoo.datamodules.base import TensorBatches, identity_collate
from zoo.errors import UserError


class Numbered(InMemoryDataModule):
    """Samples that are their own index: 0 to 99 for training and validation, 1000 to 1009 for testing."""

    input_shape, num_classes, class_names = (1,), 1, ("one",)

    def load_split(self, train):
        x = torch.arange(100.0) if train else torch.arange(1000.0, 1010.0)
        return x.unsqueeze(1), torch.zeros(len(x), dtype=torch.int64)


def numbered(**options) -> Numbered:
    data = Numbered(**options)
    data.setup()
    return data


def indices(loader) -> list[int]:
    return [int(i) for x, _ in loader for i in x]


def test_another_seed_gives_another_split():
    one, two = numbered(seed=0).split("val")[0], numbered(seed=1).split("val")[0]
    assert set(one.flatten().tolist()) != set(two.flatten().tolist())


@pytest.mark.parametrize(("val_size", "count"), [(0.1, 10), (0.25, 25), (1, 1), (40, 40), (99.0, 99)])
def test_val_size_is_a_fraction_below_one_and_a_number_from_one_on(val_size, count):
    data = numbered(val_size=val_size)
    assert [len(data.split(name)[0]) for name in ("train", "val", "test")] == [100 - count, count, 10]


@pytest.mark.parametrize("val_size", [100, 1000, 0.001])
def test_val_size_that_leaves_a_split_empty_is_refused(val_size):
    with pytest.raises(UserError, match=f"val_size {val_size} .* of 100"):
        numbered(val_size=val_size)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"eval_batch_size": -1}, {"repeats": 0}, {"val_size": 0}])
def test_sizes_below_their_minimum_are_refused(options):
    with pytest.raises(UserError, match=f"{next(iter(options))} is "):
        Numbered(**options)


def test_an_epoch_has_every_training_sample_repeats_times():
    data = numbered(repeats=3, batch_size=27)  # 90 samples, 270 draws, 10 batches
    seen = indices(data.train_dataloader())
    train = data.split("train")[0].flatten().int().tolist()
    assert sorted(seen) == sorted(3 * train)
    assert indices(data.val_dataloader()) == data.split("val")[0].flatten().int().tolist()  # once, in order


def test_drop_last_drops_the_smaller_last_batch_of_training_only():
    sizes = {
        drop: [len(x) for x, _ in numbered(batch_size=40, drop_last=drop).train_dataloader()] for drop in (False, True)
    }
    assert sizes == {False: [40, 40, 10], True: [40, 40]}
    assert [len(x) for x, _ in numbered(eval_batch_size=8).test_dataloader()] == [8, 2]


def test_a_batch_larger_than_the_training_set_is_refused_with_drop_last():
    with pytest.raises(UserError, match="batch_size 91 is larger than the training set of 90"):
        numbered(batch_size=91).train_dataloader()
    assert len(indices(numbered(batch_size=91, drop_last=False).train_dataloader())) == 90
    assert len(indices(numbered(batch_size=91, repeats=2).train_dataloader())) == 91


def test_every_epoch_has_another_order():
    loader = numbered().train_dataloader()
    assert indices(loader) != indices(loader)


def test_a_batch_is_read_by_one_index_operation_and_equals_its_samples():
    class Counted(torch.Tensor):
        reads = 0

        def __getitem__(self, index):
            Counted.reads += 1
            return super().__getitem__(index)

    x = torch.randn(10, 3)
    dataset = TensorBatches(x.as_subclass(Counted), torch.arange(10), repeats=2)
    indices_drawn = [3, 17, 3, 0]
    batch, labels = identity_collate(dataset.__getitems__(indices_drawn))
    assert Counted.reads == 1
    assert torch.equal(batch, torch.stack([x[i % 10] for i in indices_drawn]))
    for i, sample, label in zip(indices_drawn, batch, labels, strict=True):
        assert torch.equal(dataset[i][0], sample)
        assert dataset[i][1] == label


def test_a_distributed_sampler_gives_each_sample_to_one_process():
    data = numbered(val_size=10)
    dataset = data.train_dataloader().dataset
    seen = []
    for rank in range(3):
        sampler = DistributedSampler(dataset, num_replicas=3, rank=rank)
        loader = torch.utils.data.DataLoader(dataset, batch_size=8, sampler=sampler, collate_fn=identity_collate)
        part = indices(loader)
        assert len(part) == 30
        seen += part
    assert sorted(seen) == sorted(data.split("train")[0].flatten().int().tolist())


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*number of training batches")
def test_a_trainer_uses_each_training_sample_once_per_epoch():
    data = Numbered(batch_size=9)
    model = Linear(data)
    quiet_trainer(max_epochs=1, limit_val_batches=0).fit(model, datamodule=data)
    seen = [int(i) for x, _ in model.seen for i in x]
    assert len(model.seen) == 10
    assert sorted(seen) == sorted(data.split("train")[0].flatten().int().tolist())


def test_reference_is_the_beginning_of_the_training_split_in_unit_range():
    data = Digits()
    data.setup("fit")
    assert torch.equal(data.reference(5), data.split("train")[0][:5])
    assert len(data.reference(10_000)) == len(data.split("train")[0])


def test_training_samples_are_drawn_by_seed_and_class():
    data = Digits()
    data.setup("fit")
    x, y = data.split("train")
    where = {sample.numpy().tobytes(): index for index, sample in enumerate(x)}

    def find(samples):
        return [where[sample.numpy().tobytes()] for sample in samples]

    drawn = [find(data.training_samples(500, seed=seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 500
    assert len(data.training_samples(5000)) == len(x)
    labels = torch.arange(300) % 7
    found = find(data.training_samples(300, labels=labels, seed=3))
    assert torch.equal(y[found], labels)
    assert len(set(found)) == 300
    assert found != find(data.training_samples(300, labels=labels, seed=4))
    sevens = find(data.training_samples(1000, labels=torch.full((1000,), 7)))
    assert set(sevens) == set((y == 7).nonzero().flatten().tolist()), "all of them, several times"
    assert len(data.training_samples(3, labels=torch.tensor([7, 10, 7]))) == 3, "a class without training samples"


def test_a_dataset_of_unequal_lengths_is_refused():
    with pytest.raises(ValueError, match="3 samples but 2 labels"):
        TensorBatches(torch.zeros(3), torch.zeros(2))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(4, 2), torch.zeros(4).long(), r"samples of the shape \(2,\), not \(1,\)"),
        (torch.zeros(4, 1), torch.zeros(3).long(), "4 samples and 3 labels"),
        (torch.zeros(0, 1), torch.zeros(0).long(), "0 samples and 0 labels"),
        (torch.zeros(4, 1), torch.tensor([0, 1, 0, 0]), "labels from 0 to 1; they must be integers from 0 to 0"),
        (torch.zeros(4, 1), torch.zeros(4), "labels from 0.0 to 0.0; they must be integers"),
    ],
)
def test_samples_and_labels_that_contradict_the_declaration_are_refused(x, y, message):
    class Wrong(Numbered):
        def load_split(self, train):
            return x, y

    with pytest.raises(UserError, match=f"the training split of Wrong has {message}"):
        Wrong().setup("fit")


def test_a_batch_that_is_on_the_device_is_not_searched_for_tensors_to_move(monkeypatch):
    moved: list[Any] = []
    monkeypatch.setattr(LightningDataModule, "transfer_batch_to_device", lambda *a: moved.append(a[1]))
    data = Digits()
    batch, cpu = (torch.zeros(2), torch.zeros(2)), torch.device("cpu")
    assert data.transfer_batch_to_device(batch, cpu, 0) is batch
    assert not moved
    others = [(batch, torch.device("meta")), ({"x": batch[0]}, cpu), ((batch[0], [1]), cpu)]
    for other, device in others:
        data.transfer_batch_to_device(other, device, 0)
    assert all(found is other for found, (other, _) in zip(moved, others, strict=True))


@pytest.mark.parametrize(
    "read", [lambda data: data.reference(4), lambda data: data.split("train"), lambda data: data.labels("train")]
)
def test_a_split_that_is_not_loaded_is_named_with_the_way_out(read):
    with pytest.raises(UserError, match=r'the train split of Numbered is not loaded: call .*setup\("fit"\) first'):
        read(Numbered())


def test_the_test_split_is_loaded_by_another_stage_and_an_unknown_one_is_refused():
    data = Numbered()
    data.setup("fit")
    with pytest.raises(UserError, match=r'setup\("test"\)'):
        data.split("test")
    with pytest.raises(UserError, match="valid"):
        data.split("valid")
