"""Fields of a page for the arguments of a model's methods."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from tests.helpers.networks import unet
from zoo import Diffusion, TransformerLM
from zoo.errors import UserError
from zoo.play.drawing import CONTRACT
from zoo.play.fields import Field, entered, fields_of, whole_number
from zoo.play.writing import CONTRACT as WRITING


class Own:
    """A plugin's model with an argument of every kind."""

    truncation = 0.7

    def sample(
        self,
        n: int,
        *,
        labels: Any = None,
        generator: Any = None,
        truncation: float | None = None,
        style: Literal["flat", "round"] = "flat",
        tiled: bool = False,
        title: str = "",
        order: Literal[1, 2] = 1,
        sizes: list[int] | None = None,
    ) -> None:
        """Draws.

        Args:
            truncation: largest absolute value of the latent vectors.
            tiled: whether the samples tile.
        """


@pytest.fixture(scope="module")
def diffusion():
    return Diffusion((1, 8, 8), 10, conditional=True, network=unet(8), steps=3, solver="heun")


def test_arguments_become_fields_with_the_models_own_settings():
    fields = {field.name: field for field in fields_of(Own(), "sample", CONTRACT)}
    assert list(fields) == ["truncation", "style", "tiled", "title"], "no field can hold a list, or numbers as a choice"
    info = "largest absolute value of the latent vectors."
    assert fields["truncation"] == Field("truncation", "number", 0.7, (), info)
    assert fields["style"] == Field("style", "choice", "flat", ("flat", "round"), "")
    assert (fields["tiled"].kind, fields["tiled"].value) == ("switch", False)
    assert fields["title"].kind == "text"


def test_names_that_a_model_lists_are_a_choice(diffusion):
    fields = {field.name: field for field in fields_of(diffusion, "sample", CONTRACT)}
    assert list(fields) == ["steps", "solver", "guidance_scale"]
    assert (fields["steps"].kind, fields["steps"].value) == ("integer", 3)
    assert (fields["solver"].kind, fields["solver"].value) == ("choice", "heun")
    assert {"euler", "reverse_process"} <= set(fields["solver"].choices)


def test_fields_of_a_language_model_leave_the_prompt_to_the_page():
    model = TransformerLM((8,), 3, "characters:abc", layers=1, width=8, heads=2)
    kinds = {field.name: field.kind for field in fields_of(model, "stream", WRITING)}
    assert kinds == {"max_new_tokens": "integer", "temperature": "number", "top_k": "integer", "top_p": "number"}


def test_empty_fields_leave_the_default_to_the_model(diffusion):
    assert entered(diffusion, "sample", CONTRACT, [None, "", 0.5]) == {"guidance_scale": 0.5}
    assert entered(diffusion, "sample", CONTRACT, ["7", "", "0.25"]) == {"steps": 7, "guidance_scale": 0.25}
    assert entered(diffusion, "sample", CONTRACT, [4.0, "euler", 0]) == {
        "steps": 4, "solver": "euler", "guidance_scale": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([2.5, "euler", 0], "steps is 2.5; it must be a whole number"),
        (["many", "euler", 0], "steps is 'many'; it must be a whole number"),
        ([2, "rk4", 0], "solver is 'rk4'; choose one of euler, heun"),
        ([2, "euler", "much"], "guidance_scale is 'much'; it must be a number"),
    ],
)
def test_a_wrong_value_is_named(diffusion, values, message):
    with pytest.raises(UserError, match=message):
        entered(diffusion, "sample", CONTRACT, values)


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "empty"), (float("inf"), "inf"), (float("nan"), "nan"), (True, "True")]
)
def test_a_whole_number_is_one(value, shown):
    assert whole_number("seed", 3.0) == 3
    with pytest.raises(UserError, match=f"seed is {shown}; it must be a whole number"):
        whole_number("seed", value)
