"""The encoder-decoder of "Attention is all you need" as a LightningModule: from one sequence to another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric

from zoo.base import TrainingWindow, ZooModule, evaluating
from zoo.errors import UserError, check_at_least, check_choice
from zoo.optim import LRSchedulerCallable, OptimizerCallable, WarmupDecay, build_optimizer
from zoo.transformer.network import NORMS, POSITIONS, EncoderDecoder, recording


def adam(parameters: Any) -> torch.optim.Optimizer:
    """Adam with the paper's momenta (section 5.3), the default."""
    return torch.optim.Adam(parameters, lr=1e-3, betas=(0.9, 0.98), eps=1e-9)


class Seq2Seq(ZooModule):
    """The Transformer of the paper, that reads one sequence and writes another.

    Sources and answers are tokens, each sequence closed by `end` and filled up with `padding`.

    Args:
        input_shape: (S,), of the sources.
        num_classes: number of tokens, of sources and answers together.
        output_length: T, tokens of an answer at most, its end included.
        layers: of encoder and decoder, each.
        width: channels, a multiple of `heads`.
        heads: of each attention, with an even number of channels.
        dropout: share of each sub-layer's outputs, and of the embeddings, that is dropped in training.
        norm: of each sub-layer: before it, or after the sum, as in the paper.
        positions: by turning queries and keys, or by the paper's sinusoids.
        label_smoothing: share of the token's probability that is spread over all tokens in the loss.
        padding: token that fills up short sequences.
        start: token that an answer begins with, and that is no part of it.
        end: token that closes a sequence.
        checkpointing: compute activations anew on the way back, for a fraction of the memory.
        compile: the network by torch.compile; the first steps take minutes.
        optimizer: makes the optimizer; its weight decay reaches matrices alone.
        lr_scheduler: makes the learning-rate schedule, stepped with every optimizer step; None for a constant.
    """

    tokens = True

    _window: TrainingWindow

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        output_length: int,
        layers: int = 2,
        width: int = 64,
        heads: int = 4,
        dropout: float = 0.0,
        norm: Literal["pre", "post"] = "post",
        positions: Literal["rotary", "sinusoidal"] = "sinusoidal",
        label_smoothing: float = 0.0,
        padding: int = 0,
        start: int = 1,
        end: int = 2,
        checkpointing: bool = False,
        compile: bool = False,
        optimizer: OptimizerCallable = adam,
        lr_scheduler: LRSchedulerCallable | None = WarmupDecay,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        if len(input_shape) != 1:
            raise UserError(
                f"Seq2Seq reads tokens, not samples of the shape {tuple(input_shape)}; use --data Sequences"
            )
        if output_length is None:  # which is what a link makes of data that has none
            raise UserError("Seq2Seq needs data with an output_length, the tokens of an answer; use --data Sequences")
        check_at_least(1, layers=layers, heads=heads, output_length=output_length)
        check_choice("norm", norm, NORMS)
        check_choice("positions", positions, POSITIONS)
        if width < 1 or width % (2 * heads):
            raise UserError(f"width is {width}; it must be a multiple of twice the heads, {2 * heads}")
        for name, share in {"dropout": dropout, "label_smoothing": label_smoothing}.items():
            if not 0 <= share < 1:
                raise UserError(f"{name} is {share}; it must be at least 0 and below 1")
        specials = {"padding": padding, "start": start, "end": end}
        if len(set(specials.values())) < 3 or not all(0 <= token < num_classes for token in specials.values()):
            raise UserError(f"{specials} must be three of the {num_classes} tokens")
        self.input_shape = tuple(input_shape)
        self.num_classes = num_classes
        self.output_length = output_length
        self.label_smoothing = label_smoothing
        self.padding, self.start, self.end = padding, start, end
        self.compile_network = compile
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.network = EncoderDecoder(
            num_classes, padding, layers, width, heads, dropout, norm, positions, checkpointing
        )
        self.losses = nn.ModuleDict({split: MeanMetric() for split in ("val", "test")})
        self.matches = nn.ModuleDict({split: MeanMetric() for split in ("val", "test")})
        self._window = TrainingWindow("tokens")

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """source int64 (N, S), answer so far int64 (N, T) to logits of what comes next, (N, T, num_classes)."""
        return self.network(source, target)

    def answer(self, source: Tensor) -> Tensor:
        """The likeliest answer, token by token (greedy decoding).

        Args:
            source: int64 (N, S).

        Returns:
            int64 (N, output_length): tokens, `end`, and `padding` behind it.
        """
        with evaluating(self):
            memory, mask = self.network.encode(source)
            caches = self.network.decoder.caches()
            token = torch.full((len(source), 1), self.start, device=source.device)
            ended = torch.zeros_like(token, dtype=torch.bool)
            answer = []
            for _ in range(self.output_length):
                token = self.network.decode(token, memory, mask, caches).argmax(2)
                answer.append(token.masked_fill(ended, self.padding))
                ended |= token == self.end
            return torch.cat(answer, dim=1)

    def attention(self, source: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Who looks at whom while sources are read and answers written.

        Args:
            source: int64 (N, S).
            target: answers, int64 (N, T).

        Returns:
            By the name of each attention (N, heads, T or S, T or S): how much each position looks at each.
        """
        with evaluating(self), recording(self.network) as maps:
            self(source, self._shifted(target))
        return {name: calls[0] for name, calls in maps.items()}

    def _shifted(self, target: Tensor) -> Tensor:
        """What the decoder has before it when it is to give the answers (N, T): `start`, and all but the last token."""
        return torch.cat([torch.full_like(target[:, :1], self.start), target[:, :-1]], dim=1)

    # Training

    def configure_optimizers(self) -> Any:
        return build_optimizer(self.optimizer, self.lr_scheduler, self.network, self.trainer)

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.compile_network:
            self.network.compile()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        source, target = batch
        logits = self(source, self._shifted(target))
        loss = F.cross_entropy(
            logits.flatten(0, 1), target.flatten(), ignore_index=self.padding, label_smoothing=self.label_smoothing
        )
        self._window.add(self, target.numel(), loss=loss)
        return loss

    # Validation and test

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._measure(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._measure(batch, "test")

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.answer(batch[0])

    def _measure(self, batch: tuple[Tensor, Tensor], split: str) -> None:
        """Mean loss in nats a token, and the share of the answers that are right from beginning to end."""
        source, target = batch
        logits = self(source, self._shifted(target)).float()
        losses = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=self.padding, reduction="none")
        right = (self.answer(source)[:, : target.shape[1]] == target).all(1)
        values = {"loss": (self.losses[split], losses[target.flatten() != self.padding])}
        for name, (metric, value) in {**values, "exact_match": (self.matches[split], right.float())}.items():
            metric.update(value)  # type: ignore[operator]
            self.log(f"{split}/{name}", metric, prog_bar=True)  # type: ignore[arg-type]
