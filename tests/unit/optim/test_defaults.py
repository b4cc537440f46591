"""The optimizers that models and recipes have by default: one kernel for all parameters where torch has one."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from zoo.optim import defaults
from zoo.registry import recipe_files

FUSED = (torch.optim.Adam, torch.optim.AdamW)


@pytest.mark.parametrize("name", [name for name in vars(defaults) if name.endswith("_optimizer")])
def test_default_optimizers_are_fused(name):
    optimizer = getattr(defaults, name)([nn.Parameter(torch.zeros(2))])
    assert isinstance(optimizer, FUSED)
    assert optimizer.defaults["fused"]


def optimizers(value: Any) -> Iterator[dict]:
    """Entries of Adam and AdamW in a configuration."""
    if isinstance(value, dict):
        if value.get("class_path") in [f"torch.optim.{kind.__name__}" for kind in FUSED]:
            yield value["init_args"]
        value = list(value.values())
    for inner in value if isinstance(value, list) else []:
        yield from optimizers(inner)


def test_optimizers_of_recipes_are_fused():
    found = {
        name: given for name, path in recipe_files().items() for given in optimizers(yaml.safe_load(path.read_text()))
    }
    assert len(found) > 8
    assert {name: given.get("fused") for name, given in found.items()} == dict.fromkeys(found, True)


@pytest.mark.parametrize("kind", FUSED)
def test_fused_optimizers_step_as_the_others_do_on_the_cpu(kind):
    torch.manual_seed(0)
    start = torch.randn(100)
    ends = []
    for fused in (False, True):
        parameter = nn.Parameter(start.clone())
        optimizer = kind([parameter], lr=0.01, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.1, fused=fused)
        for _ in range(20):
            parameter.grad = 2 * parameter.detach()
            optimizer.step()
        ends.append(parameter.detach())
    torch.testing.assert_close(*ends)
    assert not torch.allclose(ends[0], start, atol=0.05)
