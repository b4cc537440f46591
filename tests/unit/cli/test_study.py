"""The study of a search: continued, refused if it is another one, and written as a table and a picture."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from PIL import Image

from zoo.cli.search_space import SearchSpace
from zoo.cli.study import Study
from zoo.errors import UserError

LR, SIZE = "model.lr", "data.batch_size"
SPACE = SearchSpace("space.yaml", {LR: FloatDistribution(1e-4, 1.0, log=True), SIZE: CategoricalDistribution([32, 64])})
DESCRIBED = {"trainer": {"max_steps": 6}, "model": {"class_path": "GAN", "init_args": {"betas": [0.0, 0.9]}}}
FACTS = {"steps": 6, "seconds": 0.1, "folder": "runs/a/version_0", "reason": ""}


def open_study(folder: Path, described=DESCRIBED, mode="min", seed=0) -> Study:
    return Study(folder / "study", SPACE, described, mode, seed)


def add(study: Study, state: str, value: float | None, reason: str = ""):
    trial = study.ask()
    study.tell(trial, state, value, FACTS | {"reason": reason})
    return trial


def test_a_study_continues_where_it_ended_with_other_draws(tmp_path):
    study = open_study(tmp_path)
    study.start_with({LR: 0.5, SIZE: 64})
    values = [add(study, "completed", 1.0).params for _ in range(3)]
    study.close()
    assert values[0] == {LR: 0.5, SIZE: 64}
    study = open_study(tmp_path)
    study.start_with({LR: 0.5, SIZE: 64})
    values += [add(study, "completed", 1.0).params for _ in range(3)]
    assert len(study.ended) == 6
    assert len({value[LR] for value in values}) == 6, "the sampler does not begin anew, nor does the study"


def test_the_same_seed_draws_the_same_values(tmp_path):
    draws = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        study = open_study(tmp_path / name, seed=seed)
        draws.append([add(study, "completed", 1.0).params[LR] for _ in range(2)])
    assert draws[0] == draws[1] != draws[2]


def test_an_interrupted_trial_does_not_count_and_its_values_are_tried_again(tmp_path):
    study = open_study(tmp_path)
    add(study, "completed", 1.0)
    interrupted = study.ask()
    study.close()
    study = open_study(tmp_path)
    assert len(study.ended) == 1
    assert add(study, "completed", 2.0).params == interrupted.params
    assert len(study.ended) == 2


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"trainer": {"max_steps": 7}}, r"made with trainer\.max_steps 6, and now it is 7: give the same"),
        ({"seeds": 3}, "made with seeds not set, and now it is 3"),
        (
            {"trainer": {}, "model": {"class_path": "A"}},
            r"trainer\.max_steps 6, and now it is not set \(2 more differ\)",
        ),
    ],
)
def test_another_search_is_refused_with_the_difference(change, difference, tmp_path):
    open_study(tmp_path).close()
    with pytest.raises(UserError, match=difference):
        open_study(tmp_path, DESCRIBED | change)
    open_study(tmp_path).close()


def test_a_study_in_progress_is_refused(tmp_path):
    study = open_study(tmp_path)
    with pytest.raises(UserError, match="is still in progress"):
        open_study(tmp_path)
    study.close()
    open_study(tmp_path)


def test_a_damaged_journal_is_named(tmp_path):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.journal").write_text("no journal\n" * 3)
    with pytest.raises(UserError, match=r"study\.journal is damaged .*: move it away, or give another --run\.name"):
        open_study(tmp_path)


def test_only_a_new_study_is_discarded(tmp_path):
    study = open_study(tmp_path / "a" / "b")
    study.ask()
    study.discard()
    assert tmp_path.is_dir() and not (tmp_path / "a").exists()
    open_study(tmp_path).close()
    open_study(tmp_path).discard()
    assert (tmp_path / "study" / "study.journal").is_file()


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_trial_is_pruned_if_it_is_worse_than_the_median_of_the_completed_ones(mode, tmp_path):
    """After five trials, and not before its third validation."""
    study, sign = open_study(tmp_path, mode=mode), 1 if mode == "min" else -1

    def pruned(values: list[float]) -> list[bool]:
        trial, decisions = study.ask(), []
        for validation, value in enumerate(values, start=1):
            trial.report(sign * value, validation)
            decisions.append(trial.should_prune())
        study.tell(trial, "pruned" if any(decisions) else "completed", sign * min(values), FACTS)
        return decisions

    for value in (1.0, 2.0, 3.0, 4.0, 5.0):
        assert pruned([9.0 if value < 4 else value] * 2 + [value]) == [False] * 3
    assert pruned([9.0, 9.0, 3.5]) == [False, False, True]
    assert pruned([9.0, 9.0, 2.5]) == [False] * 3
    assert pruned([9.0, 9.0, math.nan])[-1] in (True, False)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_table_has_the_best_first_and_the_picture_shows_them(mode, tmp_path, monkeypatch):
    study = open_study(tmp_path, mode=mode)
    for state, value in (("completed", 3.0), ("pruned", 9.0), ("failed", None), ("completed", 1.0), ("completed", 2.0)):
        add(study, state, value, "" if state != "failed" else "the loss became nan")
    study.write_table()
    with (study.folder / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    order = ["3", "4", "0"] if mode == "min" else ["0", "4", "3"]
    assert [row["trial"] for row in rows] == [*order, "1", "2"]
    assert [row["state"] for row in rows] == ["completed"] * 3 + ["pruned", "failed"]
    assert study.completed[0].value == (1.0 if mode == "min" else 3.0)
    assert (rows[4]["value"], rows[4]["reason"]) == ("", "the loss became nan")
    trials = {str(trial.number): trial.params for trial in study.ended}
    for row in rows:
        assert (float(row[LR]), int(row[SIZE])) == (trials[row["trial"]][LR], trials[row["trial"]][SIZE])
        assert (row["steps"], row["seconds"], row["folder"]) == ("6", "0.1", "runs/a/version_0")
    pictures = iter((np.full((1, 1, 3), 10, np.uint8), np.full((1, 1, 3), 20, np.uint8)))
    drawn = []
    monkeypatch.setattr("zoo.cli.study.plot_trials", lambda *args: drawn.append(args) or next(pictures))
    for _ in range(2):  # the second one replaces the first
        study.write_picture("val/loss")
    shown, *others = drawn[0]
    assert others == ["val/loss", mode, [LR], {SIZE: (32, 64)}]
    assert [(t.number, t.value, t.completed) for t in shown] == [
        (0, 3.0, True), (1, 9.0, False), (2, None, False), (3, 1.0, True), (4, 2.0, True),
    ]  # fmt: skip
    assert np.asarray(Image.open(study.folder / "trials.png")).max() == 20
