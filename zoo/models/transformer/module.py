"""The Transformer as a language model: a LightningModule that predicts the next token and generates text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import UserError, check_at_least, check_choice, check_fraction
from zoo.metrics import Mean, WindowedMetrics
from zoo.models.base import Compile, ZooModule, check_compile, eval_mode
from zoo.models.exports import Export, Input, Part
from zoo.models.networks import check_output, find_factory
from zoo.models.precision import widen
from zoo.models.transformer.blocks import NORMS
from zoo.models.transformer.generate import check_sampling_options, generate
from zoo.models.transformer.network import LanguageModel
from zoo.models.transformer.positions import POS_ENCODINGS
from zoo.optim import LRSchedulerCallable, OptimizerCallable, WarmupDecay, language_model_optimizer
from zoo.tokenizers import BYTES, tokenizer_from


class Perplexity(Mean):
    """Perplexity: exp of the mean loss in nats per token."""

    def compute(self) -> Tensor:
        return super().compute().exp()


class TransformerLM(ZooModule):
    """Causal Transformer language model.

    Args:
        input_shape: (T,), the context length in tokens.
        num_classes: number of tokens V.
        tokenizer: description of the tokenizer; see `zoo.tokenizers`.
        layers: number of blocks.
        width: number of channels, a multiple of twice the heads.
        heads: number of attention heads.
        dropout: dropout probability of each sub-layer's output, and of the embeddings.
        norm: position of layer normalization, before each sub-layer ("pre") or after the sum ("post", as in the paper).
        pos_encoding: positional encoding: rotary embeddings, or the paper's sinusoids.
        qk_norm: normalize queries and keys to unit mean square, without a learned scale, which stabilizes large
            learning rates; attention scores are then at most the root of a head's channels.
        block: factory of a block that is handed `(width, heads)`, in place of the zoo's own, to which `dropout`, `norm`
            and `qk_norm` apply; see `zoo.models.transformer.blocks.Block.forward` for the arguments that it is called
            with. None for the zoo's own.
        activation_checkpointing: recompute activations in the backward pass, which saves memory and takes more time.
        compile: compile the network with torch.compile; the first steps take minutes. True, or a mode of it, such as
            "reduce-overhead" for CUDA graphs, which launch the operators of a small network together.
        optimizer: factory of the optimizer; weight decay is applied to matrices only.
        lr_scheduler: factory of the learning-rate schedule, stepped with every optimizer step; None for a constant
            learning rate.
    """

    tokens = True
    exports = ("network",)
    network: LanguageModel
    token_bytes: Tensor
    window: WindowedMetrics

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
        pos_encoding: Literal["rotary", "sinusoidal"] = "rotary",
        qk_norm: bool = True,
        block: Callable[[int, int], nn.Module] | None = None,
        activation_checkpointing: bool = False,
        compile: Compile = False,
        optimizer: OptimizerCallable = language_model_optimizer,
        lr_scheduler: LRSchedulerCallable | None = WarmupDecay,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["block", "optimizer", "lr_scheduler"])
        if len(input_shape) != 1:
            raise UserError(
                f"TransformerLM reads tokens, not samples of the shape {tuple(input_shape)}; use --data Text"
            )
        check_at_least(1, layers=layers, heads=heads)
        check_choice("norm", norm, NORMS)
        check_choice("pos_encoding", pos_encoding, POS_ENCODINGS)
        if width < 1 or width % (2 * heads):
            raise UserError(f"width is {width}; it must be a multiple of twice the heads, {2 * heads}")
        check_fraction(dropout=dropout)
        self.tokenizer = tokenizer_from(tokenizer)
        if num_classes != self.tokenizer.size:
            raise UserError(
                f"the data has {num_classes} tokens and the tokenizer {self.tokenizer.size}; use --data Text, or pass "
                "the description of your tokenizer to the model"
            )
        self.input_shape = tuple(input_shape)
        self.context_length = input_shape[0]
        self.num_classes = num_classes
        self.compile_network = check_compile(compile)
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        build, self.hparams["block"] = (None, None) if block is None else find_factory("block", block)
        self.network = LanguageModel(
            num_classes, layers, width, heads, dropout, norm, pos_encoding, qk_norm, activation_checkpointing, build
        )
        if build is not None:
            tokens = torch.zeros(2, 3, dtype=torch.int64)
            check_output("block", self.network, (tokens,), (2, 3, num_classes))
        self.register_buffer("token_bytes", self.tokenizer.byte_counts(), persistent=False)
        # Not torchmetrics' Perplexity, which needs the logits of all tokens.
        self.losses = torch.nn.ModuleDict({split: Mean() for split in ("val", "test")})
        self.perplexities = torch.nn.ModuleDict({split: Perplexity() for split in ("val", "test")})
        self.bits = torch.nn.ModuleDict({split: Mean() for split in ("val", "test")})
        self.window = WindowedMetrics("tokens")

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens int64 (N, T) to logits of the next tokens, (N, T, V)."""
        return self.network(tokens)

    def export_network(self) -> Export:
        """Logits of the next token at each position, for any number of tokens up to the context length."""
        tokens = Input("tokens", ("length",), torch.int64, (0, self.num_classes - 1))
        shape, longest = ("length", self.num_classes), {"length": self.context_length}
        return Export(Part(self.network), {"tokens": tokens}, "logits", shape, longest)

    # Generating text

    def stream(
        self,
        n: int = 1,
        *,
        prompt: str | None = None,
        max_new_tokens: int = 500,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[Tensor]:
        """Generates texts; yields their next tokens, int64 (n,), as they are sampled.

        Args:
            n: number of texts.
            prompt: beginning of the texts, a line break by default; it is not part of what is yielded.
            max_new_tokens: number of tokens to generate.
            temperature: softmax temperature; 0 for greedy decoding.
            top_k: number of most probable tokens to sample from; None for all.
            top_p: cumulative probability of the most probable tokens to sample from; None for all.
            generator: random number generator; the same state gives the same text.

        Raises:
            UserError: an argument is out of range, or the prompt is empty or has unknown characters.
        """
        check_sampling_options(temperature, top_k, top_p)
        check_at_least(0, max_new_tokens=max_new_tokens)
        start = self._start(prompt).to(self.device).expand(n, -1)
        tokens = generate(
            self.network, start, max_new_tokens, self.context_length, temperature, top_k, top_p, generator
        )
        return self._in_eval_mode(tokens)

    def _start(self, prompt: str | None) -> Tensor:
        """Tokens (T,) of the prompt."""
        if prompt == "":
            raise UserError("the prompt is empty; give at least one character, such as a line break")
        try:
            return self.tokenizer.encode("\n" if prompt is None else prompt)
        except UserError:
            if prompt is None:  # the training text has no line breaks
                return torch.zeros(1, dtype=torch.int64)
            raise

    def _in_eval_mode(self, tokens: Iterator[Tensor]) -> Iterator[Tensor]:
        """Runs each step of an iterator in eval mode, but not the caller's code between two steps."""
        while True:
            with eval_mode(self):
                token = next(tokens, None)
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
        max_new_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> Tensor:
        """Generates texts, as `stream` does.

        Args:
            n: number of texts.
            labels: not used; the common argument of generative models.
            generator: random number generator.
            prompt: beginning of the texts.
            max_new_tokens: number of tokens to generate (default: the context length, but at least 256).
            temperature: softmax temperature.
            top_k: number of most probable tokens to sample from.
            top_p: cumulative probability of the most probable tokens to sample from.

        Returns:
            Tokens int64 (n, max_new_tokens), without the prompt; `decode` turns them into text.
        """
        length = max(self.context_length, 256) if max_new_tokens is None else max_new_tokens
        options = {
            "prompt": prompt,
            "max_new_tokens": length,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
        }
        tokens = list(self.stream(n, generator=generator, **options))  # type: ignore[arg-type]
        return torch.stack(tokens, dim=1) if tokens else torch.empty(n, 0, dtype=torch.int64, device=self.device)

    def decode(self, tokens: Tensor) -> list[str]:
        """Tokens (N, T) to N texts."""
        return [self.tokenizer.decode(row) for row in tokens.tolist()]

    # Training

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(widen(self(x)).flatten(0, 1), y.flatten())
        self.window.update(y.numel(), loss=loss)
        self.window.log(self)
        return loss

    # Validation and test

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._measure(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._measure(batch, "test")

    def predict_step(self, *_: Any) -> None:
        raise UserError("TransformerLM predicts no classes; to generate text, use the command sample")

    def _measure(self, batch: tuple[Tensor, Tensor], split: str) -> None:
        """Logs mean loss in nats per token, perplexity, and bits per byte, which compares models across tokenizers."""
        x, y = batch
        losses = F.cross_entropy(widen(self(x)).flatten(0, 1), y.flatten(), reduction="none")
        num_bytes = self.token_bytes[y].sum()
        updates = {
            "loss": (self.losses[split], (losses,)),
            "perplexity": (self.perplexities[split], (losses,)),
            "bits_per_byte": (self.bits[split], (losses.sum() / num_bytes / math.log(2), num_bytes)),
        }
        for name, (metric, values) in updates.items():
            metric.update(*values)  # type: ignore[operator]
            self.log(f"{split}/{name}", metric, prog_bar=name == "loss")  # type: ignore[arg-type]
