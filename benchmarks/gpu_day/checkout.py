"""Makes `zoo.callbacks` and `zoo.datamodules` importable in a checkout that is not installed.

Their folders stand beside `zoo/`, and only an installation maps them into it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

CHECKOUT = Path(__file__).parents[2]
FOLDERS = {f"zoo.{name}": CHECKOUT / name for name in ("callbacks", "datamodules")}


class CheckoutFinder(MetaPathFinder):
    """Finds the two packages where no other finder does."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        folder = FOLDERS.get(fullname)
        if folder is None:
            return None
        return spec_from_file_location(fullname, folder / "__init__.py", submodule_search_locations=[str(folder)])


def make_importable() -> None:
    """Adds the finder, once, behind all others."""
    if not any(isinstance(finder, CheckoutFinder) for finder in sys.meta_path):
        sys.meta_path.append(CheckoutFinder())
