"""The encoder-decoder Transformer as a LightningModule: from one sequence to another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import UserError, check_at_least, check_choice, check_fraction
from zoo.metrics import Mean, WindowedMetrics
from zoo.models.base import Compile, ZooModule, check_compile, eval_mode
from zoo.models.exports import Export, Input, Part
from zoo.models.precision import widen
from zoo.models.seq2seq.network import EncoderDecoder
from zoo.models.transformer.attention import record_attention
from zoo.models.transformer.blocks import NORMS
from zoo.models.transformer.positions import POS_ENCODINGS
from zoo.optim import LRSchedulerCallable, OptimizerCallable, WarmupDecay, seq2seq_optimizer


class Seq2Seq(ZooModule):
    """Encoder-decoder Transformer that maps a source sequence to a target sequence (Vaswani et al. 2017).

    Sequences of both kinds end with the token `end` and are padded with `padding`.

    Args:
        input_shape: (S,), the length of the sources.
        num_classes: number of tokens V, shared by sources and targets.
        output_length: maximum length T of a target, its end token included.
        layers: number of blocks of the encoder, and of the decoder.
        width: number of channels, a multiple of twice the heads.
        heads: number of attention heads.
        dropout: dropout probability of each sub-layer's output, and of the embeddings.
        norm: position of layer normalization, before each sub-layer ("pre") or after the sum ("post", as in the paper).
        pos_encoding: positional encoding: rotary embeddings, or the paper's sinusoids.
        label_smoothing: probability mass of the token that is spread over all tokens in the loss.
        padding: padding token.
        start: first input token of the decoder, which is not part of the target.
        end: last token of a sequence.
        activation_checkpointing: recompute activations in the backward pass, which saves memory and takes more time.
        compile: compile the network with torch.compile; the first steps take minutes. True, or a mode of it, such as
            "reduce-overhead" for CUDA graphs, which launch the operators of a small network together.
        optimizer: factory of the optimizer; weight decay is applied to matrices only.
        lr_scheduler: factory of the learning-rate schedule, stepped with every optimizer step; None for a constant
            learning rate.
    """

    tokens = True
    exports = ("network",)
    network: EncoderDecoder
    window: WindowedMetrics

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
        pos_encoding: Literal["rotary", "sinusoidal"] = "sinusoidal",
        label_smoothing: float = 0.0,
        padding: int = 0,
        start: int = 1,
        end: int = 2,
        activation_checkpointing: bool = False,
        compile: Compile = False,
        optimizer: OptimizerCallable = seq2seq_optimizer,
        lr_scheduler: LRSchedulerCallable | None = WarmupDecay,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        if len(input_shape) != 1:
            raise UserError(
                f"Seq2Seq reads tokens, not samples of the shape {tuple(input_shape)}; use --data Sequences"
            )
        if output_length is None:  # linked from data without this attribute
            raise UserError("Seq2Seq needs data with an output_length, the length of a target; use --data Sequences")
        check_at_least(1, layers=layers, heads=heads, output_length=output_length)
        check_choice("norm", norm, NORMS)
        check_choice("pos_encoding", pos_encoding, POS_ENCODINGS)
        if width < 1 or width % (2 * heads):
            raise UserError(f"width is {width}; it must be a multiple of twice the heads, {2 * heads}")
        check_fraction(dropout=dropout, label_smoothing=label_smoothing)
        specials = {"padding": padding, "start": start, "end": end}
        if len(set(specials.values())) < 3 or not all(0 <= token < num_classes for token in specials.values()):
            raise UserError(f"{specials} must be three of the {num_classes} tokens")
        self.input_shape = tuple(input_shape)
        self.num_classes = num_classes
        self.output_length = output_length
        self.label_smoothing = label_smoothing
        self.padding, self.start, self.end = padding, start, end
        self.compile_network = check_compile(compile)
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.network = EncoderDecoder(
            num_classes, padding, layers, width, heads, dropout, norm, pos_encoding, activation_checkpointing
        )
        self.losses = nn.ModuleDict({split: Mean() for split in ("val", "test")})
        self.matches = nn.ModuleDict({split: Mean() for split in ("val", "test")})
        self.window = WindowedMetrics("tokens")

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Source int64 (N, S) and target int64 (N, T) to logits of the next tokens, (N, T, V)."""
        return self.network(source, target)

    def greedy_decode(self, source: Tensor) -> Tensor:
        """Decodes targets greedily, taking the most probable token at each position.

        Args:
            source: sources, int64 (N, S).

        Returns:
            Targets int64 (N, output_length): tokens, `end`, and padding.
        """
        with eval_mode(self):
            memory, mask = self.network.encode(source)
            caches = self.network.decoder.caches()
            token = torch.full((len(source), 1), self.start, device=source.device)
            ended = torch.zeros_like(token, dtype=torch.bool)
            target = []
            for _ in range(self.output_length):
                token = self.network.decode(token, memory, mask, caches).argmax(2)
                target.append(token.masked_fill(ended, self.padding))
                ended |= token == self.end
            return torch.cat(target, dim=1)

    def predict(self, texts: str | Sequence[str]) -> list[str]:
        """Maps texts to texts by greedy decoding, such as "31524" to "42513"; a character is a token.

        Args:
            texts: one text or several, each of 1 to S - 1 characters that the training data has as tokens.

        Raises:
            UserError: the checkpoint does not name its tokens, or a text is too long or has a character that is none.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        names = self.trained_on.class_names or ()
        names = names if len(names) == self.num_classes else ()
        specials = (self.padding, self.start, self.end)
        tokens = {name: token for token, name in enumerate(names) if token not in specials and len(name) == 1}
        if not tokens:
            raise UserError("the checkpoint does not name its tokens: use greedy_decode, which takes their numbers")
        length = self.input_shape[0]
        source = torch.full((len(texts), length), self.padding, device=self.device)
        for row, text in zip(source, texts, strict=True):
            if unknown := next((character for character in text if character not in tokens), None):
                raise UserError(f"{text!r} has {unknown!r}; this model knows the characters {''.join(tokens)}")
            if not 0 < len(text) < length:
                raise UserError(f"{text!r} has {len(text)} characters; this model takes 1 to {length - 1}")
            row[: len(text) + 1] = torch.tensor([*(tokens[character] for character in text), self.end])
        decoded = self.greedy_decode(source).tolist()
        return ["".join(names[token] for token in _until(row, self.end) if token not in specials) for row in decoded]

    def export_network(self) -> Export:
        """Logits of the next token of the target at each position, for sources and targets of any length."""
        bounds = (0, self.num_classes - 1)
        source = Input("sources, padded", ("source_length",), torch.int64, bounds)
        target = Input("start token and the beginnings of targets", ("target_length",), torch.int64, bounds)
        return Export(
            Part(self.network),
            {"source": source, "target": target},
            "logits",
            ("target_length", self.num_classes),
            {"source_length": self.input_shape[0], "target_length": self.output_length},
            {"padding": self.padding, "start": self.start, "end": self.end},
        )

    def attention(self, source: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Attention weights of encoder and decoder.

        Args:
            source: sources, int64 (N, S).
            target: targets, int64 (N, T).

        Returns:
            Weights by the name of each attention layer, (N, heads, T or S, T or S).
        """
        with eval_mode(self), record_attention(self.network) as maps:
            self(source, self._shifted(target))
        return {name: calls[0] for name, calls in maps.items()}

    def _shifted(self, target: Tensor) -> Tensor:
        """Decoder inputs for targets (N, T): `start`, then all tokens but the last."""
        return torch.cat([torch.full_like(target[:, :1], self.start), target[:, :-1]], dim=1)

    # Training

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        source, target = batch
        logits = widen(self(source, self._shifted(target)))
        loss = F.cross_entropy(
            logits.flatten(0, 1), target.flatten(), ignore_index=self.padding, label_smoothing=self.label_smoothing
        )
        self.window.update(target.numel(), loss=loss)
        self.window.log(self)
        return loss

    # Validation and test

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._measure(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._measure(batch, "test")

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.greedy_decode(batch[0])

    def _measure(self, batch: tuple[Tensor, Tensor], split: str) -> None:
        """Logs mean loss in nats per token, and the fraction of targets that are decoded without any error."""
        source, target = batch
        logits = widen(self(source, self._shifted(target)))
        losses = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=self.padding, reduction="none")
        right = (self.greedy_decode(source)[:, : target.shape[1]] == target).all(1)
        values = {"loss": (self.losses[split], losses[target.flatten() != self.padding])}
        for name, (metric, value) in {**values, "exact_match": (self.matches[split], right.float())}.items():
            metric.update(value)  # type: ignore[operator]
            self.log(f"{split}/{name}", metric, prog_bar=True)  # type: ignore[arg-type]


def _until(tokens: list[int], end: int) -> list[int]:
    """Tokens before the first `end`, all if there is none."""
    return tokens[: tokens.index(end)] if end in tokens else tokens
