"""The example of a sweep: the command that the agent of Weights & Biases makes of it is one of ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.helpers.command import CHECKOUT
from zoo.cli.fit import run_trainer
from zoo.cli.search import DryRun
from zoo.cli.search_space import find_value

SWEEP = yaml.safe_load((CHECKOUT / "examples" / "wandb_sweep" / "sweep.yaml").read_text(encoding="utf-8"))


@pytest.mark.usefixtures("in_an_empty_folder")
def test_the_agent_s_command_sets_the_options_that_are_drawn():
    from wandb.sdk.launch.sweeps import utils  # which takes a second to import, for every worker if it stood above

    drawn = {}
    for name, given in SWEEP["parameters"].items():
        assert given.keys() == ({"values"} if "values" in given else {"distribution", "min", "max"})
        assert given.get("distribution", "log_uniform_values") == "log_uniform_values"
        drawn[name] = given["values"][-1] if "values" in given else given["max"]
    program, *words, args = utils.create_sweep_command(SWEEP["command"])
    arguments = utils.create_sweep_command_args({"args": {name: {"value": value} for name, value in drawn.items()}})
    assert (program, args) == ("zoo", "${args}")
    cli = run_trainer([*words, *arguments["args"]], DryRun)
    config = yaml.safe_load(cli.parser.dump(cli.config, skip_unset=False))["fit"]
    assert {name: find_value(config, name) for name in drawn} == drawn
    monitors = [getattr(callback, "monitor", None) for callback in cli.trainer.checkpoint_callbacks]
    assert SWEEP["metric"]["name"] in monitors and not Path("runs").exists()
