"""Default optimizers of the models, as factories that take parameters or parameter groups."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer


def classifier_optimizer(parameters: Any) -> Optimizer:
    """Fused AdamW with a learning rate of 1e-3 and a weight decay of 0.01."""
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01, fused=True)


def diffusion_optimizer(parameters: Any) -> Optimizer:
    """Fused AdamW with a learning rate of 2e-3 and a weight decay of 0.01."""
    return torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01, fused=True)


def gan_optimizer(parameters: Any) -> Optimizer:
    """Fused Adam with a learning rate of 5e-4 and no momentum, which would amplify the oscillations of the game."""
    return torch.optim.Adam(parameters, lr=5e-4, betas=(0.0, 0.99), fused=True)


def language_model_optimizer(parameters: Any) -> Optimizer:
    """Fused AdamW with a learning rate of 1e-3, betas of (0.9, 0.99) and a weight decay of 0.1."""
    return torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=True)


def seq2seq_optimizer(parameters: Any) -> Optimizer:
    """Fused Adam with a learning rate of 1e-3 and the betas of Vaswani et al. 2017 (section 5.3)."""
    return torch.optim.Adam(parameters, lr=1e-3, betas=(0.9, 0.98), eps=1e-9, fused=True)
