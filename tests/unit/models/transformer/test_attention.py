"""Multi-head attention against its formula."""

import math

import pytest
import torch

from zoo.models.transformer.attention import (
    KVCache,
    MultiHeadAttention,
    attention_weights,
    causal_mask,
    record_attention,
)


def test_the_weights_equal_the_formula_of_the_paper():
    q, k = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 1.0], [0.0, -1.0]])
    scores = torch.tensor([5.0, -2.0]) / math.sqrt(2)
    expected = scores.exp() / scores.exp().sum()
    torch.testing.assert_close(attention_weights(q[None, None], k[None, None])[0, 0, 0], expected)


def test_masked_positions_have_zero_weight():
    q, k, mask = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4), causal_mask(5, 5)
    weights = attention_weights(q, k, mask)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 5))
    assert (weights[..., ~mask] == 0).all()
    assert (weights[..., mask] > 0).all()


def test_the_last_queries_of_a_causal_mask_see_all_keys_before_them():
    expected = [[True, True, True, False, False], [True, True, True, True, False], [True, True, True, True, True]]
    assert causal_mask(3, 5).tolist() == expected


def test_a_cache_returns_keys_and_values_of_all_positions_so_far():
    cache, first, second = KVCache(), torch.randn(2, 3, 4, 5), torch.randn(2, 3, 1, 5)
    assert len(cache) == 0
    cache.extend(first, -first)
    keys, values = cache.extend(second, -second)
    assert torch.equal(keys, torch.cat([first, second], dim=2)) and torch.equal(values, -keys)
    assert len(cache) == 5


@pytest.mark.parametrize("case", ["all", "causal", "mask", "memory", "cache"])
def test_the_fused_kernel_agrees_with_the_recorded_formula(case):
    attention = MultiHeadAttention(32, 4, bias=True).double()
    x, memory = torch.randn(2, 6, 32).double(), torch.randn(2, 9, 32).double()
    mask = torch.rand(2, 1, 1, 9) > 0.3
    mask[..., 0] = True
    options = {
        "all": {},
        "causal": {"causal": True},
        "mask": {"memory": memory, "mask": mask},
        "memory": {"memory": memory},
        "cache": {"causal": True, "cache": None},
    }[case]

    def run():
        if case != "cache":
            return attention(x, **options)
        cache = KVCache()
        return torch.cat([attention(part, causal=True, cache=cache) for part in (x[:, :2], x[:, 2:5], x[:, 5:])], dim=1)

    fused = run()
    with record_attention(attention) as maps:
        recorded = run()
    torch.testing.assert_close(fused, recorded)
    assert len(maps[""]) == (3 if case == "cache" else 1)
    for weights in maps[""]:
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))
    assert attention.recorded is None


def test_normalized_queries_and_keys_bound_the_scores():
    torch.manual_seed(0)
    x = torch.randn(1, 6, 32)
    entropies = {}
    for qk_norm in (False, True):
        attention = MultiHeadAttention(32, 4, qk_norm=qk_norm)
        with torch.no_grad():
            attention.q.weight.mul_(1000)
        with record_attention(attention) as maps:
            attention(x)
        (weights,) = maps[""]
        entropies[qk_norm] = -(weights * weights.clamp_min(1e-30).log()).sum(-1).mean().item()
    assert entropies[False] < 0.05 < 0.5 < entropies[True], "scores are at most the root of the channels per head"


def test_with_normalized_queries_and_keys_the_scores_are_within_the_root_of_the_channels_per_head():
    """Queries and keys have the norm sqrt(C): scores are within ±sqrt(C), and reach it where they are parallel."""
    x = torch.cat([torch.ones(1, 1, 8), -torch.ones(1, 1, 8)], dim=1)
    attention = MultiHeadAttention(8, 2, qk_norm=True)
    with torch.no_grad():
        for weight in (attention.q.weight, attention.kv.weight[:8]):
            weight.copy_(50 * torch.eye(8))
    with record_attention(attention) as maps:
        attention(x)
    difference = maps[""][0].log().diff(dim=-1).abs()
    torch.testing.assert_close(difference, torch.full_like(difference, 2 * math.sqrt(4)))
