"""Encoder-decoder Transformer that reverses digits: the recipe seq2seq.yaml as one file of plain PyTorch.

The encoder reads a source, 31524, and the decoder writes the target, 42513, token by token; it attends to what it has
written and to the encoder's output (the lecture's section on attention; Vaswani et al. 2017, arXiv 1706.03762, fig. 1).

    python plain/seq2seq.py    # 2,000 steps; prints the share of held-out sources that are reversed without a mistake

Shapes: N sources of S positions and targets of T, W channels, H heads of C = W / H channels, V tokens.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

PADDING, START, END, ZERO, TOKENS = 0, 1, 2, 3, 14  # special tokens, the token of the digit 0, number of tokens V
DIGITS = 10  # of a source at most; an end token follows them
TRAIN, TEST, VALIDATION = 50_000, 2000, 2000  # those for validation are held out of those for training
STEPS, BATCH_SIZE = 2000, 128
LAYERS, WIDTH, HEADS = 2, 64, 4  # LAYERS blocks of the encoder, and of the decoder
LEARNING_RATE, BETAS, EPS = 1e-3, (0.9, 0.98), 1e-9
WARMUP = 0.1  # fraction of the run in which the learning rate rises; then it falls to zero, both linearly
CLIP = 1.0  # maximum norm of the gradient


class Attention(nn.Module):
    """Multi-head attention of x to a memory, which may be x itself: softmax(Q K' / sqrt(C)) V in each head."""

    def __init__(self, width):
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, x, memory, mask=None, causal=False):
        parts = self.q(x), *self.kv(memory).chunk(2, dim=-1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)  # (N, H, T or S, C)
        h = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
        return self.out(h.transpose(1, 2).flatten(2))  # (N, T, W)


class Block(nn.Module):
    """Self-attention, in the decoder cross-attention, and a feed-forward network: each is norm(x + F(x))."""

    def __init__(self, width, decoder):
        super().__init__()
        self.attention, self.attention_norm = Attention(width), nn.LayerNorm(width)
        if decoder:
            self.cross_attention, self.cross_norm = Attention(width), nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.feed_forward_norm = nn.LayerNorm(width)

    def forward(self, x, mask=None, memory=None):
        if memory is None:
            x = self.attention_norm(x + self.attention(x, x, mask))  # the mask leaves out padding
        else:
            x = self.attention_norm(x + self.attention(x, x, causal=True))  # to earlier positions only
            x = self.cross_norm(x + self.cross_attention(x, memory, mask))
        return self.feed_forward_norm(x + self.feed_forward(x))


def blocks(width, decoder):
    """LAYERS blocks, initialized so that the sum of all branches has the same variance at every depth."""
    stack = nn.ModuleList(Block(width, decoder) for _ in range(LAYERS))
    for layer in (module for module in stack.modules() if isinstance(module, nn.Linear)):
        nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features))
        nn.init.zeros_(layer.bias)
    for block in stack:
        ends = [block.attention.out, *([block.cross_attention.out] if decoder else []), block.feed_forward[2]]
        for layer in ends:
            nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features * LAYERS * len(ends)))
    return stack


class Transformer(nn.Module):
    """Encoder, decoder, and an embedding of the tokens, whose transpose maps the output to logits."""

    def __init__(self, width):
        super().__init__()
        self.scale = math.sqrt(width)
        self.embedding = nn.Embedding.from_pretrained(torch.randn(TOKENS, width) / self.scale, freeze=False)
        self.encoder, self.decoder = blocks(width, decoder=False), blocks(width, decoder=True)

    def embed(self, tokens):
        """Embeddings of unit variance plus sinusoids of the positions, (N, T, W)."""
        x = self.embedding(tokens) * self.scale
        frequencies = 10_000.0 ** (-torch.arange(0, x.shape[2], 2, device=x.device).float() / x.shape[2])  # (W / 2,)
        angles = torch.outer(torch.arange(x.shape[1], device=x.device).float(), frequencies)
        return x + torch.cat([angles.sin(), angles.cos()], dim=-1)

    def forward(self, source, target):
        mask, memory, x = (source != PADDING)[:, None, None], self.embed(source), self.embed(target)  # (N, 1, 1, S)
        for block in self.encoder:
            memory = block(memory, mask)  # (N, S, W)
        for block in self.decoder:
            x = block(x, mask, memory)
        return F.linear(x, self.embedding.weight)  # logits (N, T, V)


def encode(sequences):
    """Lists of digits as tokens, int64 (N, DIGITS + 1), with an end and padding."""
    rows = [[ZERO + digit for digit in sequence] + [END] for sequence in sequences]
    return torch.tensor([row + [PADDING] * (DIGITS + 1 - len(row)) for row in rows])


def load_data():
    """Sources and targets, int64 (N, DIGITS + 1) each, for training and for validation; no source comes twice."""
    generator, found, wanted = torch.Generator().manual_seed(0), {}, TRAIN + TEST
    while len(found) < wanted:
        lengths = torch.randint(1, DIGITS + 1, (wanted,), generator=generator).tolist()
        digits = torch.randint(10, (wanted, DIGITS), generator=generator).tolist()
        found |= dict.fromkeys(tuple(row[:length]) for row, length in zip(digits, lengths, strict=True))
    sources = list(found)[:TRAIN]
    x, y = encode(sources), encode([source[::-1] for source in sources])
    order = torch.randperm(TRAIN, generator=torch.Generator().manual_seed(0))
    held_out, kept = order[:VALIDATION], order[VALIDATION:]
    return (x[kept], y[kept]), (x[held_out], y[held_out])


def batches(x, y, batch_size):
    """Batches without end; every epoch has a new random order."""
    while True:
        # Two draws per epoch from torch's global generator: the seed that a DataLoader draws for its worker processes,
        # which is not used here, and the seed of the order.
        _, seed = (int(torch.empty((), dtype=torch.int64).random_()) for _ in range(2))
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
        for index in order.split(batch_size)[: len(x) // batch_size]:  # the incomplete last batch is left out
            yield x[index], y[index]


def learning_rate(step, steps):
    if step < (warmup := WARMUP * steps):
        return LEARNING_RATE * min(1.0, (step + 1) / warmup)
    return LEARNING_RATE * (1 - (step - warmup) / max(1, steps - warmup))


def train(steps=STEPS, batch_size=BATCH_SIZE, width=WIDTH, seed=0, device="cpu"):
    """Trains the network and returns it."""
    x, y = (tensor.to(device) for tensor in load_data()[0])
    torch.manual_seed(seed)
    network = Transformer(width).to(device)
    # The gradient's norm sums matrices first, then vectors, as the recipe does, which has them in two groups.
    parameters = sorted(network.parameters(), key=lambda p: p.ndim < 2)
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, betas=BETAS, eps=EPS, fused=True)
    for step, (source, target) in zip(range(steps), batches(x, y, batch_size), strict=False):
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps)
        shifted = torch.cat([torch.full_like(target[:, :1], START), target[:, :-1]], dim=1)
        loss = F.cross_entropy(network(source, shifted).flatten(0, 1), target.flatten(), ignore_index=PADDING)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"step {step:5}   loss {loss.item():.3f} nats per token", flush=True)
    return network


@torch.no_grad()
def translate(network, source):
    """Targets, int64 (N, DIGITS + 1), whose tokens are the most probable ones, one after the other."""
    tokens = torch.full_like(source[:, :1], START)
    for _ in range(DIGITS + 1):
        token = network(source, tokens)[:, -1:].argmax(2)
        ended = (tokens == END).any(1, keepdim=True)
        tokens = torch.cat([tokens, token.masked_fill(ended, PADDING)], dim=1)
    return tokens[:, 1:]


if __name__ == "__main__":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = train(device=device)
    source, target = (tensor.to(device) for tensor in load_data()[1])
    print(f"{(translate(network, source) == target).all(1).float().mean().item():.2%} reversed without a mistake")
