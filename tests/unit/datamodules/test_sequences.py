"""Questions and answers: right, closed, filled up, and in one split each."""

import pytest
import torch

from zoo.datamodules import Sequences
from zoo.datamodules.sequences import END, PADDING, answer, decode, encode
from zoo.errors import UserError

FEW = {"num_train": 3000, "num_test": 500, "val_size": 300}


def test_the_answers_are_right_by_hand():
    assert answer("reverse", "31524") == "42513"
    assert answer("sort", "31524") == "12345"
    assert answer("add", "12+399") == "411"


@pytest.mark.parametrize("task", ["reverse", "sort", "add"])
def test_every_batch_holds_questions_and_their_answers(task):
    data = Sequences(task, digits=6, batch_size=32, **FEW)
    data.setup()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        x, y = next(iter(loader))
        assert x.shape[1:] == data.input_shape
        assert y.shape[1] == data.output_length
        assert 0 <= min(x.min(), y.min()) <= max(x.max(), y.max()) < data.num_classes
        for question, right in zip(decode(x), decode(y), strict=True):
            assert right == answer(task, question)
        for row in (*x, *y):
            end = (row == END).nonzero()
            assert len(end) == 1
            assert (row[end.item() + 1 :] == PADDING).all()


def test_no_question_is_in_two_splits_and_all_lengths_occur():
    data = Sequences(digits=6, **FEW)
    data.setup()
    asked = {name: set(decode(data.split(name)[0])) for name in ("train", "val", "test")}
    assert [len(questions) for questions in asked.values()] == [2700, 300, 500]
    assert not asked["train"] & asked["val"]
    assert not asked["train"] & asked["test"]
    assert {len(question) for question in asked["train"]} == set(range(1, 7))


def test_the_same_seed_asks_the_same():
    splits = []
    for seed in (1, 1, 2):
        data = Sequences(digits=6, seed=seed, **FEW)
        data.setup()
        splits.append(data.split("train")[0])
    assert torch.equal(splits[0], splits[1])
    assert not torch.equal(splits[0], splits[2])


def test_tokens_come_back_as_text():
    assert decode(encode(["12+3", ""], 6)) == ["12+3", ""]


def test_where_there_are_not_so_many_questions_it_is_said():
    with pytest.raises(UserError, match="hardly more than 110 different questions of 2 digits, and 3500 are"):
        Sequences(digits=2, **FEW).setup()
    with pytest.raises(UserError, match="task is 'divide'; choose one of reverse, sort, add"):
        Sequences("divide")
    with pytest.raises(UserError, match="digits is 0; it must be at least 1"):
        Sequences(digits=0)
