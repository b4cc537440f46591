"""Tokenizers: bytes, characters, and byte-pair encoding.

A tokenizer is described by one string, which is stored in checkpoints, so that a loaded model can decode its tokens.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from zoo.errors import UserError

BYTES = "bytes"
CHARACTERS = "characters:"
LONGEST_WORD = 256  # bytes of a word from which byte pairs are learned; longer ones are cut


class Tokenizer(ABC):
    """Text to tokens and back."""

    #: Number of tokens.
    size: int
    #: String from which `tokenizer_from` builds the same tokenizer.
    description: str

    @abstractmethod
    def encode(self, text: str) -> Tensor:
        """Text to int64 (T,)."""

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """Tokens to text; invalid bytes become the replacement character."""

    @abstractmethod
    def byte_counts(self) -> Tensor:
        """Number of UTF-8 bytes of each token, float32 (size,)."""


class ByteTokenizer(Tokenizer):
    """One token per UTF-8 byte: encodes any text with 256 tokens."""

    size = 256
    description = BYTES

    def encode(self, text: str) -> Tensor:
        data = _utf8(text)
        return torch.frombuffer(data, dtype=torch.uint8).long() if data else torch.empty(0, dtype=torch.int64)

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode(errors="replace")

    def byte_counts(self) -> Tensor:
        return torch.ones(self.size)


class CharacterTokenizer(Tokenizer):
    """One token per character of a given set.

    Args:
        characters: known characters; duplicates are ignored.
    """

    def __init__(self, characters: Iterable[str]) -> None:
        self.characters = sorted(set(characters))
        self.size = len(self.characters)
        self.description = CHARACTERS + "".join(self.characters)
        self._index = {character: index for index, character in enumerate(self.characters)}

    def encode(self, text: str) -> Tensor:
        try:
            return torch.tensor([self._index[character] for character in text], dtype=torch.int64)
        except KeyError as error:
            raise UserError(
                f"the character {error.args[0]!r} is not in the text on which the model was trained; remove it"
            ) from error

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(self.characters[token] for token in tokens)

    def byte_counts(self) -> Tensor:
        return torch.tensor([float(len(character.encode())) for character in self.characters])


class BytePairTokenizer(Tokenizer):
    """Byte-pair encoding (Sennrich et al. 2016): repeatedly merges the most frequent pair of tokens.

    Uses the library `tokenizers`, with GPT-2's pre-tokenization into words. Encodes any text, since all bytes are
    tokens.

    Args:
        description: tokenizer in the library's JSON format, of which the vocabulary and the merges are read. Other
            entries, such as a padding to 10^12 tokens, could end the process.

    Raises:
        ValueError: the vocabulary does not number its tokens from 0, or lacks a byte.
    """

    def __init__(self, description: str) -> None:
        library = _tokenizers()
        self.description = description
        model = json.loads(description)["model"]
        vocabulary: dict[str, int] = model["vocab"]
        alphabet = library.pre_tokenizers.ByteLevel.alphabet()
        if sorted(vocabulary.values()) != list(range(len(vocabulary))) or not vocabulary.keys() >= set(alphabet):
            raise ValueError("the vocabulary must have all bytes, and number its tokens from 0")
        merges = [(first, second) for first, second in model["merges"]]
        self._tokenizer = _byte_level(library, library.models.BPE(vocab=vocabulary, merges=merges))
        self.size = len(vocabulary)

    @classmethod
    def train(cls, text: str, vocab_size: int) -> BytePairTokenizer:
        """Learns at most `vocab_size` tokens, 256 of them the bytes, from a text."""
        library = _tokenizers()
        if vocab_size < 256:
            raise UserError(
                f"vocab_size is {vocab_size}; byte-pair encoding needs at least 256 tokens, one for each byte"
            )
        tokenizer = _byte_level(library, library.models.BPE())
        words = tokenizer.pre_tokenizer
        # The time of learning grows with the square of a word's length, and a text without spaces is one word.
        short = library.pre_tokenizers.Split(library.Regex(f".{{1,{LONGEST_WORD}}}"), "isolated")
        tokenizer.pre_tokenizer = library.pre_tokenizers.Sequence([words, short])
        alphabet = library.pre_tokenizers.ByteLevel.alphabet()
        # The library reserves memory for all of vocab_size; there are at most as many pairs to merge as bytes.
        vocab_size = min(vocab_size, 256 + len(_utf8(text)))
        trainer = library.trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
        tokenizer.pre_tokenizer = words
        return cls(tokenizer.to_str())

    def encode(self, text: str) -> Tensor:
        _utf8(text)  # the library raises a TypeError
        return torch.tensor(self._tokenizer.encode(text).ids, dtype=torch.int64)

    def decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(list(tokens))

    def byte_counts(self) -> Tensor:
        # The library represents each byte of a token by one character.
        return torch.tensor([float(len(self._tokenizer.id_to_token(index))) for index in range(self.size)])


def _byte_level(library, model):  # type: ignore[no-untyped-def]
    """Tokenizer of the library that splits a text into words of bytes, as GPT-2 does."""
    tokenizer = library.Tokenizer(model)
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    return tokenizer


def tokenizer_from(description: str) -> Tokenizer:
    """Builds the tokenizer of a description.

    Raises:
        UserError: the description is invalid.
    """
    if description == BYTES:
        return ByteTokenizer()
    if description.startswith(CHARACTERS):
        return CharacterTokenizer(description.removeprefix(CHARACTERS))
    try:
        return BytePairTokenizer(description)
    except UserError:
        raise
    except Exception as error:  # the library raises a plain Exception
        raise UserError(f"the tokenizer {description[:40]!r} is neither bytes, characters nor a BPE's JSON") from error


def _utf8(text: str) -> bytearray:
    try:
        return bytearray(text.encode())
    except UnicodeEncodeError as error:  # bytes of a command line that are not UTF-8
        raise UserError(f"the text {text[:40]!r} is not valid Unicode; type it in UTF-8") from error


def _tokenizers():  # type: ignore[no-untyped-def]
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError as error:
        raise UserError(
            "byte-pair encoding needs tokenizers, which is not installed: pip install lightning-zoo[bpe]"
        ) from error
    return tokenizers
