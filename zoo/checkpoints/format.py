"""What the zoo adds to Lightning's checkpoint, and the version of that format."""

from __future__ import annotations

from typing import Any

#: Version of the format. Raised when an older version could not read a checkpoint, or would read it wrongly.
FORMAT = 1


def describe_model(model: Any) -> dict[str, Any]:
    """Entries of a checkpoint that say which model it holds: `model_class` and `format`."""
    return {"model_class": f"{type(model).__module__}.{type(model).__qualname__}", "format": FORMAT}
