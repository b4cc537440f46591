"""Where runs are kept: a folder for each, and the mode of Weights & Biases."""

import threading

import pytest

from zoo.errors import UserError
from zoo.tracking.run_folders import RunFolders
from zoo.tracking.wandb import WandbOptions, has_wandb_credentials, wandb_mode


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """A user without any account."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_without_credentials_a_run_is_offline(nobody):
    assert wandb_mode(WandbOptions()) == "offline"


def test_with_a_key_it_is_online(nobody, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert wandb_mode(WandbOptions()) == "online"


def test_a_key_in_netrc_counts_for_its_host_only(nobody, monkeypatch):
    (nobody / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    assert has_wandb_credentials()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_wandb_credentials()


def test_a_broken_netrc_is_no_key(nobody):
    (nobody / ".netrc").write_text("machine api.wandb.ai login")
    assert not has_wandb_credentials()


def test_what_the_user_says_wins(nobody, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode(WandbOptions()) == "disabled"
    assert wandb_mode(WandbOptions(mode="online")) == "online"


def test_runs_that_start_at_once_get_folders_of_their_own(tmp_path):
    made = []

    def start():
        made.append(RunFolders().new(tmp_path, "gan"))

    threads = [threading.Thread(target=start) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 16


def test_only_a_run_that_did_not_start_is_taken_back(tmp_path):
    folders = RunFolders()
    started, failed = folders.new(tmp_path / "runs", "gan"), folders.new(tmp_path / "runs", "gan")
    (started / "metrics.csv").touch()
    (failed / "config.yaml").touch()
    folders.discard()
    assert started.is_dir() and not failed.exists()
    other = RunFolders()
    other.new(tmp_path / "new", "gan")
    other.discard()
    assert not (tmp_path / "new").exists()
    assert tmp_path.exists()


def test_a_root_that_cannot_be_a_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"choose another --run\.root"):
        RunFolders().new(tmp_path / "file", "gan")
