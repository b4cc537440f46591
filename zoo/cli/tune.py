"""The command `tune`: searches for better options of a recipe.

Its own options are few; all others are those of `fit`, and every trial is a run of `fit` with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Literal

from zoo.cli.parser import OneLineParser
from zoo.cli.program import program
from zoo.errors import UserError, check_at_least, nearest

OWN = ("search", "trials", "metric", "mode", "seeds", "pruning")
#: Options of `fit` without a dot, and those that a search cannot have.
OF_FIT = (
    "config",
    "model",
    "data",
    "seed_everything",
    "matmul_precision",
    "threads",
    "ckpt_path",
    "help",
    "print_config",
)
DESCRIPTION = (
    "Searches for better options of a recipe, by Optuna. All other options are those of fit, and every trial is a run "
    "of fit, such as --config gan.yaml --search gan_space.yaml --trials 20."
)


def run_tune(args: Sequence[str]) -> None:
    """Parses the command line and searches."""
    own, words = split_options(args[1:])
    parser = OneLineParser(prog=f"{program()} tune", description=DESCRIPTION)
    parser.add_function_arguments(tune, skip={"words"})
    given = parser.parse_args([*own, *(["--help"] if {"-h", "--help"} & set(words) else [])])
    _check_words(words)
    tune(words, **given.as_dict())


def split_options(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words that are options of `tune`, with their values, and those that are for `fit`."""
    own: list[str] = []
    others: list[str] = []
    value_follows = False
    for word in words:
        name, equals, _ = word.removeprefix("--").partition("=")
        is_own = value_follows or (word.startswith("--") and name in OWN)
        value_follows = is_own and not value_follows and not equals
        (own if is_own else others).append(word)
    return own, others


def _check_words(words: Sequence[str]) -> None:
    """Raises a `UserError` for an option that a search cannot have, or a misspelt one of its own."""
    for word in words:
        name = word.removeprefix("--").partition("=")[0]
        if not word.startswith("--") or "." in name:
            continue
        if name == "ckpt_path":
            raise UserError("--ckpt_path is for one run, and every trial starts from scratch: leave it out")
        if name not in OF_FIT and (hint := nearest(f"--{name}", [f"--{own}" for own in OWN], 0.7)):
            raise UserError(f"{word.partition('=')[0]} is not an option{hint}")


def tune(
    words: list[str],
    search: str,
    trials: int = 20,
    metric: str | None = None,
    mode: Literal["min", "max"] | None = None,
    seeds: int = 1,
    pruning: bool = True,
) -> None:
    """Searches for better options of a recipe.

    Args:
        words: options of `fit`.
        search: YAML file of options and the values among which they are searched, or the name of one of the package.
        trials: number of trials of the study; the same command with more of them continues it.
        metric: validation metric; by default the one by which the recipe keeps its best checkpoint.
        mode: whether lower ("min") or higher ("max") values of the metric are better; needed with another metric.
        seeds: runs of each trial, with consecutive seeds; the value of the trial is their mean.
        pruning: end trials early whose metric is worse than the median of the completed ones.
    """
    if find_spec("optuna") is None:
        raise UserError("tune needs Optuna, which is not installed: pip install lightning-zoo[tune]")
    from zoo.cli.search import Search

    check_at_least(1, **{"--trials": trials, "--seeds": seeds})
    if metric is not None and metric.startswith("test/"):
        raise UserError(f"--metric {metric} is of the test split, by which nothing is chosen; take one of val/...")
    Search(words, search, metric, mode, seeds, pruning).run(trials)
