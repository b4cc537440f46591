"""Sections of the tour, in the lecture's order. Each is a module `zoo.tour.NAME` with a function `draw`.

This module imports nothing heavy, so that `zoo tour` lists the sections in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.plotting.images import RGBImage

#: Summary of each section, by its name.
SECTIONS = {
    "attention": "heads of trained Transformers, the division by sqrt(d), order and distance",
    "optimizers": "gradient descent, momentum, mini-batches and Adam: force becomes velocity",
    "vanishing": "gradients by depth: activation functions, batch normalization, shortcuts",
    "residuals": "residual blocks and batch normalization: depth, what layers respond to, learning rates",
    "stopping": "early stopping: overfitting, weight decay in closed form, patience, the optimism of a minimum",
    "dropout": "dropout as bagging: masks, scaled weights and networks, and the rescaling by 1 / (1 - p)",
    "equilibrium": "the GAN's optimal discriminator, and a game that circles or converges",
    "backwards": "diffusion and its reversal: force, noise level, memorized training samples",
    "generation": "the learned force: samples, edits, and classification by the same model",
}


def find_section(name: str) -> Callable[..., RGBImage]:
    """The function that draws the figure of a section, (height, width, 3); its arguments are the section's options."""
    function: Callable[..., RGBImage] = import_module(f"zoo.tour.{name}").draw
    return function
