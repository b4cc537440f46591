"""Times of training steps: recipes in three precisions beside bare loops, and single options on and off."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch._inductor import config as inductor_config

from benchmarks.gpu_day.loops import PRECISIONS, Meter, bare_loop, lightning_loop, transferred_batches, wait_for
from benchmarks.gpu_day.recipes import Setup, changed, set_up
from benchmarks.gpu_day.results import Options, Part

TIMED = ("gan.yaml", "diffusion.yaml", "resnet20.yaml", "vit.yaml", "shakespeare.yaml", "mlp.yaml", "seq2seq.yaml")
TURNS = 2


def step_parts(options: Options) -> dict[str, Part]:
    """For every recipe and precision: Lightning's loop and a bare one."""
    return {f"{r}, {precision}": partial(beside_bare, r, precision, options) for r in TIMED for precision in PRECISIONS}


def beside_bare(recipe: str, precision: str, options: Options) -> dict[str, Any]:
    """Times of Lightning's steps and of the bare loop's, and their ratio."""
    setup = set_up(recipe, options)
    lightning = lightning_loop(setup, options, precision, Meter(options))
    bare = bare_loop(setup, options, precision, Meter(options))
    times = {"Lightning": lightning, "bare": bare}
    found = {f"{name} {key}": value for key in lightning for name, value in ((n, t[key]) for n, t in times.items())}
    return {"ratio": round(lightning["ms_mean"] / bare["ms_mean"], 2), **found, "data": setup.source}


def option_parts(options: Options) -> dict[str, Part]:
    """Single options on and off."""
    found: dict[str, Part] = {}
    for recipe in ("resnet20.yaml", "shakespeare.yaml"):
        optimizers = {
            name: {"model": changed(recipe, "optimizer", **flags)}
            for name, flags in {
                "fused": {"fused": True, "foreach": None},
                "foreach": {"fused": None, "foreach": True},
                "neither": {"fused": None, "foreach": False},
            }.items()
        }
        found[f"optimizer, {recipe}"] = partial(compare, recipe, optimizers, "fp32", options)
    for recipe in ("gan.yaml", "diffusion.yaml", "vit.yaml"):
        averages = {name: {"model": {"ema_half_life": life}} for name, life in {"EMA": 20_000, "none": 0}.items()}
        found[f"EMA, {recipe}"] = partial(compare, recipe, averages, "TF32", options)
    formats = {
        name: {"model": {"channels_last": value}} for name, value in {"channels_last": True, "not": False}.items()
    }
    for precision in ("TF32", "bf16-mixed"):
        found[f"channels_last, resnet20.yaml, {precision}"] = partial(
            compare, "resnet20.yaml", formats, precision, options
        )
    on_device = "device" if options.device == "cuda" else "auto"  # which is refused on the CPU
    caches = {cache: {"data": {"cache": cache}} for cache in ("memory", on_device)}
    for recipe in ("resnet20.yaml", "mlp.yaml", "shakespeare.yaml"):
        found[f"cache, {recipe}"] = partial(compare, recipe, caches, "bf16-mixed", options)
        found[f"cache, batches of {recipe}"] = partial(batch_times, recipe, tuple(caches), options)
    for recipe in ("resnet20.yaml", "shakespeare.yaml"):
        for mode in ("default", "reduce-overhead"):
            found[f"compile {mode}, {recipe}"] = partial(compile_cost, recipe, mode, options)
    return found


def compare(recipe: str, variants: Mapping[str, Mapping[str, Any]], precision: str, options: Options) -> dict[str, Any]:
    """Median step times of variants of a recipe, trained by Lightning in turn."""
    setups = {name: set_up(recipe, options, **arguments) for name, arguments in variants.items()}
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in setups}
    for _ in range(options.steps(TURNS, 1)):
        for name, setup in setups.items():
            turns[name].append(lightning_loop(setup, options, precision, Meter(options, profiled=1)))
    keys = [key for key in ("device_ms", "ms_mean", "host_ms") if key in turns[next(iter(turns))][0]]
    medians = {
        f"{name} {key}": round(statistics.median(turn[key] for turn in found), 3)
        for key in keys
        for name, found in turns.items()
    }
    return {**medians, "data": next(iter(setups.values())).source}


def batch_times(recipe: str, caches: Sequence[str], options: Options) -> dict[str, Any]:
    """Microseconds in which a training batch is on the device, augmented and normalized, without a model."""
    found: dict[str, Any] = {}
    count, device = options.steps(300, 2), torch.device(options.device)
    for cache in caches:
        setup = set_up(recipe, options, data={"cache": cache})
        batches = transferred_batches(setup.data(), device)
        for number in range(2 * count):
            if number == count:
                wait_for(device)
                start = time.perf_counter()
            next(batches)
        wait_for(device)
        found[f"{cache} us"] = round(1e6 * (time.perf_counter() - start) / count, 1)
    return {**found, "data": setup.source}


def compile_cost(recipe: str, mode: str, options: Options) -> dict[str, Any]:
    """Seconds that compiling takes, and the number of steps after which it has paid, in a bare loop in bf16."""
    setup: Setup = set_up(recipe, options)
    how = {"backend": "eager"} if options.tiny else {"mode": mode}
    eager = bare_loop(setup, options, "bf16-mixed", Meter(options))
    torch._dynamo.reset()
    with inductor_config.patch(force_disable_caches=True):  # what another run has compiled is not read
        compiled = bare_loop(setup, options, "bf16-mixed", Meter(options), **how)
    cost, gain = compiled["startup_s"] - eager["startup_s"], (eager["ms_mean"] - compiled["ms_mean"]) / 1000
    return {
        "eager ms": eager["ms_mean"],
        "compiled ms": compiled["ms_mean"],
        "compile seconds": round(cost, 1),
        "steps until it pays": round(max(0.0, cost) / gain) if gain > 0 else "never",
        "data": setup.source,
    }
