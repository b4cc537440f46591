"""Pushing a model to a server and loading it from there, with huggingface_hub and a stand-in for the Hub."""

from __future__ import annotations

import builtins
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from tests.helpers.hub_server import TOKEN, HubServer, Repository, hub_server
from zoo.errors import UserError

pytest.importorskip("huggingface_hub")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """An empty server, and a cache and a token of its own."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HF_HUB_CACHE", "HF_TOKEN_PATH", "HF_STORED_TOKENS_PATH"):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", str(tmp_path / "cache" / name))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    # The Hub takes large files by hf_xet where it is installed; the stand-in knows the older way only.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True, raising=False)
    with hub_server() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def small(width: int = 8) -> zoo.MLPClassifier:
    return zoo.MLPClassifier((1, 8, 8), 10, width=width, depth=1)


def equal(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_model_is_pushed_and_loaded_by_its_name(server):
    model = small()
    url = model.push_to_hub("owner/digits", token=TOKEN, license="mit")
    assert url == f"{server.url}/owner/digits/commit/{1:040x}"
    (files,) = server.repositories["owner/digits"].commits.values()
    assert set(files) == {"config.json", "model.safetensors", "README.md"}
    assert b'zoo.load("owner/digits")' in files["README.md"]
    assert equal(zoo.load("owner/digits"), model)
    assert equal(zoo.MLPClassifier.from_pretrained("owner/digits"), model)
    assert server.downloads == ["config.json", "model.safetensors"], "the second time they come from the cache"


def test_a_revision_is_loaded_and_a_card_that_is_there_is_kept(server):
    first, second = small(), small()
    first.push_to_hub("owner/digits", token=TOKEN)
    server.repositories["owner/digits"].commit({"README.md": b"written by hand"})
    second.push_to_hub("owner/digits", token=TOKEN)
    commits = server.repositories["owner/digits"].commits
    assert commits[f"{3:040x}"]["README.md"] == b"written by hand"
    assert equal(zoo.load("owner/digits", revision=f"{1:040x}"), first)
    assert equal(zoo.load("owner/digits"), second)
    second.push_to_hub("owner/digits", token=TOKEN, overwrite_card=True)
    assert b"# digits" in commits[f"{4:040x}"]["README.md"]


def test_a_private_model_needs_a_token(server):
    model = small()
    model.push_to_hub("owner/secret", token=TOKEN, private=True)
    with pytest.raises(UserError, match=r"no owner/secret at http\S+ that you may read: .* hf auth login"):
        zoo.load("owner/secret")
    assert equal(zoo.load("owner/secret", token=TOKEN), model)


def test_without_a_connection_the_cache_is_used_and_nothing_hangs(server, monkeypatch):
    model = small()
    model.push_to_hub("owner/digits", token=TOKEN)
    zoo.load("owner/digits")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    monkeypatch.setenv("no_proxy", "127.0.0.1")  # which is no proxy
    start = time.monotonic()
    assert equal(zoo.load("owner/digits"), model)
    with pytest.raises(UserError, match=r"owner/other is not in the cache, and no connection to 127\.0\.0\.1"):
        zoo.load("owner/other")
    with pytest.raises(UserError, match=r"owner/digits cannot be uploaded: no connection.*save_pretrained"):
        model.push_to_hub("owner/digits", token=TOKEN)
    assert time.monotonic() - start < 3


def test_refusals_are_one_line(server):
    config = {"model_class": "transformers.GPT2", "hyper_parameters": {}}
    for name, content in {"empty": {}, "other": {"config.json": b"{}"}, "foreign": {"config.json": config}}.items():
        server.repositories[f"owner/{name}"] = Repository()
        encoded = {k: v if isinstance(v, bytes) else json.dumps(v).encode() for k, v in content.items()}
        server.repositories[f"owner/{name}"].commit({"a": b"", "model.safetensors": b"weights", **encoded})
    server.repositories["owner/gated"] = Repository(gated=True)
    refused = {
        "owner/missing": "is no file or folder here, and as a repository: there is no owner/missing",
        "owner/empty": "holds no model of lightning-zoo: it lacks config.json",
        "owner/other": "config.json does not describe a model of lightning-zoo",
        "owner/foreign": "model.safetensors is damaged",
        "owner/gated": "open on request only",
    }
    for source, message in refused.items():
        with pytest.raises(UserError, match=message) as raised:
            zoo.load(source)
        assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="owner/empty has no revision v2"):
        zoo.load("owner/empty", revision="v2")
    assert server.downloads.count("model.safetensors") == 1, "not that of a model of another library"


@pytest.mark.parametrize("fault", ["short", "long", "hangs"])
def test_a_server_that_hangs_or_lies_about_sizes_is_one_line_and_leaves_nothing_in_the_cache(
    fault, server, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the library's five attempts
    model = small()
    model.push_to_hub("owner/digits", token=TOKEN)
    server.fault = fault
    with pytest.raises(UserError, match=r"owner/digits at http|model\.safetensors is damaged") as raised:
        zoo.load("owner/digits")
    assert "\n" not in str(raised.value)
    server.fault = ""
    assert equal(zoo.load("owner/digits"), model)


def test_pushing_without_permission_is_one_line_and_creates_nothing(server):
    refused: dict[str, tuple[dict[str, Any], str]] = {
        "owner/digits": ({}, "without an access token: log in with hf auth login"),
        "owner/more": ({"token": "hf_wrong"}, "does not let you do this with owner/more"),
        "stranger/digits": ({"token": TOKEN}, "does not let you do this with stranger/digits"),
        "digits": ({"token": TOKEN}, "the repository is 'digits'; it must be owner/name"),
        "owner/licensed": ({"token": TOKEN, "license": "MIT License"}, "license is 'MIT License'"),
    }
    for repository, (options, message) in refused.items():
        with pytest.raises(UserError, match=message):
            small().push_to_hub(repository, **options)
    assert not server.repositories


def test_without_huggingface_hub_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name == "huggingface_hub":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    for call in (lambda: zoo.load("owner/digits"), lambda: small().push_to_hub("owner/digits")):
        with pytest.raises(UserError, match=r"pip install lightning-zoo\[hub\]"):
            call()
