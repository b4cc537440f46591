"""Adaptive integration of ordinary differential equations by the method of Dormand and Prince, of order 5(4).

Hairer, Nørsett and Wanner 1993, "Solving Ordinary Differential Equations I": coefficients of table II.5.2, step size
and first step of section II.4. The steps are those of SciPy's RK45, on the device of the state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Slope = Callable[[float, Tensor], Tensor]

NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
# The last row is the solution of order 5, so the last slope of a step is the first of the next.
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
# Weights of the solution of order 5 less those of order 4.
ERROR = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)

SAFETY = 0.9  # factor of the step at which the estimated error would be the tolerance
LEAST, MOST = 0.2, 10.0  # limits of the factor from one step to the next


def dormand_prince(slope: Slope, span: tuple[float, float], y: Tensor, rtol: float, atol: float) -> Tensor:
    """Solution of dy / dt = slope(t, y) at the end of a span, in the shape and dtype of the start.

    The root mean square over the whole state of the estimated error of a step, divided by `atol + rtol |y|`, is below
    1. The slope is evaluated twice at the start and six times in every step.

    Args:
        slope: derivative of the state, of the state's shape and dtype.
        span: first and last t, in either order.
        y: state at the first t, of any shape.
        rtol: relative tolerance.
        atol: absolute tolerance.

    Raises:
        ArithmeticError: the slope at the start is NaN or Inf, or the step has become too small for a float.
    """
    t, end = span
    k = slope(t, y)
    h = _first_step(slope, span, y, k, rtol, atol)
    rejected = False
    while t != end:
        if abs(h) < 10 * math.ulp(t):
            raise ArithmeticError(f"the step became too small at {t:.4g}")
        after = end if abs(h) >= abs(end - t) else t + h
        ahead, slopes = _step(slope, t, after - t, y, k)
        error = _norm((after - t) * _combine(ERROR, slopes), atol + rtol * torch.maximum(y.abs(), ahead.abs()))
        factor = min(MOST, max(LEAST, SAFETY * max(error, 1e-10) ** -0.2))
        h = (after - t) * (min(factor, 1.0) if rejected else factor)
        rejected = error >= 1
        if not rejected:
            t, y, k = after, ahead, slopes[-1]
    return y


def _first_step(slope: Slope, span: tuple[float, float], y: Tensor, k: Tensor, rtol: float, atol: float) -> float:
    """Length of the first step, with its sign: a step of Euler's method, 1% of the state, shows the curvature."""
    start, length = span[0], span[1] - span[0]
    scale = atol + rtol * y.abs()
    size, speed = _norm(y, scale), _norm(k, scale)
    if math.isinf(speed):
        raise ArithmeticError(f"the slope is NaN or Inf at {start:.4g}")
    trial = min(0.01 * size / speed if min(size, speed) > 1e-5 else 1e-6, abs(length))
    ahead = slope(start + math.copysign(trial, length), y + math.copysign(trial, length) * k)
    steepest = max(speed, _norm(ahead - k, scale) / trial)
    step = (0.01 / steepest) ** 0.2 if steepest > 1e-15 else max(1e-6, trial * 1e-3)
    return math.copysign(min(100 * trial, step, abs(length)), length)


def _step(slope: Slope, t: float, h: float, y: Tensor, k: Tensor) -> tuple[Tensor, list[Tensor]]:
    """State after a step of length h from t, where the slope is k, and the seven slopes on the way."""
    slopes, ahead = [k], y
    for node, weights in zip(NODES, STAGES, strict=True):
        ahead = y + h * _combine(weights, slopes)
        slopes.append(slope(t + node * h, ahead))
    return ahead, slopes


def _combine(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    total = torch.zeros_like(slopes[0])
    for weight, slope in zip(weights, slopes, strict=True):
        total = total.add(slope, alpha=weight)
    return total


def _norm(y: Tensor, scale: Tensor) -> float:
    """Root mean square of y / scale; Inf instead of NaN."""
    value = float((y / scale).square().mean().sqrt())
    return math.inf if math.isnan(value) else value
