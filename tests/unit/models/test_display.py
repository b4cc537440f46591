"""What a notebook and a terminal show of a model."""

from __future__ import annotations

from pathlib import Path

import zoo
from tests.helpers.networks import mlps
from zoo import GAN, MLPClassifier
from zoo.checkpoints.format import Origin, TrainingData
from zoo.models.display import describe


def test_only_options_other_than_the_defaults_are_shown():
    rows = describe(MLPClassifier((1, 8, 8), 10, width=16, label_smoothing=0.1))
    assert rows["options"] == "label_smoothing 0.1, width 16", "one of the class, and one of its base"
    assert "options" not in describe(MLPClassifier((1, 8, 8), 10))


def test_parts_have_their_parameters_and_metrics_are_left_out():
    model = GAN((1, 8, 8), latent_dim=4, **mlps(16))
    counts = {
        name: sum(p.numel() for p in getattr(model, name).parameters()) for name in ("generator", "discriminator")
    }
    rows = describe(model)
    for name, count in counts.items():
        assert rows[name].endswith(f"{count:,} parameters")
    assert "distance" not in rows and "Frechet" not in repr(model)
    assert repr(model).startswith("GAN(\n  (generator): ")


def test_class_names_are_shown_and_escaped():
    model = MLPClassifier((1, 8, 8), 2)
    assert describe(model)["classes"] == "2"
    model.trained_on = TrainingData(class_names=("<script>", "dog"))
    assert "&lt;script&gt;, dog" in model._repr_html_() and "<script>" not in model._repr_html_()


def test_a_loaded_model_says_where_it_is_from_and_what_was_best():
    model = MLPClassifier((1, 8, 8), 2)
    model.origin = Origin(Path("runs/a/best.ckpt"), {"metric": "val/loss", "mode": "min", "best": 0.25})
    rows = describe(model)
    assert (rows["loaded from"], rows["best in its run"]) == ("runs/a/best.ckpt", "val/loss 0.25")


def test_a_network_is_shown_by_its_name_and_arguments():
    options = describe(zoo.load("diffusion-digits"))["options"]
    assert "network UNet(widths=[64], blocks=3, patch_size=1, attention=False)" in options and "{" not in options
