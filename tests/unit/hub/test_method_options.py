"""Options that are keyword arguments of a model's methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pytest
import torch
from jsonargparse import ArgumentParser

from zoo.cli.options import add_options
from zoo.errors import UserError
from zoo.hub.method_options import accepts, own_options, select_options

if TYPE_CHECKING:
    from nowhere import Unknown

CONTRACT = ("n", "labels", "generator", "seeds")


class Generator:
    """A model with an argument of every kind."""

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        labels: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        steps: int | None = None,
        solver: Literal["euler", "heun"] = "euler",
        sizes: list[int] = [1],  # noqa: B006
        ratio: float = None,  # type: ignore[assignment]  # noqa: RUF013 - as others write it
        weights: Sequence[float] = (),
        unannotated=0.5,
        unknown: Unknown | None = None,
        callback: Callable[[], None] | None = None,
        mask: torch.Tensor | None = None,
        anything: Any = None,
        nothing=None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Draws samples.

        Args:
            n: number of samples.
            steps: number of steps,
                100% of them.
            solver (str): name of the solver.
        """
        raise NotImplementedError


class Guided(Generator):
    """Passes further keyword arguments on."""

    def sample(self, n: int, *, scale: float, steps: int = 3, **kwargs: Any) -> torch.Tensor:
        """Draws samples.

        Args:
            scale: weight of the guidance.
        """
        return super().sample(n, **kwargs)


class Closed(Generator):
    """Passes nothing on."""

    def sample(self, n: int, seeds: torch.Tensor | None = None, *, scale: float, mask: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


def test_the_arguments_of_the_contract_are_no_options():
    assert not {"self", "n", "labels", "generator", "kwargs"} & own_options(Generator, "sample", CONTRACT).keys()
    assert "n" in own_options(Generator, "sample", ())


def test_plain_types_can_be_typed_and_others_cannot():
    types = {name: option.type for name, option in own_options(Generator, "sample", CONTRACT).items()}
    assert types == {
        "steps": int | None,
        "solver": Literal["euler", "heun"],
        "sizes": list[int],
        "ratio": float | None,
        "weights": Sequence[float],
        "unannotated": float,
        **dict.fromkeys(("unknown", "callback", "mask", "anything", "nothing")),
    }


def test_descriptions_are_those_of_the_docstring_in_one_line():
    options = own_options(Generator, "sample", CONTRACT)
    assert options["steps"].help == "number of steps, 100% of them."
    assert options["solver"].help == "name of the solver."
    assert options["sizes"].help == ""


def test_keyword_arguments_that_are_passed_on_are_options_too():
    options = own_options(Guided, "sample", CONTRACT)
    assert list(options)[:3] == ["scale", "steps", "solver"]
    assert (options["steps"].type, options["steps"].default) == (int, 3), "the class's own signature wins"
    assert options["steps"].help == "number of steps, 100% of them.", "the description of the base class"
    assert options["scale"].required and not options["steps"].required
    assert list(own_options(Closed, "sample", CONTRACT)) == ["scale", "mask"]


def test_a_method_accepts_what_its_base_takes_only_if_it_is_passed_on():
    assert accepts(Guided, "sample", "generator")
    assert not accepts(Guided, "sample", "seeds")
    assert accepts(Closed, "sample", "seeds")
    assert not accepts(Closed, "sample", "generator")


def test_a_parser_checks_the_types_and_shows_the_descriptions():
    parser = ArgumentParser(exit_on_error=False)
    options = own_options(Guided, "sample", CONTRACT).values()
    add_options(parser, [option for option in options if option.type is not None])
    given = parser.parse_args(["--steps", "7", "--solver=heun", "--sizes", "[2, 3]", "--unannotated", "1"]).as_dict()
    assert given == {"scale": None, "steps": 7, "solver": "heun", "sizes": [2, 3], "ratio": None, "weights": (),
                     "unannotated": 1.0}  # fmt: skip
    shown = " ".join(parser.format_help().split())
    assert "number of steps, 100% of them. (type: int, default: 3)" in shown
    assert "weight of the guidance. (must be given)" in shown
    with pytest.raises(Exception, match="steps"):
        parser.parse_args(["--steps", "many"])


def test_options_of_another_method_are_not_passed():
    own = own_options(Generator, "sample", CONTRACT)
    assert select_options(Generator(), "sample", own, {"steps": 2, "frames": 9}) == {"steps": 2}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "--scale must be given: Closed.sample has no default for it"),
        ({"scale": 1.0}, "Closed.sample needs mask, which only a call in Python can give"),
    ],
)
def test_an_argument_without_a_default_must_be_given(given, message):
    with pytest.raises(UserError) as error:
        select_options(Closed(), "sample", own_options(Closed, "sample", CONTRACT), given)
    assert str(error.value) == message
