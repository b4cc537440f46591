"""The Transformer's network, against the formulas written out, and against torch's own layers."""

import math
from itertools import product

import pytest
import torch
from torch import nn

from zoo.models.seq2seq.network import EncoderDecoder
from zoo.models.transformer.attention import (
    KVCache,
    MultiHeadAttention,
    attention_weights,
    causal_mask,
    record_attention,
)
from zoo.models.transformer.blocks import Block, TransformerStack
from zoo.models.transformer.network import LanguageModel
from zoo.models.transformer.positions import frequencies, rotate, sinusoids
from zoo.models.vit.network import VisionTransformer

VARIANTS = list(product(("pre", "post"), ("rotary", "sinusoidal"), (False, True)))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def language_model(norm="pre", pos_encoding="rotary", qk_norm=False, **options) -> LanguageModel:
    shape = {"layers": 3, "width": 32, "heads": 4}
    return LanguageModel(11, **shape, norm=norm, pos_encoding=pos_encoding, qk_norm=qk_norm, **options).eval()


def test_the_weights_are_the_papers_formula_by_hand():
    q, k = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 1.0], [0.0, -1.0]])
    scores = torch.tensor([5.0, -2.0]) / math.sqrt(2)
    expected = scores.exp() / scores.exp().sum()
    torch.testing.assert_close(attention_weights(q[None, None], k[None, None])[0, 0, 0], expected)


def test_where_the_mask_forbids_it_nothing_is_looked_at():
    q, k, mask = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4), causal_mask(5, 5)
    weights = attention_weights(q, k, mask)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 5))
    assert (weights[..., ~mask] == 0).all()
    assert (weights[..., mask] > 0).all()


@pytest.mark.parametrize("what", ["all", "causal", "mask", "memory", "cache"])
def test_the_fused_kernel_gives_what_the_formula_written_out_gives(what):
    attention = MultiHeadAttention(32, 4, bias=True).double()
    x, memory = torch.randn(2, 6, 32).double(), torch.randn(2, 9, 32).double()
    mask = torch.rand(2, 1, 1, 9) > 0.3
    mask[..., 0] = True
    options = {
        "all": {},
        "causal": {"causal": True},
        "mask": {"memory": memory, "mask": mask},
        "memory": {"memory": memory},
        "cache": {"causal": True, "cache": None},
    }[what]

    def run():
        if what != "cache":
            return attention(x, **options)
        cache = KVCache()
        return torch.cat([attention(part, causal=True, cache=cache) for part in (x[:, :2], x[:, 2:5], x[:, 5:])], dim=1)

    fused = run()
    with record_attention(attention) as maps:
        written_out = run()
    torch.testing.assert_close(fused, written_out)
    assert len(maps[""]) == (3 if what == "cache" else 1)
    for weights in maps[""]:
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))
    assert attention.recorded is None


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_block_equals_torchs_encoder_layer_with_the_same_weights(norm):
    ours = Block(32, 4, norm=norm, bias=True).eval()
    theirs = nn.TransformerEncoderLayer(
        32, 4, 128, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm == "pre"
    ).eval()
    copy_attention(ours.attention, theirs.self_attn)
    copy_rest(ours, theirs, {"attention_norm": "norm1", "feed_forward_norm": "norm2"})
    x = torch.randn(3, 7, 32)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)
    blocked = nn.Transformer.generate_square_subsequent_mask(7)
    torch.testing.assert_close(ours(x, causal=True), theirs(x, src_mask=blocked), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_block_with_a_memory_equals_torchs_decoder_layer_with_the_same_weights(norm):
    ours = Block(32, 4, norm=norm, memory=True, bias=True).eval()
    theirs = nn.TransformerDecoderLayer(
        32, 4, 128, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm == "pre"
    ).eval()
    copy_attention(ours.attention, theirs.self_attn)
    copy_attention(ours.cross_attention, theirs.multihead_attn)
    copy_rest(ours, theirs, {"attention_norm": "norm1", "memory_norm": "norm2", "feed_forward_norm": "norm3"})
    x, memory = torch.randn(3, 7, 32), torch.randn(3, 5, 32)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])
    expected = theirs(
        x, memory, nn.Transformer.generate_square_subsequent_mask(7), memory_key_padding_mask=padding
    )  # fmt: skip
    result = ours(x, causal=True, memory=memory, memory_mask=~padding[:, None, None])
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def copy_attention(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> None:
    theirs.in_proj_weight.copy_(torch.cat([ours.q.weight, ours.kv.weight]))
    theirs.in_proj_bias.copy_(torch.cat([ours.q.bias, ours.kv.bias]))
    theirs.out_proj.load_state_dict(ours.out.state_dict())


def copy_rest(ours: Block, theirs: nn.Module, norms: dict[str, str]) -> None:
    theirs.linear1.load_state_dict(ours.feed_forward[0].state_dict())
    theirs.linear2.load_state_dict(ours.feed_forward[2].state_dict())
    for mine, other in norms.items():
        nn.init.normal_(getattr(ours, mine).weight)
        getattr(theirs, other).load_state_dict(getattr(ours, mine).state_dict())


def test_the_positional_encoding_is_the_papers():
    table = sinusoids(20, 8)
    for position, i in product(range(20), range(4)):
        angle = position / 10_000 ** (2 * i / 8)
        assert table[position, i].item() == pytest.approx(math.sin(angle), abs=1e-5)
        assert table[position, 4 + i].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_rotated_products_depend_on_the_distance_alone():
    q, k = torch.randn(2, 1, 1, 1, 16).double()
    product_at = {}
    for start, distance in product((0, 5, 40), (0, 3, 11)):
        angles = torch.outer(torch.tensor([start, start + distance]).double(), frequencies(16).double())
        value = (rotate(q, angles[:1]) * rotate(k, angles[1:])).sum().item()
        assert value == pytest.approx(product_at.setdefault(distance, value), abs=1e-9)
    assert product_at[0] == pytest.approx((q * k).sum().item())
    assert abs(product_at[3] - product_at[11]) > 1e-3


@pytest.mark.parametrize(("norm", "pos_encoding", "qk_norm"), VARIANTS)
def test_no_position_knows_what_comes_after_it(norm, pos_encoding, qk_norm):
    network = language_model(norm, pos_encoding, qk_norm)
    tokens = torch.randint(11, (2, 9))
    logits, other = network(tokens), tokens.clone()
    other[:, 5] = (other[:, 5] + 1) % 11
    changed = (network(other) - logits).abs().amax((0, 2))
    assert changed[:5].max() < 1e-6
    assert changed[5:].min() > 1e-5, "all that follow see it"


@pytest.mark.parametrize(("norm", "pos_encoding", "qk_norm"), VARIANTS)
def test_with_caches_the_logits_are_those_without(norm, pos_encoding, qk_norm):
    network = language_model(norm, pos_encoding, qk_norm)
    tokens = torch.randint(11, (2, 12))
    caches = network.stack.caches()
    parts = [network(part, caches) for part in tokens.split([4, 1, 5, 1, 1], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), network(tokens), atol=1e-5, rtol=1e-5)
    assert len(caches[0]) == 12


def test_without_positions_order_means_nothing_and_with_them_it_does():
    x, order = torch.randn(2, 6, 32), torch.tensor([3, 1, 5, 0, 2, 4])
    for positions in (None, "rotary", "sinusoidal"):
        stack = TransformerStack(2, 32, 4, pos_encoding=positions).eval()
        same = torch.allclose(stack(x[:, order]), stack(x)[:, order], atol=1e-5)
        assert same == (positions is None)


def test_padding_changes_nothing_however_much_there_is():
    network = EncoderDecoder(11, layers=2, width=32).eval()
    source, target = torch.randint(1, 11, (2, 5)), torch.randint(1, 11, (2, 4))
    padded = torch.cat([source, torch.zeros(2, 3, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(network(padded, target), network(source, target), atol=1e-5, rtol=1e-5)


def test_the_decoder_with_caches_answers_as_without():
    network = EncoderDecoder(11, layers=2, width=32).eval()
    memory, mask = network.encode(torch.randint(1, 11, (2, 5)))
    target = torch.randint(1, 11, (2, 6))
    caches = network.decoder.caches()
    parts = [network.decode(token, memory, mask, caches) for token in target.split(1, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), network.decode(target, memory, mask), atol=1e-5, rtol=1e-5)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_it_has_as_many_parameters_as_nanogpts_networks():
    """0.80 and 10.65 million for 65 characters, which it counts without its positions."""
    for layers, width, millions in ((4, 128, 0.80), (6, 384, 10.65)):
        network = LanguageModel(65, layers, width, heads=width // 64 or 4)
        exact = 65 * width + layers * (12 * width**2 + 2 * width) + width
        assert count(network) == exact
        assert exact / 1e6 == pytest.approx(millions, abs=0.005)


def test_checkpointing_gives_the_same_gradients():
    gradients = []
    for activation_checkpointing in (False, True):
        torch.manual_seed(1)
        network = language_model(activation_checkpointing=activation_checkpointing, dropout=0.2).train()
        torch.manual_seed(2)
        network(torch.randint(11, (2, 9))).square().mean().backward()
        gradients.append([p.grad for p in network.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_dropout_is_on_the_output_of_every_sublayer_and_on_the_embeddings_and_nowhere_else():
    network = EncoderDecoder(11, layers=2, width=32, dropout=0.3)
    rates = {name: m.p for name, m in network.named_modules() if isinstance(m, nn.Dropout)}
    blocks = [f"{side}.blocks.{i}.dropout" for side in ("encoder", "decoder") for i in range(2)]
    assert rates == dict.fromkeys(["encoder.dropout", "decoder.dropout", *blocks], 0.3)
    calls = []
    for block in network.decoder.blocks:
        block.dropout.register_forward_hook(lambda *_: calls.append(1))
    network(torch.ones(1, 3, dtype=torch.int64), torch.ones(1, 3, dtype=torch.int64))
    assert len(calls) == 2 * 3, "self-attention, memory, feed-forward"


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_at_the_start_the_signal_has_the_same_size_at_every_depth(norm):
    x = torch.randn(4, 16, 64)
    stack = TransformerStack(24, 64, 4, norm=norm, pos_encoding="rotary").eval()
    sizes = []
    for block in stack.blocks:
        block.register_forward_hook(lambda m, i, o: sizes.append(o.std().item()))
    stack(x)
    assert 0.9 < min(sizes) <= max(sizes) < 1.6


def test_an_image_is_read_patch_by_patch_and_where_a_patch_lies_matters():
    network = VisionTransformer((3, 8, 12), 5, patch_size=4, layers=2, width=32, heads=4).eval()
    nn.init.normal_(network.head.weight)
    x = torch.randn(2, 3, 8, 12)
    assert network(x).shape == (2, 5)
    assert network.places.shape == (6, 32)
    assert len(network.places.unique(dim=0)) == 6
    swapped = torch.cat([x[..., 4:8], x[..., :4], x[..., 8:]], dim=-1)  # patches are whole, only their places differ
    assert not torch.allclose(network(x), network(swapped), atol=1e-4)
    network.places.zero_()
    torch.testing.assert_close(network(x), network(swapped), atol=1e-5, rtol=1e-5)
