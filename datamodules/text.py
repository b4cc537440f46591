"""Text for language models: a file, a folder, or the source code of Python's standard library.

A batch is `(x, y)`, int64 (N, T) each: tokens, and the next tokens. `input_shape` is (T,), `num_classes` the number of
tokens, and `tokenizer_description` the string from which the tokenizer can be rebuilt. The tokens take one byte each
(two or four with a larger vocabulary), in memory or in a memory-mapped file on disk, and on a GPU that has room.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from zoo.datamodules.base import identity_collate
from zoo.datamodules.device_cache import CacheMode, DeviceCopies, check_device
from zoo.datamodules.disk_cache import default_folder
from zoo.datamodules.evaluation import evaluation_loader
from zoo.datamodules.loading import training_loader
from zoo.datamodules.memory import check_fits
from zoo.datamodules.text_files import Shares, TextFiles, tokenize, tokenize_on_disk
from zoo.errors import UserError, check_at_least, check_choice

TOKENIZERS = ("bytes", "characters", "bpe")
LARGE_TEXT = 10**8  # bytes; "auto" puts the tokens of a larger text on disk


class TokenWindows(Dataset[tuple[Tensor, Tensor]]):
    """Dataset of adjacent windows of a text; an epoch covers the text once.

    Args:
        tokens: tokens of the text, (L,), any integer dtype, on the device where the windows are to be.
        length: number of tokens T per window.
        jitter: shift the start of each window by up to T - 1 tokens at random, so that epochs differ.
    """

    def __init__(self, tokens: Tensor, length: int, jitter: bool) -> None:
        self.tokens, self.length, self.jitter = tokens, length, jitter

    @property
    def device(self) -> torch.device:
        """Device of the tokens and of the batches."""
        return self.tokens.device

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
        start = start.to(self.device, non_blocking=True)
        places = start[:, None] + torch.arange(self.length + 1, device=self.device)  # (N, T + 1)
        if self.tokens.dtype == torch.uint16:  # which torch 2.8 does not index; its bits as int16 it does
            windows = self.tokens.view(torch.int16)[places].long() & 0xFFFF
        else:
            windows = self.tokens[places].long()
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
        cache: where the tokens lie: "memory"; "disk", in a memory-mapped file that is built once; "device", on the
            training device too, where windows are then cut; "auto", on disk if the text has more than 100 MB, and on
            a CUDA device too if the tokens take at most a quarter of its free memory. Bytes and characters are read in
            pieces, so the text can be larger than the memory; for "bpe" the text must fit into it while the file is
            built.
        cache_dir: folder of the files on disk; by default $ZOO_CACHE, or `lightning-zoo` in the user's cache folder.
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
        cache: CacheMode = "auto",
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        check_choice("tokenizer", tokenizer, TOKENIZERS)
        check_choice("cache", cache, get_args(CacheMode))
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
        files, shares = TextFiles(path), Shares(val_size, test_size)
        self.cache = cache
        if cache == "disk" or (cache != "memory" and files.size > LARGE_TEXT):
            folder = Path(cache_dir).expanduser() if cache_dir else default_folder()
            self._text = tokenize_on_disk(files, tokenizer, vocab_size, shares, folder)
        else:
            self._text = tokenize(files, tokenizer, vocab_size, shares)
        self.tokenizer = self._text.tokenizer
        self.tokenizer_description = self.tokenizer.description
        self.num_classes = self.tokenizer.size
        self._copies = DeviceCopies()

    def setup(self, stage: str | None = None) -> None:
        """Reads nothing: the constructor has read the text, on which the tokenizer depends."""
        check_device(self.cache, self.trainer)

    def teardown(self, stage: str | None = None) -> None:
        self._copies.clear()

    def split(self, name: str) -> Tensor:
        """Tokens of the split "train", "val" or "test", int64 (L,).

        Raises:
            UserError: they would not fit into the available memory. The dataloaders have no such limit.
        """
        tokens = self._text.split(name)
        check_fits(8 * len(tokens), f"the {name} split of Text as int64", "read the dataloader")
        return tokens.long()

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
        if not len(self._text.split("test")):
            raise UserError(
                "there is no test split, because test_size is 0: validate, or train with a test_size above 0"
            )
        return evaluation_loader(self._windows("test"), self.eval_batch_size, identity_collate, self.trainer)

    def _windows(self, name: str, jitter: bool = False) -> TokenWindows:
        (tokens,) = self._copies.place([self._text.tokens], self.cache, self.trainer, "the text")
        windows = TokenWindows(replace(self._text, tokens=tokens).split(name), self.context_length, jitter)
        if not len(windows):
            raise UserError(
                f"the {name} split has {len(windows.tokens)} tokens, not enough for one window of context_length "
                f"{self.context_length} and the token after it; make context_length smaller, or use more text"
            )
        return windows
