"""Augmentation of batches: an independent window, mirror image or hole for every sample."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import v2

from tests.unit.training import quiet_trainer
from zoo.datamodules import MNIST, Augment, Digits, FashionMNIST, InMemoryDataModule
from zoo.datamodules import base as data_base
from zoo.datamodules.augment import PerSample, apply, random_crop, random_cutout, random_flip
from zoo.errors import UserError


def random_bytes(n: int, *shape: int) -> torch.Tensor:
    """Random images; two are never the same."""
    return torch.randint(256, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def shifts(x: torch.Tensor, cropped: torch.Tensor, padding: int) -> list[tuple[int, int]]:
    """Offset (top, left) of each window in torch's own reflection of its image, found by trying all."""
    found = []
    height, width = x.shape[2:]
    for image, window in zip(x.float(), cropped.float(), strict=True):
        padded = F.pad(image[None], (padding,) * 4, mode="reflect")[0]
        steps = range(2 * padding + 1)
        places = [(t, s) for t in steps for s in steps if padded[:, t : t + height, s : s + width].equal(window)]
        assert len(places) == 1
        found += places
    return found


@pytest.mark.parametrize(("shape", "padding"), [((3, 9, 7), 2), ((1, 8, 8), 4), ((1, 6, 7), 4), ((2, 3, 4), 1)])
def test_a_crop_is_a_random_window_of_the_reflected_image_per_sample(shape, padding):
    torch.manual_seed(0)
    x = random_bytes(120, *shape)
    found = shifts(x, random_crop(x, padding), padding)
    assert {top for top, _ in found} == {left for _, left in found} == set(range(2 * padding + 1))
    assert len(set(found)) > 0.5 * min(len(x), (2 * padding + 1) ** 2), "rows and columns are independent"


def test_shifts_are_uniform():
    torch.manual_seed(0)
    x = torch.arange(36, dtype=torch.uint8).view(1, 1, 6, 6).expand(9000, 1, 6, 6)
    centre = random_crop(x, 1)[:, 0, 2, 2]
    counts = centre.bincount()[[7, 8, 9, 13, 14, 15, 19, 20, 21]]
    assert counts.sum() == 9000
    assert (counts - 1000).abs().max() < 4 * (1000 * 8 / 9) ** 0.5, "four standard deviations"


def test_half_of_the_samples_are_mirrored_independently():
    torch.manual_seed(0)
    x = random_bytes(4000, 1, 3, 4)
    flipped = random_flip(x)
    mirrored = flipped.eq(x.flip(-1)).all((1, 2, 3))
    assert (mirrored ^ flipped.eq(x).all((1, 2, 3))).all(), "either unchanged or mirrored left to right"
    assert abs(mirrored.float().mean() - 0.5) < 4 * 0.5 / 4000**0.5
    neighbours = (mirrored[1:] == mirrored[:-1]).float().mean()
    assert abs(neighbours - 0.5) < 4 * 0.5 / 4000**0.5, "neighbours are independent"


@pytest.mark.parametrize("side", [1, 2, 3, 4])
def test_cutout_fills_a_square_around_a_random_pixel(side):
    torch.manual_seed(0)
    height, width = 7, 9
    x = torch.full((3000, 2, height, width), 7, dtype=torch.uint8)
    blank = random_cutout(x, side, 0) == 0
    assert blank[:, 0].equal(blank[:, 1]), "the same in all channels"
    expected = set()
    for row in range(height):
        for column in range(width):
            square = torch.zeros(height, width, dtype=torch.bool)
            top, left = row - side // 2, column - side // 2
            square[max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)] = True
            expected.add(tuple(square.flatten().tolist()))
            inside = top >= 0 and left >= 0 and top + side <= height and left + side <= width
            assert not inside or square.sum() == side * side
    seen = {tuple(square) for square in blank[:, 0].flatten(1).tolist()}
    assert seen == expected
    assert len(expected) == height * width, "one square for every pixel"


def test_cutout_fills_bytes_and_floats_with_the_same_value():
    x = random_bytes(50, 1, 6, 6)
    for fill, byte in ((-1.0, 0), (0.0, 128), (1.0, 255)):
        augment = Augment(cutout=3, fill=fill)
        for batch, value in ((x, byte), (data_base.to_unit_range(x), fill)):
            torch.manual_seed(1)
            changed = augment(batch)
            assert changed.dtype == batch.dtype
            hole = changed[changed != batch]
            assert len(hole) > 50
            assert hole.eq(value).all()


def test_bytes_and_floats_are_augmented_alike():
    x = random_bytes(30, 3, 8, 10)
    augment = Augment(crop=3, flip=True, cutout=2, fill=-1.0)
    torch.manual_seed(0)
    of_bytes = data_base.to_unit_range(augment(x))
    torch.manual_seed(0)
    assert of_bytes.equal(augment(data_base.to_unit_range(x)))


def test_augmentation_is_reproducible_by_the_seed():
    x, augment = random_bytes(30, 1, 8, 8), Augment(crop=2, flip=True, cutout=3)
    batches = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        batches.append(augment(x))
    assert batches[0].equal(batches[1])
    assert not batches[0].equal(batches[2])


def test_without_options_the_batch_is_returned_unchanged():
    x, state = random_bytes(4, 1, 8, 8), torch.get_rng_state()
    assert Augment()(x) is x
    assert torch.get_rng_state().equal(state), "no random number is drawn"


def test_the_input_is_not_modified():
    x = random_bytes(30, 1, 8, 8)
    before = x.clone()
    Augment(crop=2, flip=True, cutout=3)(x)
    assert x.equal(before)


WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "unique_dim")


class OnTheDevice(TorchDispatchMode):
    """Fails where the host would wait for the device, and counts the operations."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name().removeprefix("aten::").split(".")[0] in WAITING:
            raise AssertionError(f"{func} waits for the device")
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_no_synchronization_with_the_host_and_no_loop_over_samples():
    augment, counts = Augment(crop=2, flip=True, cutout=3), []
    with pytest.raises(AssertionError, match="waits"), OnTheDevice():
        torch.ones(1).item()
    for n in (2, 64):
        x = random_bytes(n, 3, 8, 8)
        with OnTheDevice() as mode:
            augment(x)
        counts.append(mode.count)
    assert counts[0] == counts[1] > 10


def test_a_crop_as_large_as_the_image_is_refused():
    with pytest.raises(UserError, match=r"augment\.crop 6 is too large for images of 6x9 pixels"):
        random_crop(random_bytes(2, 1, 6, 9), 6)
    random_crop(random_bytes(2, 1, 6, 9), 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"crop": -1}, r"augment\.crop is -1"), ({"cutout": -2}, r"augment\.cutout is -2"), ({"fill": 2}, "fill is 2")],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(UserError, match=message):
        Augment(**options)


# --- other callables


def test_torchvision_transforms_stand_in_for_augment():
    x = random_bytes(8, 3, 10, 10)
    transform = v2.Compose([v2.RandomCrop(10, padding=2), v2.RandomHorizontalFlip(p=1), v2.ColorJitter(0.3)])
    data = Digits(augment=v2.RandomHorizontalFlip(p=1))
    assert apply(data.augment, x).equal(x.flip(-1))
    torch.manual_seed(3)
    expected = transform(x)
    torch.manual_seed(3)
    assert apply(transform, x).equal(expected)
    assert not expected.equal(x)


def test_a_torchvision_transform_draws_once_a_batch_and_per_sample_for_each():
    torch.manual_seed(0)
    x = random_bytes(200, 1, 6, 6)
    flip = v2.RandomHorizontalFlip()
    for _ in range(5):
        assert flip(x).eq(x).all((1, 2, 3)).float().mean() in (0, 1)
    flipped = apply(PerSample(flip), x)
    unchanged = flipped.eq(x).all((1, 2, 3))
    assert (unchanged | flipped.eq(x.flip(-1)).all((1, 2, 3))).all()
    assert 0.35 < unchanged.float().mean() < 0.65


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (v2.Resize(4), r"augment Resize returns uint8 \(2, 1, 4, 4\) for a batch of uint8 \(2, 1, 8, 8\)"),
        (v2.ToDtype(torch.float32, scale=True), r"augment ToDtype returns float32 .* preserve shape and dtype"),
        (lambda x: None, r"augment <lambda> returns NoneType for"),
        (torch.nn.Linear(3, 3), r"augment Linear fails on a batch of uint8 \(2, 1, 8, 8\): "),
        (PerSample(v2.Resize(4)), r"augment PerSample returns uint8 \(2, 1, 4, 4\)"),
    ],
)
def test_a_callable_that_does_not_preserve_the_batch_is_named(augment, message):
    with pytest.raises(UserError, match=message) as caught:
        apply(augment, random_bytes(2, 1, 8, 8))
    assert "\n" not in str(caught.value)


def test_what_is_not_callable_is_refused():
    with pytest.raises(UserError, match="augment is 3; it must be callable"):
        Digits(augment=3)


def test_a_callable_gets_the_training_batches_as_bytes():
    seen = []

    def darker(x):
        seen.append(x)
        return x // 2

    data, model = Digits(augment=darker, batch_size=600), Watcher()
    quiet_trainer(max_epochs=1).fit(model, datamodule=data)
    assert [(x.dtype, tuple(x.shape)) for x in seen] == 2 * [(torch.uint8, (600, 1, 8, 8))]
    for given, batch in zip(seen, model.seen["train"], strict=True):
        assert batch.equal(data_base.to_unit_range(given // 2))
    assert model.seen["val"][0].max() == 1, "validation images are not darker"


class Watcher(pl.LightningModule):
    """Keeps the batches of every stage as they reach the model."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 10)
        self.seen: dict[str, list[torch.Tensor]] = {"train": [], "val": [], "test": [], "predict": []}

    def training_step(self, batch, batch_idx):
        self.seen["train"].append(batch[0])
        return F.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])

    def validation_step(self, batch, batch_idx):
        self.seen["val"].append(batch[0])

    def test_step(self, batch, batch_idx):
        self.seen["test"].append(batch[0])

    def predict_step(self, batch, batch_idx):
        self.seen["predict"].append(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def test_only_training_batches_are_augmented():
    augmented = []

    class Spy(Augment):
        def __call__(self, x):
            augmented.append(super().__call__(x))
            return augmented[-1]

    data = Digits(augment=Spy(crop=2, cutout=3), batch_size=600, eval_batch_size=500)
    model = Watcher()
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(model, datamodule=data)
    trainer.validate(model, datamodule=data, verbose=False)
    trainer.test(model, datamodule=data, verbose=False)
    trainer.predict(model, datamodule=data)
    assert len(augmented) == len(model.seen["train"]) == 4
    for given, seen in zip(augmented, model.seen["train"], strict=True):
        assert given.dtype == torch.uint8, "before the conversion to floats, which are four times as large"
        assert data_base.to_unit_range(given).equal(seen)
    originals = {sample.numpy().tobytes() for sample in data.split("train")[0]}
    as_they_were = sum(sample.numpy().tobytes() in originals for batch in model.seen["train"] for sample in batch)
    assert as_they_were < 0.1 * 2400
    assert [len(model.seen[name]) for name in ("val", "test", "predict")] == [3, 1, 1], "two epochs and one validation"
    for name, split in (("val", "val"), ("test", "test"), ("predict", "test")):
        assert all(batch.equal(data.split(split)[0]) for batch in model.seen[name])


def test_without_a_trainer_nothing_is_augmented():
    data = Digits(augment=Augment(crop=2))
    x = random_bytes(4, 1, 8, 8)
    assert data.on_after_batch_transfer((x, torch.zeros(4)), 0)[0].equal(data_base.to_unit_range(x))


@pytest.mark.parametrize("module", [Digits, MNIST])
def test_digits_are_not_mirrored_and_a_message_says_so(module, monkeypatch):
    messages: list[str] = []
    monkeypatch.setattr(data_base, "rank_zero_info", messages.append)
    asked_for = Augment(crop=2, flip=True)
    data: InMemoryDataModule = module(augment=asked_for)
    assert data.augment == Augment(crop=2, flip=False)
    assert asked_for.flip, "the caller's object is not modified"
    assert messages == [f"{module.__name__} is not mirrored: its classes are not mirror-symmetric"]


def test_mirror_symmetric_data_is_mirrored_without_a_message(monkeypatch):
    messages: list[str] = []
    monkeypatch.setattr(data_base, "rank_zero_info", messages.append)
    assert FashionMNIST(augment=Augment(flip=True)).augment == Augment(flip=True)
    assert not messages


def test_a_crop_that_does_not_fit_is_refused_in_setup():
    data = Digits(augment=Augment(crop=8))
    with pytest.raises(UserError, match=r"augment\.crop 8 is too large for images of 8x8 pixels"):
        data.setup("fit")
