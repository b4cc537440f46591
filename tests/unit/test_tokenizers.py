"""Tokenizers: encoding, decoding, and the number of bytes of a token."""

import json
import random
import sys
import time

import pytest

from zoo.errors import UserError
from zoo.tokenizers import BytePairTokenizer, ByteTokenizer, CharacterTokenizer, tokenizer_from

TEXT = "To be, or not to be?\n\tÄé — 你好 🙂\r\n" * 3


def tokenizers():
    pytest.importorskip("tokenizers", reason="byte-pair encoding is optional")
    return [ByteTokenizer(), CharacterTokenizer(TEXT), BytePairTokenizer.train(TEXT * 5, 300)]


def test_decoding_inverts_encoding_also_for_a_tokenizer_from_its_description():
    for tokenizer in tokenizers():
        for one in (tokenizer, tokenizer_from(tokenizer.description)):
            assert one.decode(one.encode(TEXT).tolist()) == TEXT
            assert one.size == tokenizer.size


def test_byte_counts_of_tokens_add_up_to_the_bytes_of_the_text():
    for tokenizer in tokenizers():
        tokens = tokenizer.encode(TEXT)
        assert tokenizer.byte_counts()[tokens].sum() == len(TEXT.encode())
        assert tokens.max() < tokenizer.size == len(tokenizer.byte_counts())


def test_byte_pairs_are_fewer_tokens_and_encode_unseen_text():
    _, _, pairs = tokenizers()
    assert 256 < pairs.size <= 300
    assert len(pairs.encode(TEXT)) < 0.7 * len(TEXT.encode())
    assert pairs.decode(pairs.encode("ξένος").tolist()) == "ξένος"


def test_invalid_bytes_decode_to_the_replacement_character():
    assert ByteTokenizer().decode([255, 65]) == "\ufffdA"
    assert len(ByteTokenizer().encode("")) == 0


def test_an_unknown_character_is_named():
    with pytest.raises(UserError, match="the character 'z' is not in the text"):
        CharacterTokenizer("abc").encode("abz")


def test_invalid_descriptions_and_vocabulary_sizes_are_refused():
    pytest.importorskip("tokenizers")
    with pytest.raises(UserError, match="is neither bytes, characters nor"):
        tokenizer_from("{}")
    with pytest.raises(UserError, match="vocab_size is 100; byte-pair encoding needs at least 256"):
        BytePairTokenizer.train(TEXT, 100)


def test_a_text_without_spaces_is_learned_in_seconds_and_a_vocabulary_beyond_the_memory_is_cut():
    """One word of 120,000 bytes took 6 s, one of 3 million did not end; the second aborted the process."""
    pytest.importorskip("tokenizers")
    text = "".join(random.Random(0).choices("ACGT", k=120_000))
    start = time.process_time()
    pairs = BytePairTokenizer.train(text, 10**12)
    assert 256 < pairs.size < 256 + len(text)
    assert time.process_time() - start < 5
    assert pairs.decode(pairs.encode(text).tolist()) == text


def test_text_that_is_no_unicode_is_refused_by_every_tokenizer():
    """As the words of a command line that are not UTF-8."""
    for tokenizer in tokenizers():
        with pytest.raises(UserError, match=r"'\\udcff' is not (valid Unicode|in the text)"):
            tokenizer.encode("\udcff")


def test_a_description_that_would_end_the_process_does_not():
    pairs = tokenizers()[2]
    padding = {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}
    padded = {**json.loads(pairs.description), "padding": {**padding, "pad_to_multiple_of": None}}
    assert tokenizer_from(json.dumps(padded)).encode(TEXT).tolist() == pairs.encode(TEXT).tolist()
    spoiled = json.loads(pairs.description)
    for entry, value in {"vocab": {"a": 0}, "merges": [["no", "pair"]]}.items():
        with pytest.raises(UserError, match="is neither bytes, characters nor"):
            tokenizer_from(json.dumps({**spoiled, "model": {**spoiled["model"], entry: value}}))


def test_without_the_library_the_fix_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install lightning-zoo\[bpe\]"):
        BytePairTokenizer.train(TEXT, 300)
