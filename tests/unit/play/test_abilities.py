"""What models can be tried out with: by their contracts, not by their class."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.helpers.networks import mlps, residual_mlp, unet
from zoo import GAN, ConsistencyModel, Diffusion, MLPClassifier, Seq2Seq, TransformerLM
from zoo.errors import UserError
from zoo.pictures.preprocessing import Preprocessing
from zoo.play.abilities import abilities_of, describe

DIGITS = {"input_shape": (1, 8, 8), "num_classes": 10}
SMALL = {"layers": 1, "width": 8, "heads": 2}


class OwnGenerator(torch.nn.Module):
    """A plugin's model of points, which draws, and interpolates without latent vectors that can be set."""

    input_shape = (2,)

    def sample(self, n, *, labels=None, generator=None):
        return torch.randn(n, 2, generator=generator)

    def interpolate(self, rows, steps, *, labels=None, generator=None):
        return torch.randn(rows, 1, 2, generator=generator).expand(rows, steps, 2)


@pytest.mark.parametrize(
    ("build", "abilities"),
    [
        (lambda: GAN(**DIGITS, **mlps(8), latent_dim=4), ["sample", "wander", "film"]),
        (lambda: Diffusion(**DIGITS, network=unet(8)), ["sample", "wander", "film", "edit"]),
        (lambda: Diffusion((2,), network=residual_mlp(8)), ["sample", "wander", "film"]),
        (lambda: ConsistencyModel(**DIGITS, network=unet(8)), ["sample"]),
        (lambda: TransformerLM((8,), 3, "characters:abc", **SMALL), ["write"]),
        (lambda: Seq2Seq((5,), 14, 5, **SMALL), ["transduce"]),
        (OwnGenerator, ["sample", "path"]),
    ],
)
def test_tabs_follow_from_the_methods_of_a_model(build, abilities):
    assert abilities_of(build()) == abilities


def test_a_classifier_of_pictures_needs_its_preprocessing():
    model = MLPClassifier(**DIGITS, width=8, depth=1)
    with pytest.raises(UserError, match="does not know how pictures are brought to its input"):
        abilities_of(model)
    model.trained_on = replace(model.trained_on, preprocessing=Preprocessing((8, 8), 1))
    assert abilities_of(model) == ["classify"]


def test_a_model_without_any_ability_is_named():
    with pytest.raises(UserError, match="there is nothing to try out of a MLPClassifier: it neither classifies"):
        abilities_of(MLPClassifier((3,), 2, width=8, depth=1))


def test_description_counts_the_parameters_without_their_average():
    model = Diffusion(**DIGITS, network=unet(8))
    assert model.ema is not None
    count = sum(parameter.numel() for parameter in model.denoiser.parameters())
    assert describe(model) == f"Diffusion for images of 8x8 pixels, {count:,} parameters"
    assert describe(OwnGenerator()) == "OwnGenerator for points in 2 dimensions, 0 parameters"
    assert "for sequences of 8 tokens" in describe(TransformerLM((8,), 3, "characters:abc", **SMALL))
