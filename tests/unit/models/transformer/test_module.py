"""The language model: what it learns and reports, and how it writes."""

import math
import warnings
from collections import Counter

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything

from zoo import TransformerLM
from zoo.checkpoints.reading import load_model
from zoo.datamodules import Digits, Text
from zoo.errors import UserError
from zoo.models.transformer.generate import generate, next_token_probs, sample_token
from zoo.tokenizers import CharacterTokenizer

ALPHABET = CharacterTokenizer("abcdé\n")
SHAPE = {"layers": 2, "width": 32, "heads": 4}


def quiet(**options) -> Trainer:
    warnings.filterwarnings("ignore")
    shown = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return Trainer(accelerator="cpu", **({"logger": False, "enable_checkpointing": False} | shown | options))


def untrained(context: int = 12, **options) -> TransformerLM:
    seed_everything(0, verbose=False)
    return TransformerLM((context,), ALPHABET.size, ALPHABET.description, **(SHAPE | options)).eval()


def text_of(tmp_path, text: str, **options) -> Text:
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    return Text(str(tmp_path / "text.txt"), "characters", **({"context": 12, "batch_size": 8} | options))


def fitted(data: LightningDataModule, steps: int, **options) -> TransformerLM:
    seed_everything(0, verbose=False)
    model = TransformerLM(data.input_shape, data.num_classes, data.tokenizer_description, **(SHAPE | options))
    quiet(max_steps=steps, limit_val_batches=0).fit(model, data)
    return model


def test_it_learns_a_text_that_repeats_itself_and_writes_it(tmp_path):
    data = text_of(tmp_path, "the quick brown fox\n" * 400)
    model = fitted(data, 150, optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3))
    report = quiet().validate(model, data, verbose=False)[0]
    assert report["val/perplexity"] < 1.3, "all but the first tokens of a stretch are certain"
    written = model.decode(model.sample(1, prompt="the quick", max_new_tokens=60, temperature=0))
    assert written[0].startswith(" brown fox\nthe quick brown fox\nthe quick")


def test_what_it_reports_is_by_hand_whatever_the_lengths_of_the_batches(tmp_path):
    text = "abcé\n" * 60
    data = text_of(tmp_path, text, eval_batch_size=2, val_size=0.5)
    model = TransformerLM((12,), data.num_classes, data.tokenizer_description, **SHAPE)
    report = quiet().validate(model, data, verbose=False)[0]
    data.setup("validate")
    tokens = data.split("val")
    count = (len(tokens) - 1) // 12
    x, y = tokens[: 12 * count].view(-1, 12), tokens[1 : 12 * count + 1].view(-1, 12)
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(model.eval()(x).flatten(0, 1), y.flatten(), reduction="none")
    assert report["val/loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert report["val/perplexity"] == pytest.approx(losses.mean().exp().item(), rel=1e-5)
    written = data.tokenizer.decode(y.flatten().tolist()).encode()
    assert len(written) > y.numel(), "é has two bytes"
    assert report["val/bits_per_byte"] == pytest.approx(losses.sum().item() / math.log(2) / len(written), rel=1e-5)


def test_means_over_the_window_of_training_are_logged(tmp_path):
    from lightning.pytorch.loggers.logger import DummyLogger

    class Keeping(DummyLogger):
        def __init__(self):
            super().__init__()
            self.rows: list = []

        def log_metrics(self, metrics, step=None):
            self.rows.append(metrics)

    losses = []

    class Noting(TransformerLM):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            losses.append(loss.item())
            return loss

    data = text_of(tmp_path, "the quick brown fox\n" * 50)
    model = Noting(data.input_shape, data.num_classes, data.tokenizer_description, **SHAPE)
    logger = Keeping()
    quiet(max_steps=4, limit_val_batches=0, logger=logger, log_every_n_steps=2).fit(model, data)
    assert len(logger.rows) == 2
    for row, first in zip(logger.rows, (0, 2), strict=True):
        assert row["train/loss"] == pytest.approx(sum(losses[first : first + 2]) / 2, rel=1e-6)
        assert {"train/lr", "train/tokens_per_second"} <= set(row)


def test_a_text_without_line_breaks_is_written_on_all_the_same(tmp_path):
    data = text_of(tmp_path, "abc" * 500)
    model = TransformerLM(data.input_shape, data.num_classes, data.tokenizer_description, **SHAPE)
    assert model.sample(2, max_new_tokens=5).shape == (2, 5)
    with pytest.raises(UserError, match=r"the character '\\n' is not in the text"):
        model.sample(1, prompt="\n")


# Narrowing


def test_temperature_divides_the_logits_and_0_leaves_the_likeliest():
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    torch.testing.assert_close(next_token_probs(logits, 0.5), (2 * logits).softmax(1))
    assert next_token_probs(logits, 0.0).tolist() == [[0, 1, 0]]


def test_top_k_keeps_the_k_likeliest_in_their_proportions():
    p = next_token_probs(torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log(), top_k=2)
    torch.testing.assert_close(p, torch.tensor([[0, 4 / 7, 0, 3 / 7]]))
    assert next_token_probs(torch.randn(1, 3), top_k=10).gt(0).all(), "there are not as many"
    assert next_token_probs(torch.zeros(1, 4), top_k=1).gt(0).sum() == 1, "also where they are equally likely"


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.3, [1]), (0.39, [1]), (0.41, [1, 3]), (0.7, [1, 3]), (0.75, [1, 2, 3]), (1.0, [0, 1, 2, 3])]
)
def test_top_p_keeps_the_fewest_that_have_so_much_together(top_p, kept):
    p = next_token_probs(torch.tensor([[0.1, 0.4, 0.2, 0.3]]).double().log(), top_p=top_p)
    assert p[0].nonzero().flatten().tolist() == kept
    assert p.sum().item() == pytest.approx(1)


def test_tokens_are_drawn_as_often_as_they_are_likely():
    p = torch.tensor([[0.1, 0.0, 0.6, 0.3]])
    drawn = Counter(sample_token(p.expand(20_000, -1), torch.Generator().manual_seed(0)).tolist())
    assert [drawn[i] / 20_000 for i in range(4)] == pytest.approx([0.1, 0, 0.6, 0.3], abs=0.012)


# Writing


@pytest.mark.parametrize("length", [5, 40])
def test_with_and_without_caches_it_writes_the_same_also_beyond_its_context(length):
    network, prompt = untrained().network, torch.tensor([[0, 1, 2], [3, 4, 5]])
    texts = []
    for cached in (True, False):
        generator = torch.Generator().manual_seed(0)
        tokens = list(generate(network, prompt, length, 12, generator=generator, cached=cached))
        texts.append(torch.stack(tokens, 1))
    assert texts[0].shape == (2, length)
    assert torch.equal(*texts)


def test_the_network_never_sees_more_than_its_context_and_at_first_one_token_at_a_time():
    network, seen = untrained().network, []
    network.register_forward_hook(lambda m, inputs, out: seen.append((inputs[0].shape[1], len(inputs[1][0]))))
    list(generate(network, torch.zeros(1, 30, dtype=torch.int64), 14, 12))
    read, kept = zip(*seen, strict=True)
    assert read == (12, 6, 1, 1, 1, 1, 1, 1, 6, 1, 1, 1, 1, 1)
    assert max(kept) == 12


def test_the_same_random_numbers_write_the_same_and_nothing_else_changes():
    model = untrained().train()
    state = torch.get_rng_state()
    first, second = (model.sample(3, generator=torch.Generator().manual_seed(7), max_new_tokens=20) for _ in range(2))
    other = model.sample(3, generator=torch.Generator().manual_seed(8), max_new_tokens=20)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.shape == (3, 20)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert model.network.training


def test_between_two_tokens_of_a_stream_the_model_is_as_it_was():
    model = untrained(dropout=0.5).train()
    stream = model.stream(1, max_new_tokens=5, generator=torch.Generator().manual_seed(0))
    tokens = []
    for token in stream:
        assert model.network.training
        tokens.append(token)
    again = model.eval().stream(1, max_new_tokens=5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.stack(tokens), torch.stack(list(again)))


def test_a_checkpoint_writes_where_its_text_is_not(tmp_path):
    data = text_of(tmp_path, "abcdé\n" * 100)
    model = fitted(data, 2)
    model.trainer.save_checkpoint(tmp_path / "a.ckpt")
    (tmp_path / "text.txt").unlink()
    loaded = load_model(str(tmp_path / "a.ckpt"))
    written = [m.decode(m.sample(1, generator=torch.Generator().manual_seed(0))) for m in (model, loaded)]
    assert written[0] == written[1]
    assert set(written[0][0]) <= set("abcdé\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "xyz"}, "the character 'x' is not in the text"),
        ({"temperature": -1}, "temperature is -1; it must be 0 or more"),
        ({"top_k": 0}, "top_k is 0; it must be at least 1"),
        ({"top_p": 1.5}, "top_p is 1.5; it must be above 0 and at most 1"),
        ({"length": -1}, "length is -1; it must be 0 or more"),
    ],
)
def test_what_cannot_be_written_is_said_before_anything_is(options, message):
    with pytest.raises(UserError, match=message):
        untrained().stream(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 30}, "width is 30; it must be a multiple of twice the heads, 8"),
        ({"layers": 0}, "layers is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"norm": "none"}, "norm is 'none'; choose one of pre, post"),
        ({"positions": "none"}, "positions is 'none'; choose one of rotary, sinusoidal"),
        ({"num_classes": 7}, "the data has 7 tokens and the tokenizer 6"),
        ({"tokenizer": "words"}, "the tokenizer 'words' is neither"),
        ({"input_shape": (1, 8, 8)}, r"reads tokens, not samples of the shape \(1, 8, 8\); use --data Text"),
    ],
)
def test_settings_that_cannot_be_are_named(options, message):
    arguments = {"input_shape": (12,), "num_classes": 6, "tokenizer": ALPHABET.description}
    with pytest.raises(UserError, match=message):
        TransformerLM(**(arguments | SHAPE | options))


def test_it_does_not_predict_and_does_not_take_pictures_for_text():
    with pytest.raises(UserError, match="use the command sample"):
        untrained().predict_step(None)
    digits = Digits()
    with pytest.raises(UserError, match="use --data Text"):
        TransformerLM(digits.input_shape, digits.num_classes)


def test_the_decay_reaches_matrices_alone(tmp_path):
    model = untrained()
    model.trainer = Trainer(max_steps=1, logger=False, accelerator="cpu", enable_checkpointing=False)
    model.lr_scheduler = None
    groups = model.configure_optimizers().param_groups
    assert {p.ndim for p in groups[0]["params"]} == {2}
    assert {p.ndim for p in groups[1]["params"]} == {1}
    assert groups[0]["weight_decay"] == 0.1
    assert groups[1]["weight_decay"] == 0
