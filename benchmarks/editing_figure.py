"""Every edit that a diffusion model can make, before and after, as one figure.

The pictures are the first ones of their classes in the test split; nothing is hand-picked. Each row was made by the
function that the command `edit` calls for its task. Run it as

    python benchmarks/editing_figure.py --ckpt_path best.ckpt --data Digits --out editing.png
    python benchmarks/editing_figure.py --ckpt_path best.ckpt --data FashionMNIST --data.root data --out editing.png
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints.reading import load_model
from zoo.cli.edit import Done, Work
from zoo.models.base import eval_mode
from zoo.plotting.figures import new_figure, render_figure
from zoo.plotting.images import image_grid, save_png
from zoo.registry import find_class

COLUMNS = 8


class Pictures:
    """Pictures of the test split as files, as the command line wants them."""

    def __init__(self, data: Any, folder: Path) -> None:
        data.setup("test")
        self.x, self.y = data.split("test")
        self.folder = folder

    def save(self, name: str, x: Tensor) -> str:
        path = self.folder / f"{name}.png"
        save_png(path, image_grid(x.unsqueeze(0), cell=1))
        return str(path)

    def of_class(self, label: int) -> tuple[str, Tensor]:
        x = self.x[int((self.y == label).nonzero()[0])]
        name = f"class_{label}"
        return (str(self.folder / f"{name}.png") if (self.folder / f"{name}.png").exists() else self.save(name, x)), x


def rows(model: Any, pictures: Pictures, names: list[str], classes: list[int]) -> list[tuple[str, Done]]:
    """A title and what was done, for each task."""
    first, second, third, fourth = classes
    (one, x), (two, _), (three, y), (_, z) = (pictures.of_class(label) for label in classes)

    def work(
        image: str, label: int | None, n: int = COLUMNS, guidance: float = 0.0, sigma: float | None = None
    ) -> Work:
        return Work(model, image, n, 40, 0, label, guidance, sigma)

    channels, height, width = x.shape
    noisy = pictures.save("noisy", (y + 0.5 * y.new_empty(y.shape).normal_()).clamp(-1, 1))
    small = pictures.save("small", z.view(channels, height // 2, 2, width // 2, 2).mean((2, 4)))
    painter = work(one, first)
    lower = painter.pixels_to_keep(None, [0, height // 2, width, height])
    done = [("inpaint: the lower half drawn anew", painter.inpaint(lower, 10))]
    for sigma in (0.5, 1.0, 3.0):
        done.append((f"vary: redrawn below sigma {sigma:g}", work(two, second, sigma=sigma).vary()))
    for target in (first, fourth):
        edited = work(three, third, 1, guidance_scale=1.0, sigma=4.0).change_class(target)
        done.append((f"class: {names[third]} to {names[target]}", edited))
    done.append((f"interpolate: {names[first]} to {names[second]}", work(one, None, sigma=None).interpolate(two)))
    done.append(("invert: the picture, its noise, and back", work(one, first, 1).invert()))
    done.append(("denoise: noise of sigma 0.5 taken off", work(noisy, third, sigma=0.5).denoise()))
    done.append(("super_resolve: twice the size", work(small, fourth).super_resolve(2, 10)))
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt_path", required=True)
    parser.add_argument("--data", default="Digits")
    parser.add_argument("--data.root", dest="root")
    parser.add_argument("--classes", nargs=4, type=int, default=[3, 4, 7, 5])
    parser.add_argument("--out", default="editing.png")
    arguments = parser.parse_args()
    model = load_model(arguments.ckpt_path)
    data: Any = find_class(arguments.data)
    data = data(root=arguments.root) if arguments.root else data()
    with tempfile.TemporaryDirectory() as folder, eval_mode(model):
        done = rows(model, Pictures(data, Path(folder)), list(data.class_names), arguments.classes)
    figure, panels = new_figure(len(done), size=0.8, columns=1)
    figure.set_size_inches(8, 0.95 * len(done))
    for panel, (title, edit) in zip(panels, done, strict=True):
        shown = [picture.float() for picture in (*edit.before, edit.after)]
        count = sum(map(len, shown))
        blank = shown[0].new_ones(COLUMNS + 2 - count, *shown[0].shape[1:])
        panel.imshow(image_grid(torch.cat([*shown, blank]), columns=COLUMNS + 2, cell=56), interpolation="nearest")
        panel.set_title(title, fontsize="small", loc="left")
        panel.axis("off")
    save_png(Path(arguments.out), render_figure(figure))


if __name__ == "__main__":
    main()
