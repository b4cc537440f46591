"""Checks of what a model does without a Trainer: samples and predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from zoo.contracts import (
    ClassPrediction,
    Decoding,
    Generative,
    Interpolating,
    LatentSpace,
    PredictiveClassifier,
    Trajectories,
    accepts,
    is_conditional,
    lacking,
    offers,
)
from zoo.seeding import capture_random_state
from zoo.testing.answers import difference, explained, first_of, holds

N = 6  # samples that are drawn


def check_samples(name: str, model: Any, data: Any) -> None:
    """Samples have the right shape and range, are reproducible, and leave training untouched."""
    if not offers(model, Generative):
        return
    sample = cast(Any, model.sample)  # with arguments of its own
    labels = torch.arange(N) % model.num_classes if is_conditional(model) else None
    remedy = "sample takes n and the keyword arguments labels and generator, and needs no Trainer"
    with explained(f"{name} does not sample", remedy):
        first = _untouched(name, model, lambda: sample(N, labels=labels, generator=_generator()))
        second = sample(N, labels=labels, generator=_generator())
    _check_samples(name, model, data, first)
    holds(
        torch.equal(first, second), f"{name} draws other samples from the same generator; draw from it and nothing else"
    )
    if accepts(sample, "seeds"):
        seeds = torch.arange(N)
        with explained(f"{name} does not sample by seeds", "seeds is int64 (n,), a seed for each sample"):
            whole = sample(N, labels=labels, seeds=seeds)
            part = sample(2, labels=None if labels is None else labels[2:4], seeds=seeds[2:4])
        close = torch.allclose(whole[2:4], part, rtol=1e-3, atol=1e-3)
        holds(close, f"{name} draws other samples by the same seeds in another batch; use zoo.seeding.SampleNoise")
    _check_histories(name, model, data)


def _check_samples(name: str, model: Any, data: Any, samples: Tensor) -> None:
    """Shape, range and gradient of samples."""
    holds(not samples.requires_grad, f"{name} draws samples with gradients; use torch.no_grad in sample")
    if offers(model, Decoding):
        whole = samples.ndim == 2 and len(samples) == N and not samples.is_floating_point()
        holds(whole, f"{name} draws {_described(samples)}; return tokens, int64 ({N}, T) for n={N}")
        texts = model.decode(samples)
        right = isinstance(texts, list) and len(texts) == N and all(isinstance(text, str) for text in texts)
        holds(right, f"{name} does not decode {N} samples to {N} strings; decode(tokens) returns a list of str")
        return
    shape = (N, *data.input_shape)
    holds(
        samples.shape == shape and samples.is_floating_point(),
        f"{name} draws {_described(samples)}; return floats {shape} for n={N}",
    )
    holds(samples.isfinite().all(), f"{name} draws samples with NaN or Inf; check them without training")
    if len(data.input_shape) == 3:
        low, high = samples.min().item(), samples.max().item()
        holds(low >= -1 and high <= 1, f"{name} draws images from {low:.3g} to {high:.3g}; clamp them to [-1, 1]")


def _check_histories(name: str, model: Any, data: Any) -> None:
    """Shapes of trajectories and interpolations, if the model has them."""
    labels = torch.zeros(2, dtype=torch.int64) if is_conditional(model) else None
    shape = tuple(data.input_shape)
    if offers(model, Trajectories):
        options = {"frames": 3} if accepts(model.trajectory, "frames") else {}
        with explained(f"{name} has no trajectory of two samples", "trajectory takes n, labels and generator"):
            states = model.trajectory(2, labels=labels, generator=_generator(), **options)
        inner = ", ".join(map(str, shape))
        right = states.ndim == len(shape) + 2 and states.shape[1:] == (2, *shape)
        holds(right, f"{name} has a trajectory of {_described(states)}; return (frames, 2, {inner}) for n=2")
    if offers(model, Interpolating):
        with explained(f"{name} does not interpolate", "interpolate takes rows, steps, labels and generator"):
            between = model.interpolate(2, 3, labels=labels, generator=_generator())
        holds(between.shape == (2, 3, *shape), f"{name} interpolates {_described(between)}; return {(2, 3, *shape)}")
    if offers(model, LatentSpace):
        remedy = "sample_latents takes what seeded_latents(seeds) returns, and labels"
        with explained(f"{name} does not sample latent vectors", remedy):
            latents = model.seeded_latents(torch.tensor([1, 2]))
            decoded = model.sample_latents(latents, labels=labels)
        holds(latents.ndim == 2 and len(latents) == 2, f"{name} has latents {_described(latents)}; return (2, D) for 2")
        holds(decoded.shape == (2, *shape), f"{name} makes {_described(decoded)} of 2 latents; return {(2, *shape)}")


def check_predictions(name: str, model: Any, data: Any) -> None:
    """A classifier's prediction has probabilities and uncertainties, and leaves training untouched."""
    if not offers(model, PredictiveClassifier):
        return
    x = torch.rand(N, *data.input_shape, generator=_generator()) * 2 - 1
    with explained(f"{name} does not predict", "predictive(x, places) takes samples and needs no Trainer"):
        first = _untouched(name, model, lambda: model.predictive(x, torch.arange(N)))
        second = model.predictive(x, torch.arange(N))
    missing = lacking(first, ClassPrediction)
    holds(not missing, f"{name} predicts without {first_of(missing)}; return a zoo.contracts.ClassPrediction")
    p = first.probabilities
    total = p.shape == (N, data.num_classes) and torch.allclose(p.sum(1), torch.ones(N), atol=1e-4) and (p >= 0).all()
    holds(total, f"{name} predicts {_described(p)}; return probabilities ({N}, {data.num_classes}) with rows of sum 1")
    for part in ("entropy", "mutual_information"):
        value = getattr(first, part)
        right = value.shape == (N,) and value.isfinite().all() and (value >= -1e-5).all()
        holds(right, f"{name} predicts {part} {_described(value)}; return {N} numbers of 0 or more, in nats")
    holds(
        torch.equal(p, second.probabilities),
        f"{name} predicts something else for the same samples; seed its masks",
    )


# Parts


def _untouched(name: str, model: Any, call: Callable[[], Any]) -> Any:
    """Calls a function that must change neither modes, parameters nor the global random state."""
    modes = {n: m.training for n, m in model.named_modules()}
    state = {n: v.clone() if isinstance(v, Tensor) else v for n, v in model.state_dict().items()}
    grads = {n: p.requires_grad for n, p in model.named_parameters()}
    random = capture_random_state(torch.device("cpu"))
    result = call()
    changed = [n or "the model" for n, m in model.named_modules() if m.training != modes[n]]
    holds(not changed, f"{name} leaves {first_of(changed)} in another mode; use zoo.models.base.eval_mode")
    library = (difference(random, capture_random_state(torch.device("cpu"))) or "").split(".")[0]
    holds(not library, f"{name} changes the global random state of {library}; draw from the generator or by seeds")
    different = difference(state, dict(model.state_dict()))
    holds(different is None, f"{name} changes {different} by sampling or predicting; change nothing but in training")
    changed = [n for n, p in model.named_parameters() if p.requires_grad != grads[n]]
    holds(not changed, f"{name} leaves {first_of(changed)} with another requires_grad; restore it")
    return result


def _described(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)
