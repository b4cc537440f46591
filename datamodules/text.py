"""Text for language models: a file, a folder, or the source code of Python's standard library.

A batch is `(x, y)`, int64 (N, T) each: tokens, and the next tokens. `input_shape` is (T,), `num_classes` the number of
tokens, and `tokenizer_description` the string from which the tokenizer can be rebuilt.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from zoo.datamodules.base import identity_collate
from zoo.datamodules.evaluation import evaluation_loader
from zoo.datamodules.loading import training_loader
from zoo.errors import UserError, check_at_least, check_choice
from zoo.tokenizers import BytePairTokenizer, ByteTokenizer, CharacterTokenizer, Tokenizer

TOKENIZERS = ("bytes", "characters", "bpe")


class TokenWindows(Dataset[tuple[Tensor, Tensor]]):
    """Dataset of adjacent windows of a text; an epoch covers the text once.

    Args:
        tokens: tokens of the text, (L,), any integer dtype.
        length: number of tokens T per window.
        jitter: shift the start of each window by up to T - 1 tokens at random, so that epochs differ.
    """

    def __init__(self, tokens: Tensor, length: int, jitter: bool) -> None:
        self.tokens, self.length, self.jitter = tokens, length, jitter

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = self.__getitems__([index])
        return x[0], y[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        start = torch.as_tensor(indices) * self.length
        if self.jitter:
            start += torch.randint(self.length, (len(indices),))
            start.clamp_(max=len(self.tokens) - 1 - self.length)
        windows = self.tokens[start[:, None] + torch.arange(self.length + 1)].long()  # (N, T + 1)
        return windows[:, :-1], windows[:, 1:]


class Text(LightningDataModule):
    """Text for language modeling, cut into windows; its end is held out for validation and testing.

    Args:
        path: path to a text file in UTF-8, or to a folder whose files are joined in the order of their names (default:
            the source code of Python's standard library, a few megabytes of text).
        tokenizer: tokenizer: "bytes" for UTF-8 bytes, "characters" for the characters of the text, "bpe" for byte-pair
            encoding, learned from the training text by the library `tokenizers`.
        vocab_size: maximum number of tokens for "bpe".
        context_length: number of tokens T per window.
        batch_size: number of windows per training batch, on each device.
        eval_batch_size: number of windows per validation or test batch.
        val_size: fraction of the text that is held out for validation.
        test_size: fraction of the text that is held out for testing, at its end; 0 for none.
    """

    tokens = True

    def __init__(
        self,
        path: str | None = None,
        tokenizer: Literal["bytes", "characters", "bpe"] = "bytes",
        vocab_size: int = 1024,
        context_length: int = 64,
        batch_size: int = 12,
        eval_batch_size: int = 64,
        val_size: float = 0.1,
        test_size: float = 0.0,
    ) -> None:
        super().__init__()
        check_choice("tokenizer", tokenizer, TOKENIZERS)
        check_at_least(1, context_length=context_length, batch_size=batch_size, eval_batch_size=eval_batch_size)
        check_at_least(0, test_size=test_size)
        if not 0 < val_size < 1 - test_size:
            raise UserError(
                f"val_size {val_size} and test_size {test_size} must be fractions that leave some text for training"
            )
        self.path = path
        self.context_length = context_length
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.input_shape = (context_length,)
        text = read_text(path)
        ends = [round(len(text) * share) for share in (1 - test_size - val_size, 1 - test_size)]
        self._text = {"train": text[: ends[0]], "val": text[ends[0] : ends[1]], "test": text[ends[1] :]}
        self.tokenizer: Tokenizer
        if tokenizer == "bytes":
            self.tokenizer = ByteTokenizer()
        elif tokenizer == "characters":
            self.tokenizer = CharacterTokenizer(text)
        else:
            self.tokenizer = BytePairTokenizer.train(self._text["train"], vocab_size)
        self.tokenizer_description = self.tokenizer.description
        self.num_classes = self.tokenizer.size
        self._splits: dict[str, Tensor] = {}

    def setup(self, stage: str | None = None) -> None:
        for name in ("train", "val") if stage in ("fit", "validate") else ("test",) if stage else self._text:
            if name not in self._splits:
                self._splits[name] = self.tokenizer.encode(self._text[name]).to(torch.int32)

    def split(self, name: str) -> Tensor:
        """Tokens of the split "train", "val" or "test", int64 (L,)."""
        return self._splits[name].long()

    def train_dataloader(self) -> DataLoader[Any]:
        dataset = self._windows("train", jitter=True)
        if len(dataset) < self.batch_size:
            raise UserError(
                f"batch_size {self.batch_size} is larger than the {len(dataset)} windows of {self.context_length} "
                "tokens in the training text; make it or context_length smaller, or use more text"
            )
        return training_loader(dataset, self.batch_size, True, identity_collate, self.trainer)

    def val_dataloader(self) -> DataLoader[Any]:
        return evaluation_loader(self._windows("val"), self.eval_batch_size, identity_collate, self.trainer)

    def test_dataloader(self) -> DataLoader[Any]:
        if not self._text["test"]:
            raise UserError(
                "there is no test split, because test_size is 0: validate, or train with a test_size above 0"
            )
        return evaluation_loader(self._windows("test"), self.eval_batch_size, identity_collate, self.trainer)

    def _windows(self, name: str, jitter: bool = False) -> TokenWindows:
        windows = TokenWindows(self._splits[name], self.context_length, jitter)
        if not len(windows):
            raise UserError(
                f"the {name} split has {len(windows.tokens)} tokens, not enough for one window of context_length "
                f"{self.context_length} and the token after it; make context_length smaller, or use more text"
            )
        return windows


def read_text(path: str | None) -> str:
    """Reads the text of a file or a folder.

    Args:
        path: path to the file or folder; None for the source code of Python's standard library.

    Raises:
        UserError: there is no text, or it is not UTF-8.
    """
    folder = Path(path).expanduser() if path else Path(sysconfig.get_path("stdlib"))
    if not folder.exists():
        raise UserError(f"{folder.absolute()} does not exist; point path to a text file or a folder of them")
    if folder.is_file():
        files = [folder]
    elif path:
        files = sorted(f for f in folder.rglob("*") if f.is_file() and not f.name.startswith("."))
    else:
        files = sorted(folder.glob("*.py"))
    texts, problems = [], []
    for file in files:
        try:
            texts.append(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            problems.append(
                f"{file} ({'not UTF-8' if isinstance(error, ValueError) else cast(OSError, error).strerror})"
            )
    text = "\n".join(texts)
    if not text:
        why = problems[0] if problems else f"{folder.absolute()} has none"
        raise UserError(f"there is no text to read: {why}; point path to a text file or a folder of them")
    if problems:
        rank_zero_warn(
            f"{len(problems)} of {len(files)} files are not text and are skipped, the first is {problems[0]}"
        )
    return text
