"""Text of files as a stream of pieces, and as tokens in memory or in a memory-mapped cache on disk."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from zoo.datamodules.disk_cache import CacheKey, CacheWriter, open_or_build
from zoo.datamodules.sources import files_digest, progress_bar
from zoo.errors import UserError
from zoo.tokenizers import BytePairTokenizer, ByteTokenizer, CharacterTokenizer, Tokenizer, tokenizer_from

PIECE = 1 << 20  # characters that are read at once
# A line break between two characters that are not white space: GPT-2's pre-tokenization makes it a word of its own, so
# the text can be cut behind it without changing the tokens.
SAFE_CUT = re.compile(r"(?<=\S)\n(?=\S)")


class Shares(NamedTuple):
    """Fractions of the text that are held out, at its end."""

    val: float
    test: float

    def ends(self, length: int) -> list[int]:
        """Where training and validation end in a text of this length."""
        return [round(length * share) for share in (1 - self.test - self.val, 1 - self.test)]


@dataclass(frozen=True)
class TokenizedText:
    """Tokens of a text.

    Attributes:
        tokens: tokens of training, validation and test text, one after the other: uint8, uint16 or int32 (L,).
        ends: where training and validation end.
        tokenizer: tokenizer that made them.
    """

    tokens: Tensor
    ends: Sequence[int]
    tokenizer: Tokenizer

    def split(self, name: str) -> Tensor:
        """Tokens of the split "train", "val" or "test", a view."""
        start, end = {"train": (0, self.ends[0]), "val": (*self.ends,), "test": (self.ends[1], len(self.tokens))}[name]
        return self.tokens[start:end]


class TextFiles:
    """The files of a text, in UTF-8; others are left out.

    Args:
        path: path to a file or a folder; None for the source code of Python's standard library.

    Raises:
        UserError: the path does not exist.
    """

    def __init__(self, path: str | None) -> None:
        self.root = Path(path).expanduser() if path else Path(sysconfig.get_path("stdlib"))
        if not self.root.exists():
            raise UserError(f"{self.root.absolute()} does not exist; point path to a text file or a folder of them")
        if self.root.is_file():
            self.files = [self.root]
        elif path:
            self.files = sorted(f for f in self.root.rglob("*") if f.is_file() and not f.name.startswith("."))
        else:
            self.files = sorted(self.root.glob("*.py"))
        self.size = sum(file.stat().st_size for file in self.files)

    def readable(self) -> tuple[list[Path], list[str]]:
        """The files that are text, and the others, each with the reason. Every file is read once."""
        files, problems = [], []
        for file in self.files:
            try:
                for _ in _pieces_of(file):
                    pass
                files.append(file)
            except (OSError, UnicodeDecodeError) as error:
                reason = "not UTF-8" if isinstance(error, ValueError) else cast(OSError, error).strerror
                problems.append(f"{file} ({reason})")
        return files, problems

    def warn(self, problems: Sequence[str], count: int) -> None:
        """One line on files that are not text, the first of them by name."""
        if count:
            rank_zero_warn(
                f"{count} of {len(self.files)} files are not text and are skipped, the first is {problems[0]}"
            )

    def check(self, length: int, problems: Sequence[str]) -> None:
        """Raises a `UserError` if there is no text."""
        if not length:
            why = problems[0] if problems else f"{self.root.absolute()} has none"
            raise UserError(f"there is no text to read: {why}; point path to a text file or a folder of them")


def _pieces_of(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8") as opened:
        while piece := opened.read(PIECE):
            yield piece


def pieces(files: Iterable[Path]) -> Iterator[str]:
    """The text of the files, joined by line breaks, in pieces of up to `PIECE` characters."""
    for number, file in enumerate(files):
        if number:
            yield "\n"
        yield from _pieces_of(file)


def tokenize(source: TextFiles, tokenizer: str, vocab_size: int, shares: Shares) -> TokenizedText:
    """Reads a text into memory as tokens.

    Args:
        source: files of the text.
        tokenizer: "bytes", "characters" or "bpe".
        vocab_size: maximum number of tokens for "bpe".
        shares: fractions that are held out.

    Raises:
        UserError: there is no text.
    """
    parts: list[np.ndarray] = []
    meta = _encode(source, tokenizer, vocab_size, shares, parts.append)
    source.warn(meta["problems"], meta["skipped"])
    return _tokenized(torch.from_numpy(np.concatenate(parts)), meta, shares)


def tokenize_on_disk(source: TextFiles, tokenizer: str, vocab_size: int, shares: Shares, folder: Path) -> TokenizedText:
    """Like `tokenize`, but the tokens stay on disk, in a memory-mapped file of `folder`; it is built once."""
    key = CacheKey(folder, "text", _content(source, tokenizer, vocab_size, shares), source.size)

    def build(writer: CacheWriter) -> None:
        writer.meta.update(
            _encode(source, tokenizer, vocab_size, shares, lambda tokens: writer.append("tokens", tokens))
        )

    cache = open_or_build(key, build)
    source.warn(cache.meta["problems"], cache.meta["skipped"])
    return _tokenized(cache.arrays["tokens"], cache.meta, shares)


def _content(source: TextFiles, tokenizer: str, vocab_size: int, shares: Shares) -> dict[str, Any]:
    """What the tokens depend on. Bytes and characters do not depend on what is held out."""
    content: dict[str, Any] = {"class": "Text", "root": str(source.root.resolve()), "tokenizer": tokenizer}
    content["files"] = files_digest(source.files, source.root)
    if tokenizer == "bpe":
        content |= {"vocab_size": vocab_size, "shares": list(shares), "tokenizers": _version("tokenizers")}
    return content


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _tokenized(tokens: Tensor, meta: Mapping[str, Any], shares: Shares) -> TokenizedText:
    tokenizer = tokenizer_from(meta["tokenizer"])
    ends = meta["ends"] or shares.ends(len(tokens))
    if isinstance(tokenizer, ByteTokenizer):
        ends = [_end_of_character(tokens, end) for end in ends]
    return TokenizedText(tokens, ends, tokenizer)


def _end_of_character(tokens: Tensor, end: int) -> int:
    """The first position from `end` on at which no character of UTF-8 is cut."""
    while end < len(tokens) and int(tokens[end]) & 0xC0 == 0x80:
        end += 1
    return end


def _encode(
    source: TextFiles, tokenizer: str, vocab_size: int, shares: Shares, add: Callable[[np.ndarray], None]
) -> dict[str, Any]:
    """Encodes a text in pieces; returns the plain values from which it can be used.

    Bytes and characters need no more memory than a piece. Byte pairs are learned from the whole training text, which
    is one string in memory meanwhile.
    """
    files, problems = source.readable()
    ends: list[int] = []
    built: Tokenizer
    with progress_bar("reading the text", source.size, many=10**7) as advance:
        if tokenizer == "bytes":
            built, parts = ByteTokenizer(), pieces(files)
        elif tokenizer == "characters":
            known: set[str] = set()
            for piece in pieces(files):
                known.update(piece)
            built, parts = CharacterTokenizer(known), pieces(files)
        else:
            text = "".join(pieces(files))
            source.check(len(text), problems)
            cuts = shares.ends(len(text))
            texts = [text[: cuts[0]], text[cuts[0] : cuts[1]], text[cuts[1] :]]
            del text
            built = BytePairTokenizer.train(texts[0], vocab_size)
            parts = (part for one in texts for part in (*safe_pieces(one), None))  # type: ignore[misc]
        length, dtype = 0, smallest_dtype(built.size)
        for part in parts:
            if part is None:  # the end of a split
                ends.append(length)
                continue
            tokens = np.frombuffer(part.encode(), np.uint8) if tokenizer == "bytes" else built.encode(part).numpy()
            add(tokens.astype(dtype, copy=False))
            length += len(tokens)
            advance(len(part))
    source.check(length, problems)
    return {
        "tokenizer": built.description,
        "ends": ends[:2],
        "skipped": len(problems),
        "problems": problems[:1],
    }


def safe_pieces(text: str, length: int = PIECE) -> Iterator[str]:
    """Cuts a text into pieces of about `length` characters that have the same byte pairs as the whole text."""
    start = 0
    while start < len(text):
        cut = SAFE_CUT.search(text, start + length)
        end = cut.end() if cut else len(text)
        yield text[start:end]
        start = end


def smallest_dtype(size: int) -> str:
    """Name of the smallest dtype for tokens below `size`: uint8, uint16 or int32."""
    return "uint8" if size <= 2**8 else "uint16" if size <= 2**16 else "int32"


def read_text(path: str | None) -> str:
    """Reads the text of a file or a folder as one string.

    Args:
        path: path to the file or folder; None for the source code of Python's standard library.

    Raises:
        UserError: there is no text, or it is not UTF-8.
    """
    source = TextFiles(path)
    files, problems = source.readable()
    text = "".join(pieces(files))
    source.check(len(text), problems)
    source.warn(problems, len(problems))
    return text
