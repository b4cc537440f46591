"""Data modules whose samples lie on disk: the same batches, the same resuming, and bounds on what is read."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.unit.datamodules.test_contract import Linear
from tests.unit.training import quiet_trainer
from zoo.datamodules import Augment, Digits, ImageFolder, InMemoryDataModule, memory
from zoo.errors import UserError


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Two classes of 40 different pictures, one of which cannot be read."""
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir()
        for i in range(40):
            pixels = generator.integers(0, 256, (9, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:02}.png")
    (root / "a" / "03.png").write_bytes(b"broken")
    return root


@pytest.fixture
def make(pictures, tmp_path):
    """Factory of the data module, whose cache is in an empty folder."""

    def build(cache: str, **options) -> ImageFolder:
        return ImageFolder(
            str(pictures), **{"batch_size": 10, "cache": cache, "cache_dir": str(tmp_path / "caches"), **options}
        )

    return build


def cached(tmp_path: Path) -> list[str]:
    folder = tmp_path / "caches"
    return sorted(path.name for path in folder.glob("[!.]*")) if folder.is_dir() else []


pytestmark = pytest.mark.filterwarnings("ignore:.*cannot be read", "ignore:.*workers", "ignore:.*training batches")


@pytest.mark.parametrize("options", [{}, {"repeats": 3, "drop_last": False, "augment": Augment(crop=2, flip=True)}])
def test_a_training_sees_the_same_batches_from_disk_and_from_memory(make, options):
    seen = []
    for cache in ("memory", "disk", "disk"):  # from memory, from a cache that is built, from one that exists
        torch.manual_seed(1)
        data = make(cache, **options)
        model = Linear(data)
        trainer = quiet_trainer(max_epochs=2)
        trainer.fit(model, datamodule=data)
        trainer.test(model, datamodule=data, verbose=False)
        trainer.predict(model, datamodule=data)
        seen.append(model.seen)
    assert len(seen[0]) > 10
    for other in seen[1:]:
        assert len(other) == len(seen[0])
        for (x, y), (other_x, other_y) in zip(seen[0], other, strict=True):
            assert torch.equal(x, other_x)
            assert torch.equal(y, other_y)


def test_a_run_resumes_on_disk_exactly_where_it_was(make):
    def loader(cache: str):
        data = make(cache)
        data.setup("fit")
        return data.train_dataloader()

    torch.manual_seed(1)
    expected = list(loader("memory"))
    torch.manual_seed(1)
    first = loader("disk")
    seen = list(islice(iter(first), 3))
    state, random_state = first.state_dict(), torch.get_rng_state()
    torch.manual_seed(99)  # another process
    second = loader("disk")
    second.load_state_dict(state)
    torch.set_rng_state(random_state)
    seen += list(second)
    assert len(seen) == len(expected) == 6
    for (x, y), (expected_x, expected_y) in zip(seen, expected, strict=True):
        assert torch.equal(x, expected_x)
        assert torch.equal(y, expected_y)


def test_validation_is_a_part_of_the_map_and_nothing_is_copied(make):
    data = make("disk")
    data.setup()
    train, val = data.dataset("train"), data.dataset("val")
    assert train.x.data_ptr() == val.x.data_ptr()
    assert train.x.dtype == torch.uint8
    assert sorted(torch.cat([train.index, val.index]).tolist()) == list(range(len(train.x)))


def test_the_reference_reads_as_many_samples_as_it_returns(make, monkeypatch):
    data, plain = make("disk"), make("memory")
    data.setup("fit")
    plain.setup("fit")
    rows = []

    class Watched(torch.Tensor):
        def __getitem__(self, index):
            rows.append(len(index))
            return super().__getitem__(index).as_subclass(torch.Tensor)

    data.dataset("train").x = data.dataset("train").x.as_subclass(Watched)
    assert torch.equal(data.reference(7), plain.reference(7))
    assert rows == [7]


def test_a_split_that_does_not_fit_into_memory_as_floats_is_refused(make, monkeypatch):
    data = make("disk")
    data.setup()
    expected = make("memory")
    expected.setup()
    for name in ("train", "val", "test"):
        assert all(map(torch.equal, data.split(name), expected.split(name)))
    monkeypatch.setattr(memory, "available_memory", lambda: 40_000)
    assert len(data.split("val")[0]) == 7  # 5 kB
    with pytest.raises(UserError, match=r"train split of ImageFolder as floats takes 49\.2 kB, but only 40\.0 kB") as e:
        data.split("train")
    assert "\n" not in str(e.value)
    assert len(data.reference(10)) == 10
    assert len(list(data.train_dataloader())) == 6


@pytest.mark.parametrize(("available", "on_disk"), [(10**9, False), (20_000, True), (None, False)])
def test_auto_uses_the_disk_for_what_takes_more_than_half_of_the_memory(
    make, tmp_path, monkeypatch, available, on_disk
):
    monkeypatch.setattr(memory, "available_memory", lambda: available)  # the training split has 13.8 kB
    data = make("auto")
    data.setup("fit")
    assert len(cached(tmp_path)) == int(on_disk)


def test_each_process_of_a_machine_counts(make, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 50_000)
    for devices, caches in ((1, 0), (2, 1)):
        data = make("auto")
        data.trainer = SimpleNamespace(num_devices=devices, local_rank=0, state=SimpleNamespace(fn="fit"))
        data.prepare_data()
        assert len(cached(tmp_path)) == caches


def test_other_ranks_do_what_rank_0_has_decided(make, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1)  # rank 0 has taken it
    other = make("auto")
    other.trainer = SimpleNamespace(num_devices=2, local_rank=1, state=SimpleNamespace(fn="fit"))
    assert other._source_on_disk(True) is None
    other.setup("fit")
    assert cached(tmp_path) == [], "rank 0 has not built a cache: it took memory"
    make("disk").setup("fit")
    assert other._source_on_disk(True) is not None


@pytest.mark.parametrize(("stage", "count"), [("fit", 1), ("validate", 1), ("predict", 1), ("test", 2), (None, 2)])
def test_only_the_splits_that_a_command_reads_are_built(make, tmp_path, stage, count):
    data = make("disk")
    if stage:
        data.trainer = SimpleNamespace(num_devices=1, local_rank=0, state=SimpleNamespace(fn=stage))
    data.prepare_data()
    assert len(cached(tmp_path)) == count
    if stage:
        built = cached(tmp_path)
        data.setup(stage)
        assert cached(tmp_path) == built


def test_options_and_files_that_change_the_pixels_have_caches_of_their_own(make, pictures, tmp_path):
    for options in ({}, {"image_size": 4}, {"channels": 1}, {"fit": "pad"}, {"background": "black"}, {"test_size": 9}):
        before = len(cached(tmp_path))
        make("disk", **options).setup("fit")
        assert len(cached(tmp_path)) == before + 1, options
    for options in ({"seed": 3}, {"val_size": 9}, {"batch_size": 3}, {"augment": Augment(flip=True)}):
        make("disk", **options).setup("fit")
    assert len(cached(tmp_path)) == 6, "neither the seed nor the batches change the file"


def test_the_header_says_what_the_cache_was_built_from(make, pictures, tmp_path):
    make("disk").setup("fit")
    (name,) = cached(tmp_path)
    about = json.loads((tmp_path / "caches" / name / "header.json").read_text())["about"]
    assert about["root"] == str(pictures)
    assert about["name"] == "training split of ImageFolder"
    assert about["class_names"] == ["a", "b"]


def test_a_data_module_without_a_source_has_no_cache(tmp_path):
    class Plain(InMemoryDataModule):
        input_shape, num_classes, class_names = (1, 8, 8), 1, ("one",)

        def load_split(self, train):
            return torch.zeros(20, 1, 8, 8, dtype=torch.uint8), torch.zeros(20, dtype=torch.int64)

    Plain().setup()
    with pytest.raises(UserError, match="Plain has no cache on disk, as it has no split_source; use cache memory"):
        Plain(cache="disk").setup("fit")
    with pytest.raises(UserError, match="cache is 'tape'; choose one of auto, memory, disk"):
        Plain(cache="tape")


def test_preprocessing_of_embedded_digits():
    assert Digits().preprocessing == {
        "size": [8, 8], "channels": 1, "fit": "crop", "background": [0, 0, 0], "range": [-1.0, 1.0]
    }  # fmt: skip
