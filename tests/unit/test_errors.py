"""Checks that raise errors for users, and the wording of their messages."""

import math
import shlex

import pytest

from zoo.errors import (
    NonFiniteError,
    UserError,
    as_word,
    check_at_least,
    check_choice,
    check_fraction,
    did_you_mean,
    one_line,
)


def test_a_user_error_is_a_value_error_and_a_nonfinite_number_an_arithmetic_error():
    assert issubclass(UserError, ValueError)
    assert issubclass(NonFiniteError, ArithmeticError) and not issubclass(NonFiniteError, UserError)


def test_an_unknown_choice_is_named_with_all_choices():
    check_choice("loss", "hinge", ("minimax", "hinge"))
    with pytest.raises(UserError) as error:
        check_choice("loss", "ns", ("minimax", "hinge"))
    assert str(error.value) == "loss is 'ns'; choose one of minimax, hinge"


@pytest.mark.parametrize(
    ("least", "value", "message"),
    [
        (0, -0.1, "x is -0.1; it must be 0 or more"),
        (1, 0, "x is 0; it must be at least 1"),
        (2.0, 1.9, "x is 1.9; it must be at least 2.0"),
        (0, math.nan, "x is nan; it must be 0 or more"),
    ],
)
def test_the_first_value_below_the_least_is_named(least, value, message):
    check_at_least(least, a=least, b=None, c=math.inf)
    with pytest.raises(UserError) as error:
        check_at_least(least, a=least, x=value, y=value)
    assert str(error.value) == message


@pytest.mark.parametrize("value", [-0.01, 1.0, 2.0, math.nan])
def test_a_value_that_is_no_fraction_is_named(value):
    check_fraction(a=0.0, b=0.999)
    with pytest.raises(UserError) as error:
        check_fraction(a=0.0, x=value)
    assert str(error.value) == f"x is {value}; it must be at least 0 and below 1"


def test_a_message_is_put_on_one_line():
    assert one_line("  a\n\tlong   message\r\n") == "a long message"


def test_the_most_similar_name_is_suggested_or_all_are_listed():
    assert did_you_mean("resnet19", ["vgg16", "resnet18"]) == "; did you mean resnet18?"
    assert did_you_mean("zzz", ["vgg16", "resnet18"]) == "; there are vgg16, resnet18"


def test_a_path_is_one_word_and_relative_within_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my runs" / "it's.ckpt"
    assert shlex.split(as_word(path)) == ["my runs/it's.ckpt"]
    assert as_word("runs/gan") == "runs/gan"
    assert as_word(tmp_path.parent) == str(tmp_path.parent)
