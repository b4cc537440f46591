"""RunReport: what it finds, beside known answers, and that it harms no run."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import Tensor, nn

from tests.unit.callbacks.test_samples import BrightnessModel
from tests.unit.training import quiet_trainer
from zoo.callbacks import BestAndLastCheckpoint, RunReport, run_findings
from zoo.datamodules import Digits, InMemoryDataModule
from zoo.errors import UserError
from zoo.models.classifier import Classifier

pytestmark = pytest.mark.usefixtures("reports")

NAMES = ("ant", "bee", "<cow>", "dodo")


class Pictures(InMemoryDataModule):
    """Pictures of 2x2 pixels that are their own logits, so that predictions are known."""

    input_shape, num_classes, class_names = (1, 2, 2), 4, NAMES

    def load_split(self, train: bool) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(int(train))
        return 2 * torch.rand(120, 1, 2, 2, generator=generator) - 1, torch.randint(4, (120,), generator=generator)


class Scaled(nn.Module):
    """Logits of ten times the pixels, times a weight that training changes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return 10 * self.scale * x.flatten(1)


def run(folder: Path, model: Any, data: Any, callback: RunReport, *callbacks: Any, ckpt_path=None, **options) -> Any:
    logger = CSVLogger(folder.parent, name="", version=folder.name)
    defaults = {"max_steps": 2, "logger": logger, "enable_checkpointing": bool(callbacks)}
    trainer = quiet_trainer(callbacks=[callback, *callbacks], **(defaults | options))
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=ckpt_path and True)
    return trainer


def classifier(lr: float = 0.0) -> Classifier:
    return Classifier((1, 2, 2), 4, Scaled(), optimizer=lambda p: torch.optim.SGD(p, lr), lr_scheduler=None)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_mistakes_and_confusion_are_those_of_the_validation_split_which_is_not_augmented(tmp_path):
    data = Pictures(batch_size=20, eval_batch_size=7, val_size=50, augment=torch.neg)
    run(tmp_path, classifier(), data, RunReport(mistakes=3))
    x, y = data.split("val")
    p = (10 * x.flatten(1)).softmax(1)
    wrong = (p.argmax(1) != y).nonzero().flatten()
    worst = wrong[p[wrong].amax(1).argsort(descending=True)[:3]]
    found = read(tmp_path / "report" / "mistakes.json")
    assert (found["seen"], found["wrong"]) == (50, len(wrong))
    assert [one["index"] for one in found["mistakes"]] == worst.tolist()
    for one, place in zip(found["mistakes"], worst.tolist(), strict=True):
        assert (one["true"], one["predicted"]) == (NAMES[y[place]], NAMES[p[place].argmax()])
        assert one["probability"] == pytest.approx(float(p[place].max()), rel=1e-5)
        assert one["true_probability"] == pytest.approx(float(p[place, y[place]]), rel=1e-4)
        pixels = list(Image.open(tmp_path / "report" / one["picture"]).getdata())
        assert pixels == pytest.approx(((x[place].flatten() + 1) * 127.5).tolist(), abs=0.51)
    rows = list(csv.reader((tmp_path / "report" / "confusion.csv").open(newline="", encoding="utf-8")))
    counts = torch.zeros(4, 4, dtype=torch.long).index_put((y, p.argmax(1)), torch.tensor(1), accumulate=True)
    assert rows[0][1:] == list(NAMES) and [[int(n) for n in row[1:]] for row in rows[1:]] == counts.tolist()
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "&lt;cow&gt;" in page and "<cow>" not in page
    assert f"{len(wrong)} of 50 validation samples" in page


def test_no_more_samples_are_looked_at_than_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(run_findings, "MOST_SEEN", 10)
    run(tmp_path, classifier(), Pictures(batch_size=20, eval_batch_size=7, val_size=50), RunReport())
    assert read(tmp_path / "report" / "mistakes.json")["seen"] == 10


def test_the_findings_are_those_of_the_best_checkpoint_and_the_model_keeps_its_weights(tmp_path):
    model, data = classifier(lr=50.0), Pictures(batch_size=20, val_size=50)
    checkpoint = BestAndLastCheckpoint("val/loss")
    run(tmp_path, model, data, RunReport(), checkpoint, max_steps=8, val_check_interval=1)
    best = torch.load(checkpoint.best_model_path, weights_only=True)["state_dict"]["network.scale"]
    assert best != model.network.scale, "the loss is not lowest at the end"
    found = read(tmp_path / "report" / "mistakes.json")
    assert found["weights"] == "best.ckpt"
    x, y = data.split("val")
    p = (10 * best * x.flatten(1)).softmax(1)
    assert found["mistakes"][0]["probability"] == pytest.approx(p[p.argmax(1) != y].max().item(), rel=1e-5)


class Copies(BrightnessModel):
    """Draws training pictures, each with one pixel brighter by a known amount."""

    def __init__(self, data: Digits) -> None:
        super().__init__()
        self.data, self.added = data, torch.linspace(0, 0.5, 4)

    def sample(self, n, *, labels=None, generator=None):
        x = self.data.reference(n).clone()
        x[:, 0, 0, 0] += self.added[:n].flip(0)
        return x


def test_the_nearest_training_picture_of_each_sample_and_its_distance_are_found(tmp_path):
    data = Digits(batch_size=64)
    model = Copies(data)
    run(tmp_path, model, data, RunReport(samples=4))
    found = read(tmp_path / "report" / "nearest.json")
    # The difference of one of 64 pixels by a: root mean square a / 8, in gray levels of 255 to a range of 2.
    expected = (model.added / 8 * 127.5).tolist()
    assert [pair["distance"] for pair in found["pairs"]] == pytest.approx(expected, abs=1e-4), "the nearest first"
    assert found["searched"] == 1200 and found["held_out_samples"] == 256
    for pair, place in zip(found["pairs"], (3, 2, 1, 0), strict=True):
        pixels = list(Image.open(tmp_path / "report" / pair["nearest"]).getdata())
        original = ((data.reference(4)[place].flatten() + 1) * 127.5).tolist()
        assert pixels == pytest.approx(original, abs=0.51)
    held_out, training = data.split("val")[0][:256].flatten(1), data.split("train")[0].flatten(1)
    usual = torch.cdist(held_out, training, compute_mode="donot_use_mm_for_euclid_dist").amin(1).median() / 8 * 127.5
    assert found["held_out"] == pytest.approx(usual.item(), rel=1e-4)
    assert "1 of the samples is a copy" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_sizes_times_and_the_chosen_checkpoint_are_noted(tmp_path):
    data = Pictures(batch_size=20, val_size=50, repeats=3)
    checkpoint = BestAndLastCheckpoint("val/loss")
    trainer = run(tmp_path, classifier(), data, RunReport(), checkpoint, max_epochs=1, max_steps=-1)
    facts = read(tmp_path / "report" / "facts.json")
    assert facts["data"]["train"] == 70 and facts["data"]["val"] == 50 and facts["data"]["batch_size"] == 20
    assert facts["model"]["trainable"] == 1 and facts["model"]["class"] == "zoo.models.classifier.Classifier"
    assert facts["steps"] == trainer.global_step == 10
    best = trainer.checkpoint_callback.best_model_score.item()
    file = "checkpoints/best.ckpt"
    assert facts["checkpoint"] == {"file": file, "metric": "val/loss", "mode": "min", "value": best}
    (session,) = facts["sessions"]
    assert 0 <= session["seconds"] < 60 and (session["first_step"], session["last_step"]) == (0, 10)


def test_the_report_of_a_resumed_run_is_of_the_whole_run(tmp_path):
    for steps, last in ((2, None), (4, tmp_path / "checkpoints" / "last.ckpt")):
        data = Pictures(batch_size=20, val_size=50)
        run(
            tmp_path,
            classifier(),
            data,
            RunReport(),
            BestAndLastCheckpoint("val/loss"),
            ckpt_path=last,
            max_steps=steps,
        )
    facts = read(tmp_path / "report" / "facts.json")
    assert [(one["first_step"], one["last_step"]) for one in facts["sessions"]] == [(0, 2), (2, 4)]
    assert "in 2 parts, resumed at step 2" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_what_the_command_line_knows_is_added(tmp_path):
    def describe(trainer: Any, model: Any) -> dict[str, Any]:
        return {"next": [["draw", f"sample --n {trainer.global_step}"]]}

    run(tmp_path, classifier(), Pictures(batch_size=20), RunReport(program="python cli.py", describe=describe))
    assert "python cli.py sample --n 2" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "left"), [("write_report", {"facts.json", "mistakes.json"}), ("write_mistakes", {"facts.json"})]
)
def test_a_report_that_fails_is_one_line_of_warning_and_the_run_ends_well(tmp_path, monkeypatch, name, left):
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space\nleft")

    monkeypatch.setattr(f"zoo.callbacks.run_report.{name}", fail)
    warned: list[str] = []
    monkeypatch.setattr("zoo.callbacks.run_report.rank_zero_warn", warned.append)
    trainer = run(tmp_path, classifier(), Pictures(batch_size=20), RunReport())
    (message,) = warned
    assert message.startswith("the report of the run") and message.endswith(": OSError: no space left")
    assert trainer.state.finished and left <= {path.name for path in (tmp_path / "report").iterdir()}
    assert (tmp_path / "report.html").exists() == (name != "write_report")


def test_findings_of_an_earlier_end_are_removed(tmp_path):
    (tmp_path / "report").mkdir()
    for name in ("mistake_40.png", "sample_00.png", "nearest.json", "notes.txt"):
        (tmp_path / "report" / name).touch()
    run(tmp_path, classifier(), Pictures(batch_size=20), RunReport(mistakes=0, samples=0))
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"facts.json", "notes.txt"}


def test_random_numbers_after_the_training_are_those_without_a_report(tmp_path):
    drawn = []
    for number, options in enumerate(({"mistakes": 0, "samples": 0}, {})):
        torch.manual_seed(3)
        run(tmp_path / str(number), classifier(), Pictures(batch_size=20), RunReport(**options))
        drawn.append(torch.rand(1))
    assert drawn[0] == drawn[1]


def test_a_fast_dev_run_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = quiet_trainer(callbacks=[RunReport()], fast_dev_run=True)
    trainer.fit(classifier(), datamodule=Pictures(batch_size=20))
    assert not list(tmp_path.iterdir())


def test_numbers_below_zero_are_refused():
    with pytest.raises(UserError, match="mistakes is -1"):
        RunReport(mistakes=-1)
