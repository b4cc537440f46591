"""Options among the words of a command line."""

from __future__ import annotations

from zoo.cli.options import typed_options


def test_options_are_found_among_the_words_as_they_are_typed():
    line = "--ckpt_path a.ckpt --n=3 word --labels+=4 --flag --t -1 --n 5 --out=a=b --x"
    assert typed_options(line.split()) == {
        "ckpt_path": "a.ckpt", "n": "5", "labels": "4", "flag": None, "t": "-1", "out": "a=b", "x": None,
    }  # fmt: skip
    assert typed_options([]) == {}
