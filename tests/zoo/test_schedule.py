"""The learning-rate schedule at its corners."""

import pytest
import torch

from zoo.errors import UserError
from zoo.optim import WarmupDecay, build_scheduler


def rates(steps: int, **options) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = build_scheduler(lambda o: WarmupDecay(o, **options), optimizer, steps)
    seen = []
    for _ in range(steps + 1):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_linear_decay_ends_at_its_final_share():
    seen = rates(100, final=0.1)
    assert seen[0] == 2.0
    assert seen[50] == pytest.approx(2.0 * 0.55)
    assert seen[100] == pytest.approx(0.2)


def test_cosine_decay_after_warmup():
    seen = rates(110, warmup_steps=10, final=0.0, shape="cosine")
    assert seen[:10] == pytest.approx([0.2 * k for k in range(1, 11)])
    assert seen[60] == pytest.approx(1.0)
    assert seen[110] == pytest.approx(0.0, abs=1e-9)


def test_length_of_the_run_comes_from_outside_unless_it_is_given():
    assert rates(10, final=0.5, total_steps=5)[5] == pytest.approx(1.0)


def test_an_endless_run_has_no_schedule():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    with pytest.raises(UserError, match=r"trainer\.max_steps"):
        build_scheduler(WarmupDecay, optimizer, float("inf"))


def test_no_factory_means_no_schedule():
    assert build_scheduler(None, torch.optim.SGD([torch.zeros(1)], lr=1.0), 10) is None
