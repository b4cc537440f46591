"""Figure of every edit that a diffusion model can make, input and result side by side.

The inputs are the first images of their classes in the test split; nothing is hand-picked. Each row is made by the
function that the command `edit` calls for its task. Usage:

    python -m benchmarks.editing_figure --ckpt_path best.ckpt --data Digits --out editing.png
    python -m benchmarks.editing_figure --ckpt_path best.ckpt --data FashionMNIST --data.root data --out editing.png
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import zoo
from benchmarks.output import check_new, new_parser
from zoo.hub.editing import EditResult, EditSession
from zoo.models.base import eval_mode
from zoo.plotting.figures import new_figure, render_figure
from zoo.plotting.images import image_grid, save_png
from zoo.registry import find_class

COLUMNS = 8  # images on the path of interpolate, and results of inpaint and vary


class InputImages:
    """Images of the test split as files, as the command `edit` reads them.

    Args:
        data: data module.
        folder: folder of the files.
    """

    def __init__(self, data: Any, folder: Path) -> None:
        data.setup("test")
        self.x, self.y = data.split("test")
        self.folder = folder

    def save(self, name: str, x: Tensor) -> str:
        """Writes an image (C, H, W); returns the path."""
        path = self.folder / f"{name}.png"
        save_png(path, image_grid(x.unsqueeze(0), cell=1))
        return str(path)

    def first_of_class(self, label: int) -> Tensor:
        """First image of a class, (C, H, W)."""
        return self.x[int((self.y == label).nonzero()[0])]


def edits(
    model: Any, images: InputImages, names: Sequence[str], classes: Sequence[int], steps: int, resamples: int
) -> list[tuple[str, EditResult]]:
    """Title and result of each edit."""
    first, second, third, fourth = classes
    x = {label: images.first_of_class(label) for label in classes}
    path = {label: images.save(f"class_{label}", image) for label, image in x.items()}

    def session(
        image: str, label: int | None, n: int = COLUMNS, guidance_scale: float = 0.0, sigma: float | None = None
    ) -> EditSession:
        return EditSession(model, image, n, steps, 0, label, guidance_scale, sigma)

    channels, height, width = x[first].shape
    noise = torch.randn(x[third].shape, generator=torch.Generator().manual_seed(0))
    noisy = images.save("noisy", (x[third] + 0.5 * noise).clamp(-1, 1))
    small = images.save("small", x[fourth].view(channels, height // 2, 2, width // 2, 2).mean((2, 4)))
    painter = session(path[first], first)
    redrawn = painter.pixels_to_redraw(None, [0, height // 2, width, height])
    done = [("inpaint: lower half redrawn", painter.inpaint(redrawn, resamples))]
    for sigma in (0.5, 1.0, 3.0):
        done.append((f"vary: redrawn below sigma {sigma:g}", session(path[second], second, sigma=sigma).vary()))
    for target in (first, fourth):
        edited = session(path[third], third, 1, guidance_scale=1.0, sigma=4.0).change_class(target)
        done.append((f"class: {names[third]} to {names[target]}", edited))
    between = session(path[first], None).interpolate(path[second])
    done.append((f"interpolate: {names[first]} to {names[second]}", between))
    done.append(("invert: image, its noise, generated again", session(path[first], first, 1).invert()))
    done.append(("denoise: noise of sigma 0.5 removed", session(noisy, third, sigma=0.5).denoise()))
    done.append(("super_resolve: 2 times larger", session(small, fourth).super_resolve(2, resamples)))
    return done


def plot(done: list[tuple[str, EditResult]]) -> Any:
    """One row per edit: its inputs, then its results."""
    figure, panels = new_figure(len(done), size=0.8, columns=1)
    figure.set_size_inches(8, 0.95 * len(done))
    for panel, (title, edit) in zip(panels, done, strict=True):
        shown = [image.float() for image in (*edit.before, edit.after)]
        count = sum(map(len, shown))
        blank = shown[0].new_ones(COLUMNS + 2 - count, *shown[0].shape[1:])
        panel.imshow(image_grid(torch.cat([*shown, blank]), columns=COLUMNS + 2, cell=56), interpolation="nearest")
        panel.set_title(title, fontsize="small", loc="left")
        panel.axis("off")
    return render_figure(figure)


def main(args: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--ckpt_path", required=True, help="path to the checkpoint of a conditional diffusion model")
    parser.add_argument("--data", default="Digits", help="data module of the checkpoint")
    parser.add_argument("--data.root", dest="root", help="folder of the dataset")
    parser.add_argument("--classes", nargs=4, type=int, default=[3, 4, 7, 5], help="classes of the images")
    parser.add_argument("--steps", type=int, default=40, help="number of noise levels of each edit")
    parser.add_argument("--resamples", type=int, default=10, help="repetitions of each step of inpaint, super_resolve")
    parser.add_argument("--out", type=Path, default=Path("editing.png"), help=".png file for the figure")
    options = parser.parse_args(args)
    check_new(parser, options.out)
    model = zoo.load(options.ckpt_path)
    data: Any = find_class(options.data)(**({"root": options.root} if options.root else {}))
    with tempfile.TemporaryDirectory() as folder, eval_mode(model):
        images = InputImages(data, Path(folder))
        done = edits(model, images, data.class_names, options.classes, options.steps, options.resamples)
    save_png(options.out, plot(done))
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
