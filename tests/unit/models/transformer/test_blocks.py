"""The Transformer block against torch's own layers, and stacks of blocks."""

import pytest
import torch
from torch import nn

from zoo.models.transformer.attention import MultiHeadAttention
from zoo.models.transformer.blocks import Block, TransformerStack


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


def test_without_positional_encoding_a_stack_is_equivariant_to_permutations_and_with_it_not():
    x, order = torch.randn(2, 6, 32), torch.tensor([3, 1, 5, 0, 2, 4])
    for pos_encoding in (None, "rotary", "sinusoidal"):
        stack = TransformerStack(2, 32, 4, pos_encoding=pos_encoding).eval()
        same = torch.allclose(stack(x[:, order]), stack(x)[:, order], atol=1e-5)
        assert same == (pos_encoding is None)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_at_initialization_the_signal_has_the_same_size_at_every_depth(norm):
    x = torch.randn(4, 16, 64)
    stack = TransformerStack(24, 64, 4, norm=norm, pos_encoding="rotary").eval()
    sizes = []
    for block in stack.blocks:
        block.register_forward_hook(lambda m, i, o: sizes.append(o.std().item()))
    stack(x)
    assert 0.9 < min(sizes) <= max(sizes) < 1.6


@pytest.mark.parametrize("memory", [False, True])
def test_each_branch_adds_one_over_the_number_of_branches_to_the_variance_of_the_residual_stream(memory):
    """A block has two branches, or three with a memory; 1 / sqrt(branches) of Radford et al. 2019, section 2.3."""
    layers, width = 4, 128
    stack = TransformerStack(layers, width, 4, memory=memory, pos_encoding=None).eval()
    branches = layers * (3 if memory else 2)
    outputs = {n: m for n, m in stack.named_modules() if n.endswith((".out", "feed_forward.2"))}
    assert len(outputs) == branches
    for name, linear in outputs.items():
        expected = 1 / (linear.in_features * branches) ** 0.5
        assert linear.weight.std().item() == pytest.approx(expected, rel=0.03), name
    # One position attends to one position only, so that each attention passes a vector of unit variance on: with
    # inputs of unit variance the two attentions of a block add 1 / branches each.
    stream = []
    for block in stack.blocks:
        block.feed_forward.register_forward_hook(lambda *_: torch.zeros(()))
        block.register_forward_hook(lambda m, i, o: stream.append(o.var().item()))
    x = torch.randn(256, 1, width)
    stack(x, memory=torch.randn(256, 1, width) if memory else None)
    attentions = 2 if memory else 1
    expected = [1 + attentions * depth / branches for depth in range(1, layers + 1)]
    assert stream == pytest.approx(expected, rel=0.05)
