"""Images that several tests measure."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from zoo.datamodules import Digits, FashionMNIST


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    """The 297 test digits and their labels."""
    data = Digits()
    data.setup("test")
    return data.split("test")


@pytest.fixture(scope="session")
def fashion_mnist(shared_data: Path) -> tuple[Tensor, Tensor]:
    """The first 1,000 test images of Fashion-MNIST, if it is in the folder of datasets."""
    if not (shared_data / "FashionMNIST").is_dir():
        pytest.skip(f"no FashionMNIST in {shared_data}")
    x, y = FashionMNIST(root=str(shared_data)).load_split(train=False)
    return x[:1000].float().div(127.5).sub(1), y[:1000]
