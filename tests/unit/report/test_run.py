"""Reading folders of runs: finished ones, killed ones, damaged ones, and what is no run."""

from __future__ import annotations

import pytest

from tests.unit.report.runs import FACTS, write_metrics, write_run
from zoo.errors import UserError
from zoo.report.run import read_run


def test_the_best_value_its_step_and_its_floor_are_found(tmp_path):
    chosen = read_run(write_run(tmp_path / "gan" / "version_0")).chosen
    assert chosen is not None
    assert (chosen.metric, chosen.mode, chosen.value, chosen.step, chosen.floor) == ("val/fd", "min", 4.5, 199, 1.25)


def test_a_metric_that_is_to_be_maximized_is_chosen_by_its_highest_value(tmp_path):
    checkpoint = {"file": "checkpoints/best.ckpt", "metric": "val/fd", "mode": "max", "value": 9.0}
    chosen = read_run(write_run(tmp_path / "run", FACTS | {"checkpoint": checkpoint})).chosen
    assert chosen is not None and (chosen.value, chosen.step) == (9.0, 99)


def test_of_a_killed_run_the_configuration_says_what_is_chosen(tmp_path):
    run = read_run(write_run(tmp_path / "run", facts=None))
    assert run.chosen is not None and run.chosen.value == 4.5
    assert not run.ended and run.class_of("model") == "GAN" and run.problems == []


def test_a_resumed_run_has_the_options_of_its_latest_start(tmp_path):
    folder = write_run(tmp_path / "run")
    text = (folder / "config.yaml").read_text()
    for number, steps in ((1, 400), (2, 500), (10, 600)):
        (folder / f"config-{number}.yaml").write_text(text.replace("300", str(steps)))
    (folder / "config-notes.yaml").write_text("a: 1")
    run = read_run(folder)
    assert run.config == "config-10.yaml" and run.training.config["trainer"]["max_steps"] == 600


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", "a: &a [1]\nb: [*a, *a]"),
        ("config.yaml", "- 1"),
        ("config.yaml", "a: [1"),
        ("config.yaml", "a: " + "[" * 5000),
        ("report/facts.json", "{"),
        ("report/facts.json", "[1]"),
    ],
)
def test_a_damaged_file_is_named_and_the_others_are_read(tmp_path, name, content):
    folder = write_run(tmp_path / "run")
    (folder / name).write_text(content)
    run = read_run(folder)
    assert len(run.problems) == 1 and run.problems[0].startswith(f"{name} is left out")
    assert run.metrics["val/fd"][0] == (99, 9.0)


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "report/facts.json"])
def test_a_link_that_leads_out_of_the_folder_is_not_read(tmp_path, name):
    folder, secret = write_run(tmp_path / "run"), tmp_path / "secret"
    (folder / name).rename(secret)
    (folder / name).symlink_to(secret)
    assert read_run(folder).problems[0].startswith(f"{name} is left out, because it cannot be read: it is a link")


def test_facts_of_other_types_are_none(tmp_path):
    run = read_run(write_run(tmp_path / "run", {"model": [1], "steps": "many", "epochs": True}))
    assert run.fact("model", "class") is None and run.fact("steps", kind=int) is None
    assert run.fact("epochs", kind=int) is None


def test_metrics_alone_are_a_run(tmp_path):
    write_metrics(tmp_path, [{"step": 0, "val/loss": 1.0}])
    assert read_run(tmp_path).metrics == {"val/loss": [(0, 1.0)]}


def test_what_is_no_run_is_said_in_a_line_that_names_the_way_out(tmp_path):
    run = write_run(tmp_path / "runs" / "gan" / "version_3")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "best.ckpt").touch()
    (tmp_path / "empty").mkdir()
    cases = {
        tmp_path / "empty": "is not the folder of a run: it has neither config.yaml nor metrics.csv",
        tmp_path / "nowhere": "there is no folder",
        tmp_path / "runs" / "gan": f"holds runs and is none itself; give one or more of them, such as {run}",
        run / "checkpoints" / "best.ckpt": f"is a file; give the folder of the run, such as {run}",
    }
    for path, message in cases.items():
        with pytest.raises(UserError, match=str(path)) as error:
            read_run(path)
        assert message in str(error.value) and str(path) in str(error.value)
