"""The Transformer as the paper has it, from sequence to sequence."""

from zoo.seq2seq.module import Seq2Seq

__all__ = ["Seq2Seq"]
