"""Reads what Weights & Biases keeps of an offline run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zoo.tracking.wandb_file import HEADER, records


def nested(items: Any) -> dict[str, Any]:
    """Items with a key, or a path of keys, and a value in JSON, as a dictionary of dictionaries."""
    result: dict[str, Any] = {}
    for item in items:
        *path, last = list(item.nested_key) or [item.key]
        place = result
        for key in path:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return result


def read_offline_run(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """The config, nested, the rows of the history, and the artifacts: metadata and aliases by the name of the file."""
    from wandb.proto.wandb_internal_pb2 import Record

    config: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    artifacts: dict[str, dict[str, Any]] = {}
    for data, _ in records(path.read_bytes()[HEADER:]):
        record = Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind in ("run", "config"):
            config |= nested(record.run.config.update if kind == "run" else record.config.update)
        elif kind == "history":
            history.append(nested(record.history.item))
        elif kind == "artifact" and record.artifact.metadata:  # not a table
            metadata = json.loads(record.artifact.metadata)
            artifacts[metadata["original_filename"]] = {**metadata, "aliases": set(record.artifact.aliases)}
    return config, history, artifacts
