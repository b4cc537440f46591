"""The paper's Transformer, from sequence to sequence: what it learns, how it answers, and what it looks at."""

import csv
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from zoo import Seq2Seq
from zoo.callbacks import AttentionMaps
from zoo.checkpoints.reading import load_model
from zoo.cli.main import main
from zoo.datamodules import Sequences
from zoo.datamodules.sequences import END, PADDING
from zoo.errors import UserError

FEW = {"digits": 4, "num_train": 4000, "num_test": 200, "val_size": 200}


def quiet(**options) -> Trainer:
    warnings.filterwarnings("ignore")
    shown = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return Trainer(accelerator="cpu", **({"logger": False, "enable_checkpointing": False} | shown | options))


def model_for(data: Sequences, **options) -> Seq2Seq:
    seed_everything(0, verbose=False)
    return Seq2Seq(data.input_shape, data.num_classes, data.output_length, **({"width": 32} | options))


@pytest.fixture(scope="module")
def fitted():
    """A model that has learned to reverse four digits, more or less, and its data."""
    data = Sequences("reverse", batch_size=64, **FEW)
    model = model_for(data, layers=1, optimizer=lambda p: torch.optim.Adam(p, lr=5e-3))
    quiet(max_steps=500, limit_val_batches=0).fit(model, data)
    return model, data


def test_it_learns_and_answers_as_it_reports(fitted):
    model, data = fitted
    report = quiet().validate(model, data, verbose=False)[0]
    assert report["val/exact_match"] > 0.8
    data.setup()
    source, target = data.split("val")
    right = (model.greedy_decode(source.long()) == target.long()).all(1).float().mean().item()
    assert report["val/exact_match"] == pytest.approx(right, abs=1e-6)


def test_the_loss_is_the_mean_over_tokens_that_are_not_padding(fitted):
    model, data = fitted
    report = quiet().validate(model, data, verbose=False)[0]
    data.setup()
    source, target = (tokens.long() for tokens in data.split("val"))
    before = torch.cat([torch.ones_like(target[:, :1]), target[:, :-1]], dim=1)  # 1 is START
    with torch.no_grad():
        log_p = model.eval()(source, before).log_softmax(2)
    losses = -log_p.gather(2, target[..., None])[..., 0]
    assert report["val/loss"] == pytest.approx(losses[target != PADDING].mean().item(), rel=1e-4)


def test_an_answer_is_the_likeliest_token_again_and_again_and_ends_at_its_end(fitted):
    model, data = fitted
    source = data.split("val")[0][:20].long()
    answers = model.greedy_decode(source)
    so_far = torch.ones(20, 1, dtype=torch.int64)
    with torch.no_grad():
        for _ in range(data.output_length):
            so_far = torch.cat([so_far, model.eval()(source, so_far)[:, -1:].argmax(2)], dim=1)
    for one, other in zip(answers.tolist(), so_far[:, 1:].tolist(), strict=True):
        end = other.index(END) + 1 if END in other else len(other)
        assert one == other[:end] + [PADDING] * (len(one) - end)


def test_it_looks_where_the_answer_is(fitted):
    """To reverse, the answer's first token must come from the source's last digit, and so on."""
    model, data = fitted
    source, target = (tokens.long() for tokens in data.split("val"))
    long = (source != PADDING).sum(1) == 5
    maps = model.attention(source[long], target[long])
    assert set(maps) == {
        "encoder.blocks.0.attention", "decoder.blocks.0.attention", "decoder.blocks.0.cross_attention",
    }  # fmt: skip
    weights = maps["decoder.blocks.0.cross_attention"]
    assert weights.shape[1:] == (4, 5, 5)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))
    best_head = weights.mean(0)[:, range(4), [3, 2, 1, 0]].mean(1).max()
    assert best_head > 0.5
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)
    assert maps["decoder.blocks.0.attention"][..., later].abs().max() == 0


def test_a_checkpoint_answers_the_same(fitted, tmp_path):
    model, data = fitted
    model.trainer.save_checkpoint(tmp_path / "a.ckpt")
    source = data.split("val")[0][:8].long()
    assert torch.equal(load_model(str(tmp_path / "a.ckpt")).greedy_decode(source), model.greedy_decode(source))


def test_maps_are_drawn_at_their_steps_and_at_the_end_and_nothing_is_overwritten(tmp_path):
    class Gallery(CSVLogger):
        shown: list = []

        def log_image(self, key, images, step=None):
            self.shown.append((key, images[0].shape, step))

    data = Sequences("sort", batch_size=32, **FEW)
    for _ in range(2):
        logger = Gallery(tmp_path, name="", version="run")
        logger.shown = []
        trainer = quiet(max_steps=5, limit_val_batches=1, logger=logger, callbacks=[AttentionMaps(every_n_steps=2)])
        trainer.fit(model_for(data), data)
        assert [(key, step) for key, _, step in logger.shown] == [("attention", 2), ("attention", 4), ("attention", 5)]
    names = sorted(path.name for path in (tmp_path / "run" / "attention").iterdir())
    assert names == sorted(f"step_000000{step}{again}.png" for step in (2, 4, 5) for again in ("", "-1"))
    with Image.open(tmp_path / "run" / "attention" / "step_0000005.png") as picture:
        assert picture.width > picture.height, "four heads side by side, two layers"
        assert len(picture.getcolors(1 << 20)) > 20


def test_maps_need_a_model_that_has_some():
    with pytest.raises(UserError, match="needs a model with a method attention; LightningModule has none"):
        AttentionMaps().setup(quiet(), LightningModule(), "fit")
    with pytest.raises(UserError, match="every_n_steps is 0"):
        AttentionMaps(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 30}, "width is 30; it must be a multiple of twice the heads, 8"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"output_length": 0}, "output_length is 0"),
        ({"end": 0}, "must be three of the 14 tokens"),
        ({"start": 20}, "must be three of the 14 tokens"),
        ({"positions": "none"}, "positions is 'none'"),
        ({"input_shape": (1, 8, 8)}, "use --data Sequences"),
    ],
)
def test_settings_that_cannot_be_are_named(options, message):
    with pytest.raises(UserError, match=message):
        Seq2Seq(**({"input_shape": (5,), "num_classes": 14, "output_length": 5} | options))


@pytest.mark.slow
def test_the_recipe_reverses_ten_digits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    main(["fit", "--config", "seq2seq.yaml", "--trainer.accelerator=cpu", "--trainer.max_steps=1000"])
    with Path("runs/seq2seq/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert max(float(row["val/exact_match"]) for row in rows if row["val/exact_match"]) >= 0.99
