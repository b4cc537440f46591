"""Training of the feature extractors in `zoo/weights/`, and measurements that tell what their distances mean. Usage:

    python -m benchmarks.train_extractors digits
    python -m benchmarks.train_extractors fashion_mnist --root data
    python -m benchmarks.train_extractors cifar10_jpeg --cifar10_jpeg data/cifar10-jpeg
    python -m benchmarks.train_extractors digits fashion_mnist --root data --evaluate

Trained on the training split with seed 0, without checkpoint selection; the test split is only measured. The same seed,
torch build, kind of CPU and number of threads give the same file. CIFAR-10 is read from a folder of JPEG files,
train/<class>/*.jpg and test/<class>/*.jpg; JPEG removes detail, so its accuracy does not compare with published ones.

Printed for each extractor: the test accuracy; the effective number of feature dimensions (participation ratio); the
floor, which is the Fréchet distance of training images from test images at equal n, and the lowest distance to expect
of a generator that has learned the distribution but not the images; and, as a scale, the distance of test images with
Gaussian noise, whose standard deviation is in units of the range [-1, 1].
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save as save_bytes
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR

import zoo
from benchmarks.common import frechet, image_data
from benchmarks.output import new_parser
from zoo.datamodules.base import to_unit_range
from zoo.metrics.features import EXTRACTORS, FeatureExtractor

WEIGHTS = Path(zoo.__file__).parent / "weights"


@dataclass(frozen=True)
class Recipe:
    """Network and training of one extractor.

    `decorrelation` penalizes correlated features (Cogswell et al., 2016, arXiv 1511.06068). Without it the features of
    a well-trained classifier collapse into the nine directions that separate ten classes, and tell little about the
    differences within a class.

    Args:
        in_channels: channels of the images.
        size: height and width of the images, in pixels.
        stages: channels of the convolutions of each stage.
        epochs: number of epochs.
        batch_size: images per batch.
        shift: maximum translation of the augmentation, in pixels.
        flip: random flips in the augmentation.
        floor_sizes: numbers of images n for which the floor is measured.
        learning_rate: maximum of the one-cycle schedule.
        decorrelation: weight of the mean squared correlation of two features in the loss.
        weight_decay: weight decay of AdamW.
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


# Only photographs are flipped: mirrored digits are other characters, and the shoes of Fashion-MNIST all point to the
# left, which the features should see.
RECIPES = {
    "digits": Recipe(1, 8, ((32,), (64, 64)), 40, 64, shift=1, flip=False, floor_sizes=(297,)),
    "fashion_mnist": Recipe(1, 28, ((16,), (32, 32), (64, 64)), 7, 128, shift=2, flip=False, floor_sizes=(1000, 5000)),
    "cifar10_jpeg": Recipe(
        3, 32, ((24,), (48,), (96, 96), (64,)), 7, 128, shift=3, flip=True, floor_sizes=(1000, 5000)
    ),
}

Split = tuple[Tensor, Tensor]  # images in [-1, 1], float (N, C, H, W); labels, int64 (N,)


def read_data(name: str, options: argparse.Namespace) -> tuple[Split, Split]:
    """Training and test split of a dataset, both shuffled."""
    if name == "cifar10_jpeg":
        return read_folder(options.cifar10_jpeg / "train"), read_folder(options.cifar10_jpeg / "test")
    data = image_data(None if name == "digits" else options.root)
    data.prepare_data()
    data.setup()
    return data.split("train"), data.split("test")


def read_folder(folder: Path) -> Split:
    """Images <class>/*.jpg in a folder, shuffled."""
    from torchvision.io import decode_jpeg, read_file

    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    paths = [(path, label) for label, name in enumerate(names) for path in sorted((folder / name).glob("*.jpg"))]
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0))
    x = torch.stack([decode_jpeg(read_file(str(path))) for path, _ in paths])[order]
    y = torch.tensor([label for _, label in paths])[order]
    return to_unit_range(x), y


def augment(x: Tensor, shift: int, flip: bool) -> Tensor:
    """Shifts each image of `x` (N, C, H, W) by up to `shift` pixels, and flips half of them if `flip`."""
    n, _, height, width = x.shape
    x = F.pad(x, [shift] * 4, value=-1.0) if x.shape[1] == 1 else F.pad(x, [shift] * 4, mode="reflect")
    rows = torch.randint(2 * shift + 1, (n, 1)) + torch.arange(height)
    columns = torch.randint(2 * shift + 1, (n, 1)) + torch.arange(width)
    if flip:
        columns = torch.where(torch.rand(n, 1) < 0.5, columns.flip(1), columns)
    return x[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def batches(x: Tensor, y: Tensor, recipe: Recipe) -> Iterator[Split]:
    """Augmented batches of one epoch."""
    for index in torch.randperm(len(x)).split(recipe.batch_size):
        if len(index) == recipe.batch_size:
            yield augment(x[index], recipe.shift, recipe.flip), y[index]


def train(recipe: Recipe, x: Tensor, y: Tensor) -> FeatureExtractor:
    """Trains an extractor on images `x` (N, C, H, W) and labels `y` (N,); returns it in eval mode, with `scale` set."""
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
    # 1e-3 keeps features that are constant over the batch finite.
    standardized = (x - x.mean(dim=0)) / (x.std(dim=0, correction=0) + 1e-3)
    correlation = standardized.T @ standardized / len(x)
    d = x.shape[1]
    return (correlation.square().sum() - correlation.diagonal().square().sum()) / (d * (d - 1))


def save(net: FeatureExtractor, path: Path) -> None:
    """Writes the weights, kernels in half precision, with the network's arguments in the metadata."""
    weights = {key: value.half() if value.ndim == 4 else value for key, value in net.state_dict().items()}
    # `save_file` would make the file readable by its owner only.
    path.write_bytes(save_bytes(weights, metadata={"config": json.dumps(net.config)}))


def read(path: Path) -> FeatureExtractor:
    """Reads an extractor that `save` wrote, in eval mode."""
    with safe_open(path, framework="pt") as file:
        net = FeatureExtractor(**json.loads(file.metadata()["config"]))
        net.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118, it is no mapping
    return net.eval().requires_grad_(False)


def features(net: FeatureExtractor, x: Tensor) -> Tensor:
    """Features, float64 (N, d), of images `x` (N, C, H, W)."""
    return torch.cat([net(part) for part in x.split(500)]).double()


def evaluate(name: str, path: Path, train_split: Split, test_split: Split) -> None:
    """Prints accuracy, dimensions and distances of the extractor in a file."""
    net = read(path)
    (x, _), (x_test, y_test) = train_split, test_split
    predicted = torch.cat([net.logits(part).argmax(1) for part in x_test.split(500)])
    accuracy = (predicted == y_test).float().mean()
    spectrum = torch.linalg.eigvalsh(features(net, x).T.cov()).clamp_min(0)
    dimensions = spectrum.sum().square() / spectrum.square().sum()
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    print(f"{name}: test accuracy {accuracy:.2%}, {path.stat().st_size / 1000:.0f} kB, sha256 {sha256}")
    print(f"  sum of variances {spectrum.sum():.2f}, participation ratio {dimensions:.1f} of {net.num_features}")
    for n in RECIPES[name].floor_sizes:
        reference, test = x[:n], x_test[:n]
        row = [f"training from test images {frechet(net, reference, test):.3f}"]
        for std in (0.2, 0.5):
            noise = torch.randn(test.shape, generator=torch.Generator().manual_seed(0))
            noisy = (test + std * noise).clamp(-1, 1)
            row.append(f"noise {std} {frechet(net, test, noisy):.2f}")
        print(f"  Fréchet distance at n {n}: {', '.join(row)}")


def main(args: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("sets", nargs="+", choices=EXTRACTORS, help="extractors, by the dataset of their training")
    parser.add_argument("--root", default="data", help="folder of Fashion-MNIST in torchvision's layout")
    parser.add_argument("--cifar10_jpeg", type=Path, help="folder of JPEG files, with train/ and test/")
    parser.add_argument("--epochs", type=int, help="epochs of the training (default: the extractor's own)")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder of the weights")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--evaluate", action="store_true", help="measure the existing weights without training")
    options = parser.parse_args(args)
    if "cifar10_jpeg" in options.sets and options.cifar10_jpeg is None:
        parser.error("cifar10_jpeg needs --cifar10_jpeg, the folder that holds train/ and test/")
    torch.set_num_threads(options.threads)
    for name in options.sets:
        recipe = RECIPES[name] if options.epochs is None else replace(RECIPES[name], epochs=options.epochs)
        path = options.out / f"{name}.safetensors"
        train_split, test_split = read_data(name, options)
        if not options.evaluate:
            print(f"{name}: {len(train_split[0])} training images, {len(test_split[0])} test images")
            save(train(recipe, *train_split), path)
            print(f"  wrote {path}")
        evaluate(name, path, train_split, test_split)


if __name__ == "__main__":
    main()
