"""Seeds and noise per sample, and states of random number generators."""

import random

import numpy as np
import pytest
import torch

from zoo.seeding import (
    NoiseMemory,
    SampleNoise,
    capture_random_state,
    gather_random_states,
    hashed_bits,
    restore_random_state,
    sample_seeds,
    seeds_at,
    spawn_generator,
    stream_keys,
)

CPU = torch.device("cpu")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_seeds_of_the_first_samples_do_not_depend_on_their_number():
    assert torch.equal(sample_seeds(10, seeded(3))[:4], sample_seeds(4, seeded(3)))
    assert not torch.equal(sample_seeds(4, seeded(3)), sample_seeds(4, seeded(4)))
    assert len(sample_seeds(1000, seeded(3)).unique()) == 1000


def test_seeds_at_indices_do_not_depend_on_the_batches():
    whole = seeds_at(torch.arange(12), seed=5)
    assert torch.equal(seeds_at(torch.tensor([7, 2, 11]), seed=5), whole[[7, 2, 11]])
    assert not torch.equal(seeds_at(torch.arange(12), seed=6), whole)


def test_noise_of_a_sample_does_not_depend_on_its_batch():
    few, many = SampleNoise(torch.tensor([7, 3]), (2, 2)), SampleNoise(torch.arange(10), (2, 2))
    for _ in range(3):
        a, b = few(), many()
        assert torch.equal(a[0], b[7])
        assert torch.equal(a[1], b[3])
        assert not torch.equal(a[0], a[1])


def test_noise_is_standard_normal_in_the_requested_dtype_and_differs_between_draws():
    noise = SampleNoise(torch.arange(200), (50,), dtype=torch.float64)
    first, second = noise(), noise()
    assert first.dtype == torch.float64
    assert not torch.equal(first, second)
    for draw in (first, second):
        assert draw.mean().item() == pytest.approx(0, abs=4 / 10_000**0.5)
        assert draw.std().item() == pytest.approx(1, abs=4 / 20_000**0.5)
    assert SampleNoise(torch.arange(0), (3,))().shape == (0, 3)


def test_a_spawned_generator_follows_the_global_seed():
    torch.manual_seed(1)
    first, second = spawn_generator().initial_seed(), spawn_generator().initial_seed()
    torch.manual_seed(1)
    assert spawn_generator().initial_seed() == first != second


def draw() -> tuple[float, ...]:
    """Numbers of torch's, NumPy's and Python's generators, the last one with a cached second normal number."""
    numbers = (torch.rand(()).item(), np.random.rand(), np.random.randn(), random.random(), random.gauss(0, 1))
    return tuple(map(float, numbers))


def test_random_states_are_restored_through_a_checkpoint(tmp_path):
    draw()  # leaves a cached normal number in NumPy and in Python
    torch.save(capture_random_state(CPU), tmp_path / "state.pt")
    expected = [draw() for _ in range(3)]
    draw()
    restore_random_state(torch.load(tmp_path / "state.pt", weights_only=True), CPU)
    assert [draw() for _ in range(3)] == expected


def test_one_process_gathers_its_own_state():
    state = capture_random_state(CPU)
    assert gather_random_states(state) == [state]


def test_hashed_bits_are_uniform_and_uncorrelated_between_rows_and_columns():
    bits = hashed_bits(stream_keys(torch.arange(400), 0), 500).double() / 2**24
    assert bits.min() >= 0 and bits.max() < 1
    assert bits.mean().item() == pytest.approx(0.5, abs=4 / (12 * bits.numel()) ** 0.5)
    assert bits.var().item() == pytest.approx(1 / 12, rel=0.01)
    for rows in (bits, bits.T):
        correlations = torch.corrcoef(rows).fill_diagonal_(0) * rows.shape[1] ** 0.5
        assert correlations.abs().max() < 5.5
        assert correlations.std().item() == pytest.approx(1, abs=0.02)


def test_a_row_of_hashed_bits_depends_on_its_key_alone():
    keys = stream_keys(torch.arange(20), 5, 7)
    assert hashed_bits(keys, 30)[4:9, :12].equal(hashed_bits(stream_keys(torch.arange(4, 9), 5, 7), 12))
    other = (stream_keys(torch.arange(20), *numbers) for numbers in ((5, 8), (7, 5), (5,), (5, 7, 0)))
    assert not any((keys == one).any() for one in other)


def test_keys_are_those_of_splitmix64():
    """Published values: the first outputs of SplitMix64 with the seed 0."""
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [stream_keys(torch.tensor([0]), number).item() % 2**64 for number in range(3)] == expected


@pytest.mark.parametrize("limit", [0, 2 * 5 * 4 * 4, 2**20])
def test_a_memory_changes_no_draw_however_much_it_holds(limit):
    seeds, memory = sample_seeds(5, seeded(1)), NoiseMemory(limit)
    noise = SampleNoise(seeds, (2, 2))
    draws = [noise() for _ in range(4)]
    for _ in range(2):
        with memory.use():
            again = SampleNoise(seeds, (2, 2))
            for draw in draws:
                assert torch.equal(again(), draw)
    assert memory.size <= limit
    assert len(memory.draws) == min(4, limit // (5 * 4 * 4))


def test_noise_in_a_memory_is_drawn_once_and_safe_from_what_is_done_with_it(monkeypatch):
    seeds, memory = sample_seeds(5, seeded(1)), NoiseMemory()
    with memory.use():
        first = SampleNoise(seeds, (3,))()
        kept = first.clone()
        first.zero_()
        monkeypatch.setattr(SampleNoise, "_draw", None)
        assert torch.equal(SampleNoise(seeds, (3,))(), kept)
        assert SampleNoise(seeds, (3,), dtype=torch.float64)().dtype == torch.float64
    memory.clear()
    with memory.use(), pytest.raises(TypeError):
        SampleNoise(seeds, (3,))()
    assert NoiseMemory.active is None
