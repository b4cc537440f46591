"""Images of cross-attention during the training of an encoder-decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from zoo.callbacks.run_folder import remove_after, run_folder
from zoo.contracts import ClassNames, CrossAttention, ImageLogger, data_of, left_out, offers, require
from zoo.errors import check_at_least
from zoo.files import unused_path
from zoo.plotting.attention import plot_attention
from zoo.plotting.images import save_png


class AttentionMaps(Callback):
    """Plots cross-attention weights: one panel for each head, one layer in each row.

    For any LightningModule that offers `zoo.contracts.CrossAttention`; maps whose names end in "cross_attention" are
    plotted, for the longest of the first 100 validation sources. Images are written to `attention/` in the run's folder
    and to loggers that show images. Without `ClassNames` of the data, axes show the tokens' numbers.

    Args:
        every_n_steps: optimizer steps between images; the last one is always drawn after training.
    """

    def __init__(self, every_n_steps: int = 500) -> None:
        check_at_least(1, every_n_steps=every_n_steps)
        self.every_n_steps = every_n_steps
        self._folder: Path | None = None
        self._last_step = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        require(self, pl_module, CrossAttention, remedy="use Seq2Seq")
        if stage != "fit":
            return
        folder = run_folder(trainer, missing="AttentionMaps draws nothing")
        self._folder = folder / "attention" if folder else None

    def state_dict(self) -> dict[str, Any]:
        return {"last_step": self._last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._last_step = state_dict["last_step"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and self._folder is not None and trainer.global_step:
            remove_after(self._folder, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.every_n_steps == 0:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, model: Any) -> None:
        step = trainer.global_step
        if not trainer.is_global_zero or self._folder is None or step == self._last_step:
            return
        self._last_step = step
        source, target = (tokens.to(model.device) for tokens in self._longest(trainer, model.padding))
        maps = {
            name.removesuffix(".cross_attention"): weights[0]
            for name, weights in model.attention(source, target).items()
            if name.endswith("cross_attention")
        }
        # Row 0 is the first token of the target, which is predicted from the start token alone.
        data = data_of(trainer)
        left_out(self, data, {ClassNames: "names of tokens"})
        names = data.class_names if offers(data, ClassNames) else None
        rows, columns = ([names[token] if names else str(token) for token in x[0].tolist()] for x in (target, source))
        image = plot_attention(maps, rows, columns)
        save_png(unused_path(self._folder / f"step_{step:07d}.png"), image)
        for logger in trainer.loggers:
            if offers(logger, ImageLogger):
                logger.log_image("attention", [image], step=step)

    def _longest(self, trainer: Trainer, padding: int) -> tuple[Tensor, Tensor]:
        """The longest of the first 100 validation sources (1, S), and its target (1, T), without padding."""
        dataset = trainer.val_dataloaders.dataset  # type: ignore[union-attr]
        x, y = dataset.__getitems__(list(range(min(100, len(dataset)))))
        index = (x != padding).sum(1).argmax()
        source, target = x[index], y[index]
        return source[source != padding][None], target[target != padding][None]
