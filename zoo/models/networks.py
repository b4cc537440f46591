"""Networks as arguments of a model: by name, as a factory, or as a module; and their description in a checkpoint.

A factory is handed what only the model knows (shape, number of classes, length of the latent vector) as positional
arguments; the network's own options stand with the network: `partial(ConvGenerator, width=64)`, or on the command line
`--model.generator ConvGenerator --model.generator.width 64`.

A checkpoint describes a network of the zoo, or of a plugin, by its class and options, as plain values, and rebuilds it.
Any other network is handed in again: a file cannot make the program import code.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from zoo.errors import UserError, did_you_mean
from zoo.models.base import eval_mode
from zoo.registry import Entry, entries

#: Factory of a network from the arguments that the model hands over.
NetworkFactory = Callable[..., nn.Module]
#: A name, the description in a checkpoint, a factory, or a module.
Network = str | Mapping[str, Any] | NetworkFactory | nn.Module
PLAIN = (bool, int, float, str, type(None))


def build_network(
    role: str, given: Network, arguments: Sequence[Any], choices: Mapping[str, NetworkFactory] | None = None
) -> tuple[nn.Module, Any]:
    """Builds a network and its description for checkpoints.

    Args:
        role: name of the model's argument, for messages.
        given: see `find_factory`; or a module, which is used as it is.
        arguments: positional arguments for the factory.
        choices: short names of networks.

    Returns:
        The network, and its description as plain values: a name, or a mapping of `class_path` and `init_args`.

    Raises:
        UserError: there is no such network, it cannot be built with these options, or it must be handed in.
    """
    if isinstance(given, nn.Module):
        return given, {"class_path": import_path(type(given)), "own": True}
    factory, description = find_factory(role, given, choices)
    name = import_path(unwrap(factory)[0]).rpartition(".")[2]
    try:
        network = factory(*arguments)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error) if role == "network" else f"{role}: {error}") from error
    except TypeError as error:
        if _takes(factory, arguments):
            raise
        handed = ", ".join(map(str, arguments))
        raise UserError(f"{role}: {name} does not take what it is handed, ({handed}): {error}") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"{role}: {name} returns a {type(network).__name__}, not a torch.nn.Module")
    return network, description


def find_factory(
    role: str, given: Network, choices: Mapping[str, NetworkFactory] | None = None
) -> tuple[NetworkFactory, Any]:
    """Factory of a network, and its description for checkpoints.

    Args:
        role: name of the model's argument, for messages.
        given: name in `choices`, or of a network of the zoo; description in a checkpoint; or factory.
        choices: short names of networks.

    Raises:
        UserError: there is no such network, or it must be handed in.
    """
    choices = choices or {}
    if isinstance(given, str):
        found = choices.get(given) or _find(given)
        if found is None:
            known = [*choices, *(entry.name for entry in entries("networks"))]
            raise UserError(f"{role} {given} is not a network of the zoo{did_you_mean(given, known)}")
        return found, given
    if isinstance(given, Mapping):
        path = str(given.get("class_path"))
        found = None if given.get("own") else _find(path)
        if found is None:
            raise UserError(
                f"the {role} is one of your own, {path}, which a checkpoint names but does not hold: hand it in again, "
                f"{role}=... in Python, or give the configuration of its run, --config .../config.yaml, on the command "
                "line"
            )
        # A file cannot ask for pretrained weights, which would be downloaded.
        options = dict(given.get("init_args") or {})
        given = partial(found, **options | {k: v for k, v in getattr(found, "stored", {}).items() if k in options})
    if not callable(given):
        raise UserError(f"{role} is {given!r}; it must be a name, a factory or a torch.nn.Module")
    return given, describe_factory(given)


def is_known(path: str) -> bool:
    """Whether a name or import path is that of a network of the zoo or of a plugin."""
    return _entry(path) is not None


def _find(path: str) -> NetworkFactory | None:
    """Network of the zoo or of a plugin by its name or import path; None for any other. Nothing else is imported."""
    entry = _entry(path)
    return None if entry is None else entry.load()


def _entry(path: str) -> Entry | None:
    return next((entry for entry in entries("networks") if path in (entry.name, entry.import_path)), None)


def unwrap(factory: NetworkFactory) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Class or function inside of a `functools.partial`, and the options that are applied to it."""
    if not isinstance(factory, partial):
        return factory, {}
    return _class_of_parser(factory) or factory.func, dict(factory.keywords)


def _class_of_parser(factory: partial[Any]) -> Any:
    """Class in a factory that jsonargparse made from `class_path` and `init_args`; None for other factories."""
    made = getattr(factory.func, "__module__", "").partition(".")[0] == "jsonargparse"
    return next((argument for argument in factory.args if inspect.isclass(argument)), None) if made else None


def describe_factory(factory: NetworkFactory) -> dict[str, Any]:
    """Description of a factory as plain values: `class_path`, and `init_args` where all of them are plain.

    A class may have a mapping `stored` of options that are stored with another value, such as `{"weights": None}` for
    pretrained weights, which the checkpoint holds itself.
    """
    target, options = unwrap(factory)
    options |= {name: value for name, value in getattr(target, "stored", {}).items() if name in options}
    # Positional arguments have no names under which they could be stored.
    positional = isinstance(factory, partial) and factory.args and _class_of_parser(factory) is None
    if positional or not _is_plain(options):
        return {"class_path": import_path(target), "own": True}
    return {"class_path": import_path(target), "init_args": _as_plain(options)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(one) for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, PLAIN)


def _as_plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_plain(one) for key, one in value.items()}
    return [_as_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def import_path(target: Any) -> str:
    """Module and name of a class or function."""
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', type(target).__qualname__)}"


def _takes(factory: NetworkFactory, arguments: Sequence[Any]) -> bool:
    """Whether a factory can be called with these arguments; true if its signature is not known."""
    target, options = unwrap(factory)
    try:
        inspect.signature(target).bind(*arguments, **options)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def check_output(role: str, network: nn.Module, inputs: Sequence[Any], shape: Sequence[int]) -> None:
    """Runs a network once and checks the shape of what it returns. Parameters on the meta device are not run.

    Args:
        role: name of the model's argument, for the message.
        network: network; its mode and the global random state are left unchanged.
        inputs: positional arguments of its forward, for N samples.
        shape: expected shape, (N, ...).

    Raises:
        UserError: it cannot take these inputs, or returns another shape.
    """
    if any(p.is_meta or isinstance(p, nn.parameter.UninitializedParameter) for p in network.parameters()):
        return
    name = type(network).__name__
    with torch.random.fork_rng(devices=[]), eval_mode(network):
        try:
            output = network(*inputs)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"{role} {name} does not run on {_shapes(inputs)}: {reason}") from error
    found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if found != tuple(shape):
        raise UserError(f"{role} {name} returns {found} for {_shapes(inputs)}; it must return {tuple(shape)}")


def _shapes(inputs: Sequence[Any]) -> str:
    return " and ".join(f"{tuple(x.shape)}" if isinstance(x, torch.Tensor) else str(x) for x in inputs)
