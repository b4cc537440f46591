"""What counts as a difference, and how an answer is worded."""

from __future__ import annotations

import pytest
import torch

from zoo.testing.answers import difference, explained, first_of, holds, plain


@pytest.mark.parametrize(
    ("first", "second", "path"),
    [
        ({"a": [1, {"b": 2.0}]}, {"a": [1, {"b": 2.0}]}, None),
        ({"a": [1, {"b": 2.0}]}, {"a": [1, {"b": 2.5}]}, "a.1.b"),
        ({"a": 1}, {"a": 1, "c": 2}, "c"),
        ({"a": 1, "c": 2}, {"a": 1}, "c"),
        ({"x": torch.tensor([1.0, torch.nan])}, {"x": torch.tensor([1.0, torch.nan])}, None),
        ({"x": torch.tensor([1.0])}, {"x": torch.tensor([1.0 + 2**-23])}, "x"),
        ({"x": torch.tensor([1.0])}, {"x": torch.tensor([1.0], dtype=torch.float64)}, "x"),
        ({"x": torch.ones(1)}, {"x": torch.ones(1, 1)}, "x"),
        ({"x": torch.ones(())}, {"x": 1.0}, "x"),
        ({"x": torch.tensor([True, False])}, {"x": torch.tensor([True, False])}, None),
        ({"x": float("nan")}, {"x": float("nan")}, None),
    ],
)
def test_the_first_difference_is_named_by_its_path(first, second, path):
    assert difference(first, second) == path


@pytest.mark.parametrize("value", [None, True, 3, 0.5, "a", (1, 2), [1, ["a"]], {"a": {"b": None}, 3: 4}])
def test_numbers_strings_lists_and_dictionaries_are_plain(value):
    assert plain(value)


@pytest.mark.parametrize("value", [{1, 2}, torch.ones(1), [print], {"a": object()}, {(1, 2): 3}, b"x"])
def test_all_others_are_not(value):
    assert not plain(value)


def test_an_error_becomes_one_sentence_with_its_cause_and_the_remedy():
    def fail():
        with explained("It does not train", "try less"):
            raise ValueError("a\n  long " + "x" * 500)

    with pytest.raises(AssertionError) as error:
        fail()
    assert str(error.value).startswith("It does not train (ValueError: a long")
    assert str(error.value).endswith("; try less")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert isinstance(error.value.__cause__, ValueError)


def test_an_answer_within_an_answer_is_kept():
    def fail():
        with explained("It does not train", "try less"):
            holds(False, "The loss is NaN; try less")

    with pytest.raises(AssertionError, match=r"^The loss is NaN; try less$"):
        fail()


def test_the_first_of_several_names_says_how_many_there_are():
    assert [first_of(names) for names in ([], ["a"], ["a", "b", "c"])] == ["", "a", "a and 2 more"]
