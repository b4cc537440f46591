"""A diffusion model of a known density, trained once."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch import seed_everything

from tests.helpers.networks import residual_mlp
from tests.unit.models.diffusion.small import fit
from zoo import Diffusion
from zoo.datamodules import Points

TEMPERATURE = 2.0


@pytest.fixture(scope="session")
def mixture_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Checkpoint of a model of the one-dimensional mixture `gaussians`."""
    seed_everything(1, verbose=False)
    model = Diffusion(
        (1,), network=residual_mlp(64, 2), ema_half_life=20_000, temperature=TEMPERATURE, excess_samples=0
    )
    data = Points("gaussians", num_train=20_000, batch_size=512)
    path: Path = tmp_path_factory.mktemp("mixture") / "mixture.ckpt"
    fit(model, 400, data).save_checkpoint(path)
    return str(path)
