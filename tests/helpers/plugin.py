"""Installing a plugin for a test, as far as its entry points go."""

from __future__ import annotations

import os
from pathlib import Path


def write_metadata(project: Path, site: Path) -> None:
    """Writes the metadata that an installation of a project writes, its entry points included.

    Args:
        project: folder of its pyproject.toml.
        site: existing folder for the metadata, which belongs on `sys.path` beside `project`.
    """
    from setuptools import build_meta

    here = Path.cwd()
    os.chdir(project)
    try:
        build_meta.prepare_metadata_for_build_wheel(str(site.absolute()))
    finally:
        os.chdir(here)
