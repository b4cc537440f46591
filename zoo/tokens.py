"""Text to tokens and back: bytes, characters, or pieces learned by byte-pair encoding.

A tokenizer is described by one string, which a checkpoint keeps, so that a model can write text wherever it is loaded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from zoo.errors import UserError

BYTES = "bytes"
CHARACTERS = "characters:"


class Tokenizer(ABC):
    """Text to tokens and back."""

    #: Number of tokens.
    size: int
    #: What `tokenizer_from` makes the same tokenizer of.
    description: str

    @abstractmethod
    def encode(self, text: str) -> Tensor:
        """Text to int64 (T,)."""

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """Tokens to text; what is no text becomes the replacement character."""

    @abstractmethod
    def byte_counts(self) -> Tensor:
        """Bytes of UTF-8 that each token stands for, float32 (size,)."""


class ByteTokenizer(Tokenizer):
    """A token for each byte of the text in UTF-8: any text, in 256 tokens."""

    size = 256
    description = BYTES

    def encode(self, text: str) -> Tensor:
        data = bytearray(text.encode())
        return torch.frombuffer(data, dtype=torch.uint8).long() if data else torch.empty(0, dtype=torch.int64)

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode(errors="replace")

    def byte_counts(self) -> Tensor:
        return torch.ones(self.size)


class CharacterTokenizer(Tokenizer):
    """A token for each of the characters that there are in a text.

    Args:
        characters: those that it knows, each once.
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
                f"the character {error.args[0]!r} is not in the text that the model was trained on; leave it out"
            ) from error

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(self.characters[token] for token in tokens)

    def byte_counts(self) -> Tensor:
        return torch.tensor([float(len(character.encode())) for character in self.characters])


class BytePairTokenizer(Tokenizer):
    """Pieces of words, made by joining the most frequent pairs of bytes again and again (Sennrich et al. 2016).

    By the library `tokenizers`, with GPT-2's division into words; any text can be encoded, since the bytes are tokens.

    Args:
        description: the library's JSON.
    """

    def __init__(self, description: str) -> None:
        library = _tokenizers()
        self.description = description
        self._tokenizer = library.Tokenizer.from_str(description)
        self.size = self._tokenizer.get_vocab_size()

    @classmethod
    def train(cls, text: str, size: int) -> BytePairTokenizer:
        """Learns at most `size` tokens, 256 of them the bytes, from a text."""
        library = _tokenizers()
        if size < 256:
            raise UserError(f"vocabulary is {size}; byte-pair encoding needs at least 256 tokens, one for each byte")
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = library.decoders.ByteLevel()
        alphabet = library.pre_tokenizers.ByteLevel.alphabet()
        trainer = library.trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
        return cls(tokenizer.to_str())

    def encode(self, text: str) -> Tensor:
        return torch.tensor(self._tokenizer.encode(text).ids, dtype=torch.int64)

    def decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(list(tokens))

    def byte_counts(self) -> Tensor:
        # The library writes each byte of a token as one character.
        return torch.tensor([float(len(self._tokenizer.id_to_token(index))) for index in range(self.size)])


def tokenizer_from(description: str) -> Tokenizer:
    """The tokenizer of this description.

    Raises:
        UserError: it describes none.
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


def _tokenizers():  # type: ignore[no-untyped-def]
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError as error:
        raise UserError("byte-pair encoding needs the library tokenizers: pip install tokenizers") from error
    return tokenizers
