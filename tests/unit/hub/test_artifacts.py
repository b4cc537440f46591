"""Checkpoints from Weights & Biases, with a stand-in for its Api."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from zoo.errors import UserError


class Artifact:
    """An artifact as `wandb.Api` gives it."""

    entity, project, name = "me", "digits", "model-abc:v3"

    def __init__(self, file: str) -> None:
        self.file = file

    def download(self, root: str) -> str:
        Path(root).mkdir(parents=True, exist_ok=True)
        shutil.copy(self.file, Path(root) / "model.ckpt")
        return root


@pytest.fixture
def api(checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the Api by one that has a classifier; returns the artifacts that it was asked for."""
    asked: list[str] = []

    class Api:
        def __init__(self, timeout: int) -> None:
            assert timeout <= 30

        def artifact(self, name: str) -> Artifact:
            asked.append(name)
            if "missing" in name:
                raise ValueError("artifact 'missing'\nnot found")
            return Artifact(checkpoint("mlp"))

    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("wandb.Api", Api)
    monkeypatch.setattr("zoo.hub.artifacts.connection_problem", lambda url: "")
    return asked


def test_a_checkpoint_of_a_run_is_loaded_into_the_cache(api, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = zoo.load("wandb:me/digits/model-abc:best")
    assert torch.equal(next(model.parameters()), next(zoo.load(checkpoint("mlp")).parameters()))
    zoo.load("wandb:me/digits/model-abc")
    assert api == ["me/digits/model-abc:best", "me/digits/model-abc:latest"]
    (file,) = tmp_path.rglob("*.ckpt")
    assert tmp_path / "cache" in file.parents, "not in the working folder, where wandb puts it"


def test_mistakes_are_one_line_and_ask_for_nothing(api, monkeypatch):
    with pytest.raises(UserError, match=r"wandb:digits is no artifact; write wandb:entity/project/artifact:alias"):
        zoo.load("wandb:digits")
    with pytest.raises(
        UserError, match=r"wandb:me/digits/missing:v1 cannot be downloaded: artifact 'missing' not found"
    ):
        zoo.load("wandb:me/digits/missing:v1")
    monkeypatch.setattr("zoo.hub.artifacts.connection_problem", lambda url: f"no connection to {url}")
    with pytest.raises(UserError, match="cannot be downloaded: no connection to"):
        zoo.load("wandb:me/digits/model:v1")
    monkeypatch.setattr("zoo.hub.artifacts.has_wandb_credentials", lambda: False)
    with pytest.raises(UserError, match="needs an API key of Weights & Biases: wandb login, or set WANDB_API_KEY"):
        zoo.load("wandb:me/digits/model:v1")
    assert api == ["me/digits/missing:v1"]
