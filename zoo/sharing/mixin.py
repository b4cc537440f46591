"""Methods of a model that save it and load it, as models of other libraries have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from zoo.checkpoints.pretrained import CONFIG, read_config
from zoo.checkpoints.reading import load_model
from zoo.errors import UserError
from zoo.sharing.repositories import find_folder, push_to_hub
from zoo.sharing.saving import save_pretrained

Model = TypeVar("Model", bound="PretrainedMixin")


class PretrainedMixin:
    """Adds `save_pretrained`, `from_pretrained` and `push_to_hub` to a LightningModule, of a plugin as well."""

    def save_pretrained(self, folder: str | Path, **options: Any) -> Path:
        """Saves the model as a folder; see `zoo.sharing.saving.save_pretrained`, also for the options."""
        return save_pretrained(self, folder, **options)

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Uploads the model; see `zoo.sharing.repositories.push_to_hub`, also for the options."""
        return push_to_hub(self, repository, **options)

    @classmethod
    def from_pretrained(
        cls: type[Model], source: str | Path, *, revision: str | None = None, token: str | None = None, **handed: Any
    ) -> Model:
        """Loads a model that was saved, in eval mode, on the CPU.

        Args:
            source: folder of a saved model, or repository "owner/name".
            revision: branch, tag or commit of the repository.
            token: access token, for a private repository.
            **handed: arguments of the class that are not stored, such as a network of your own.

        Raises:
            UserError: there is no such model, it is damaged, or it is of another class.
        """
        folder = find_folder(source, revision, token)
        own = read_config(folder / CONFIG)["model_class"] == f"{cls.__module__}.{cls.__qualname__}"
        # A class of the user's own is not in the registry, and need not be: it is here already.
        model = load_model(folder, cls if own else None, **handed)
        if not isinstance(model, cls):
            raise UserError(f"{source} holds a {type(model).__name__}, not a {cls.__name__}: use zoo.load")
        return model
