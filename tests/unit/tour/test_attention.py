"""Claims of the figure on attention: scores and their entropy, order, distance, and what trained heads look at."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from zoo.errors import UserError
from zoo.tour import attention


@pytest.mark.parametrize("d", [1, 16, 256])
def test_variance_of_scores_is_d_and_one_if_they_are_scaled(d):
    for scaled, variance in ((False, d), (True, 1)):
        scores = attention.random_scores(d, 2000, 200, scaled, torch.Generator().manual_seed(0))
        assert scores.var().item() == pytest.approx(variance, rel=0.2)


def test_entropy_of_scaled_scores_does_not_depend_on_d_and_that_of_others_vanishes():
    def found(d: int, scaled: bool) -> float:
        return attention.entropy(attention.random_scores(d, 2000, 50, scaled, torch.Generator().manual_seed(0)))

    for d in (4, 64, 512):
        assert found(d, True) == pytest.approx(attention.entropy_law(1, 2000), abs=0.15)
    assert found(2, False) == pytest.approx(attention.entropy_law(2, 2000), abs=0.35)
    assert found(512, False) < 0.5 < math.log(2000)


def test_entropy_law_holds_for_normal_scores():
    scores = 1.5 * torch.randn(20, 50_000, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    assert attention.entropy(scores) == pytest.approx(attention.entropy_law(1.5**2, 50_000), abs=0.02)
    assert attention.entropy_law(100, 50_000) == 0
    assert attention.entropy(torch.zeros(3, 8)) == pytest.approx(math.log(8))


def test_attention_without_positions_does_not_see_the_order():
    assert attention.permutation_error(attention.stack(None), 24) < 1e-12
    for encoding in ("sinusoidal", "rotary"):
        assert attention.permutation_error(attention.stack(encoding), 24) > 0.05
    assert attention.permutation_error(attention.stack(None), 24, causal=True) > 0.05, "the mask shows the order"


def test_rotary_encoding_knows_distances_only():
    assert attention.shift_error(attention.stack("rotary"), 16, 5) < 1e-6
    assert attention.shift_error(attention.stack("sinusoidal"), 16, 5) > 0.1


def test_gradient_vanishes_with_distance_in_recurrent_networks_and_not_in_attention():
    for cell in ("RNN", "LSTM"):
        norms = attention.distance_gradients(cell, 40, width=32)
        assert norms.shape == (40,)
        assert norms[39] < 1e-6 * norms[0]
    norms = attention.distance_gradients("attention", 40, width=32)
    assert norms[39] > 0.2 * norms[1]


def test_targets_of_patterns():
    found = {name: attention.targets("ab ab", name).nonzero().tolist() for name in get_args(attention.Pattern)}
    assert found == {
        "previous": [[1, 0], [2, 1], [3, 2], [4, 3]],
        "last_space": [[3, 2], [4, 2]],
        "same_letter": [[3, 0], [4, 1]],
        "successor": [[3, 1], [4, 2]],
    }


def test_score_is_the_mean_weight_on_the_targets():
    wanted = attention.targets("ab ab", "same_letter")
    weights = torch.zeros(2, 5, 5)
    weights[1, 3, 0], weights[1, 4, 1], weights[1, 2, 0] = 1, 0.5, 1
    assert attention.score(weights, wanted).tolist() == [0, 0.75]
    assert attention.score(weights, attention.targets("abcde", "same_letter")).tolist() == [0, 0], "there are none"
    assert attention.chance(wanted) == pytest.approx((1 / 4 + 1 / 5) / 2)
    assert attention.best_head(torch.tensor([[0.1, 0.2], [0.5, 0.3]])) == (1, 0)
    reversed_digits = torch.zeros(4, 4)
    reversed_digits[:3, :3] = torch.eye(3).flip(1)
    assert attention.anti_diagonal_score(reversed_digits).item() == 1


def test_reversal_looks_at_the_digit_that_it_writes():
    maps, answer = attention.reversal_maps("31415926")
    assert answer == "62951413"
    torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))
    assert attention.anti_diagonal_score(maps).max() > 0.5


def test_language_model_has_heads_for_the_previous_character_and_for_the_last_space():
    text = "To be, or not to be: that is"
    maps = attention.language_maps(text)
    torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))
    assert maps.triu(1).max() == 0, "no later position"
    for pattern in ("previous", "last_space"):
        wanted = attention.targets(text, pattern)
        assert attention.score(maps, wanted).max() > 3 * attention.chance(wanted)
    wanted = attention.targets(text, "same_letter")
    assert attention.score(maps, wanted).max() < 2 * attention.chance(wanted), "none for earlier occurrences"


@pytest.mark.parametrize("text", ["a", "a" * 61])
def test_text_of_a_wrong_length_is_named(text):
    with pytest.raises(UserError, match=f"text has {len(text)} characters; it must have 2 to 60"):
        attention.language_maps(text)
