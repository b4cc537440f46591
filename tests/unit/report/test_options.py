"""Options of runs: by their names on the command line, beside those of the recipe, and beside other runs."""

from __future__ import annotations

import time

import yaml

from tests.unit.report.runs import CONFIG
from zoo.registry import recipe_files
from zoo.report.options import Change, changed_options, differing_options, flatten, merged, same


def test_options_have_their_names_on_the_command_line():
    options = flatten(CONFIG)
    assert options["model"] == "GAN"
    assert options["model.loss"] == "hinge"
    assert options["trainer.callbacks.BestAndLastCheckpoint.monitor"] == "val/fd"
    assert not any(name.startswith("run") for name in options), "the place of a run is not an option of the training"


def test_a_configuration_that_stands_for_too_much_or_contains_itself_has_an_end():
    circle: dict = {}
    circle["again"], circle["value"] = circle, 1
    many: list = [1]
    for _ in range(40):
        many = [{"a": many, "b": many}]
    start = time.process_time()
    assert len(flatten({"circle": circle, "model": many})) <= 2000
    assert time.process_time() - start < 1


def test_later_recipes_win_and_a_class_that_is_replaced_takes_its_options_along():
    first = {"model": {"class_path": "GAN", "init_args": {"loss": "hinge"}}, "data": "Digits"}
    options = merged([first, {"data": {"class_path": "zoo.datamodules.MNIST", "init_args": {"root": "data"}}}])
    assert options == {"model": "GAN", "model.loss": "hinge", "data": "MNIST", "data.root": "data"}


def test_changes_are_those_of_the_recipe_and_what_was_typed():
    recipe = {"model": "GAN", "model.loss": "hinge", "trainer.max_steps": "6000", "trainer.callbacks.Old": "Old"}
    run = {
        "model": "GAN", "model.loss": "minimax", "model.conditional": "true", "model.width": "8",
        "trainer.max_steps": "6000.0", "trainer.callbacks.New": "New", "trainer.callbacks.New.n": "1",
    }  # fmt: skip
    assert changed_options(recipe, run, ["model.conditional"]) == [
        Change("model.loss", "hinge", "minimax"),
        Change("model.conditional", None, "true"),
        Change("trainer.callbacks.New", None, "New"),
        Change("trainer.callbacks.Old", "Old", "-"),
    ]


def test_every_recipe_flattens_to_options_that_do_not_differ_from_themselves():
    for path in recipe_files().values():
        options = merged([yaml.safe_load(path.read_text(encoding="utf-8"))])
        assert options and changed_options(options, dict(options), list(options)) == []


def test_equal_values_in_other_words_are_the_same():
    assert same("0.0010", "1e-3") and same("zoo.optim.WarmupDecay", "WarmupDecay") and same(None, None)
    assert not same("1", "2") and not same(None, "1") and not same("a.b", "c.b") and not same("true", "false")


def test_options_in_which_runs_differ():
    first, second = {"model.loss": "hinge", "model.width": "8", "a": "1"}, {"model.loss": "minimax", "model.width": "8"}
    assert differing_options([first, second, first]) == [
        ("model.loss", ["hinge", "minimax", "hinge"]),
        ("a", ["1", "-", "1"]),
    ]


def test_the_options_of_a_callback_that_not_all_runs_have_are_not_told_one_by_one():
    callback = {"trainer.callbacks.Stop": "Stop", "trainer.callbacks.Stop.patience": "8"}
    assert differing_options([callback, {}]) == [("trainer.callbacks.Stop", ["Stop", "-"])]
    other = callback | {"trainer.callbacks.Stop.patience": "9"}
    assert differing_options([callback, other]) == [("trainer.callbacks.Stop.patience", ["8", "9"])]
