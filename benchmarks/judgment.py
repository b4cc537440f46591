"""Whether figures that are measured again agree with those on record.

With a spread on record, the mean of m new seeds must lie in the 95% prediction interval that n old seeds give it,

    mean ± t(n - 1) · std · sqrt(1/n + 1/m),

with the 97.5% quantile t of Student's t distribution with n - 1 degrees of freedom: 4.30 for three seeds. The interval
holds for seeds of both sides that are independent draws from one normal distribution; if all is equal, one metric in 20
falls outside of it. Rounding of what is on record widens it by half a unit of the last digit. What a finite
number of samples adds to a Fréchet distance is in the spread over the seeds, which draw different samples. Where the
standard deviation of that noise is on record (`noise`), a smaller spread, which few seeds can have by chance, is taken
for it.

With one value on record there is no spread, and the new mean may differ by a share of it, the `tolerance` of the
record or `TOLERANCE`, and by twice the noise. Of a range (`34 to 38`) both ends count.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.records import Metric

LEVEL = 0.95  # of the prediction interval
TOLERANCE = 0.1  # of a single value, relative


@dataclass(frozen=True)
class Judgment:
    """An interval for a new mean, and the mean.

    Attributes:
        mean: mean of the new values.
        low, high: ends of the interval.
        rule: where the interval comes from.
    """

    mean: float
    low: float
    high: float
    rule: str

    @property
    def agrees(self) -> bool:
        """Whether the mean lies in the interval."""
        return self.low <= self.mean <= self.high


def judge(old: Metric, new: Sequence[float], n: int, tolerance: float = TOLERANCE, noise: float = 0.0) -> Judgment:
    """Compares new values with a metric on record.

    Args:
        old: metric on record.
        new: value of each new seed.
        n: number of seeds on record.
        tolerance: relative tolerance where no spread is on record.
        noise: standard deviation of the sampling noise of one seed's value.
    """
    mean, m = statistics.mean(new), len(new)
    counts = bool(old.values) and not old.decimals  # whole numbers are not rounded
    rounding = 0.0 if counts else 0.5 * 10.0**-old.decimals
    if old.std is not None and n > 1:
        width = (
            t_quantile((1 + LEVEL) / 2, n - 1) * max(old.std + rounding, noise) * math.sqrt(1 / n + 1 / m) + rounding
        )
        rule = f"{LEVEL:.0%} prediction interval of {m} new from {n} old seeds"
    else:
        width = tolerance * abs(old.mean) + 2 * noise + rounding
        what = "a range" if old.low is not None else "one value"
        rule = f"{what} on record, ± {tolerance:.0%}{' and twice the sampling noise' if noise else ''}"
    low, high = (old.mean, old.mean) if old.low is None or old.high is None else (old.low, old.high)
    return Judgment(mean, low - width, high + width, rule)


def t_probability(t: float, freedom: int) -> float:
    """Probability that the absolute value of Student's t is at most `t`: Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = cosine if odd else 1.0, 0.0
    for power in range(odd, freedom - 1, 2):  # of the cosine
        if power > odd:
            term *= cosine**2 * (power - 1) / power
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def t_quantile(probability: float, freedom: int) -> float:
    """Value below which Student's t lies with a probability of more than a half."""
    low, high = 0.0, 1.0
    while t_probability(high, freedom) < 2 * probability - 1:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, freedom) < 2 * probability - 1 else (low, middle)
    return high
