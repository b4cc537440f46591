"""What every data module promises the models, tried on each of them; and the base on samples that carry their index."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DistributedSampler

from zoo.datamodules import Digits, FashionMNIST, ImageFolder, InMemoryDataModule, Points
from zoo.datamodules.base import TensorBatches, identity_collate
from zoo.errors import UserError

MODULES = ("digits", "gaussians", "ring", "grid", "moons", "image_folder", "fashion_mnist")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three classes of 20 pictures of 12 x 12 pixels, of colours between black and white."""
    root = tmp_path_factory.mktemp("pictures")
    for label, name in enumerate(["bird", "cat", "dog"]):
        (root / name).mkdir()
        for i in range(20):
            Image.new("RGB", (12, 12), (13 * i, 127 * label, 255)).save(root / name / f"{i:02}.png")
    return root


@pytest.fixture(params=MODULES)
def make(request):
    """Builds the data module of that name, small where its size can be chosen."""
    if request.param == "digits":
        return Digits
    if request.param == "image_folder":
        root = request.getfixturevalue("folder")
        return lambda **options: ImageFolder(str(root), **{"image_size": 8, "batch_size": 16, **options})
    if request.param == "fashion_mnist":
        root = request.getfixturevalue("shared_data")
        if not (root / "FashionMNIST").is_dir():
            pytest.skip(f"no FashionMNIST in {root}")
        return lambda **options: FashionMNIST(str(root), **options)
    sizes = {"num_train": 1000, "num_test": 300, "val_size": 200}
    return lambda **options: Points(request.param, **{**sizes, **options})


class Linear(pl.LightningModule):
    """The smallest model that takes any data: keeps what it was given."""

    def __init__(self, data: InMemoryDataModule) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(torch.Size(data.input_shape).numel(), data.num_classes)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch)
        return torch.nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])

    def validation_step(self, batch, batch_idx):
        self.seen.append(batch)

    test_step = predict_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def trainer(tmp_path, **options) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(
        accelerator="cpu", max_epochs=1, default_root_dir=tmp_path, enable_model_summary=False, **quiet, **options
    )


def test_shapes_and_classes_are_known_before_setup_and_true_after(make):
    data = make()
    shape, num_classes, names = data.input_shape, data.num_classes, data.class_names
    assert len(names) == num_classes
    assert all(isinstance(name, str) for name in names)
    data.setup()
    for split in ("train", "val", "test"):
        x, y = data.split(split)
        assert x.shape == (len(y), *shape)
        assert x.dtype == torch.float32
        assert y.dtype == torch.int64
        assert y.ndim == 1
        assert y.min() >= 0
        assert y.max() < num_classes
    assert (data.input_shape, data.num_classes, data.class_names) == (shape, num_classes, names)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*number of training batches")
def test_batches_reach_a_lightning_module_as_floats_in_the_models_range(make, tmp_path):
    data = make()
    model = Linear(data)
    run = trainer(tmp_path, limit_train_batches=2, limit_val_batches=1, limit_test_batches=1, num_sanity_val_steps=0)
    run.fit(model, datamodule=data)
    run.test(model, datamodule=data, verbose=False)
    assert len(model.seen) == 4
    for x, y in model.seen:
        assert x.dtype == torch.float32
        assert x.shape[1:] == data.input_shape
        assert y.dtype == torch.int64
        assert y.shape == x.shape[:1]
        if len(data.input_shape) == 3:
            assert x.min() >= -1
            assert x.max() <= 1
            assert x.max() > 0.5
    assert len(model.seen[0][0]) == data.batch_size


def test_training_and_validation_samples_are_disjoint_and_together_the_training_split(make, monkeypatch):
    data = make()
    _, labels = data.load_split(train=True)
    numbers = torch.arange(len(labels)).view(-1, *[1] * len(data.input_shape)).expand(-1, *data.input_shape)
    monkeypatch.setattr(data, "load_split", lambda train: (numbers, labels))
    data.setup("fit")
    (train, train_labels), (val, val_labels) = data.split("train"), data.split("val")
    train, val = train.flatten(1)[:, 0], val.flatten(1)[:, 0]
    together, labels_together = torch.cat([train, val]), torch.cat([train_labels, val_labels])
    assert torch.equal(together.sort().values, torch.arange(len(labels)))
    assert torch.equal(labels_together, labels[together])  # every sample kept its label
    assert len(val) > 0
    assert not torch.equal(train, train.sort().values)


def test_the_same_seed_gives_the_same_splits(make):
    first, second = make(seed=3), make(seed=3)
    first.setup("fit")
    second.setup("fit")
    for split in ("train", "val"):
        for a, b in zip(first.split(split), second.split(split), strict=True):
            assert torch.equal(a, b)


def test_fit_and_validate_never_read_the_test_split(make, monkeypatch):
    data = make()
    read = data.load_split
    asked = []
    monkeypatch.setattr(data, "load_split", lambda train: asked.append(train) or read(train))
    data.setup("fit")
    data.setup("validate")
    assert asked == [True]
    data.setup("test")
    assert asked == [True, False]


def test_prediction_needs_no_training_samples(make):
    data = make()
    data.setup("predict")
    x, _ = next(iter(data.predict_dataloader()))
    assert x.shape[1:] == data.input_shape


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
def test_val_size_below_one_is_a_share_and_from_one_on_a_number(val_size, count):
    data = numbered(val_size=val_size)
    assert [len(data.split(name)[0]) for name in ("train", "val", "test")] == [100 - count, count, 10]


@pytest.mark.parametrize("val_size", [100, 1000, 0.001])
def test_val_size_that_leaves_a_split_empty_is_refused(val_size):
    with pytest.raises(UserError, match=f"val_size {val_size} .* of 100"):
        numbered(val_size=val_size)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"eval_batch_size": -1}, {"repeats": 0}, {"val_size": 0}])
def test_sizes_below_their_least_are_refused_at_once(options):
    with pytest.raises(UserError, match=f"{next(iter(options))} is "):
        Numbered(**options)


def test_repeats_goes_over_every_sample_that_often_in_one_epoch():
    data = numbered(repeats=3, batch_size=27)  # 90 samples, 270 draws, 10 batches
    seen = indices(data.train_dataloader())
    train = data.split("train")[0].flatten().int().tolist()
    assert sorted(seen) == sorted(3 * train)
    assert indices(data.val_dataloader()) == data.split("val")[0].flatten().int().tolist()  # once, in order


def test_drop_last_leaves_out_the_smaller_last_batch_of_training_only():
    sizes = {
        drop: [len(x) for x, _ in numbered(batch_size=40, drop_last=drop).train_dataloader()] for drop in (False, True)
    }
    assert sizes == {False: [40, 40, 10], True: [40, 40]}
    assert [len(x) for x, _ in numbered(eval_batch_size=8).test_dataloader()] == [8, 2]


def test_a_batch_larger_than_the_training_set_is_refused_unless_the_rest_is_kept():
    with pytest.raises(UserError, match="batch_size 91 is larger than the training set of 90"):
        numbered(batch_size=91).train_dataloader()
    assert len(indices(numbered(batch_size=91, drop_last=False).train_dataloader())) == 90
    assert len(indices(numbered(batch_size=91, repeats=2).train_dataloader())) == 91


def test_epochs_are_shuffled_anew():
    loader = numbered().train_dataloader()
    assert indices(loader) != indices(loader)


def test_a_batch_is_cut_by_one_index_operation_and_equals_its_samples():
    class Counted(torch.Tensor):
        reads = 0

        def __getitem__(self, index):
            Counted.reads += 1
            return super().__getitem__(index)

    x = torch.randn(10, 3)
    dataset = TensorBatches(x.as_subclass(Counted), torch.arange(10), repeats=2)
    drawn = [3, 17, 3, 0]
    batch, labels = identity_collate(dataset.__getitems__(drawn))
    assert Counted.reads == 1
    assert torch.equal(batch, torch.stack([x[i % 10] for i in drawn]))
    for i, sample, label in zip(drawn, batch, labels, strict=True):
        assert torch.equal(dataset[i][0], sample)
        assert dataset[i][1] == label


def test_a_distributed_sampler_gives_each_sample_to_exactly_one_process():
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
def test_a_trainer_shows_each_training_sample_once_an_epoch(tmp_path):
    data = Numbered(batch_size=9)
    model = Linear(data)
    trainer(tmp_path, limit_val_batches=0).fit(model, datamodule=data)
    seen = [int(i) for x, _ in model.seen for i in x]
    assert len(model.seen) == 10
    assert sorted(seen) == sorted(data.split("train")[0].flatten().int().tolist())


def test_reference_is_the_start_of_the_training_split_in_the_models_range(folder):
    data = ImageFolder(str(folder), image_size=8)
    data.setup("fit")
    assert torch.equal(data.reference(5), data.split("train")[0][:5])
    assert len(data.reference(10_000)) == len(data.split("train")[0])


def test_a_dataset_of_unequal_lengths_is_refused():
    with pytest.raises(ValueError, match="3 samples but 2 labels"):
        TensorBatches(torch.zeros(3), torch.zeros(2))
