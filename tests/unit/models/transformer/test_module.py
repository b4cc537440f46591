"""The language model: what it learns and reports, and how it generates text."""

import math

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything

from tests.unit.training import LossRecorder, MemoryLogger, quiet_trainer
from zoo import TransformerLM
from zoo.checkpoints.reading import load_model
from zoo.datamodules import Digits, Text
from zoo.errors import UserError
from zoo.tokenizers import CharacterTokenizer

ALPHABET = CharacterTokenizer("abcdé\n")


SHAPE = {"layers": 2, "width": 32, "heads": 4}


def untrained(**options) -> TransformerLM:
    seed_everything(0, verbose=False)
    return TransformerLM((12,), ALPHABET.size, ALPHABET.description, **(SHAPE | options)).eval()


def text_of(tmp_path, text: str, **options) -> Text:
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    return Text(str(tmp_path / "text.txt"), "characters", **({"context_length": 12, "batch_size": 8} | options))


def fitted(data: LightningDataModule, steps: int, **options) -> TransformerLM:
    seed_everything(0, verbose=False)
    model = TransformerLM(data.input_shape, data.num_classes, data.tokenizer_description, **(SHAPE | options))
    quiet_trainer(max_steps=steps, limit_val_batches=0).fit(model, data)
    return model


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}, {"qk_norm": False}])
def test_with_qk_norm_which_is_the_default_the_size_of_queries_and_keys_does_not_matter(options):
    model = untrained(**options)
    tokens = torch.randint(ALPHABET.size, (2, 12))
    with torch.no_grad():
        logits = model(tokens)
        for block in model.network.stack.blocks:
            block.attention.q.weight.mul_(10)
            block.attention.kv.weight[:32].mul_(10)  # keys
        change = (model(tokens) - logits).abs().max()
    assert change > 0.1 if options.get("qk_norm") is False else change < 1e-3


def test_it_learns_and_generates_a_periodic_text(tmp_path):
    data = text_of(tmp_path, "the quick brown fox\n" * 400)
    model = fitted(data, 80, optimizer=lambda p: torch.optim.AdamW(p, lr=8e-3))
    report = quiet_trainer().validate(model, data, verbose=False)[0]
    assert report["val/perplexity"] < 1.3, "only the first tokens of a window are uncertain"
    generated = model.decode(model.sample(1, prompt="the quick", max_new_tokens=60, temperature=0))
    assert generated[0].startswith(" brown fox\nthe quick brown fox\nthe quick")


def test_reported_metrics_equal_their_formulas_for_batches_of_unequal_size(tmp_path):
    text = "abcé\n" * 60
    data = text_of(tmp_path, text, eval_batch_size=2, val_size=0.5)
    model = TransformerLM((12,), data.num_classes, data.tokenizer_description, **SHAPE)
    report = quiet_trainer().validate(model, data, verbose=False)[0]
    data.setup("validate")
    tokens = data.split("val")
    count = (len(tokens) - 1) // 12
    x, y = tokens[: 12 * count].view(-1, 12), tokens[1 : 12 * count + 1].view(-1, 12)
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(model.eval()(x).flatten(0, 1), y.flatten(), reduction="none")
    assert report["val/loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert report["val/perplexity"] == pytest.approx(losses.mean().exp().item(), rel=1e-5)
    num_bytes = len(data.tokenizer.decode(y.flatten().tolist()).encode())
    assert num_bytes > y.numel(), "é has two bytes"
    assert report["val/bits_per_byte"] == pytest.approx(losses.sum().item() / math.log(2) / num_bytes, rel=1e-5)


def test_losses_are_logged_as_means_over_a_window_of_training(tmp_path):
    data = text_of(tmp_path, "the quick brown fox\n" * 50)
    model = TransformerLM(data.input_shape, data.num_classes, data.tokenizer_description, **SHAPE)
    logger, recorder = MemoryLogger(), LossRecorder()
    options = {"limit_val_batches": 0, "logger": logger, "callbacks": [recorder], "log_every_n_steps": 2}
    quiet_trainer(max_steps=4, **options).fit(model, data)
    first, second, third, fourth = recorder.losses
    assert logger.column("train/loss") == pytest.approx({1: (first + second) / 2, 3: (third + fourth) / 2}, rel=1e-6)
    for name in ("train/lr", "train/tokens_per_second"):
        assert list(logger.column(name)) == [1, 3]


def test_a_model_of_text_without_line_breaks_generates_without_a_prompt(tmp_path):
    data = text_of(tmp_path, "abc" * 500)
    model = TransformerLM(data.input_shape, data.num_classes, data.tokenizer_description, **SHAPE)
    assert model.sample(2, max_new_tokens=5).shape == (2, 5)
    with pytest.raises(UserError, match=r"the character '\\n' is not in the text"):
        model.sample(1, prompt="\n")


def test_sampling_is_reproducible_and_changes_neither_mode_nor_random_state():
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


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 1e-4}, {"top_k": 1}, {"top_p": 1e-6}])
def test_options_that_leave_one_token_give_the_same_text_for_every_seed(options):
    model = untrained()
    texts = {
        tuple(model.sample(1, generator=torch.Generator().manual_seed(seed), max_new_tokens=20, **options)[0].tolist())
        for seed in range(3)
    }
    assert len(texts) == 1


def test_between_two_tokens_of_a_stream_the_model_is_in_its_own_mode():
    model = untrained(dropout=0.5).train()
    stream = model.stream(1, max_new_tokens=5, generator=torch.Generator().manual_seed(0))
    tokens = []
    for token in stream:
        assert model.network.training
        tokens.append(token)
    again = model.eval().stream(1, max_new_tokens=5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.stack(tokens), torch.stack(list(again)))


def test_a_checkpoint_generates_without_the_training_text(tmp_path):
    data = text_of(tmp_path, "abcdé\n" * 100)
    model = fitted(data, 2)
    model.trainer.save_checkpoint(tmp_path / "a.ckpt")
    (tmp_path / "text.txt").unlink()
    loaded = load_model(str(tmp_path / "a.ckpt"))
    generated = [
        m.decode(m.sample(1, max_new_tokens=40, generator=torch.Generator().manual_seed(0))) for m in (model, loaded)
    ]
    assert generated[0] == generated[1]
    assert set(generated[0][0]) <= set("abcdé\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "xyz"}, "the character 'x' is not in the text"),
        ({"temperature": -1}, "temperature is -1; it must be 0 or more"),
        ({"top_k": 0}, "top_k is 0; it must be at least 1"),
        ({"top_p": 1.5}, "top_p is 1.5; it must be above 0 and at most 1"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1; it must be 0 or more"),
    ],
)
def test_invalid_sampling_options_are_named_before_generation(options, message):
    with pytest.raises(UserError, match=message):
        untrained().stream(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 30}, "width is 30; it must be a multiple of twice the heads, 8"),
        ({"layers": 0}, "layers is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"norm": "none"}, "norm is 'none'; choose one of pre, post"),
        ({"pos_encoding": "none"}, "pos_encoding is 'none'; choose one of rotary, sinusoidal"),
        ({"num_classes": 7}, "the data has 7 tokens and the tokenizer 6"),
        ({"tokenizer": "words"}, "the tokenizer 'words' is neither"),
        ({"input_shape": (1, 8, 8)}, r"reads tokens, not samples of the shape \(1, 8, 8\); use --data Text"),
    ],
)
def test_invalid_options_are_named(options, message):
    arguments = {"input_shape": (12,), "num_classes": 6, "tokenizer": ALPHABET.description}
    with pytest.raises(UserError, match=message):
        TransformerLM(**(arguments | SHAPE | options))


def test_predict_and_data_of_images_are_refused():
    with pytest.raises(UserError, match="use the command sample"):
        untrained().predict_step(None)
    digits = Digits()
    with pytest.raises(UserError, match="use --data Text"):
        TransformerLM(digits.input_shape, digits.num_classes)


def test_weight_decay_applies_to_matrices_only(tmp_path):
    model = untrained()
    model.trainer = Trainer(max_steps=1, logger=False, accelerator="cpu", enable_checkpointing=False)
    model.lr_scheduler = None
    groups = model.configure_optimizers().param_groups
    assert {p.ndim for p in groups[0]["params"]} == {2}
    assert {p.ndim for p in groups[1]["params"]} == {1}
    assert groups[0]["weight_decay"] == 0.1
    assert groups[1]["weight_decay"] == 0
