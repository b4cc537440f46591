"""Samples on the training device: where they lie, when they are copied, and the same batches as from memory.

Without a GPU two devices stand in for it: "meta" shows where tensors lie, and a copy on the CPU has their values.
"""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import pytest
import torch

from tests.unit.datamodules.test_contract import Linear
from tests.unit.training import quiet_trainer
from zoo.datamodules import Augment, InMemoryDataModule, Text, device_cache
from zoo.errors import UserError

META = torch.device("meta")
TRAIN_BYTES = 100 * (16 + 8)  # images of 4x4 pixels, and labels


class Squares(InMemoryDataModule):
    """100 training and 30 test images of random pixels."""

    input_shape, num_classes, class_names = (1, 4, 4), 2, ("a", "b")

    def load_split(self, train):
        generator = torch.Generator().manual_seed(int(train))
        n = 100 if train else 30
        x = torch.randint(256, (n, 1, 4, 4), dtype=torch.uint8, generator=generator)
        return x, torch.randint(2, (n,), generator=generator)


def on(data, device: torch.device, stage: str | None = None):
    """The data module, set up as by a Trainer whose process has this device."""
    strategy = SimpleNamespace(root_device=device)
    data.trainer = SimpleNamespace(
        strategy=strategy, num_devices=1, local_rank=0, world_size=1, global_rank=0, distributed_sampler_kwargs=None
    )
    data.setup(stage)
    return data


@pytest.fixture
def copies_on_the_cpu(monkeypatch):
    """The CPU passes for a device that samples can be copied to."""
    monkeypatch.setattr(device_cache, "CPU", META)


@pytest.fixture
def text(tmp_path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(" ".join(str(number**2) for number in range(400)))
    return str(path)


def test_batches_of_all_splits_lie_on_the_device_and_everything_else_in_memory():
    data = on(Squares(8, cache="device"), META)
    loaders = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()]
    for loader in loaders:
        assert {tensor.device for tensor in next(iter(loader))} == {META}
    labels = torch.zeros(5, dtype=torch.int64)
    tensors = [data.reference(5), data.training_samples(5), data.training_samples(5, labels=labels)]
    tensors += [*data.split("train"), *data.split("val"), *data.split("test"), data.labels("train")]
    tensors += [*data.dataset("train").first(5)]
    assert {tensor.device.type for tensor in tensors} == {"cpu"}


def test_training_and_validation_share_one_copy_which_is_made_once():
    data = on(Squares(8, cache="device"), META)
    loaders = [data.train_dataloader(), data.val_dataloader(), data.train_dataloader()]
    assert len({id(loader.dataset.x) for loader in loaders}) == 1
    assert len({id(loader.dataset.y) for loader in loaders}) == 1


def test_other_caches_stay_in_memory():
    data = on(Squares(8, cache="memory"), META)
    assert data.train_dataloader().dataset is data.dataset("train")


@pytest.mark.parametrize("options", [{}, {"repeats": 2}, {"drop_last": False, "augment": Augment(crop=1, flip=True)}])
def test_every_stage_sees_the_same_batches_as_from_memory(copies_on_the_cpu, options):
    seen = []
    for cache in ("memory", "device"):
        torch.manual_seed(1)
        data = Squares(16, 20, cache=cache, **options)
        model, trainer = Linear(data), quiet_trainer(max_epochs=2)
        trainer.fit(model, datamodule=data)
        copied = trainer.train_dataloader.dataset.x.data_ptr() != data.dataset("train").x.data_ptr()
        assert copied == (cache == "device")
        trainer.test(model, datamodule=data, verbose=False)
        trainer.predict(model, datamodule=data)
        seen.append(model.seen)
    assert len(seen[0]) == len(seen[1]) > 10
    for batch, expected in zip(*seen, strict=True):
        assert all(map(torch.equal, batch, expected))


def test_a_run_resumes_exactly_where_it_was(copies_on_the_cpu):
    def loader(cache: str):
        return on(Squares(16, cache=cache), torch.device("cpu")).train_dataloader()

    torch.manual_seed(1)
    expected = list(loader("memory"))
    torch.manual_seed(1)
    first = loader("device")
    seen = list(islice(iter(first), 3))
    state, random_state = first.state_dict(), torch.get_rng_state()
    torch.manual_seed(99)  # another process
    second = loader("device")
    second.load_state_dict(state)
    torch.set_rng_state(random_state)
    seen += list(second)
    assert len(seen) == len(expected) == 5
    for batch, other in zip(seen, expected, strict=True):
        assert all(map(torch.equal, batch, other))


@pytest.mark.parametrize(
    ("free", "copied"), [(None, False), (4 * TRAIN_BYTES - 4, False), (4 * TRAIN_BYTES, True)], ids=str
)
def test_auto_copies_what_takes_at_most_a_quarter_of_the_free_memory(monkeypatch, free, copied):
    monkeypatch.setattr(device_cache, "free_device_memory", lambda device: free)
    data = on(Squares(8), META)
    assert (data.train_dataloader().dataset.device == META) == copied
    assert (data.val_dataloader().dataset.device == META) == copied


def test_auto_leaves_a_cpu_and_a_device_that_does_not_say_its_memory_alone():
    for device in (torch.device("cpu"), torch.device("mps")):
        data = on(Squares(8), device)
        assert data.train_dataloader().dataset is data.dataset("train")


def test_what_does_not_fit_is_refused_with_its_size(monkeypatch):
    monkeypatch.setattr(device_cache, "free_device_memory", lambda device: 2000)
    data = on(Squares(8, cache="device"), META)
    with pytest.raises(UserError) as caught:
        data.train_dataloader()
    assert str(caught.value) == (
        "cache is device, but the training split of Squares takes 2.4 kB and meta has 2.0 kB free; use cache auto"
    )


@pytest.mark.parametrize("kind", ["images", "text"])
def test_a_run_on_the_cpu_is_refused(kind, text):
    data = Squares(8, cache="device") if kind == "images" else Text(text, context_length=8, cache="device")
    model = Linear(Squares(8))
    with pytest.raises(UserError, match=r"cache is device, but this run is on the CPU: use .*accelerator gpu"):
        quiet_trainer(max_epochs=1).fit(model, datamodule=data)


def test_without_a_trainer_the_samples_stay_in_memory():
    data = Squares(8, cache="device")
    data.setup()
    assert next(iter(data.train_dataloader()))[0].device.type == "cpu"


@pytest.mark.parametrize("device", [torch.device("cpu"), META], ids=str)
def test_only_batches_in_memory_are_pinned_for_a_gpu(monkeypatch, device, text):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for data in (Squares(8, cache="device"), Text(text, context_length=8, cache="device")):
        if device == META:
            on(data, device)
        else:
            data.setup()
        for loader in (data.train_dataloader(), data.val_dataloader()):
            assert loader.pin_memory == (device != META)


def test_copies_are_given_back_at_the_end_of_a_stage_and_never_pickled():
    data = on(Squares(8, cache="device"), META)
    first = data.train_dataloader().dataset.x
    data.trainer = None
    copy = pickle.loads(pickle.dumps(data))
    assert not copy._copies._copies
    assert on(copy, META).train_dataloader().dataset.device == META
    data.teardown("fit")
    assert on(data, META).train_dataloader().dataset.x is not first


@pytest.mark.parametrize("tokenizer", ["bytes", "two bytes a token"])
def test_windows_of_a_text_are_cut_on_the_device(copies_on_the_cpu, tokenizer, text):
    batches = []
    for cache in ("memory", "device"):
        data = Text(text, context_length=8, batch_size=8, test_size=0.2, cache=cache)
        if tokenizer != "bytes":
            data._text = replace(data._text, tokens=(data._text.tokens.long() + 40_000).to(torch.uint16))
        on(data, torch.device("cpu"))
        torch.manual_seed(1)
        loaders = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]
        batches.append([batch for loader in loaders for batch in loader])
        copied = loaders[0].dataset.tokens.data_ptr() != data._text.tokens.data_ptr()
        assert copied == (cache == "device")
    assert len(batches[0]) == len(batches[1]) > 3
    for batch, expected in zip(*batches, strict=True):
        assert all(map(torch.equal, batch, expected))


def test_tokens_lie_on_the_device_once_and_in_memory(text):
    placed = on(Text(text, context_length=8, cache="device"), META)
    x, y = next(iter(placed.train_dataloader()))
    assert x.device == y.device == META
    assert len(placed._copies._copies) == 1
    assert placed.val_dataloader().dataset.device == META
    assert len(placed._copies._copies) == 1
    assert placed.split("train").device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")
@pytest.mark.parametrize("kind", ["images", "text"])
def test_a_gpu_cuts_the_same_batches(kind, text):
    seen = []
    for cache in ("memory", "device", "auto"):
        data = Squares(16, cache=cache) if kind == "images" else Text(text, context_length=8, cache=cache)
        on(data, torch.device("cuda", 0))
        torch.manual_seed(1)
        batches = [batch for loader in (data.train_dataloader(), data.val_dataloader()) for batch in loader]
        assert {tensor.device.type for batch in batches for tensor in batch} == {"cpu" if cache == "memory" else "cuda"}
        seen.append([tuple(tensor.cpu() for tensor in batch) for batch in batches])
    for other in seen[1:]:
        assert len(other) == len(seen[0])
        for batch, expected in zip(other, seen[0], strict=True):
            assert all(map(torch.equal, batch, expected))
