"""Small tasks from sequence to sequence whose answers are known: reversing, sorting, adding.

A batch is `(x, y)`: sources int64 (N, S) and answers int64 (N, T), each closed by END and filled up with PADDING.
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
FIRST = 3  # the token of "0"


def encode(texts: list[str], length: int) -> Tensor:
    """Texts to int64 (N, length): tokens, END, PADDING."""
    rows = [[FIRST + SYMBOLS.index(symbol) for symbol in text] + [END] for text in texts]
    return torch.tensor([row + [PADDING] * (length - len(row)) for row in rows])


def decode(tokens: Tensor) -> list[str]:
    """Tokens (N, T) to texts, each up to its END."""
    texts = []
    for row in tokens.tolist():
        row = row[: row.index(END)] if END in row else row
        texts.append("".join(SYMBOLS[token - FIRST] if token >= FIRST else "?" for token in row))
    return texts


class Sequences(InMemoryDataModule):
    """Questions in decimal digits: `reverse` turns 31524 into 42513, `sort` into 12345, and `add` 12+345 into 357.

    Questions are drawn once, by `seed`, with lengths drawn evenly; those of the test split and of the validation split
    are none of the training split's.

    Args:
        task: which one.
        digits: at most, of a sequence, or of each of the numbers to add; 1 at least.
        num_train: questions for training and validation together.
        num_test: questions for testing, at most.
        batch_size: see `InMemoryDataModule`, as for the other arguments.

    Raises:
        UserError: there are not so many different questions.
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
        questions = self._draw_questions()
        if len(questions) < self.num_train + self.num_test:
            raise UserError(
                f"there are hardly more than {len(questions)} different questions of {self.digits} digits, and "
                f"{self.num_train + self.num_test} are asked for; use more digits, or smaller num_train and num_test"
            )
        chosen = questions[: self.num_train] if train else questions[self.num_train :][: self.num_test]
        x = encode(chosen, self.source_length)
        return x, encode([answer(self.task, question) for question in chosen], self.target_length)

    def _draw_questions(self) -> list[str]:
        """Different questions, in a random order; fewer than asked for where there are not so many."""
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


def answer(task: str, question: str) -> str:
    """The right answer to a question."""
    if task == "add":
        return str(sum(map(int, question.split("+"))))
    return question[::-1] if task == "reverse" else "".join(sorted(question))
