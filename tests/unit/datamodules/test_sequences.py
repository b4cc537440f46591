"""Sources and targets of the sequence tasks: correct, terminated, padded, and in one split each."""

import pytest
import torch

from zoo.datamodules import Sequences
from zoo.datamodules.sequences import END, PADDING, decode, encode, solve
from zoo.errors import UserError

FEW = {"num_train": 3000, "num_test": 500, "val_size": 300}


def test_targets_are_correct():
    assert solve("reverse", "31524") == "42513"
    assert solve("sort", "31524") == "12345"
    assert solve("add", "12+399") == "411"


@pytest.mark.parametrize("task", ["reverse", "sort", "add"])
def test_every_batch_has_sources_and_their_targets(task):
    data = Sequences(task, digits=6, batch_size=32, **FEW)
    data.setup()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        x, y = next(iter(loader))
        assert x.shape[1:] == data.input_shape
        assert y.shape[1] == data.output_length
        assert 0 <= min(x.min(), y.min()) <= max(x.max(), y.max()) < data.num_classes
        for source, target in zip(decode(x), decode(y), strict=True):
            assert target == solve(task, source)
        for row in (*x, *y):
            end = (row == END).nonzero()
            assert len(end) == 1
            assert (row[end.item() + 1 :] == PADDING).all()


def test_no_source_is_in_two_splits_and_all_lengths_occur():
    data = Sequences(digits=6, **FEW)
    data.setup()
    sources_of = {name: set(decode(data.split(name)[0])) for name in ("train", "val", "test")}
    assert [len(sources) for sources in sources_of.values()] == [2700, 300, 500]
    assert not sources_of["train"] & sources_of["val"]
    assert not sources_of["train"] & sources_of["test"]
    assert {len(source) for source in sources_of["train"]} == set(range(1, 7))


def test_the_same_seed_gives_the_same_sources():
    splits = []
    for seed in (1, 1, 2):
        data = Sequences(digits=6, seed=seed, **FEW)
        data.setup()
        splits.append(data.split("train")[0])
    assert torch.equal(splits[0], splits[1])
    assert not torch.equal(splits[0], splits[2])


def test_decoding_inverts_encoding():
    assert decode(encode(["12+3", ""], 6)) == ["12+3", ""]


def test_too_few_different_sources_and_invalid_options_are_named():
    with pytest.raises(UserError, match=r"only about 110 different sources of up to 2 digits, .* need 3500"):
        Sequences(digits=2, **FEW).setup()
    with pytest.raises(UserError, match="task is 'divide'; choose one of reverse, sort, add"):
        Sequences("divide")
    with pytest.raises(UserError, match="digits is 0; it must be at least 1"):
        Sequences(digits=0)
