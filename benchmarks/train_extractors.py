"""Trains the feature extractors in `zoo/weights/` and prints what their distances mean.

    python benchmarks/train_extractors.py digits
    python benchmarks/train_extractors.py fashion_mnist --root data
    python benchmarks/train_extractors.py cifar10_jpeg --cifar10_jpeg data/cifar10-jpeg
    python benchmarks/train_extractors.py digits fashion_mnist --root data --evaluate

Trained on the training split alone, seed 0, no checkpoint chosen; the test split only measures. The same seed, torch
build, kind of CPU and number of threads (1 by default) give the same file. CIFAR-10 is read as a folder of JPEG files,
train/<class>/*.jpg and test/<class>/*.jpg: JPEG has taken some detail, so its accuracy does not compare with published
ones. For every extractor are printed: the test accuracy; the effective number of feature dimensions; the floor, which
is the Fréchet distance of training images against test images at equal n, and which a generator that has learned the
distribution, not the images, cannot be expected to fall below; and the distance of test images with Gaussian noise
(standard deviation in units of the range [-1, 1]), as a sense of scale.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save as save_bytes
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR

import zoo
from zoo.datamodules.base import to_unit_range
from zoo.metrics.features import EXTRACTORS, FeatureExtractor, load_extractor
from zoo.metrics.frechet import FrechetDistance

WEIGHTS = Path(zoo.__file__).parent / "weights"


@dataclass(frozen=True)
class Recipe:
    """How one extractor is built and trained.

    `shift` is the augmentation's largest translation, in pixels. `decorrelation` weighs the mean squared correlation of
    two features in the loss (Cogswell et al., 2016, arXiv 1511.06068). Without it the features of a well-trained
    classifier collapse into the nine directions that tell ten classes apart, and see little of what differs within a
    class.
    """

    in_channels: int
    size: int
    stages: tuple[tuple[int, ...], ...]
    epochs: int
    batch_size: int
    shift: int
    flip: bool
    floor_sizes: tuple[int, ...]
    learning_rate: float = 5e-3
    decorrelation: float = 1.0
    weight_decay: float = 0.05


# Photographs may be mirrored; digits may not, and the shoes of Fashion-MNIST all point to the left, which a feature
# that judges generated images should see.
RECIPES = {
    "digits": Recipe(1, 8, ((32,), (64, 64)), 40, 64, shift=1, flip=False, floor_sizes=(297,)),
    "fashion_mnist": Recipe(1, 28, ((16,), (32, 32), (64, 64)), 7, 128, shift=2, flip=False, floor_sizes=(1000, 5000)),
    "cifar10_jpeg": Recipe(
        3, 32, ((24,), (48,), (96, 96), (64,)), 7, 128, shift=3, flip=True, floor_sizes=(1000, 5000)
    ),
}

Split = tuple[Tensor, Tensor]  # images in [-1, 1], float (N, C, H, W); labels, int64 (N,)


def read_data(name: str, args: argparse.Namespace) -> tuple[Split, Split]:
    """Training and test split of the set `name`, both in random order."""
    if name == "cifar10_jpeg":
        if args.cifar10_jpeg is None:
            raise SystemExit("cifar10_jpeg needs --cifar10_jpeg DIR, the folder that holds train/ and test/")
        return read_folder(args.cifar10_jpeg / "train"), read_folder(args.cifar10_jpeg / "test")
    from zoo.datamodules.digits import Digits
    from zoo.datamodules.torchvision_sets import FashionMNIST

    data = Digits() if name == "digits" else FashionMNIST(root=str(args.root))
    data.prepare_data()
    data.setup()
    return data.split("train"), data.split("test")


def read_folder(folder: Path) -> Split:
    """Images <class>/*.jpg below `folder`, shuffled."""
    from torchvision.io import decode_jpeg, read_file

    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    paths = [(path, label) for label, name in enumerate(names) for path in sorted((folder / name).glob("*.jpg"))]
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0))
    x = torch.stack([decode_jpeg(read_file(str(path))) for path, _ in paths])[order]
    y = torch.tensor([label for _, label in paths])[order]
    return to_unit_range(x), y


def augment(x: Tensor, shift: int, flip: bool) -> Tensor:
    """Translates every image of `x` (N, C, H, W) by up to `shift` pixels, and mirrors half of them if `flip`."""
    n, _, height, width = x.shape
    x = F.pad(x, [shift] * 4, value=-1.0) if x.shape[1] == 1 else F.pad(x, [shift] * 4, mode="reflect")
    rows = torch.randint(2 * shift + 1, (n, 1)) + torch.arange(height)
    columns = torch.randint(2 * shift + 1, (n, 1)) + torch.arange(width)
    if flip:
        columns = torch.where(torch.rand(n, 1) < 0.5, columns.flip(1), columns)
    return x[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def batches(x: Tensor, y: Tensor, recipe: Recipe) -> Iterator[Split]:
    """One epoch of augmented batches."""
    for index in torch.randperm(len(x)).split(recipe.batch_size):
        if len(index) == recipe.batch_size:
            yield augment(x[index], recipe.shift, recipe.flip), y[index]


def train(recipe: Recipe, x: Tensor, y: Tensor) -> FeatureExtractor:
    """The trained extractor, in eval mode, with its `scale` set; `x` (N, C, H, W), `y` (N,)."""
    torch.manual_seed(0)
    net = FeatureExtractor(recipe.in_channels, recipe.size, recipe.stages).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    steps_per_epoch = len(x) // recipe.batch_size
    scheduler = OneCycleLR(optimizer, recipe.learning_rate, total_steps=recipe.epochs * steps_per_epoch)
    start = time.perf_counter()
    for epoch in range(recipe.epochs):
        total = torch.zeros(())
        for images, labels in batches(x, y, recipe):
            pooled = net.body(images.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(net.head(pooled), labels) + recipe.decorrelation * redundancy(pooled)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.detach()
        seconds = time.perf_counter() - start
        loss = total / steps_per_epoch
        print(f"  epoch {epoch + 1:2d}/{recipe.epochs}  loss {loss:.4f}  {seconds:.0f} s", flush=True)
    net.eval().requires_grad_(False)
    net.scale.fill_(features(net, x).var(dim=0).mean().rsqrt())
    return net.to(memory_format=torch.contiguous_format)


def redundancy(x: Tensor) -> Tensor:
    """Mean squared correlation of two different features of `x` (N, d), a scalar."""
    # The small number is for features that are constant over the batch.
    standardized = (x - x.mean(dim=0)) / (x.std(dim=0, correction=0) + 1e-3)
    correlation = standardized.T @ standardized / len(x)
    d = x.shape[1]
    return (correlation.square().sum() - correlation.diagonal().square().sum()) / (d * (d - 1))


def save(net: FeatureExtractor, path: Path) -> None:
    """Writes the weights, kernels in half precision, with the network's configuration in the metadata."""
    weights = {key: value.half() if value.ndim == 4 else value for key, value in net.state_dict().items()}
    # Not `save_file`: its files are readable by their owner alone, and so would the installed ones be.
    path.write_bytes(save_bytes(weights, metadata={"config": json.dumps(net.config)}))


def features(net: FeatureExtractor, x: Tensor) -> Tensor:
    """Features, float64 (N, d), of the images `x` (N, C, H, W)."""
    return torch.cat([net(part) for part in x.split(500)]).double()


def distance(net: FeatureExtractor, x: Tensor, other: Tensor) -> float:
    """Fréchet distance of the images `x` from `other`, both (N, C, H, W)."""
    metric = FrechetDistance(net)
    for images, real in ((x, True), (other, False)):
        for part in images.split(500):
            metric.update(part, real=real)
    return float(metric.compute())


def evaluate(name: str, train_split: Split, test_split: Split) -> None:
    """Prints everything that there is to know of the shipped extractor `name`."""
    net = load_extractor(name)
    size = (WEIGHTS / f"{name}.safetensors").stat().st_size
    (x, _), (x_test, y_test) = train_split, test_split
    predicted = torch.cat([net.logits(part).argmax(1) for part in x_test.split(500)])
    accuracy = (predicted == y_test).float().mean()
    spectrum = torch.linalg.eigvalsh(features(net, x).T.cov()).clamp_min(0)
    dimensions = spectrum.sum().square() / spectrum.square().sum()
    print(f"{name}: test accuracy {accuracy:.2%}, {size / 1000:.0f} kB, sha256 {net.sha256[:8]}")
    print(f"  sum of variances {spectrum.sum():.2f}, participation ratio {dimensions:.1f} of {net.num_features}")
    for n in RECIPES[name].floor_sizes:
        reference, test = x[:n], x_test[:n]
        row = [f"train against test {distance(net, reference, test):.3f}"]
        for std in (0.2, 0.5):
            noise = torch.randn(test.shape, generator=torch.Generator().manual_seed(0))
            noisy = (test + std * noise).clamp(-1, 1)
            row.append(f"noise {std} against clean {distance(net, test, noisy):.2f}")
        print(f"  n {n}: {', '.join(row)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", choices=EXTRACTORS)
    parser.add_argument("--root", type=Path, default=Path("data"), help="of Fashion-MNIST, in torchvision's layout")
    parser.add_argument("--cifar10_jpeg", type=Path, help="folder of JPEG files, with train/ and test/")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--evaluate", action="store_true", help="measure the weights that are there; train nothing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.sets:
        train_split, test_split = read_data(name, args)
        if not args.evaluate:
            print(f"{name}: {len(train_split[0])} training images, {len(test_split[0])} test images")
            path = WEIGHTS / f"{name}.safetensors"
            save(train(RECIPES[name], *train_split), path)
            print(f"  wrote {path.name}, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:8]}")
        evaluate(name, train_split, test_split)


if __name__ == "__main__":
    main()
