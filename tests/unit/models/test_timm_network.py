"""timm's models as networks of a classifier, pretrained or not."""

from __future__ import annotations

import sys
from functools import partial

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.checkpoints import save_untrained
from zoo import Classifier
from zoo.errors import UserError
from zoo.models import TimmNetwork

timm = pytest.importorskip("timm")

#: Small models of timm for tests, with their other kinds of parameters: batch norm; class token and positions.
RESNET, VIT = "test_resnet", "test_vit"


def classifier(shape=(3, 32, 32), classes=7, **options) -> Classifier:
    return Classifier(shape, classes, partial(TimmNetwork, **{"name": RESNET, **options}))


@pytest.mark.parametrize("name", [RESNET, VIT])
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_a_file_of_weights_gives_timms_features_of_images_normalized_as_in_its_training(name, ending, tmp_path):
    torch.manual_seed(0)
    own = timm.create_model(name, num_classes=5)
    path = str(tmp_path / f"weights.{ending}")
    (save_file if ending == "safetensors" else torch.save)(own.state_dict(), path)
    size = own.pretrained_cfg["input_size"][1:]
    network = TimmNetwork((3, *size), 7, name, pretrained=path).eval()
    pixels = torch.rand(2, 3, *size)  # in [0, 1], timm's range
    mean, std = (torch.tensor(own.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    features = own.eval().forward_head(own.forward_features((pixels - mean) / std), pre_logits=True)
    torch.testing.assert_close(network(pixels * 2 - 1), network.head(features), rtol=1e-4, atol=1e-5)
    assert network.backbone.pretrained_cfg["state_dict"] is None


def test_statistics_are_those_of_the_model():
    network = TimmNetwork((3, 32, 32), 2, "resnet18")
    torch.testing.assert_close(network.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    torch.testing.assert_close(TimmNetwork((3, 32, 32), 2, VIT).mean.flatten(), torch.tensor([0.5, 0.5, 0.5]))


def test_grey_images_are_repeated_over_three_channels():
    network = TimmNetwork((1, 32, 32), 7, RESNET).eval()
    grey = torch.rand(2, 1, 32, 32)
    assert network(grey).equal(network(grey.repeat(1, 3, 1, 1)))


def test_a_vision_transformer_is_built_for_the_size_of_the_images():
    network = TimmNetwork((3, 64, 48), 7, VIT)
    assert network.backbone.patch_embed.grid_size == (4, 3)
    assert network(torch.zeros(2, 3, 64, 48)).shape == (2, 7)


def test_pretrained_weights_are_loaded_once_and_not_again_from_a_checkpoint(tmp_path, monkeypatch):
    requested = []
    create = timm.create_model

    def record(name, pretrained=False, **options):
        requested.append((name, pretrained))
        return create(name, **options)

    monkeypatch.setattr("timm.create_model", record)
    model = classifier(pretrained=True, options={"drop_path_rate": 0.1})
    save_untrained(model, tmp_path / "model.ckpt")
    loaded = Classifier.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True).eval()
    assert requested == [(RESNET, True), (RESNET, False)]
    x = torch.randn(3, 3, 32, 32)
    assert loaded(x).equal(model.eval()(x))


def test_options_reach_timm():
    blocks = TimmNetwork((3, 32, 32), 2, VIT, options={"depth": 2}).backbone.blocks
    assert len(blocks) == 2


def test_backbone_and_head_hold_all_parameters():
    model = classifier(name=VIT)
    assert {name.split(".")[0] for name, _ in model.network.named_parameters()} == {"backbone", "head"}
    assert model.backbone is model.network.backbone


# Mistakes


def test_without_timm_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install lightning-zoo\[timm\]$"):
        classifier()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", r"^timm has no model resnet19; did you mean resnet18\?$"),
        ("hf-hub:somebody/model", r"^timm has no model hf-hub:somebody/model; "),
        ("resnet18.of_nobody", r"Invalid pretrained tag \(of_nobody\) for resnet18"),
    ],
)
def test_an_unknown_name_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        classifier(name=name)


@pytest.mark.parametrize("option", ["in_chans", "checkpoint_path", "pretrained_cfg_overlay"])
def test_options_that_the_network_sets_itself_are_refused(option):
    with pytest.raises(UserError, match=f"options of {RESNET} cannot have {option}, which TimmNetwork sets itself"):
        classifier(options={option: 1})


def test_an_unknown_option_is_named():
    with pytest.raises(
        UserError, match=r"^timm cannot build test_resnet \(images of 32x32 pixels, colour 1\): .*colour"
    ):
        classifier(options={"colour": 1})


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"test_resnet takes grey or color images .* not the shape \(2, 32, 32\)"):
        classifier((2, 32, 32))
    with pytest.raises(UserError, match=r"^test_vit does not take images of 30x30 pixels \(.*; try 224x224$"):
        classifier((3, 30, 30), name=VIT)


def test_weights_that_cannot_be_downloaded_are_a_one_line_error(monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("no network\nat all")

    monkeypatch.setattr("timm.create_model", no_network)
    monkeypatch.setattr("zoo.models.timm_network.connection_problem", lambda url: "")
    with pytest.raises(UserError, match=r"^the pretrained weights of .* are not available \(no network at all\)"):
        classifier(pretrained=True)


def test_without_a_connection_the_hub_looks_in_its_cache_only(monkeypatch):
    from huggingface_hub import constants

    def create_model(*args, **kwargs):
        raise OSError(f"offline: {constants.HF_HUB_OFFLINE}")

    monkeypatch.setattr("timm.create_model", create_model)
    for problem in ("no connection to the hub", ""):
        monkeypatch.setattr("zoo.models.timm_network.connection_problem", lambda url, problem=problem: problem)
        with pytest.raises(UserError, match=f"offline: {bool(problem)}"):
            classifier(pretrained=True)
    assert not constants.HF_HUB_OFFLINE


def test_files_that_are_not_weights_of_the_model_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.pth is not a file; pretrained is true, false, or a file of weights"):
        classifier(pretrained=str(tmp_path / "nothing.pth"))
    (tmp_path / "junk.pth").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"junk\.pth is not a file of weights that can be read safely"):
        classifier(pretrained=str(tmp_path / "junk.pth"))
    save_file(timm.create_model(VIT).state_dict(), tmp_path / "vit.safetensors")
    with pytest.raises(UserError, match=r"vit\.safetensors does not hold weights of test_resnet: it has no "):
        classifier(pretrained=str(tmp_path / "vit.safetensors"))
