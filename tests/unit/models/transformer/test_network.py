"""The language model's network: causality, caches and size."""

from itertools import product

import pytest
import torch
from torch import nn

from zoo.models.transformer.network import LanguageModel

VARIANTS = list(product(("pre", "post"), ("rotary", "sinusoidal"), (False, True)))


def language_model(norm="pre", pos_encoding="rotary", qk_norm=False, **options) -> LanguageModel:
    shape = {"layers": 3, "width": 32, "heads": 4}
    return LanguageModel(11, **shape, norm=norm, pos_encoding=pos_encoding, qk_norm=qk_norm, **options).eval()


@pytest.mark.parametrize(("norm", "pos_encoding", "qk_norm"), VARIANTS)
def test_logits_do_not_depend_on_later_tokens(norm, pos_encoding, qk_norm):
    network = language_model(norm, pos_encoding, qk_norm)
    tokens = torch.randint(11, (2, 9))
    logits, other = network(tokens), tokens.clone()
    other[:, 5] = (other[:, 5] + 1) % 11
    changed = (network(other) - logits).abs().amax((0, 2))
    assert changed[:5].max() < 1e-6
    assert changed[5:].min() > 1e-5, "all later positions attend to it"


@pytest.mark.parametrize(("norm", "pos_encoding", "qk_norm"), VARIANTS)
def test_logits_with_caches_equal_those_without(norm, pos_encoding, qk_norm):
    network = language_model(norm, pos_encoding, qk_norm)
    tokens = torch.randint(11, (2, 12))
    caches = network.stack.caches()
    parts = [network(part, caches) for part in tokens.split([4, 1, 5, 1, 1], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), network(tokens), atol=1e-5, rtol=1e-5)
    assert len(caches[0]) == 12


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_it_has_as_many_parameters_as_nanogpt():
    """0.80 and 10.65 million with 65 characters, as nanoGPT counts, without positional embeddings."""
    for layers, width, millions in ((4, 128, 0.80), (6, 384, 10.65)):
        network = LanguageModel(65, layers, width, heads=width // 64 or 4)
        exact = 65 * width + layers * (12 * width**2 + 2 * width) + width
        assert count(network) == exact
        assert exact / 1e6 == pytest.approx(millions, abs=0.005)


def test_activation_checkpointing_gives_the_same_gradients():
    gradients = []
    for activation_checkpointing in (False, True):
        torch.manual_seed(1)
        network = language_model(activation_checkpointing=activation_checkpointing, dropout=0.2).train()
        torch.manual_seed(2)
        network(torch.randint(11, (2, 9))).square().mean().backward()
        gradients.append([p.grad for p in network.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_activation_checkpointing_computes_each_block_again_in_the_backward_pass(activation_checkpointing):
    network = language_model(activation_checkpointing=activation_checkpointing).train()
    calls = []
    for block in network.stack.blocks:
        block.attention.register_forward_hook(lambda *_: calls.append(1))
    network(torch.randint(11, (2, 9))).sum().backward()
    assert len(calls) == (6 if activation_checkpointing else 3)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_embeddings_and_what_logits_are_made_of_have_unit_variance(norm):
    network = language_model(norm=norm)
    tokens = torch.randint(11, (8, 16))
    nn.init.normal_(network.embedding.weight, std=32**-0.5)
    assert network.embedding(tokens).std().item() == pytest.approx(1, abs=0.15)
    h = network.stack(3 * network.embedding(tokens), causal=True)
    torch.testing.assert_close(h.mean(-1), torch.zeros(8, 16), atol=1e-4, rtol=0)
    torch.testing.assert_close(h.var(-1, correction=0), torch.ones(8, 16), atol=1e-2, rtol=0)
