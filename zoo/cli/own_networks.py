"""Models whose networks are the user's own: the checkpoint names them, and the run's configuration builds them.

The classes in a configuration are imported only if the user names the file with --config; a checkpoint cannot make the
program import anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from zoo.checkpoints.reading import load_model, read_checkpoint
from zoo.cli.recipes import check_recipe, recipe_path
from zoo.errors import UserError, one_line
from zoo.hub.loading import find_checkpoint
from zoo.models.networks import NetworkFactory, import_path, is_known


def load_model_with_config(ckpt_path: str, model: str | None = None, config: str | None = None, **handed: Any) -> Any:
    """Loads a model from its checkpoint, with the networks that only the configuration of its run describes.

    Args:
        ckpt_path: path to the checkpoint, to the folder of its run, or to that of a saved model.
        model: class of the model; by default the class that the checkpoint names.
        config: path to the config.yaml of the run; None if the zoo has all networks of the model.
        **handed: further arguments of the class.

    Raises:
        UserError: a file is missing or damaged, or a network is missing or cannot be imported.
    """
    ckpt_path = str(find_checkpoint(ckpt_path))
    described = read_checkpoint(ckpt_path).get("hyper_parameters")
    networks: dict[str, NetworkFactory] = {}
    if config is not None:
        for name, class_path in own_networks(described).items():
            networks[name] = _from_config(config, name, class_path)
    return load_model(ckpt_path, model, **networks, **handed)


def own_networks(hyperparameters: Any) -> dict[str, str]:
    """Arguments of a model that are networks of the user's own, with their import paths."""
    found = hyperparameters.items() if isinstance(hyperparameters, Mapping) else ()
    return {
        name: str(value["class_path"])
        for name, value in found
        if isinstance(value, Mapping)
        and "class_path" in value
        and (value.get("own") or not is_known(str(value["class_path"])))
    }


def _from_config(config: str, name: str, class_path: str) -> NetworkFactory:
    """Factory of one network from a configuration."""
    config = recipe_path(config)
    check_recipe(config)
    model = yaml.safe_load(Path(config).read_text(encoding="utf-8")).get("model")
    section = (model.get("init_args") if isinstance(model, Mapping) else None) or {}
    given = section.get(name)
    if not isinstance(given, Mapping) or "class_path" not in given:
        raise UserError(f"{config} names no class for {name}, and the checkpoint was trained with {class_path}")
    module, _, attribute = str(given["class_path"]).rpartition(".")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"the {name} {given['class_path']} cannot be imported ({one_line(str(error))}); install its package, or "
            "set PYTHONPATH to its folder"
        ) from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise UserError(f"the {name} {given['class_path']} in {config} is not a torch.nn.Module")
    if import_path(found) != class_path:
        raise UserError(
            f"{config} has the {name} {import_path(found)}, and the checkpoint was trained with {class_path}"
        )
    return partial(found, **(given.get("init_args") or {}))
