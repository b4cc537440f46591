"""What stands in the folder of a saved model beside its weights: the card, samples, the configuration of the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import zoo
from tests.helpers.checkpoints import save_untrained
from tests.helpers.networks import mlps, unet
from zoo.checkpoints.reading import read_checkpoint
from zoo.errors import UserError
from zoo.sharing.training import read_training


def metadata(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def small() -> zoo.MLPClassifier:
    return zoo.MLPClassifier((1, 8, 8), 10, width=8, depth=1)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Folder of a run whose best checkpoint is that of the second validation."""
    folder = tmp_path / "runs" / "mlp" / "version_3"
    (folder / "checkpoints").mkdir(parents=True)
    config = {
        "seed_everything": 7,
        "trainer": {"max_epochs": 2},
        "model": {
            "class_path": "zoo.MLPClassifier",
            "init_args": {"optimizer": {"class_path": "A", "init_args": {"lr": 0.5}}},
        },
        "data": {"class_path": "zoo.datamodules.ImageFolder", "init_args": {"root": "/home/somebody/cats", "seed": 0}},
        "run": {"root": "/home/somebody/runs"},
        "wandb": {"project": "secret"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.csv").write_text("epoch,train/loss,val/acc,val/loss\n0,,0.5,2.0\n1,,0.75,1.5\n2,,0.7,1.75\n")
    save_untrained(small(), folder / "checkpoints" / "best.ckpt")
    return folder


MONITOR = {"metric": "val/loss", "mode": "min", "best": 1.5}


def test_the_card_tells_what_the_run_knows(run, tmp_path):
    model = zoo.load(run)
    object.__setattr__(model.origin, "monitor", MONITOR)
    folder = model.save_pretrained(tmp_path / "cats", license="apache-2.0")
    assert {file.name for file in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
        "training.yaml",
    }
    card = (folder / "README.md").read_text()
    assert "| recipe | mlp |" in card and "| seed | 7 |" in card and "lr 0.5" in card and "root cats" in card
    assert "| `val/acc` | 0.75 |" in card, "of the validation at which the checkpoint was written"
    assert "one run with seed 7" in card
    assert "somebody" not in card + (folder / "training.yaml").read_text()
    assert "secret" not in (folder / "training.yaml").read_text()
    assert read_checkpoint(folder)["monitor"] == MONITOR


def test_the_metadata_are_those_that_the_hub_reads(run, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    model = zoo.load(run)
    object.__setattr__(model.origin, "monitor", MONITOR)
    data = hub.ModelCard.load(model.save_pretrained(tmp_path / "cats", license="mit") / "README.md").data
    assert (data.library_name, data.license, data.pipeline_tag) == ("lightning-zoo", "mit", "image-classification")
    results = {one.metric_name: (one.metric_type, one.metric_value, one.dataset_name) for one in data.eval_results}
    assert results["val/acc"] == ("accuracy", 0.75, "ImageFolder")
    assert results["val/loss"][1] == 1.5


def test_without_a_run_nothing_is_invented(tmp_path):
    folder = small().save_pretrained(tmp_path / "saved")
    card = (folder / "README.md").read_text()
    assert "## Training" not in card and "## Results" not in card
    assert "model.predict(x)  # floats (N, 1, 8, 8)" in card, "its preprocessing is not known"
    assert set(metadata(folder)) == {"library_name", "pipeline_tag", "tags"}
    assert read_training(None, None).config == {}


@pytest.mark.parametrize(
    ("build", "task", "size"),
    [
        (
            lambda: zoo.GAN((1, 8, 8), 3, conditional=True, latent_dim=4, **mlps(8)),
            "unconditional-image-generation",
            (3, 2),
        ),
        (lambda: zoo.Diffusion((1, 8, 8), network=unet(8), steps=2), "unconditional-image-generation", (4, 4)),
        (lambda: zoo.GAN((2,), latent_dim=4, **mlps(8)), None, None),
    ],
)
def test_a_generative_model_shows_its_samples(build, task, size, tmp_path):
    folder = build().save_pretrained(tmp_path / "saved")
    assert metadata(folder).get("pipeline_tag") == task
    assert "](samples.png)" in (folder / "README.md").read_text()
    picture = Image.open(folder / "samples.png")
    if size is not None:  # images in a grid, 8 pixels enlarged to 32, and gaps of 2
        assert picture.size == tuple(34 * count + 2 for count in size)


def test_the_card_of_a_calibrated_classifier_tells_its_temperature(tmp_path):
    model = small()
    assert "temperature" not in (model.save_pretrained(tmp_path / "raw") / "README.md").read_text()
    model.temperature.fill_(0.75)
    card = (model.save_pretrained(tmp_path / "calibrated") / "README.md").read_text()
    assert "| temperature | 0.75, by which logits are divided; fitted on the validation split |" in card
    assert zoo.load(tmp_path / "calibrated").temperature == 0.75


def test_a_language_model_shows_a_text(checkpoint, tmp_path):
    folder = zoo.load(checkpoint("letters")).save_pretrained(tmp_path / "saved")
    assert metadata(folder)["pipeline_tag"] == "text-generation"
    assert "Generated with seed 0, not selected:\n\n    " in (folder / "README.md").read_text()


def with_batch_norm(input_shape: Sequence[int], num_classes: int) -> nn.Module:
    """Network whose averaged statistics are others than those of training."""
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, num_classes))


AVERAGING: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "generator": (lambda: zoo.GAN((2,), latent_dim=4, **mlps(64)), mlps(64)),
    "denoiser": (lambda: zoo.Diffusion((1, 8, 8), network=unet(8), steps=2), {"network": unet(8)}),
    "network": (
        lambda: zoo.Classifier((1, 8, 8), 3, with_batch_norm, ema_half_life=1000),
        {"network": with_batch_norm},
    ),
}


@pytest.mark.parametrize("name", AVERAGING)
def test_without_the_weights_behind_an_average_outputs_are_the_same_to_the_bit(name, tmp_path):
    build, networks = AVERAGING[name]
    model = build().eval()
    for tensor in model.ema.state_dict().values():  # other values than those of the network
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    whole = model.save_pretrained(tmp_path / "whole")
    folder = model.save_pretrained(tmp_path / "averages", averages_only=True)
    small = zoo.load(folder, **networks)
    if name == "network":
        x = torch.randn(5, 1, 8, 8)
        outputs = [one(x) for one in (model, zoo.load(whole, **networks), small)]
    else:
        outputs = [one.sample(5, generator=torch.Generator().manual_seed(0)) for one in (model, small)]
    assert all(torch.equal(outputs[0], one) for one in outputs)
    for key, average in small.ema.network.state_dict().items():  # batch norm's statistics included
        assert torch.equal(getattr(small, name).state_dict()[key], average), key
    left_out = sum(4 * p.numel() for p in model.ema.parameters())
    saved = [(path / "model.safetensors").stat().st_size for path in (whole, folder)]
    assert saved[0] - saved[1] > 0.8 * left_out


def test_a_model_without_an_average_is_saved_as_it_is(tmp_path):
    model = small()
    same = zoo.load(model.save_pretrained(tmp_path / "saved", averages_only=True))
    assert all(torch.equal(value, same.state_dict()[key]) for key, value in model.state_dict().items())


def test_nothing_is_overwritten_unless_it_is_asked_for(tmp_path):
    folder = tmp_path / "saved"
    first, second = small(), small()
    first.save_pretrained(folder)
    (folder / ".git").mkdir()
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"saved exists already .* set overwrite=True"):
        second.save_pretrained(folder)
    assert (folder / "model.safetensors").read_bytes() == before
    second.save_pretrained(folder, overwrite=True)
    assert (folder / "model.safetensors").read_bytes() != before
    assert (folder / ".git").is_dir(), "a clone of a repository stays one"
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_a_failure_leaves_no_folder(tmp_path, monkeypatch):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(UserError, match="saved cannot be written: No space left on device"):
        small().save_pretrained(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_mistakes_are_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file; choose another name"):
        small().save_pretrained(tmp_path / "file")
    with pytest.raises(UserError, match="which is not the folder of a run"):
        small().save_pretrained(tmp_path / "saved", run=tmp_path)
    with pytest.raises(UserError, match="is not the folder of a saved model"):
        zoo.MLPClassifier.from_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"x/y/z is neither the folder of a saved model nor a repository owner/name"):
        zoo.MLPClassifier.from_pretrained("x/y/z")
    with pytest.raises(UserError, match=r"holds a MLPClassifier, not a GAN: use zoo\.load"):
        zoo.GAN.from_pretrained(small().save_pretrained(tmp_path / "saved"))
