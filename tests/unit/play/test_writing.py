"""Text on the page."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from zoo import Seq2Seq, TransformerLM
from zoo.datamodules import Sequences
from zoo.datamodules.sequences import decode, encode
from zoo.errors import UserError
from zoo.play.writing import source_hint, transduce, write

SMALL = {"layers": 1, "width": 8, "heads": 2}


@pytest.fixture(scope="module")
def letters():
    return TransformerLM((8,), 3, "characters:abc", **SMALL)


@pytest.fixture(scope="module")
def reverser():
    data = Sequences(digits=4)
    model = Seq2Seq(data.input_shape, data.num_classes, data.output_length, **SMALL)
    model.trained_on = replace(model.trained_on, class_names=data.class_names)
    return model


def test_a_text_grows_from_its_beginning(letters):
    steps = list(write(letters, "ab", 3, {"max_new_tokens": 5}))
    assert steps[0] == "ab"
    assert [len(step) for step in steps] == [2, 3, 4, 5, 6, 7]
    assert all(later.startswith(earlier) for earlier, later in pairwise(steps))
    tokens = letters.stream(1, prompt="ab", max_new_tokens=5, generator=torch.Generator().manual_seed(3))
    assert steps[-1] == "ab" + letters.tokenizer.decode([int(token) for token in tokens])


def test_without_a_beginning_the_model_has_its_own(letters):
    assert len(list(write(letters, "", 0, {"max_new_tokens": 3}))[-1]) == 3


@pytest.mark.parametrize(
    ("prompt", "seed", "options", "message"),
    [
        ("abz", 0, {}, "the character 'z' is not in the text on which the model was trained"),
        ("a", -1, {}, "seed is -1"),
        ("a", 0, {"temperature": -1.0}, "temperature is -1.0; it must be 0 or more"),
        ("a", 0, {"max_new_tokens": 10_001}, "max_new_tokens is 10001; it must be at most 10000"),
    ],
)
def test_a_mistake_is_named(letters, prompt, seed, options, message):
    with pytest.raises(UserError, match=message):
        list(write(letters, prompt, seed, options))


def test_a_source_is_decoded_as_the_data_module_encodes_it(reverser):
    expected = decode(reverser.greedy_decode(encode(["3152"], 5)))[0].replace("?", "")  # special tokens
    assert transduce(reverser, " 3152 ") == expected
    assert source_hint(reverser) == "1 to 4 of the characters +0123456789"


@pytest.mark.parametrize("source", ["12x", "12345", ""])
def test_a_source_that_the_model_cannot_read_is_named(reverser, source):
    with pytest.raises(UserError, match=repr(source)):
        transduce(reverser, source)


def test_tokens_without_names_have_no_hint_and_cannot_be_typed():
    model = Seq2Seq((5,), 14, 5, **SMALL)
    assert source_hint(model) == ""
    with pytest.raises(UserError, match="does not name its tokens"):
        transduce(model, "3 4 5")
