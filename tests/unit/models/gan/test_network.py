"""Generators and discriminators."""

import pytest
import torch

from zoo.models.gan.network import (
    UNCONDITIONAL_WIDTH,
    ConvDiscriminator,
    ConvGenerator,
    MLPDiscriminator,
    MLPGenerator,
    default_discriminator,
    default_generator,
)

CLOTHES = (1, 28, 28)


def count(network):
    return sum(p.numel() for p in network.parameters())


def test_numbers_of_parameters_equal_their_formulas():
    assert count(MLPGenerator((1, 8, 8), 32, width=256, depth=2)) == 33 * 256 + 257 * 256 + 257 * 64
    assert count(MLPDiscriminator((1, 8, 8), width=256, depth=2)) == 65 * 256 + 257 * 256 + 257
    convolutions = 64 * 32 * 16 + 32 + 32 * 1 * 16 + 1
    assert count(ConvGenerator((1, 28, 28), 64, width=32, depth=2)) == 65 * 64 * 49 + convolutions
    assert count(ConvDiscriminator((1, 28, 28), width=32, depth=2)) == 16 * 32 + 32 + 32 * 64 * 16 + 64 + 64 * 49 + 1


@pytest.mark.parametrize("classes", [0, 10])
def test_a_mapping_layer_lies_between_the_latent_vector_and_the_coarsest_grid(classes):
    plain, mapped = ConvGenerator(CLOTHES, 6, classes), ConvGenerator(CLOTHES, 6, classes, mapping_width=5)
    latent, grid = 12 if classes else 6, 64 * 49
    assert count(mapped) - count(plain) == (latent + 1) * 5 + 6 * grid - (latent + 1) * grid
    labels = torch.tensor([0, 1, 2]) if classes else None
    assert mapped(torch.randn(3, 6), labels).shape == (3, *CLOTHES)


@pytest.mark.parametrize("classes", [0, 10])
def test_a_head_with_a_hidden_layer_has_its_logit_and_its_classes_on_that_layer(classes):
    plain, deep = ConvDiscriminator(CLOTHES, classes), ConvDiscriminator(CLOTHES, classes, head_width=5)
    grid = 64 * 49
    assert count(deep) - count(plain) == (grid + 1) * 5 + (1 + classes) * (5 - grid)
    labels = torch.tensor([0, 1, 2]) if classes else None
    assert deep(torch.randn(3, *CLOTHES), labels).shape == (3,)


def test_the_logit_is_linear_in_the_coarsest_grid_only_without_a_hidden_layer():
    torch.manual_seed(0)
    grids = torch.randn(2, 64 * 49)

    def curvature(network):
        def logit(h):
            return network.head(network.summary(h), None)

        return (logit(grids[:1]) + logit(grids[1:]) - 2 * logit(grids.mean(0, keepdim=True))).abs().item()

    assert curvature(ConvDiscriminator(CLOTHES)) < 1e-5
    assert curvature(ConvDiscriminator(CLOTHES, head_width=5)) > 1e-3


@pytest.mark.parametrize(("factory", "arguments"), [(ConvGenerator, (CLOTHES, 6)), (ConvDiscriminator, (CLOTHES,))])
def test_hidden_layers_of_negative_width_are_refused(factory, arguments):
    option = "mapping_width" if factory is ConvGenerator else "head_width"
    with pytest.raises(ValueError, match=f"{option} is -1"):
        factory(*arguments, **{option: -1})


def test_automatic_networks_have_these_layers_without_classes_and_those_of_trained_models_do_not():
    def shapes(network):
        return {name: tensor.shape for name, tensor in network.state_dict().items()}

    width = UNCONDITIONAL_WIDTH
    assert shapes(default_generator(CLOTHES, 6)) == shapes(ConvGenerator(CLOTHES, 6, mapping_width=width))
    assert shapes(default_discriminator(CLOTHES)) == shapes(ConvDiscriminator(CLOTHES, head_width=width))
    assert shapes(default_generator(CLOTHES, 6, 10)) == shapes(ConvGenerator(CLOTHES, 6, 10))
    assert shapes(default_discriminator(CLOTHES, 10)) == shapes(ConvDiscriminator(CLOTHES, 10))
