"""Configurations that came with a checkpoint: what of them the parser would import."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from zoo.cli.recipes import foreign_import


@pytest.mark.parametrize(
    ("value", "imports"),
    [
        ("zoo.optim.ScalarAdam", False),
        ("runs/gan/version_0/checkpoints/best.ckpt", False),
        ("x" * 300, False),  # no system has a file of so long a name
        ("a\0b", False),
        ("subprocess.Popen", True),
        ('{"class_path": "canary.Net"}', True),
    ],
)
def test_import_paths_of_others_are_found_and_other_texts_are_not_taken_for_any(value, imports, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"model": {"init_args": {"option": value}}}))
    assert (foreign_import(config) is not None) == imports


def test_a_further_configuration_imports_and_a_checkpoint_does_not(tmp_path):
    config, further, checkpoint = (tmp_path / name for name in ("config.yaml", "model.yaml", "best.ckpt"))
    further.write_text("class_path: canary.Net")
    checkpoint.write_bytes(b"PK\3\4\0\0 class_path")
    for path, imports in ((further, True), (checkpoint, False), (Path("missing.yaml"), False)):
        config.write_text(yaml.safe_dump({"model": str(path)}))
        assert (foreign_import(config) is not None) == imports
