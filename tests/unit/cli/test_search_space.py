"""Search spaces: what a file means, what is wrong with it, and how values get into options and configurations."""

from __future__ import annotations

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from zoo.cli.search_space import SearchSpace, excerpt, find_value, read_space
from zoo.errors import UserError
from zoo.registry import space_files

#: A configuration as the parser writes it.
CONFIG = {
    "model": {
        "class_path": "zoo.GAN",
        "init_args": {
            "latent_dim": 32,
            "optimizer_g": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.001, "betas": [0.0, 0.99]}},
            "optimizer_d": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.001, "betas": [0.0, 0.99]}},
        },
    },
    "data": {"class_path": "zoo.datamodules.Digits", "init_args": {"batch_size": 64}},
    "trainer": {"max_steps": 6, "callbacks": [{"class_path": "A"}, {"class_path": "B", "init_args": {"patience": 8}}]},
}


@pytest.fixture
def space(tmp_path, monkeypatch):
    """Function that reads a search space from its text."""
    monkeypatch.chdir(tmp_path)

    def read(text: str) -> SearchSpace:
        (tmp_path / "space.yaml").write_text(text, encoding="utf-8")
        return read_space("space.yaml")

    return read


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("{low: 1e-4, high: 1e-2, log: true}", FloatDistribution(1e-4, 1e-2, log=True)),  # which YAML takes for text
        ("{low: 0.0, high: 0.6, step: 0.2}", FloatDistribution(0.0, 0.6, step=0.2)),
        ("{low: 1, high: 4}", IntDistribution(1, 4)),
        ("{low: 16, high: 64, step: 16}", IntDistribution(16, 64, step=16)),
        ("{low: 1, high: 8, log: true}", IntDistribution(1, 8, log=True)),
        ("{low: 1, high: 4.5}", FloatDistribution(1, 4.5)),
        ("[32, 64]", CategoricalDistribution([32, 64])),
        ("[null, true, hinge, [0.0, 0.9]]", CategoricalDistribution([None, True, "hinge", "[0.0, 0.9]"])),
    ],
)
def test_entries_are_distributions(entry, expected, space):
    assert space(f"model.x: {entry}").distributions == {"model.x": expected}


def test_values_are_typed_as_options_and_options_of_one_key_share_them(space):
    found = space("model.a.lr, model.b.lr: {low: 0.1, high: 1.0}\nmodel.c: [null, true, hinge, [0.0, 0.9]]")
    for choice, word in ((None, "null"), (True, "true"), ("hinge", "hinge"), ("[0.0, 0.9]", "[0.0, 0.9]")):
        words = found.words({"model.a.lr, model.b.lr": 0.25, "model.c": choice})
        assert words == ["--model.a.lr=0.25", "--model.b.lr=0.25", f"--model.c={word}"]


def test_corners_hold_both_ends_of_every_range_and_every_choice(space):
    corners = space("model.a: {low: 1, high: 9}\nmodel.b: [x, y, z]").corners()
    assert corners == [
        {"model.a": 1, "model.b": "x"},
        {"model.a": 9, "model.b": "y"},
        {"model.a": 9, "model.b": "z"},
    ]


MISTAKES = {
    "": "space.yaml is empty; a search space begins with a line such as",
    "- 3": "line 1, column 1: a search space must be lines of 'name: value', not a list",
    "model.a: 3": r"line 1, column 1: model\.a must be a range such as .* or a list of choices, not 3",
    "model.a: [1, 2]\nmodel.a: [1, 2]": r"line 2, column 1: model\.a appears twice",
    "model.a: [1, 2]\nmodel.b, model.a: [1, 2]": r"line 2, column 1: .*model\.a appears twice",
    "model.a: {low: 1, hihg: 2}": r"model\.a: hihg is not a key of a range; did you mean high\?",
    "model.a: {low: 1}": r"model\.a has no high",
    "model.a: {low: 2, high: 1}": "low is 2; it must be below high, which is 1",
    "model.a: {low: 1, high: 1}": "low is 1; it must be below high, which is 1",
    "model.a: {low: x, high: 1}": "low is x; it must be a number",
    "model.a: {low: true, high: 2}": "low is True; it must be a number",
    "model.a: {low: 0, high: .nan}": "high is nan; it must be a number",
    "model.a: {low: 0, high: .inf}": "high is inf; it must be a number",
    "model.a: {low: 0, high: 1, log: true}": "low is 0; with log: true it must be above 0",
    "model.a: {low: 1, high: 2, log: 10}": "log is 10; it must be true or false",
    "model.a: {low: 1, high: 5, step: 2, log: true}": "step cannot be combined with log",
    "model.a: {low: 1, high: 5, step: 0}": "step is 0; it must be above 0",
    "model.a: {low: 1, high: 5, step: 3}": "step is 3; the range from 1 to 5 must be a multiple of it",
    "model.a: {low: 1, high: 5, step: 9}": "step is 9; the range from 1 to 5",
    "model.a: []": "must have at least two choices",
    "model.a: [1]": "must have at least two choices",
    "model.a: [1, 2, 1]": "each of them once",
    "run.name: [a, b]": r"run\.name cannot be searched: an option begins with model\., data\. or trainer\.",
    "--model.a: [1, 2]": r"--model\.a cannot be searched",
    "model.a: {low: 1": "expected ',' or '}'",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_named_with_its_line(text, space):
    with pytest.raises(UserError, match=MISTAKES[text]) as error:
        space(text)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named_with_those_of_the_package():
    with pytest.raises(UserError, match=r"--search gan_spase\.yaml is neither .*; did you mean gan_space\.yaml\?"):
        read_space("gan_spase.yaml")
    assert set(read_space("gan_space.yaml").distributions) and "gan_space.yaml" in space_files()


def test_options_are_found_in_a_configuration_by_their_names_on_the_command_line():
    for name, value in {
        "model.latent_dim": 32,
        "model.init_args.latent_dim": 32,
        "model.optimizer_g.lr": 0.001,
        "model.optimizer_g.init_args.betas": [0.0, 0.99],
        "trainer.max_steps": 6,
        "trainer.callbacks.patience": 8,
    }.items():
        assert find_value(CONFIG, name) == value
    for name in ("model.lr", "model.latent_dim.x", "trainer.callbacks.x"):
        with pytest.raises(UserError, match=rf"--{name} is not an option of this run"):
            find_value(CONFIG, name)


def test_an_excerpt_sets_only_these_options_and_whole_lists_of_callbacks():
    found = excerpt(CONFIG, ["model.optimizer_g.lr", "model.latent_dim", "trainer.callbacks.patience"])
    assert found == {
        "model": {
            "class_path": "zoo.GAN",
            "init_args": {
                "optimizer_g": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.001}},
                "latent_dim": 32,
            },
        },
        "trainer": {"callbacks": CONFIG["trainer"]["callbacks"]},
    }
    assert excerpt(CONFIG, ["data"]) == {"data": CONFIG["data"]}


def test_the_recipe_s_own_values_are_those_in_the_space(space):
    lr, betas = "model.optimizer_g.lr, model.optimizer_d.lr", "model.optimizer_g.betas"
    inside = space(f"{lr}: {{low: 0.0001, high: 0.01}}\ndata.batch_size: [32, 64]\n{betas}: [[0.0, 0.99], [0.5, 0.9]]")
    assert inside.values_of(CONFIG) == {lr: 0.001, "data.batch_size": 64, betas: "[0.0, 0.99]"}
    for outside in (
        f"{lr}: {{low: 0.002, high: 0.01}}",
        "data.batch_size: [32, 128]",
        "data.batch_size: {low: 32, high: 128, step: 48}",
        "model.latent_dim, data.batch_size: {low: 1, high: 100}",  # which are not the same
        "model.optimizer_g: {low: 1, high: 2}",
    ):
        assert space(outside).values_of(CONFIG) is None
