"""NotebookProgress and the pictures of SampleLogger, with a list in place of a notebook's output."""

from __future__ import annotations

import pytest

from tests.unit.callbacks.test_samples import BrightnessModel, fit
from zoo.callbacks import NotebookProgress, SampleLogger, notebook_progress, samples
from zoo.errors import UserError

WITH_BAR = {"enable_progress_bar": True}


@pytest.fixture
def shown(monkeypatch) -> list[list]:
    """What each output of the cell has shown in turn."""
    outputs: list[list] = []

    class ListOutput:
        def __init__(self) -> None:
            outputs.append([])
            self.show = outputs[-1].append

    for module in (notebook_progress, samples):
        monkeypatch.setattr(module, "in_notebook", lambda: True)
        monkeypatch.setattr(module, "Output", ListOutput)
    return outputs


def test_the_bar_names_step_rate_and_metrics_and_is_replaced_in_place(shown, tmp_path):
    fit(BrightnessModel(), NotebookProgress(refresh_rate=1000), tmp_path, max_steps=7, **WITH_BAR)
    (output,) = shown
    assert len(output) > 2
    assert 'value="0" max="7"' in output[0].html and "steps/s" not in output[0].html
    assert 'value="7" max="7"' in output[-1].html and "step 7 of 7" in output[-1].text
    assert "steps/s" in output[-1].text and "left" not in output[-1].text


def test_updates_are_no_more_than_asked_for(shown, tmp_path):
    fit(BrightnessModel(), NotebookProgress(refresh_rate=1), tmp_path, **WITH_BAR)
    assert len(shown[0]) <= 4, "before, after, and once a second"


def test_metrics_of_the_bar_are_shown_and_escaped(shown, tmp_path):
    class Odd(BrightnessModel):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("train/<b>", loss, prog_bar=True)
            self.log("train/hidden", loss)
            return loss

    fit(Odd(), NotebookProgress(), tmp_path, **WITH_BAR)
    assert "&lt;b&gt;" in shown[0][-1].html and "<b>" not in shown[0][-1].html
    assert "hidden" not in shown[0][-1].text, "only what is logged for the bar"


def test_nothing_is_shown_outside_of_a_notebook(capsys, tmp_path):
    fit(BrightnessModel(), NotebookProgress(), tmp_path, **WITH_BAR)
    assert "step" not in capsys.readouterr().out


def test_a_rate_below_one_is_refused():
    with pytest.raises(UserError, match="refresh_rate"):
        NotebookProgress(refresh_rate=0)


def test_samples_are_shown_with_their_step_also_without_a_folder(shown, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(BrightnessModel(), SampleLogger(n=4, every_n_steps=5), tmp_path, logger=False)
    (output,) = shown
    assert [picture.text for picture in output] == [f"[picture: samples after {steps} steps]" for steps in (0, 5, 10)]
    assert all("data:image/png;base64," in picture.html for picture in output)
    assert not list(tmp_path.iterdir())
