"""The learning-rate schedule: warm-up, decay, groups and resuming."""

from itertools import pairwise

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


def test_linear_decay_ends_at_its_final_fraction():
    seen = rates(100, final=0.1)
    assert seen[0] == 2.0
    assert seen[50] == pytest.approx(2.0 * 0.55)
    assert seen[100] == pytest.approx(0.2)


def test_cosine_decay_after_warmup():
    seen = rates(110, warmup_steps=10, final=0.0, shape="cosine")
    assert seen[:10] == pytest.approx([0.2 * k for k in range(1, 11)])
    assert seen[35] == pytest.approx(1 + 0.5**0.5)
    assert seen[60] == pytest.approx(1.0)
    assert seen[110] == pytest.approx(0.0, abs=1e-9)


def test_total_steps_override_the_length_of_the_run():
    assert rates(10, final=0.5, total_steps=5)[5] == pytest.approx(1.0)


def test_a_run_without_an_end_is_refused():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    with pytest.raises(UserError, match=r"trainer\.max_steps"):
        build_scheduler(WarmupDecay, optimizer, float("inf"))


def test_without_a_factory_there_is_no_schedule():
    assert build_scheduler(None, torch.optim.SGD([torch.zeros(1)], lr=1.0), 10) is None


def test_warmup_as_a_fraction_equals_the_same_number_of_steps():
    assert rates(50, warmup_steps=0.2, final=0.0) == rates(50, warmup_steps=10, final=0.0)
    assert rates(50, warmup_steps=0.2)[0] == pytest.approx(0.2), "not the peak, although the length is not known yet"


def test_fractional_warmup_and_decay_to_zero_are_a_triangle():
    seen = rates(100, warmup_steps=0.3, final=0.0)
    assert seen.index(max(seen)) in (29, 30)
    steps = [after - before for before, after in pairwise(seen)]
    rise, fall = steps[:29], steps[30:]
    assert rise == pytest.approx([2.0 / 30] * 29)
    assert fall == pytest.approx([-2.0 / 70] * 70)
    assert seen[100] == pytest.approx(0.0, abs=1e-9)


def test_a_fractional_number_of_warmup_steps_does_not_exceed_the_peak():
    seen = rates(7, warmup_steps=0.35)  # 2.45 steps
    assert seen[:3] == pytest.approx([2 / 2.45, 4 / 2.45, 2.0])
    assert max(seen) == 2.0
    assert seen == [*seen[:3], *sorted(seen[3:], reverse=True)]


def test_every_parameter_group_has_its_own_learning_rate():
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in (1.0, 3.0)]
    optimizer = torch.optim.SGD(groups)
    scheduler = build_scheduler(lambda o: WarmupDecay(o, warmup_steps=0.5), optimizer, 8)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.25, 0.75])
    assert scheduler.get_last_lr() == pytest.approx([0.25, 0.75])
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5, 1.5])


def test_a_resumed_schedule_continues():
    whole = rates(20, warmup_steps=0.25, final=0.0)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = build_scheduler(lambda o: WarmupDecay(o, warmup_steps=0.25, final=0.0), optimizer, 20)
    for _ in range(8):
        optimizer.step()
        scheduler.step()
    states = optimizer.state_dict(), scheduler.state_dict()
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = build_scheduler(lambda o: WarmupDecay(o, warmup_steps=0.25, final=0.0), optimizer, 20)
    optimizer.load_state_dict(states[0])
    scheduler.load_state_dict(states[1])
    seen = []
    for _ in range(8, 21):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx(whole[8:])
