"""The mode of Weights & Biases."""

import pytest

from zoo.tracking.wandb import WandbOptions, has_wandb_credentials, wandb_mode


@pytest.fixture
def no_credentials(monkeypatch, tmp_path):
    """A user without an API key; returns the home folder."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_without_credentials_a_run_is_offline(no_credentials):
    assert wandb_mode(WandbOptions()) == "offline"


def test_with_an_api_key_a_run_is_online(no_credentials, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert wandb_mode(WandbOptions()) == "online"


def test_a_key_in_netrc_counts_for_its_host_only(no_credentials, monkeypatch):
    (no_credentials / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    assert has_wandb_credentials()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_wandb_credentials()


def test_a_broken_netrc_has_no_key(no_credentials):
    (no_credentials / ".netrc").write_text("machine api.wandb.ai login")
    assert not has_wandb_credentials()


def test_the_option_overrides_the_environment_and_both_override_credentials(no_credentials, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode(WandbOptions()) == "disabled"
    assert wandb_mode(WandbOptions(mode="online")) == "online"
