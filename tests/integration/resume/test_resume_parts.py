"""Parts of resuming: files that are written atomically, the order of the data, random states."""

from __future__ import annotations

import itertools
import random
import resource

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from zoo import MLPClassifier, seeding
from zoo.callbacks import StopOnSignal
from zoo.checkpoints.writing import AtomicCheckpointIO
from zoo.datamodules import Digits
from zoo.datamodules.loading import ResumableLoader, ResumableSampler
from zoo.errors import UserError
from zoo.files import atomic_write

# Files


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write():
        with atomic_write(path, "w") as file:
            file.write("new")
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_last_checkpoint_intact_and_names_the_fix(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state": torch.ones(10)}, path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(
            UserError, match=r"last\.ckpt cannot be written: File too large; the previous one is intact"
        ):
            AtomicCheckpointIO().save_checkpoint({"state": torch.ones(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# Data, random numbers, loops


def test_an_epoch_has_the_order_of_torchs_own_sampler():
    dataset = list(range(20))
    torch.manual_seed(3)
    expected = list(torch.utils.data.RandomSampler(dataset))
    torch.manual_seed(3)
    assert list(ResumableSampler(dataset)) == expected


@pytest.mark.parametrize("processes", [2, 3])
def test_ranks_share_an_epoch_without_overlap_or_loss(processes):
    samplers = [ResumableSampler(range(60), processes, rank) for rank in range(processes)]
    for epoch in range(2):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        parts = [list(sampler) for sampler in samplers]
        assert sorted(itertools.chain(*parts)) == list(range(60))
    assert parts != [list(range(60))[rank::processes] for rank in range(processes)]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_loader_is_resumed_in_the_middle_of_an_epoch(processes):
    def loader() -> ResumableLoader:
        dataset = torch.arange(40)
        return ResumableLoader(dataset, batch_size=4, sampler=ResumableSampler(dataset, processes, 0))

    torch.manual_seed(1)
    first = loader()
    batches = []
    for batch in first:
        batches.append(batch.tolist())
        if len(batches) == 3:
            state, random = first.state_dict(), torch.get_rng_state()
    second_epoch = [batch.tolist() for batch in first]
    torch.manual_seed(99)
    second = loader()
    second.load_state_dict(state)
    torch.set_rng_state(random)
    assert [batch.tolist() for batch in second] == batches[3:]
    assert [batch.tolist() for batch in second] == second_epoch


def test_random_states_are_restored_from_a_checkpoint(tmp_path):
    def draw() -> tuple:
        return torch.randn(3).tolist(), np.random.normal(size=3).tolist(), random.random()

    np.random.normal()  # the first of a pair; the second is kept for the next call
    torch.save(seeding.capture_random_state(torch.device("cpu")), tmp_path / "states.pt")
    expected = draw()
    seeding.restore_random_state(torch.load(tmp_path / "states.pt", weights_only=True), torch.device("cpu"))
    assert draw() == expected


def test_a_trainer_that_trains_again_has_lightnings_own_loop():
    shown = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", max_steps=2, logger=False, callbacks=[StopOnSignal()], **shown)
    trainer.fit(MLPClassifier((1, 8, 8), 10, width=8, depth=1), Digits())
    assert "on_advance_end" not in vars(trainer.fit_loop.epoch_loop)
