"""No setting of Weights & Biases, however wrong, ends a run: it is offline or left out, and a line says so."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.command import MLP_RUN, read_rows
from tests.integration.cli.test_fuzz import ASKED, in_a_new_folder
from zoo.cli.main import main
from zoo.tracking.run import open_run
from zoo.tracking.run_folders import RunFolders, RunLock, RunOptions
from zoo.tracking.wandb import WandbOptions, has_wandb_credentials, wandb_logger
from zoo.tracking.wandb_process import end_helper, finish_run

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")

KEY = "0123456789abcdef" * 3
NOWHERE = "http://127.0.0.1:9"
#: Values that are wrong for at least one of the variables; none of them reaches a server.
WRONG = (
    "",
    " ",
    "nonsense",
    "a/b:c",
    "http://[",
    "http://127.0.0.1:99999",
    "http://x..y",
    "-1",
    "\n",
    "é\U0001f600",
    "x" * 3000,
)
NAMES = (
    "MODE", "API_KEY", "RUN_ID", "PROJECT", "ENTITY", "DIR", "SILENT", "HTTP_TIMEOUT", "CONFIG_DIR", "SERVICE",
    "RESUME", "TAGS", "CONSOLE", "INIT_TIMEOUT", "DATA_DIR", "CACHE_DIR", "IDENTITY_TOKEN_FILE", "ERROR_REPORTING",
)  # fmt: skip
VARIABLES = [f"WANDB_{name}" for name in NAMES]
ENVIRONMENTS = st.dictionaries(
    st.sampled_from(VARIABLES), st.sampled_from([*WRONG, KEY, f"{KEY}\n", "online"]), min_size=1, max_size=3
)
NETRC = st.sampled_from([None, b"", b"machine", b"machine 127.0.0.1 login a password b", b"\xff\xfe", b"default\n\0"])
settings_of_runs = settings(
    max_examples=int(ASKED or 6),
    derandomize=ASKED is None,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@settings_of_runs
@given(ENVIRONMENTS, st.sampled_from([NOWHERE, *WRONG]), NETRC, st.sampled_from(["digits", "a/b", "", "é" * 200]))
def test_a_wrong_environment_costs_a_line_and_no_run(variables, url, netrc, project):
    with (
        in_a_new_folder() as folder,
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(record=True) as said,
    ):
        warnings.simplefilter("always")
        patch.delenv("WANDB_MODE")
        for name, value in {**variables, "WANDB_BASE_URL": url, "NETRC": str(folder / "netrc")}.items():
            patch.setenv(name, value)
        if netrc is not None:
            (folder / "netrc").write_bytes(netrc)
        run = open_run(RunOptions(str(folder)), "run", RunFolders())
        try:
            logger = wandb_logger(run, WandbOptions(project=project), {})
            if logger is not None:
                logger.log_metrics({"val/loss": 1.0}, 0)
        finally:
            finish_run()
            end_helper()
            RunLock.release()
        lines = [str(one.message) for one in said if "Weights & Biases" in str(one.message)]
    assert len(lines) <= 1 and (lines or logger is not None)
    key = variables.get("WANDB_API_KEY", "").strip()
    assert not any("\n" in line or (len(key) > 30 and key in line) for line in lines)


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("WANDB_MODE", "of-line", "WANDB_MODE is 'of-line', which is no mode; it can be online, offline"),
        ("WANDB_MODE", "", None),
        ("WANDB_BASE_URL", "nonsense", "Weights & Biases is left out: .*base_url"),
        ("WANDB_API_KEY", f"{KEY}\n", "Weights & Biases is left out: .*API key"),
        ("WANDB_RUN_ID", "a/b", "Weights & Biases is left out: .*Run ID"),
    ],
)
def test_a_run_with_a_wrong_setting_trains_and_says_so_once(name, value, line, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_BASE_URL", NOWHERE)
    monkeypatch.setenv(name, value)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        main(MLP_RUN)
    lines = [str(one.message) for one in said if "Weights & Biases" in str(one.message) or "WANDB" in str(one.message)]
    if line is None:
        assert not lines
    else:
        (only,) = lines
        assert re.search(line, only)
    assert read_rows(Path("runs/mlpclassifier/version_0"))


def test_credentials_are_looked_for_without_a_home_folder(monkeypatch):
    monkeypatch.delenv("NETRC", raising=False)

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert not has_wandb_credentials()
