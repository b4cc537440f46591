"""The Transformer as a language model: a LightningModule that learns to say what comes next, and writes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric

from zoo.base import TrainingWindow, ZooModule, evaluating
from zoo.errors import UserError, check_at_least, check_choice
from zoo.optim import LRSchedulerCallable, OptimizerCallable, WarmupDecay, build_optimizer
from zoo.tokens import BYTES, tokenizer_from
from zoo.transformer.generate import check_narrowing, generate
from zoo.transformer.network import NORMS, POSITIONS, Block, LanguageModel


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """AdamW with fused steps, the default."""
    return torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=True)


class Perplexity(MeanMetric):
    """exp of the mean loss in nats a token: of how many equally likely tokens the model would be as unsure."""

    def compute(self) -> Tensor:
        return super().compute().exp()


class TransformerLM(ZooModule):
    """A causal Transformer that learns to say which token comes next, and writes text.

    Args:
        input_shape: (T,), the tokens that it sees at most.
        num_classes: number of tokens.
        tokenizer: the description of the tokenizer, as of `zoo.tokens`.
        layers: blocks of attention and feed-forward network.
        width: channels, a multiple of `heads`.
        heads: of each attention, with an even number of channels.
        dropout: share of each sub-layer's outputs, and of the embeddings, that is dropped in training.
        norm: of each sub-layer: before it, or after the sum, as in the paper.
        positions: by turning queries and keys, or by the paper's sinusoids.
        qk_norm: bring queries and keys to unit mean square, which large learning rates need.
        checkpointing: compute activations anew on the way back, for a fraction of the memory.
        compile: the network by torch.compile; the first steps take minutes.
        optimizer: makes the optimizer; its weight decay reaches matrices alone.
        lr_scheduler: makes the learning-rate schedule, stepped with every optimizer step; None for a constant.
    """

    tokens = True
    token_bytes: Tensor
    _window: TrainingWindow

    sharded = (Block,)

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        tokenizer: str = BYTES,
        layers: int = 4,
        width: int = 128,
        heads: int = 4,
        dropout: float = 0.0,
        norm: Literal["pre", "post"] = "pre",
        positions: Literal["rotary", "sinusoidal"] = "rotary",
        qk_norm: bool = True,
        checkpointing: bool = False,
        compile: bool = False,
        optimizer: OptimizerCallable = adamw,
        lr_scheduler: LRSchedulerCallable | None = WarmupDecay,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        if len(input_shape) != 1:
            raise UserError(
                f"TransformerLM reads tokens, not samples of the shape {tuple(input_shape)}; use --data Text"
            )
        check_at_least(1, layers=layers, heads=heads)
        check_choice("norm", norm, NORMS)
        check_choice("positions", positions, POSITIONS)
        if width < 1 or width % (2 * heads):
            raise UserError(f"width is {width}; it must be a multiple of twice the heads, {2 * heads}")
        if not 0 <= dropout < 1:
            raise UserError(f"dropout is {dropout}; it must be at least 0 and below 1")
        self.tokenizer = tokenizer_from(tokenizer)
        if num_classes != self.tokenizer.size:
            raise UserError(
                f"the data has {num_classes} tokens and the tokenizer {self.tokenizer.size}; use --data Text, or give "
                "the model the description of your tokenizer"
            )
        self.input_shape = tuple(input_shape)
        self.context = input_shape[0]
        self.num_classes = num_classes
        self.compile_network = compile
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.network = LanguageModel(
            num_classes, layers, width, heads, dropout, norm, positions, qk_norm, checkpointing
        )
        self.register_buffer("token_bytes", self.tokenizer.byte_counts(), persistent=False)
        # No torchmetrics Perplexity: it wants logits, of which a large vocabulary has too many to keep.
        self.losses = torch.nn.ModuleDict({split: MeanMetric() for split in ("val", "test")})
        self.perplexities = torch.nn.ModuleDict({split: Perplexity() for split in ("val", "test")})
        self.bits = torch.nn.ModuleDict({split: MeanMetric() for split in ("val", "test")})
        self._window = TrainingWindow("tokens")

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 (N, T) to logits of the token after each, (N, T, num_classes)."""
        return self.network(tokens)

    # Writing

    def stream(
        self,
        n: int = 1,
        *,
        prompt: str | None = None,
        length: int = 500,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[Tensor]:
        """Writes `n` texts that go on from a prompt; yields their next tokens, int64 (n,), as they are drawn.

        Args:
            n: how many texts.
            prompt: what they begin with, a line break where it is not given; it is not among what is yielded.
            length: tokens to write.
            temperature: above 1 for bolder text, below 1 for safer; 0 for the likeliest token always.
            top_k: draw from so many of the likeliest tokens; None for all.
            top_p: draw from the fewest of the likeliest tokens that have this probability together; None for all.
            generator: random numbers; the same ones give the same text.

        Raises:
            UserError: an argument is out of range, or the prompt is empty or has characters that are no tokens.
        """
        check_narrowing(temperature, top_k, top_p)
        check_at_least(0, length=length)
        start = self._start(prompt).to(self.device).expand(n, -1)
        writing = generate(self.network, start, length, self.context, temperature, top_k, top_p, generator)
        return self._in_evaluation(writing)

    def _start(self, prompt: str | None) -> Tensor:
        """The tokens (T,) to go on from."""
        if prompt == "":
            raise UserError("the prompt is empty; give at least one character, such as a line break")
        try:
            return self.tokenizer.encode("\n" if prompt is None else prompt)
        except UserError:
            if prompt is None:  # a text without line breaks
                return torch.zeros(1, dtype=torch.int64)
            raise

    def _in_evaluation(self, writing: Iterator[Tensor]) -> Iterator[Tensor]:
        """Each step in evaluation mode, so that what the caller does in between is not."""
        while True:
            with evaluating(self):
                token = next(writing, None)
            if token is None:
                return
            yield token

    def sample(
        self,
        n: int,
        *,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        prompt: str | None = None,
        length: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> Tensor:
        """Writes `n` texts, as `stream` does.

        Args:
            n: how many.
            labels: of no meaning here; the generative models' common argument.
            generator: random numbers.
            prompt: what they begin with.
            length: tokens to write; where it is not given, as many as the context has, and 256 at least.
            temperature: see `stream`, as for the rest.
            top_k: tokens to draw from.
            top_p: probability to draw from.

        Returns:
            int64 (n, length), without the prompt; `decode` makes text of them.
        """
        length = max(self.context, 256) if length is None else length
        options = {"prompt": prompt, "length": length, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        tokens = list(self.stream(n, generator=generator, **options))  # type: ignore[arg-type]
        return torch.stack(tokens, dim=1) if tokens else torch.empty(n, 0, dtype=torch.int64, device=self.device)

    def decode(self, tokens: Tensor) -> list[str]:
        """Tokens (N, T) to N texts."""
        return [self.tokenizer.decode(row) for row in tokens.tolist()]

    # Training

    def configure_optimizers(self) -> Any:
        return build_optimizer(self.optimizer, self.lr_scheduler, self.network, self.trainer)

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.compile_network:
            self.network.compile()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x).flatten(0, 1), y.flatten())
        self._window.add(self, y.numel(), loss=loss)
        return loss

    # Validation and test

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._measure(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._measure(batch, "test")

    def predict_step(self, *_: Any) -> None:
        raise UserError("TransformerLM predicts no labels; to let it write, use the command sample")

    def _measure(self, batch: tuple[Tensor, Tensor], split: str) -> None:
        """Mean loss in nats a token, its perplexity, and bits a byte of the text, which any tokenizer compares in."""
        x, y = batch
        losses = F.cross_entropy(self(x).float().flatten(0, 1), y.flatten(), reduction="none")
        num_bytes = self.token_bytes[y].sum()
        updates = {
            "loss": (self.losses[split], (losses,)),
            "perplexity": (self.perplexities[split], (losses,)),
            "bits_per_byte": (self.bits[split], (losses.sum() / num_bytes / math.log(2), num_bytes)),
        }
        for name, (metric, values) in updates.items():
            metric.update(*values)  # type: ignore[operator]
            self.log(f"{split}/{name}", metric, prog_bar=name == "loss")  # type: ignore[arg-type]
