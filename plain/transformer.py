"""Language model of Python code: the recipe transformer.yaml as one file of plain PyTorch.

A Transformer predicts the next byte at each place of a text (the lecture's section on attention; Vaswani et al. 2017,
arXiv 1706.03762), with normalization before each sub-layer (Xiong et al. 2020, arXiv 2002.04745), rotary positions (Su
et al. 2021, arXiv 2104.09864) and normalized queries and keys (Henry et al. 2020, arXiv 2010.04245). It is trained on
the sources of Python's standard library.

    python plain/transformer.py    # 2,000 steps; prints the loss on held-out text, and a sample

Shapes: N sequences of T positions, W channels, H heads of C = W / H channels; V = 256 bytes.
"""

import math
import sysconfig
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

FOLDER = Path(sysconfig.get_path("stdlib"))  # whose files *.py are the text
VALIDATION = 0.1  # fraction of the text that is held out, at its end
STEPS, BATCH_SIZE = 2000, 12
CONTEXT = 128  # T
LAYERS, WIDTH, HEADS = 4, 128, 4
LEARNING_RATE, BETAS, WEIGHT_DECAY = 4e-3, (0.9, 0.99), 0.1
WARMUP = 0.05  # fraction of the run in which the learning rate rises; then it falls to zero, as half a cosine
CLIP = 1.0  # maximum norm of the gradient


def rotation(length, channels, device):
    """Cosines, and sines with sign, of the angles by which pairs of channels are rotated, (T, C) each."""
    frequencies = 10_000.0 ** (-torch.arange(0, channels, 2, device=device).float() / channels)  # (C / 2,)
    angles = torch.outer(torch.arange(length, device=device).float(), frequencies)  # (T, C / 2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


class Attention(nn.Module):
    """Causal multi-head self-attention, softmax(Q K' / sqrt(C)) V in each head."""

    def __init__(self, width):
        super().__init__()
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x, cos, sin):
        q, k, v = (h.unflatten(-1, (HEADS, -1)).transpose(1, 2) for h in (self.q(x), *self.kv(x).chunk(2, dim=-1)))
        q, k = (F.rms_norm(h, h.shape[-1:]) for h in (q, k))  # (N, H, T, C); bounds the scores
        q, k = (h * cos + torch.cat(h.chunk(2, dim=-1)[::-1], dim=-1) * sin for h in (q, k))
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (N, H, T, C)
        return self.out(h.transpose(1, 2).flatten(2))  # (N, T, W)


class Block(nn.Module):
    """Attention, and a feed-forward network of each position; both are the lecture's y = F(x, w) + x."""

    def __init__(self, width):
        super().__init__()
        self.attention = Attention(width)
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width, bias=False), nn.GELU(), nn.Linear(4 * width, width, bias=False)
        )
        self.feed_forward_norm = nn.LayerNorm(width, bias=False)

    def forward(self, x, cos, sin):
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Transformer(nn.Module):
    """Blocks between an embedding of the bytes and its transpose, which maps the output to logits."""

    def __init__(self, width):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(width, bias=False)
        for layer in (module for module in self.modules() if isinstance(module, nn.Linear)):
            nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features))
        for block in self.blocks:  # the sum of all branches has the same variance at every depth
            for layer in (block.attention.out, block.feed_forward[2]):
                nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features * 2 * LAYERS))
        self.scale = math.sqrt(width)
        self.embedding = nn.Embedding.from_pretrained(torch.randn(256, width) / self.scale, freeze=False)

    def forward(self, tokens):
        x = self.embedding(tokens) * self.scale  # (N, T, W)
        cos, sin = rotation(x.shape[1], x.shape[2] // HEADS, x.device)
        for block in self.blocks:
            x = block(x, cos, sin)
        return F.linear(self.norm(x), self.embedding.weight)  # logits (N, T, V)


def load_text():
    """Bytes for training and for validation, int64 (L,) each."""
    texts = []
    for path in sorted(FOLDER.glob("*.py")):
        try:
            texts.append(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue  # not UTF-8
    data = "\n".join(texts).encode()
    end = round(len(data) * (1 - VALIDATION))
    while data[end] & 0xC0 == 0x80:  # in the middle of a character of several bytes
        end += 1
    tokens = torch.frombuffer(bytearray(data), dtype=torch.uint8).long()
    return tokens[:end], tokens[end:]


def windows(tokens, starts):
    """Tokens of windows that begin at `starts`, (N, T), and the tokens that follow each of them, (N, T)."""
    places = starts[:, None] + torch.arange(CONTEXT + 1, device=starts.device)  # (N, T + 1)
    return tokens[places][:, :-1], tokens[places][:, 1:]


def batches(tokens, batch_size):
    """Batches without end; an epoch covers the text once, in windows that are shifted at random."""
    count = (len(tokens) - 1) // CONTEXT
    while True:
        # Two draws per epoch from torch's global generator: the seed that a DataLoader draws for its worker processes,
        # which is not used here, and the seed of the order.
        _, seed = (int(torch.empty((), dtype=torch.int64).random_()) for _ in range(2))
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        for index in order.split(batch_size)[: count // batch_size]:  # the incomplete last batch is left out
            starts = index * CONTEXT + torch.randint(CONTEXT, (batch_size,))
            yield windows(tokens, starts.clamp(max=len(tokens) - 1 - CONTEXT).to(tokens.device))


def learning_rate(step, steps):
    if step < (warmup := WARMUP * steps):
        return LEARNING_RATE * min(1.0, (step + 1) / warmup)
    progress = (step - warmup) / max(1, steps - warmup)
    return LEARNING_RATE * (1 - (1 - math.cos(math.pi * progress)) / 2)


def train(steps=STEPS, batch_size=BATCH_SIZE, width=WIDTH, seed=0, device="cpu"):
    """Trains the network and returns it."""
    tokens = load_text()[0].to(device)
    torch.manual_seed(seed)
    network = Transformer(width).to(device)
    matrices, vectors = ([p for p in network.parameters() if (p.ndim >= 2) == wanted] for wanted in (True, False))
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]  # no decay of the norms' scales
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)
    for step, (x, y) in zip(range(steps), batches(tokens, batch_size), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        loss = F.cross_entropy(network(x).flatten(0, 1), y.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(matrices + vectors, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"step {step:5}   loss {loss.item():.3f} nats per byte", flush=True)
    return network


@torch.no_grad()
def evaluate(network, tokens):
    """Mean loss on a text, in nats per byte."""
    starts = torch.arange(0, len(tokens) - 1 - CONTEXT, CONTEXT, device=tokens.device)
    losses = []
    for part in starts.split(64):
        x, y = windows(tokens, part)
        losses.append(F.cross_entropy(network(x).flatten(0, 1), y.flatten(), reduction="none"))
    return torch.cat(losses).mean().item()


@torch.no_grad()
def generate(network, length, device):
    """A text of `length` bytes, each drawn from the network's prediction; it follows a line break."""
    tokens = torch.full((1, 1), ord("\n"), device=device)
    for _ in range(length):
        logits = network(tokens[:, -CONTEXT:])[:, -1]  # (1, V)
        tokens = torch.cat([tokens, torch.multinomial(logits.softmax(-1), 1)], dim=1)
    return bytes(tokens[0, 1:].tolist()).decode(errors="replace")


if __name__ == "__main__":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = train(device=device)
    print(f"held-out text: {evaluate(network, load_text()[1].to(device)):.3f} nats per byte")
    print(generate(network, 500, device))
