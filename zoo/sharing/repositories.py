"""Models as repositories on the Hugging Face Hub, or on the server like it that HF_ENDPOINT names.

The files are those of a saved model; everything that talks to a server is huggingface_hub.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from zoo.checkpoints.pretrained import CONFIG, WEIGHTS, is_pretrained, read_config
from zoo.errors import UserError, one_line
from zoo.sharing.connection import connection_problem
from zoo.sharing.saving import CARD, save_pretrained

TIMEOUT = 10.0  # seconds, for the answer to a question about a file
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_repository(source: str | Path) -> bool:
    """Whether a text can be the name of a repository, "owner/name"."""
    return isinstance(source, str) and REPOSITORY.fullmatch(source) is not None and not source.endswith(".ckpt")


def find_folder(source: str | Path, revision: str | None = None, token: str | None = None) -> Path:
    """Folder of a saved model: one on disk, else that of a repository, which is downloaded.

    Raises:
        UserError: there is neither, or the repository cannot be read.
    """
    if is_pretrained(source):
        return Path(source)
    if Path(source).exists():
        raise UserError(f"{source} is not the folder of a saved model: it has no {CONFIG} and {WEIGHTS}")
    if not is_repository(source):
        raise UserError(f"{source} is neither the folder of a saved model nor a repository owner/name")
    return download(str(source), revision, token)


def download(repository: str, revision: str | None = None, token: str | None = None) -> Path:
    """Downloads a model into huggingface_hub's cache; without a connection it is taken from there.

    Args:
        repository: "owner/name".
        revision: branch, tag or commit; by default the newest.
        token: access token; by default that of `hf auth login` or HF_TOKEN.

    Returns:
        Folder with `config.json` and `model.safetensors` of one commit.

    Raises:
        UserError: there is no such model, it may not be read, or it is not in the cache and there is no connection.
    """
    hub, server = _library(repository), _server()
    problem = "HF_HUB_OFFLINE is set" if _is_offline() else connection_problem(server)
    options: dict[str, Any] = {
        "token": token, "endpoint": server, "etag_timeout": TIMEOUT, "local_files_only": bool(problem)
    }  # fmt: skip
    with _explained(repository, server, problem, revision):
        config = Path(hub.hf_hub_download(repository, CONFIG, revision=revision, **options))
    read_config(config)  # so that the weights of another library's model are not downloaded
    with _explained(repository, server, problem, revision):
        hub.hf_hub_download(repository, WEIGHTS, revision=config.parent.name, **options)
    return config.parent


def push_to_hub(
    model: Any,
    repository: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    license: str | None = None,
    run: str | Path | None = None,
    message: str = "Upload a model",
    overwrite_card: bool = False,
) -> str:
    """Uploads a model, as `save_pretrained` writes it, as one commit; the repository is created if there is none.

    Args:
        model: see `save_pretrained`.
        repository: "owner/name".
        token: access token that may write; by default that of `hf auth login` or HF_TOKEN.
        private: whether a new repository is private (default: as the owner's account has it).
        license: see `save_pretrained`.
        run: see `save_pretrained`.
        message: message of the commit.
        overwrite_card: replace a README.md that the repository has, which somebody may have written.

    Returns:
        Address of the commit.

    Raises:
        UserError: there is no connection, no token or no permission, or the model cannot be saved.
    """
    hub, server = _library(repository), _server()
    if not is_repository(repository):
        raise UserError(f"the repository is {repository!r}; it must be owner/name")
    if problem := "HF_HUB_OFFLINE is set" if _is_offline() else connection_problem(server):
        raise UserError(f"{repository} cannot be uploaded: {problem}; save_pretrained writes a folder without it")
    api = hub.HfApi(endpoint=server, token=token, library_name="lightning-zoo")
    with TemporaryDirectory() as temporary, _explained(repository, server):
        api.whoami()  # a missing token is reported before anything is drawn or written
        folder = save_pretrained(model, Path(temporary) / "model", name=repository, license=license, run=run)
        api.create_repo(repository, private=private, exist_ok=True)
        keeps = not overwrite_card and api.file_exists(repository, CARD)
        if keeps:
            rank_zero_info(f"{CARD} of {repository} is kept as it is; overwrite_card=True replaces it")
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message=message, ignore_patterns=[CARD] if keeps else None
        )
    return str(commit.commit_url)


def _library(repository: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(f"{repository} on the Hugging Face Hub needs pip install lightning-zoo[hub]") from error
    return huggingface_hub


def _server() -> str:
    # Read when it is used: huggingface_hub reads it when it is imported.
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@contextmanager
def _explained(repository: str, server: str, problem: str = "", revision: str | None = None) -> Iterator[None]:
    """Turns errors of huggingface_hub and of the library that it sends requests by into one line."""
    from huggingface_hub import errors

    login = "log in with hf auth login, or give token=..."
    try:
        yield
    except UserError:
        raise
    except errors.LocalTokenNotFoundError as error:
        raise UserError(f"{repository} cannot be written without an access token: {login}") from error
    except errors.LocalEntryNotFoundError as error:
        where = f"the version {revision} of {repository}" if revision else repository
        raise UserError(f"{where} is not in the cache, and {problem or f'{server} does not answer'}") from error
    except errors.GatedRepoError as error:
        raise UserError(f"{repository} is open on request only: ask for access at {server}/{repository}") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"there is no {repository} at {server} that you may read: check its name; if it is private, {login}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{repository} has no revision {revision}; name a branch, a tag or a commit") from error
    except errors.EntryNotFoundError as error:
        raise UserError(f"{repository} holds no model of lightning-zoo: it lacks {CONFIG} or {WEIGHTS}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise UserError(f"{server} does not let you do this with {repository}: {login}") from error
        raise UserError(f"{server} answers {status} for {repository}: {one_line(str(error))[:200]}") from error
    except Exception as error:  # of requests, httpx or the operating system, by the version of huggingface_hub
        raise UserError(f"{repository} at {server}: {one_line(str(error))[:200] or type(error).__name__}") from error
