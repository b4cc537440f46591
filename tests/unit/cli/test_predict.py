"""The command predict --images: its table, its options, and its mistakes."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.helpers.checkpoints import save_untrained
from tests.helpers.command import fails
from tests.helpers.pictures import png_of
from zoo import MLPClassifier
from zoo.checkpoints.format import TrainingData
from zoo.cli.main import main
from zoo.pictures.preprocessing import Preprocessing


def save(path: Path, names: tuple[str, ...] | None = ("cat", "dog"), seed: int = 0, **options) -> None:
    torch.manual_seed(seed)
    model = MLPClassifier((3, 8, 8), 2, width=8, depth=1, **options)
    model.trained_on = TrainingData(names, Preprocessing((8, 8)))
    save_untrained(model, path)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with two checkpoints, one of them in a run, and three pictures, one of them broken."""
    save(tmp_path / "run" / "checkpoints" / "best.ckpt")
    save(tmp_path / "second.ckpt", seed=1)
    (tmp_path / "pictures").mkdir()
    Image.new("RGBA", (9, 7), (200, 10, 10, 100)).save(tmp_path / "pictures" / "a.png")
    Image.new("L", (9, 7), 30).save(tmp_path / "pictures" / "b.png")
    (tmp_path / "pictures" / "broken.png").write_bytes(b"bad")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def predict(*options: str, images: str = "pictures", out: str = "table.csv") -> list[dict[str, str]]:
    main(["predict", "--ckpt_path", "run", "--images", images, "--out", out, *options])
    return list(csv.DictReader(Path(out).read_text().splitlines()))


def test_a_table_names_classes_and_broken_files(capsys):
    rows = predict()
    assert capsys.readouterr().out == "2 predictions in table.csv; 1 file cannot be read\n"
    assert [row["path"] for row in rows] == ["pictures/a.png", "pictures/b.png", "pictures/broken.png"]
    for row in rows[:2]:
        assert float(row["p(cat)"]) + float(row["p(dog)"]) == pytest.approx(1)
        assert float(row[f"p({row['class_name']})"]) == float(row["probability"]) >= 0.5
    assert rows[2]["error"] == "not an image" and not rows[2]["class_name"]


def test_an_ensemble_and_passes_with_dropout_are_averaged():
    first, second = predict(), predict("--ckpt_path", "second.ckpt", out="second.csv")
    both = predict("--ensemble", "second.ckpt", out="both.csv")
    for a, b, mean in zip(first[:2], second[:2], both[:2], strict=True):
        assert float(mean["p(cat)"]) == pytest.approx((float(a["p(cat)"]) + float(b["p(cat)"])) / 2, rel=1e-5)
        assert float(mean["mutual_information"]) > 0 == float(a["mutual_information"])
    passes = predict("--mc_samples", "5", out="passes.csv")
    assert float(passes[0]["mutual_information"]) > 0


def test_without_images_the_options_of_a_split_are_those_of_the_trainer(capsys):
    with pytest.raises(SystemExit):
        main(["predict", "--help"])
    assert "Without either, predict runs on one split" in " ".join(capsys.readouterr().out.split())
    assert fails(capsys, "predict", "--device", "cpu").startswith("--device needs --images")
    message = fails(capsys, "predict", "--images", "pictures", "--model.mc_samples", "3")
    assert message == "--model.mc_samples is an option of predict without --images: with --images it is --mc_samples"


def test_hostile_pictures_are_rows_that_say_what_they_are(folder, monkeypatch):
    """None is waited for, decoded into gigabytes or handed to another program."""
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript is called"))
    os.mkfifo("pictures/pipe.png")
    Image.new("L", (8, 8)).save("postscript.png", "EPS")
    Path("bomb.png").write_bytes(png_of(50_000))
    sources = ["pictures/pipe.png", "postscript.png", "bomb.png", "/dev/zero", "pictures"]
    main(["predict", "--ckpt_path", "run", "--out", "table.csv", "--images", *sources])
    errors = {row["path"]: row["error"] for row in csv.DictReader(Path("table.csv").read_text().splitlines())}
    assert errors == {
        "/dev/zero": "a folder, a pipe or a device",
        "bomb.png": "more than 89,478,485 pixels",
        "pictures/a.png": "",
        "pictures/b.png": "",
        "pictures/broken.png": "not an image",
        "pictures/pipe.png": "a folder, a pipe or a device",
        "postscript.png": "not an image",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images", "nowhere"], "nowhere does not exist; give a folder of pictures"),
        (["--out", "table.xlsx"], "--out table.xlsx must end in .csv or .parquet"),
        (["--out", "second.csv"], "second.csv exists already; choose another name"),
        (["--ckpt_path", "pictures"], "pictures has no checkpoints/best.ckpt, checkpoints/last.ckpt or config.json"),
        (["--ckpt_path", ""], "--ckpt_path or --model must be given"),
        (["--batch_size", "0"], "--batch_size is 0; it must be at least 1"),
        (["--device", "nowhere"], "device nowhere is not available here"),
        (["--ensemble", "others.ckpt"], "others.ckpt in ensemble has classes of other names"),
        (["--ckpt_path", "dry.ckpt", "--mc_samples", "3"], "the network has no dropout"),
        (["--ckpt_path", "generator"], "holds a GAN, which is not a classifier"),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_no_table(options, message, folder, checkpoint, capsys):
    save(folder / "others.ckpt", names=("dog", "cat"))
    save(folder / "dry.ckpt", input_dropout=0.0, hidden_dropout=0.0)
    (folder / "second.csv").touch()
    given = [checkpoint("gan") if word == "generator" else word for word in options]
    command = ["predict", "--ckpt_path", "run", "--out", "table.csv"]
    images = [] if "--images" in given else ["--images", "pictures"]
    before = set(folder.rglob("*"))
    assert message in fails(capsys, *command, *images, *given)
    assert set(folder.rglob("*")) == before


def test_classes_without_names_are_numbered(folder, caplog):
    save(folder / "nameless.ckpt", names=None)
    with caplog.at_level("INFO"):
        rows = predict("--ckpt_path", "nameless.ckpt")
    assert "nameless.ckpt has no names of classes; they are numbered" in caplog.messages
    assert {"p(0)", "p(1)"} < rows[0].keys() and rows[0]["class_name"] == rows[0]["class"]
