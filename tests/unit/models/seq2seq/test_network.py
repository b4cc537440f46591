"""The encoder-decoder network."""

import torch
from torch import nn

from zoo.models.seq2seq.network import EncoderDecoder


def test_padding_of_the_source_does_not_change_the_logits():
    network = EncoderDecoder(11, layers=2, width=32).eval()
    source, target = torch.randint(1, 11, (2, 5)), torch.randint(1, 11, (2, 4))
    padded = torch.cat([source, torch.zeros(2, 3, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(network(padded, target), network(source, target), atol=1e-5, rtol=1e-5)


def test_logits_of_the_decoder_with_caches_equal_those_without():
    network = EncoderDecoder(11, layers=2, width=32).eval()
    memory, mask = network.encode(torch.randint(1, 11, (2, 5)))
    target = torch.randint(1, 11, (2, 6))
    caches = network.decoder.caches()
    parts = [network.decode(token, memory, mask, caches) for token in target.split(1, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), network.decode(target, memory, mask), atol=1e-5, rtol=1e-5)


def test_dropout_is_on_the_embeddings_and_on_the_output_of_every_sublayer_only():
    network = EncoderDecoder(11, layers=2, width=32, dropout=0.3)
    rates = {name: m.p for name, m in network.named_modules() if isinstance(m, nn.Dropout)}
    blocks = [f"{side}.blocks.{i}.dropout" for side in ("encoder", "decoder") for i in range(2)]
    assert rates == dict.fromkeys(["encoder.dropout", "decoder.dropout", *blocks], 0.3)
    calls = []
    for block in network.decoder.blocks:
        block.dropout.register_forward_hook(lambda *_: calls.append(1))
    network(torch.ones(1, 3, dtype=torch.int64), torch.ones(1, 3, dtype=torch.int64))
    assert len(calls) == 2 * 3, "self-attention, cross-attention, feed-forward"
