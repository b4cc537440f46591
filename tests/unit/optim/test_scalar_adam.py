"""ScalarAdam against the lecture's formulas in Python floats and against torch's Adam."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.errors import UserError
from zoo.optim import OptimizerCallable, ScalarAdam

# Fake tensors on a GPU call its driver in torch 2.8.
with_fake_gpus = pytest.mark.skipif(
    torch.__version__.startswith("2.8.") and not torch.cuda.is_available(), reason="needs a GPU with torch 2.8"
)

SCOPES = ("global", "group", "tensor")
SCALES = ("norm", "rms")
SHAPES = ((3, 2), (4,), (), (2, 2))
GROUPS = ((0, 1), (2, 3))  # indices into SHAPES


def parameters(dtype: torch.dtype = torch.float64, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in SHAPES]


def groups(tensors: list[nn.Parameter], *options: dict[str, Any]) -> list[dict[str, Any]]:
    options = options or ({}, {})
    return [{"params": [tensors[i] for i in one], **more} for one, more in zip(GROUPS, options, strict=True)]


def set_gradients(tensors: list[nn.Parameter], step: int, missing: tuple[int, ...] = ()) -> None:
    """Random gradients that depend on the step only, none for the tensors that are `missing`."""
    for tensor, gradient in zip(tensors, parameters(tensors[0].dtype, seed=100 + step), strict=True):
        tensor.grad = gradient.detach()
    for index in missing:
        tensors[index].grad = None


def run(optimizer: torch.optim.Optimizer, tensors: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        set_gradients(tensors, step)
        optimizer.step()


def python_floats(
    steps: list[list[list[float] | None]],
    start: list[list[float]],
    scope: str = "global",
    scale: str = "norm",
    options: tuple[dict[str, Any], ...] = ({}, {}),
    maximize: bool = False,
) -> list[list[float]]:
    """The lecture's formulas over Python floats, one coordinate at a time; `steps[t][i]` is a gradient or None."""
    theta = [list(values) for values in start]
    m = [[0.0] * len(values) for values in start]
    t_of_m = [0] * len(start)
    r: dict[Any, float] = {}
    t_of_r: dict[Any, int] = {}
    for gradients in steps:
        members: dict[Any, list[int]] = {}
        for number, indices in enumerate(GROUPS):
            for i in indices:
                if gradients[i] is not None:
                    key = {"global": "all", "group": number, "tensor": ("tensor", i)}[scope]
                    members.setdefault(key, []).append(i)
        for key, indices in members.items():
            number = 0 if indices[0] in GROUPS[0] else 1
            beta2 = options[number].get("betas", (0.9, 0.999))[1]
            values = [g for i in indices for g in gradients[i] or []]
            square = sum(g * g for g in values)
            if scale == "rms":
                square /= len(values)
            t_of_r[key] = t_of_r.get(key, 0) + 1
            r[key] = beta2 * r.get(key, 0.0) + (1 - beta2) * square
            for i in indices:
                own = options[0 if i in GROUPS[0] else 1]
                lr, decay = own.get("lr", 1e-3), own.get("weight_decay", 0.0)
                beta1, beta2 = own.get("betas", (0.9, 0.999))
                t_of_m[i] += 1
                for j, g in enumerate(gradients[i] or []):
                    g = -g if maximize else g
                    m[i][j] = beta1 * m[i][j] + (1 - beta1) * g
                    m_hat = m[i][j] / (1 - beta1 ** t_of_m[i])
                    r_hat = r[key] / (1 - beta2 ** t_of_r[key])
                    theta[i][j] -= lr * decay * theta[i][j]
                    theta[i][j] -= lr * m_hat / (math.sqrt(r_hat) + own.get("eps", 1e-8))
    return theta


def numbers(tensors: list[Any]) -> list[Any]:
    return [None if tensor is None else tensor.detach().double().flatten().tolist() for tensor in tensors]


def compare_with_python_floats(missing: dict[int, tuple[int, ...]], count: int, **how: Any) -> None:
    options, foreach = how["options"], how.pop("foreach")
    tensors = parameters()
    start = numbers(tensors)
    kinds = {key: how[key] for key in how.keys() - {"options"}}
    optimizer = ScalarAdam(groups(tensors, *options), foreach=foreach, **kinds)
    steps = []
    for step in range(count):
        set_gradients(tensors, step, missing.get(step, ()))
        steps.append(numbers([tensor.grad for tensor in tensors]))
        optimizer.step()
    for found, expected in zip(numbers(tensors), python_floats(steps, start, **how), strict=True):
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-13)


# Known answers


def test_three_steps_on_a_quadratic_worked_by_hand():
    """f = |theta|^2 / 2 from (3, 4), beta1 = beta2 = 1/2, lr = 0.1: g = theta, and every step is along (3, 4) / 5.

    1. |g| = 5;    m^ = (3, 4), r^ = 25; the step is 0.1 * (3, 4) / 5, which leaves theta = 0.98 * (3, 4)
    2. |g| = 4.9;  m^ = (5 / 4 + 4.9 / 2) / (3 / 4) = 4.9333,  r^ = (25 / 4 + 24.01 / 2) / (3 / 4) = 24.34
    3. |g| = 4.8000046;  m^ = (3.7 / 2 + 4.8000046 / 2) / (7 / 8) = 4.8571455,  r^ = 23.5971682
    """
    theta = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    optimizer = ScalarAdam([theta], lr=0.1, betas=(0.5, 0.5), eps=0.0)
    lengths = []
    for _ in range(3):
        theta.grad = theta.detach().clone()
        optimizer.step()
        lengths.append(theta.norm().item())
        assert (theta / theta.norm()).tolist() == pytest.approx([0.6, 0.8])
    second = 4.9 - 0.1 * (3.7 / 0.75) / math.sqrt(18.255 / 0.75)
    third = second - 0.1 * ((1.85 + second / 2) / 0.875) / math.sqrt((9.1275 + second**2 / 2) / 0.875)
    assert lengths == pytest.approx([4.9, second, third], abs=1e-12)
    assert lengths == pytest.approx([4.9, 4.8000046, 4.7000158], abs=1e-7)


@pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "loop"])
@pytest.mark.parametrize("maximize", [False, True], ids=["minimize", "maximize"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("scope", SCOPES)
def test_updates_equal_the_lectures_formulas_in_python_floats(scope, scale, maximize, foreach):
    options = (
        {"lr": 0.1, "betas": (0.8, 0.95), "eps": 0.1},
        {"lr": 0.03, "betas": (0.5, 0.95), "weight_decay": 0.2},
    )
    compare_with_python_floats({}, 6, scope=scope, scale=scale, maximize=maximize, options=options, foreach=foreach)


@pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "loop"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("scope", SCOPES)
def test_each_average_is_corrected_by_its_own_number_of_updates(scope, scale, foreach):
    """Tensor 1 misses steps, 2 starts late, the second group misses one, and one step has no gradients at all."""
    missing = {0: (2,), 1: (1, 2), 2: (1,), 4: (2, 3), 5: (0, 1, 2, 3), 6: (0, 3)}
    options = ({"lr": 0.1, "betas": (0.8, 0.9)}, {"lr": 0.1, "betas": (0.7, 0.9)})
    compare_with_python_floats(missing, 9, scope=scope, scale=scale, options=options, foreach=foreach)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(("own", "torchs"), [({}, torch.optim.Adam), ({"weight_decay": 0.1}, torch.optim.AdamW)])
def test_a_scalar_parameter_is_trained_as_by_adam(own, torchs, scope, scale):
    x, y = (nn.Parameter(torch.tensor([2.0])) for _ in range(2))
    mine, theirs = ScalarAdam([x], lr=0.05, scope=scope, scale=scale, **own), torchs([y], lr=0.05, **own)
    for _ in range(50):
        for number, optimizer in ((x, mine), (y, theirs)):
            optimizer.zero_grad()
            (number.cos() + 0.1 * number**2).sum().backward()
            optimizer.step()
    assert abs(y.item() - 2) > 0.3
    assert x.item() == pytest.approx(y.item(), abs=2e-6)


@pytest.mark.parametrize(("scale", "length"), [("norm", 1e-3), ("rms", 1e-3 * math.sqrt(15))])
def test_the_norm_of_the_first_step_is_lr_or_lr_times_the_root_of_the_number_of_elements(scale, length):
    before, after = parameters(), parameters()
    assert sum(tensor.numel() for tensor in after) == 15
    run(ScalarAdam(after, lr=1e-3, scale=scale), after, range(1))
    moved = torch.cat([(a - b).flatten() for a, b in zip(after, before, strict=True)]).norm()
    assert moved.item() == pytest.approx(length, rel=1e-7)


def rotation_error(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> float:
    """Distance of the path of x on f(x) from Q times that of y = Q' x on f(Qy), over random Q."""
    worst = 0.0
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        q, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))
        scales = torch.logspace(-1, 1, 6, dtype=torch.float64)
        start = torch.randn(6, generator=generator, dtype=torch.float64)
        x, y = nn.Parameter(start.clone()), nn.Parameter(q.T @ start)
        first, second = make([x]), make([y])
        for _ in range(30):
            for point, optimizer in ((x, first), (y, second)):
                optimizer.zero_grad()
                z = x if point is x else q @ y
                (scales * z**2 + z.sin()).sum().backward()
                optimizer.step()
            worst = max(worst, (x - q @ y).abs().max().item())
    return worst


def test_training_is_invariant_to_rotations_and_adam_is_not():
    for scale in SCALES:
        assert rotation_error(lambda p, scale=scale: ScalarAdam(p, lr=0.1, weight_decay=0.1, scale=scale)) < 1e-10
    assert rotation_error(lambda p: torch.optim.Adam(p, lr=0.1)) > 0.1


# Scopes and groups


def test_the_global_scope_spans_groups_and_the_group_scope_does_not():
    """Gradients of one group change the step of the other through the global norm only."""
    moves = {}
    for scope, factor in itertools.product(("global", "group"), (1.0, 100.0)):
        tensors = parameters()
        start = tensors[0].detach().clone()
        optimizer = ScalarAdam(groups(tensors), lr=1.0, scope=scope)
        set_gradients(tensors, 0)
        tensors[3].grad *= factor
        optimizer.step()
        moves[scope, factor] = (tensors[0] - start).norm().item()
    assert moves["group", 1.0] == moves["group", 100.0]
    assert moves["global", 100.0] < 0.1 * moves["global", 1.0]


def test_a_group_added_later_shares_the_global_r():
    """The average over the steps before is kept."""
    tensors = parameters()
    optimizer = ScalarAdam(tensors[:2], lr=0.1)
    for tensor in tensors[:2]:
        tensor.grad = torch.full_like(tensor, 100.0)
    for _ in range(10):
        optimizer.step()
    optimizer.add_param_group({"params": tensors[2:], "lr": 0.2})
    before = optimizer.state[tensors[0]]["r"].item()
    for tensor in tensors:
        tensor.grad = torch.ones_like(tensor)
    start = tensors[3].detach().clone()
    optimizer.step()
    r = 0.999 * before + 0.001 * 15
    assert optimizer.state[tensors[3]]["r"].item() == pytest.approx(r)
    step = 0.2 / (math.sqrt(r / (1 - 0.999**11)) + 1e-8)
    assert (start - tensors[3]).flatten().tolist() == pytest.approx([step] * 4)


def test_a_contradicting_group_is_refused_and_not_added():
    tensors = parameters()
    optimizer = ScalarAdam(tensors[:2])
    for wrong in ({"betas": (0.9, 0.9)}, {"scope": "group"}, {"scale": "rms"}, {"lr": -1.0}):
        with pytest.raises(UserError):
            optimizer.add_param_group({"params": tensors[2:], **wrong})
        assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": tensors[2:], "betas": (0.5, 0.999)})
    optimizer.param_groups[1]["betas"] = (0.5, 0.9)
    set_gradients(tensors, 0)
    with pytest.raises(UserError, match=r"\[0\.9, 0\.999\]"):
        optimizer.step()
    ScalarAdam(groups(parameters(), {"betas": (0.9, 0.9)}, {"betas": (0.9, 0.99)}), scope="group")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr": -0.5}, r"lr must be at least 0, not -0\.5"),
        ({"lr": math.nan}, "not nan"),
        ({"lr": torch.tensor([1.0, 2.0])}, "one number, not 2"),
        ({"eps": -1e-8}, "eps must be at least 0, not -1e-08"),
        ({"weight_decay": -1.0}, r"weight_decay must be at least 0, not -1\.0"),
        ({"betas": (1.0, 0.9)}, r"betas\[0\] must be at least 0 and below 1, not 1\.0"),
        ({"betas": (0.9, -0.1)}, r"betas\[1\] must be at least 0 and below 1, not -0\.1"),
        ({"betas": (0.9,)}, r"two numbers, not \(0\.9,\)"),
        ({"scope": "layer"}, "scope must be one of global, group, tensor, not layer"),
        ({"scale": "mean"}, "scale must be one of norm, rms, not mean"),
    ],
    ids=str,
)
def test_invalid_options_are_named(wrong, message):
    with pytest.raises(UserError, match=message):
        ScalarAdam(parameters(), **wrong)


def test_sparse_gradients_and_complex_parameters_are_refused():
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(UserError, match=r"\(4, 2\) is sparse"):
        ScalarAdam(table.parameters()).step()
    with pytest.raises(UserError, match="view_as_real"):
        ScalarAdam([nn.Parameter(torch.zeros(2, dtype=torch.complex64))])


# The interface of torch's optimizers


def test_a_closure_is_called_with_gradients_enabled():
    x = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = ScalarAdam([x], lr=0.5)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (x**2).sum()
        loss.backward()
        return loss.item()

    with torch.no_grad():
        assert optimizer.step(closure) == 5.0
    assert (x.detach() - torch.tensor([1.0, -2.0])).norm().item() == pytest.approx(0.5)
    give_no_gradient = ScalarAdam([nn.Parameter(torch.ones(2))])
    assert give_no_gradient.step() is None
    assert not give_no_gradient.state


def test_a_tensor_learning_rate_is_read_at_every_step():
    first, second = parameters(), parameters()
    rate = torch.tensor([0.1], dtype=torch.float64)
    mine = ScalarAdam(first, lr=rate, weight_decay=0.1)
    plain = ScalarAdam(second, lr=0.1, weight_decay=0.1)
    schedule = [torch.optim.lr_scheduler.StepLR(o, step_size=2, gamma=0.1) for o in (mine, plain)]
    for step in range(6):
        for optimizer, tensors, scheduler in ((mine, first, schedule[0]), (plain, second, schedule[1])):
            run(optimizer, tensors, range(step, step + 1))
            scheduler.step()
    assert mine.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(1e-4)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("capturable", [False, True], ids=["", "capturable"])
@pytest.mark.parametrize("scope", SCOPES)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(scope, capturable, dtype, tmp_path):
    def start() -> tuple[list[nn.Parameter], ScalarAdam]:
        tensors = parameters(dtype)
        return tensors, ScalarAdam(groups(tensors), lr=0.01, betas=(0.9, 0.99), scope=scope, capturable=capturable)

    whole, optimizer = start()
    # More steps than bfloat16 can count, 256, and one tensor that has missed some of them.
    for step in range(300 if dtype == torch.bfloat16 else 30):
        set_gradients(whole, step % 7, missing=(1,) if step % 5 == 0 else ())
        optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    resumed, other = start()
    with torch.no_grad():
        for a, b in zip(resumed, whole, strict=True):
            a.copy_(b)
    other.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    assert {other.state[p]["r"].dtype for p in resumed} == {torch.float32}
    for step in range(20):
        for tensors, o in ((whole, optimizer), (resumed, other)):
            set_gradients(tensors, step, missing=(0,) if step == 3 else ())
            o.step()
    for a, b in zip(whole, resumed, strict=True):
        assert torch.equal(a, b)
        assert all(torch.equal(optimizer.state[a][key], other.state[b][key]) for key in optimizer.state[a])


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["", "pickle"]
)
@pytest.mark.parametrize("scope", SCOPES)
def test_a_copy_trains_alike_and_independently(scope, duplicate):
    tensors = parameters()
    optimizer = ScalarAdam(groups(tensors), lr=0.01, scope=scope)
    run(optimizer, tensors, range(3))
    others, other = duplicate((tensors, optimizer))
    run(optimizer, tensors, range(3, 6))
    moved = [tensor.detach().clone() for tensor in tensors]
    run(other, others, range(3, 6))
    for a, b, c in zip(tensors, moved, others, strict=True):
        assert torch.equal(a, b), "the copy's steps do not move the original"
        assert torch.equal(b, c)


def test_states_copied_one_by_one_share_r_again():
    """As Lightning does when it moves optimizer states to another device."""
    first, second = parameters(), parameters()
    optimizer, untouched = ScalarAdam(groups(first)), ScalarAdam(groups(second))
    for step in range(6):
        set_gradients(first, step, missing=(2, 3) if step == 4 else ())
        set_gradients(second, step, missing=(2, 3) if step == 4 else ())
        optimizer.step()
        untouched.step()
        for state in optimizer.state.values():
            state.update({key: value.clone() for key, value in state.items()})
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(optimizer.state[a]["r"], untouched.state[b]["r"])


def test_jsonargparse_accepts_it_as_an_optimizer():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--optimizer", type=OptimizerCallable)
    chosen = ["--optimizer=zoo.optim.ScalarAdam", "--optimizer.lr=0.25", "--optimizer.scope=group"]
    made = parser.instantiate(parser.parse_args(chosen)).optimizer(parameters())
    assert isinstance(made, ScalarAdam)
    assert (made.param_groups[0]["lr"], made.param_groups[0]["scope"]) == (0.25, "group")


# Precision


@pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "loop"])
@pytest.mark.parametrize("scope", SCOPES)
def test_training_in_bfloat16_agrees_with_float32(scope, foreach):
    half = parameters(torch.bfloat16)
    full = [nn.Parameter(tensor.detach().float()) for tensor in half]
    for tensors in (half, full):
        optimizer = ScalarAdam(tensors, lr=0.05, scope=scope, foreach=foreach)
        for step in range(20):
            set_gradients(half, step)
            for tensor, twin in zip(tensors, half, strict=True):
                tensor.grad = twin.grad.to(tensor.dtype)
            optimizer.step()
        assert all(optimizer.state[tensor]["r"].dtype == torch.float32 for tensor in tensors)
    for a, b in zip(half, full, strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a.float(), b.detach(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("size", [60000.0, 1e-6, 0.0], ids=["large", "small", "zero"])
@pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "loop"])
@pytest.mark.parametrize("scope", SCOPES)
def test_float16_gradients_neither_overflow_nor_underflow(scope, foreach, size):
    """60000^2 overflows float16, and so does the factor of the average after a gradient of about zero."""
    x = nn.Parameter(torch.zeros(100, dtype=torch.float16))
    optimizer = ScalarAdam([x], lr=1.0, betas=(0.0, 0.999), scope=scope, foreach=foreach)
    x.grad = torch.full_like(x, size)
    norm = 10 * x.grad[0].item()
    optimizer.step()
    assert optimizer.state[x]["r"].item() == pytest.approx(0.001 * norm**2, rel=1e-3)
    assert x.tolist() == pytest.approx([-0.1 * norm / (norm + 1e-8)] * 100, rel=2e-3)


def test_parameters_of_several_dtypes_share_one_r():
    mixed = [nn.Parameter(torch.zeros(4, dtype=dtype)) for dtype in (torch.bfloat16, torch.float32, torch.float64)]
    optimizer = ScalarAdam(mixed, lr=1.0)
    for tensor in mixed:
        tensor.grad = torch.full_like(tensor, 2.0)
    optimizer.step()
    assert {id(optimizer.state[tensor]["r"]) for tensor in mixed} == {id(optimizer.state[mixed[0]]["r"])}
    for tensor in mixed:
        assert tensor.tolist() == pytest.approx([-2 / math.sqrt(48)] * 4, rel=4e-3)


# Kernels


class Calls(TorchDispatchMode):
    """Counts operator calls; fails on those that copy a value to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket is not torch.ops.aten._local_scalar_dense, "the host waits for the device"
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "loop"])
@pytest.mark.parametrize("capturable", [False, True], ids=["", "capturable"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("scope", SCOPES)
def test_a_step_does_not_synchronize_with_the_host(scope, scale, capturable, foreach):
    tensors = parameters()
    rate = torch.tensor(0.1)
    options = {"weight_decay": 0.1, "capturable": capturable, "foreach": foreach}
    optimizer = ScalarAdam(groups(tensors), lr=rate, scope=scope, scale=scale, **options)
    for step in range(3):
        set_gradients(tensors, step, missing=(1,) if step == 1 else ())
        with Calls():
            optimizer.step()
    with pytest.raises(AssertionError, match="the host waits"), Calls():
        rate.item()


@with_fake_gpus
@pytest.mark.parametrize("foreach", [True, False], ids=["foreach", "loop"])
@pytest.mark.parametrize("capturable", [False, True], ids=["", "capturable"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("scope", SCOPES)
def test_groups_on_two_gpus_share_one_r_without_synchronizing(scope, scale, capturable, foreach):
    """With fake tensors, which raise when devices are mixed or a value is read."""
    with FakeTensorMode():
        tensors = [nn.Parameter(torch.ones(3, 2, device=f"cuda:{i // 2}")) for i in range(4)]
        options = {"scope": scope, "scale": scale, "capturable": capturable, "foreach": foreach, "weight_decay": 0.1}
        optimizer = ScalarAdam(groups(tensors, {"lr": 0.1}, {"lr": torch.tensor(0.1)}), **options)
        for step in range(3):
            for tensor in tensors:
                tensor.grad = torch.ones_like(tensor)
            if step == 1:
                tensors[3].grad = None
            optimizer.step()
        for tensor in tensors:
            state = optimizer.state[tensor]
            assert state["r"].device == tensor.device
            assert state["step"].device == (tensor.device if capturable else torch.device("cpu"))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("scope", SCOPES)
def test_the_number_of_operators_does_not_depend_on_the_number_of_tensors(scope, scale):
    """Also after loading a checkpoint in which states share no tensors."""
    counts = []
    for number in (3, 40):
        tensors = [nn.Parameter(torch.ones(2, 2)) for _ in range(number)]
        optimizer = ScalarAdam(tensors, scope=scope, scale=scale, weight_decay=0.1)
        for tensor in tensors:
            tensor.grad = torch.ones_like(tensor)
        for _ in range(2):
            optimizer.step()
            with Calls() as calls:
                optimizer.step()
            counts.append(calls.count)
            saved = optimizer.state_dict()
            saved["state"] = {i: {k: v.clone() for k, v in one.items()} for i, one in saved["state"].items()}
            optimizer.load_state_dict(saved)
    assert len(set(counts)) == 1
    assert counts[0] < 40


@with_fake_gpus
def test_cuda_graph_capture_needs_capturable(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with FakeTensorMode():
        x = nn.Parameter(torch.ones(2, device="cuda"))
        x.grad = torch.ones_like(x)
        ScalarAdam([x], capturable=True).step()
        with pytest.raises(UserError, match="capturable=True"):
            ScalarAdam([x]).step()
