"""Synthetic sequence-to-sequence tasks with known answers: reversal, sorting, addition.

A batch is `(x, y)`: sources, int64 (N, S), and targets, int64 (N, T), each terminated by END and padded with PADDING.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Generator, Tensor

from zoo.datamodules.base import InMemoryDataModule
from zoo.errors import UserError, check_at_least, check_choice

TASKS = ("reverse", "sort", "add")
PADDING, START, END = 0, 1, 2
SYMBOLS = "0123456789+"
FIRST = 3  # token of "0"


def encode(texts: list[str], length: int) -> Tensor:
    """Texts to tokens, int64 (N, length), each terminated by END and padded with PADDING."""
    rows = [[FIRST + SYMBOLS.index(symbol) for symbol in text] + [END] for text in texts]
    return torch.tensor([row + [PADDING] * (length - len(row)) for row in rows])


def decode(tokens: Tensor) -> list[str]:
    """Tokens (N, T) to texts, each up to its first END."""
    texts = []
    for row in tokens.tolist():
        row = row[: row.index(END)] if END in row else row
        texts.append("".join(SYMBOLS[token - FIRST] if token >= FIRST else "?" for token in row))
    return texts


class Sequences(InMemoryDataModule):
    """Decimal digits to reverse (31524 to 42513), to sort (to 12345), or numbers to add (12+345 to 357).

    Sources are drawn by `seed`, with uniformly distributed lengths. No source is in more than one split.

    Args:
        task: name of the task.
        digits: maximum number of digits, of a sequence or of each number to add.
        num_train: number of samples for training and validation together.
        num_test: number of samples for testing.
        batch_size: see `InMemoryDataModule`, as for the other arguments.

    Raises:
        UserError: there are fewer different sources than samples.
    """

    tokens = True
    mirror_symmetric = False

    def __init__(
        self,
        task: Literal["reverse", "sort", "add"] = "reverse",
        digits: int = 10,
        num_train: int = 50_000,
        num_test: int = 2000,
        batch_size: int = 128,
        eval_batch_size: int = 500,
        val_size: float = 2000,
        repeats: int = 1,
        drop_last: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, val_size, repeats, drop_last, seed)
        check_choice("task", task, TASKS)
        check_at_least(1, digits=digits, num_train=num_train, num_test=num_test)
        self.task = task
        self.digits = digits
        self.num_train, self.num_test = num_train, num_test
        source = 2 * digits + 1 if task == "add" else digits
        self.source_length, self.target_length = source + 1, (digits + 1 if task == "add" else digits) + 1
        self.input_shape = (self.source_length,)
        self.output_length = self.target_length
        self.num_classes = FIRST + len(SYMBOLS)
        self.class_names = ("padding", "start", "end", *SYMBOLS)

    def load_split(self, train: bool) -> tuple[Tensor, Tensor]:
        sources = self._draw_sources()
        if len(sources) < self.num_train + self.num_test:
            raise UserError(
                f"there are only about {len(sources)} different sources of up to {self.digits} digits, but num_train "
                f"and num_test need {self.num_train + self.num_test}; use more digits, or smaller numbers of samples"
            )
        chosen = sources[: self.num_train] if train else sources[self.num_train :][: self.num_test]
        x = encode(chosen, self.source_length)
        return x, encode([solve(self.task, source) for source in chosen], self.target_length)

    def _draw_sources(self) -> list[str]:
        """Different sources in random order; fewer than num_train + num_test if there are not enough."""
        generator = torch.Generator().manual_seed(self.seed)
        wanted = self.num_train + self.num_test
        found: dict[str, None] = {}
        for _ in range(20):
            found |= dict.fromkeys(self._draw(wanted, generator))
            if len(found) >= wanted:
                break
        return list(found)[:wanted]

    def _draw(self, n: int, generator: Generator) -> list[str]:
        numbers = []
        for _ in range(2 if self.task == "add" else 1):
            lengths = torch.randint(1, self.digits + 1, (n,), generator=generator).tolist()
            digits = torch.randint(10, (n, self.digits), generator=generator).tolist()
            numbers.append(["".join(map(str, row[:length])) for row, length in zip(digits, lengths, strict=True)])
        if self.task == "add":
            return [f"{int(a)}+{int(b)}" for a, b in zip(*numbers, strict=True)]
        return numbers[0]


def solve(task: str, source: str) -> str:
    """Correct target of a source."""
    if task == "add":
        return str(sum(map(int, source.split("+"))))
    return source[::-1] if task == "reverse" else "".join(sorted(source))
