"""Data of one's own: drawn circles, squares and triangles, in a LightningDataModule that knows nothing of the zoo."""

from __future__ import annotations

import math

import torch
from lightning.pytorch import LightningDataModule
from PIL import Image, ImageDraw
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.functional import to_tensor

SIZE = 16  # pixels on a side
CORNERS = (60, 4, 3)  # of a circle, a square and a triangle


def draw_shape(corners: int, x: float, y: float, radius: float, angle: float) -> Image.Image:
    """A white regular polygon on black, 16x16 pixels, antialiased. Position and radius are in pixels."""
    turns = [angle + 2 * math.pi * k / corners for k in range(corners)]
    polygon = [(4 * (x + radius * math.cos(a)), 4 * (y + radius * math.sin(a))) for a in turns]
    image = Image.new("L", (4 * SIZE, 4 * SIZE))
    ImageDraw.Draw(image).polygon(polygon, fill=255)
    return image.resize((SIZE, SIZE), Image.Resampling.BOX)


def draw_split(n: int, seed: int) -> TensorDataset:
    """Images (n, 1, 16, 16) in [-1, 1] and their classes, int64 (n,)."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(len(CORNERS), (n,), generator=generator)
    random = torch.rand(n, 4, generator=generator) * torch.tensor([3.0, 3.0, 2.0, 0.6])
    places = (random + torch.tensor([6.5, 6.5, 4.5, -math.pi / 2 - 0.3])).tolist()  # center, radius, angle
    images = [draw_shape(CORNERS[label], *place) for label, place in zip(y.tolist(), places, strict=True)]
    return TensorDataset(torch.stack([to_tensor(image) for image in images]) * 2 - 1, y)


class Shapes(LightningDataModule):
    """Circles, squares and triangles of random size, place and tilt: all that a model must have.

    Args:
        train_size: number of training images.
        batch_size: images per batch.
    """

    input_shape = (1, SIZE, SIZE)
    num_classes = 3

    def __init__(self, train_size: int = 4000, batch_size: int = 128) -> None:
        super().__init__()
        self.train_size, self.batch_size = train_size, batch_size

    def setup(self, stage: str) -> None:
        sizes = {"train": self.train_size, "val": 500, "test": 500}
        self.splits = {name: draw_split(size, seed) for seed, (name, size) in enumerate(sizes.items())}

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.splits["train"], self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.splits["val"], 250)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.splits["test"], 250)


class ComparableShapes(Shapes):
    """The same with what a diffusion model is measured by: training samples, and whole splits."""

    class_names = ("circle", "square", "triangle")

    def reference(self, n: int) -> Tensor:
        """Training images (n, 1, 16, 16), the same at every call: `zoo.contracts.ReferenceSamples`."""
        return self.splits["train"].tensors[0][:n]

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """Images and classes of "train", "val" or "test": `zoo.contracts.WholeSplits`."""
        x, y = self.splits[name].tensors
        return x, y
