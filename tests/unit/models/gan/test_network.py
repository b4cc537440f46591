"""Generators and discriminators."""

from zoo.models.gan.network import ConvDiscriminator, ConvGenerator, MLPDiscriminator, MLPGenerator


def test_numbers_of_parameters_equal_their_formulas():
    def count(network):
        return sum(p.numel() for p in network.parameters())

    assert count(MLPGenerator((1, 8, 8), 32, width=256, depth=2)) == 33 * 256 + 257 * 256 + 257 * 64
    assert count(MLPDiscriminator((1, 8, 8), width=256, depth=2)) == 65 * 256 + 257 * 256 + 257
    convolutions = 64 * 32 * 16 + 32 + 32 * 1 * 16 + 1
    assert count(ConvGenerator((1, 28, 28), 64, width=32, depth=2)) == 65 * 64 * 49 + convolutions
    assert count(ConvDiscriminator((1, 28, 28), width=32, depth=2)) == 16 * 32 + 32 + 32 * 64 * 16 + 64 + 64 * 49 + 1
