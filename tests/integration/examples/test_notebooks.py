"""The notebooks run from top to bottom, and what is stored of them has all their pictures and no errors."""

from __future__ import annotations

import re

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers.command import CHECKOUT
from zoo.registry import trained_results

PATHS = sorted((CHECKOUT / "examples" / "notebooks").glob("*.ipynb"))
#: Values for a short run, by the names in the cell that is tagged `parameters`.
SHORT = {"steps": 6, "every": 3}
every_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def read(path):
    notebook = nbformat.read(path, as_version=4)
    return notebook, [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell) -> set[str]:
    """Kinds of what a cell has shown, such as image/png; the JPEG beside a PNG is not stored."""
    return {kind for output in cell.outputs for kind in output.get("data", {})} - {"image/jpeg"}


def test_there_are_two():
    assert [path.stem for path in PATHS] == ["diffusion_from_its_exact_force", "gan_in_ten_minutes"]


@every_notebook
def test_stored_outputs_are_of_one_run_without_warnings_or_places_on_a_machine(path):
    notebook, code = read(path)
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert not re.search(r"/(home|Users|tmp|root|work)/", str(outputs))
    assert sum("image/png" in kinds(cell) for cell in code) >= 4
    assert path.stat().st_size < 700_000


@every_notebook
def test_trained_models_that_are_named_exist(path):
    named = re.findall(r'(?:zoo\.load|load_model)\("([\w-]+)"\)', path.read_text(encoding="utf-8").replace('\\"', '"'))
    assert named and set(named) <= {row["model"] for row in trained_results()}


@pytest.mark.slow
@every_notebook
def test_every_cell_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook, code = read(path)
    (parameters,) = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    names = re.findall(r"^(\w+) = ", parameters.source, re.MULTILINE)
    parameters.source = "\n".join(f"{name} = {SHORT[name]}" for name in names)
    expected = [kinds(cell) for cell in code]
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert [kinds(cell) for cell in code] == expected, "each cell shows what the stored one does"
    bars = [text for cell in code for text in texts(cell) if "step 6 of 6" in text]
    assert bars and all("steps/s" in bar for bar in bars)


def texts(cell) -> list[str]:
    return [output.data["text/plain"] for output in cell.outputs if "text/plain" in output.get("data", {})]
