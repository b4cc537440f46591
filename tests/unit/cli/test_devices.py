"""The option --device of the commands that use a trained model.

The commands compute on torch's device `meta`, see `tests.helpers.meta`, on which an operator that also gets a tensor
on the CPU is an error, and what is written is ones.
"""

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from tests.helpers.checkpoints import save_untrained
from tests.helpers.command import fails
from tests.helpers.meta import META, CountedTransfers
from tests.helpers.networks import mlps, unet
from zoo import GAN, Diffusion
from zoo.cli.edit import edit
from zoo.cli.main import main
from zoo.cli.sample import sample_images
from zoo.cli.text import sample_text
from zoo.hub import loading
from zoo.hub.loading import find_device

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")
IMAGES = {"input_shape": (1, 8, 8), "num_classes": 10, "conditional": True}


@pytest.fixture
def meta(monkeypatch):
    """Puts models on the device `meta`; returns a mode under which they can be used there."""
    for command in ("sample", "edit", "text"):
        monkeypatch.setattr(f"zoo.cli.{command}.find_device", lambda name, option: META)
    return CountedTransfers()


def diffusion():
    return Diffusion(**IMAGES, network=unet(8), steps=2, guidance_scale=0.5)


@pytest.mark.parametrize("build", [diffusion, lambda: GAN(**IMAGES, latent_dim=4, **mlps(8))])
@pytest.mark.parametrize(
    ("options", "out"),
    [
        ({}, "a.png"),
        ({"labels": [1, 2]}, "a.npz"),
        ({"interpolate": 3}, "a.png"),
        ({}, "a.gif"),
    ],
)
def test_samples_are_drawn_on_the_device(meta, build, options, out):
    network = build()
    with meta:
        sample_images(network, {"frames": 3} if out == "a.gif" else {}, n=4, out=out, device="there", **options)
    assert network.device == META
    assert meta.step.reads["aten::_to_copy"] > 0
    if out == "a.npz":
        written = np.load(out)
        assert written["arr_0"].min() == 255, "these are the ones that were read from the device"


@pytest.mark.parametrize(
    "options",
    [
        {"box": [0, 0, 4, 8]},
        {"task": "vary", "sigma": 1.0},
        {"task": "class", "label": 1, "to": 2},
        {"task": "interpolate", "other": "digit.png", "n": 3},
        {"task": "invert"},
        {"task": "denoise", "sigma": 0.3, "n": 2},
        {"task": "super_resolve", "label": 3},
    ],
    ids=lambda options: options.get("task", "inpaint"),
)
def test_edits_are_computed_on_the_device(meta, options):
    save_untrained(diffusion(), "diffusion.ckpt")
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save("digit.png")
    with meta:
        edit("diffusion.ckpt", "digit.png", steps=2, resamples=1, compare="both.png", device="there", **options)
    assert np.asarray(Image.open("edited.png")).min() == 255, "these are the ones that were read from the device"


def test_text_is_generated_on_the_device(meta, checkpoint):
    network = zoo.load(checkpoint("letters"))
    meta.value = 0
    with meta:
        assert "1 text" in sample_text(network, {"prompt": "a", "max_new_tokens": 2}, device="there")
    assert network.device == META


@pytest.mark.parametrize("command", ["sample", "edit"])
def test_a_device_that_is_not_there_is_one_line_that_names_those_that_are(command, capsys):
    save_untrained(diffusion(), "diffusion.ckpt")
    given = [
        "--ckpt_path=diffusion.ckpt",
        "--device=cuda:99",
        *(["--image=x.png", "--task=invert"] * (command == "edit")),
    ]
    line = fails(capsys, command, *given)
    assert line.startswith("--device cuda:99 is not available here; choose one of auto, ")
    assert line.endswith("cpu")


@pytest.mark.parametrize(
    ("cuda", "mps", "devices"),
    [
        (0, False, ["cpu"]),
        (0, True, ["mps", "cpu"]),
        (2, False, ["cuda", "cuda:1", "cpu"]),
        (1, True, ["cuda", "mps", "cpu"]),
    ],
)
def test_auto_is_cuda_then_mps_then_the_cpu(cuda, mps, devices, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch, "empty", lambda size, device: torch.zeros(size))
    assert find_device("auto") == torch.device(devices[0])
    assert loading._devices() == devices


def test_samples_of_the_command_are_those_of_the_model_on_the_cpu():
    save_untrained(diffusion(), "diffusion.ckpt")
    main(["sample", "--ckpt_path=diffusion.ckpt", "--n=2", "--out=a.npz", "--device=cpu", "--labels=[3]"])
    samples = zoo.load("diffusion.ckpt").sample(
        2, labels=torch.tensor([3, 3]), seeds=zoo.seeding.sample_seeds(2, torch.Generator().manual_seed(0))
    )
    assert np.array_equal(np.load("a.npz")["arr_0"][..., 0], samples[:, 0].add(1).mul(127.5).round().byte().numpy())


@pytest.mark.parametrize("command", ["sample", "edit"])
def test_a_device_without_enough_memory_is_one_line(command, capsys, monkeypatch):
    def fill(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    save_untrained(diffusion(), "diffusion.ckpt")
    monkeypatch.setattr("zoo.cli.sample._draw_samples", fill)
    monkeypatch.setattr("zoo.cli.edit.EditSession", fill)
    given = ["--ckpt_path=diffusion.ckpt", *(["--image=x.png", "--task=invert"] * (command == "edit"))]
    assert "do not fit into the memory of the device: give --device cpu, or less" in fails(capsys, command, *given)
