"""Sampling of tokens, and generation with and without caches."""

from collections import Counter

import pytest
import torch

from zoo.models.transformer.generate import generate, next_token_probs, sample_token
from zoo.models.transformer.network import LanguageModel

# Probabilities of the next token


def test_temperature_divides_the_logits_and_0_is_greedy():
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    torch.testing.assert_close(next_token_probs(logits, 0.5), (2 * logits).softmax(1))
    assert next_token_probs(logits, 0.0).tolist() == [[0, 1, 0]]


def test_top_k_keeps_the_k_most_probable_tokens_in_proportion():
    p = next_token_probs(torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log(), top_k=2)
    torch.testing.assert_close(p, torch.tensor([[0, 4 / 7, 0, 3 / 7]]))
    assert next_token_probs(torch.randn(1, 3), top_k=10).gt(0).all(), "k above the number of tokens"
    assert next_token_probs(torch.zeros(1, 4), top_k=1).gt(0).sum() == 1, "ties are broken"


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.3, [1]), (0.39, [1]), (0.41, [1, 3]), (0.7, [1, 3]), (0.75, [1, 2, 3]), (1.0, [0, 1, 2, 3])]
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p, kept):
    p = next_token_probs(torch.tensor([[0.1, 0.4, 0.2, 0.3]]).double().log(), top_p=top_p)
    assert p[0].nonzero().flatten().tolist() == kept
    assert p.sum().item() == pytest.approx(1)


def test_tokens_are_sampled_with_their_probabilities():
    p = torch.tensor([[0.1, 0.0, 0.6, 0.3]])
    sampled = Counter(sample_token(p.expand(20_000, -1), torch.Generator().manual_seed(0)).tolist())
    assert [sampled[i] / 20_000 for i in range(4)] == pytest.approx([0.1, 0, 0.6, 0.3], abs=0.012)


# Generation


def small_network() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(6, layers=2, width=32, heads=4, qk_norm=True).eval()


@pytest.mark.parametrize("length", [5, 40])
def test_tokens_with_and_without_caches_are_equal_also_beyond_the_context_length(length):
    network, prompt = small_network(), torch.tensor([[0, 1, 2], [3, 4, 5]])
    texts = []
    for cached in (True, False):
        generator = torch.Generator().manual_seed(0)
        tokens = list(generate(network, prompt, length, 12, generator=generator, cached=cached))
        texts.append(torch.stack(tokens, 1))
    assert texts[0].shape == (2, length)
    assert torch.equal(*texts)


def test_after_the_prompt_the_network_reads_one_token_at_a_time_within_the_context_length():
    network, seen = small_network(), []
    network.register_forward_hook(lambda m, inputs, out: seen.append((inputs[0].shape[1], len(inputs[1][0]))))
    list(generate(network, torch.zeros(1, 30, dtype=torch.int64), 14, 12))
    read, kept = zip(*seen, strict=True)
    assert read == (12, 6, 1, 1, 1, 1, 1, 1, 6, 1, 1, 1, 1, 1)
    assert max(kept) == 12
