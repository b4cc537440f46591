"""What every model has from its base class."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.nn.utils import parameters_to_vector

from tests.unit.training import quiet_trainer
from zoo import MLPClassifier
from zoo.contracts import attached_trainer
from zoo.datamodules import Digits
from zoo.errors import UserError
from zoo.models.base import Compile, ZooModule, check_compile, eval_mode
from zoo.models.ema import EMA


class Norms(Callback):
    """Norms of the gradients before clipping and as the optimizer gets them."""

    def __init__(self):
        self.before, self.after = [], []

    def on_after_backward(self, trainer, pl_module):
        self.before.append(torch.nn.utils.get_total_norm([p.grad for p in pl_module.network.parameters()]).item())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.after.append(torch.nn.utils.get_total_norm([p.grad for p in pl_module.network.parameters()]).item())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_clipped_in_any_precision_and_for_fused_optimizers(precision, fused):
    model = MLPClassifier((1, 8, 8), 10, width=16, depth=1, optimizer=lambda p: torch.optim.AdamW(p, fused=fused))
    norms = Norms()
    options = {"gradient_clip_val": 0.01, "precision": precision, "callbacks": [norms]}
    trainer = quiet_trainer(max_steps=3, limit_val_batches=0, **options)
    trainer.fit(model, Digits(batch_size=32))
    assert min(norms.before) > 0.02
    assert norms.after == pytest.approx([0.01] * 3, rel=1e-3)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_a_fused_optimizer_in_float16_steps_by_clipped_gradients_without_their_loss_scale(algorithm):
    weights = []
    for fused, scale in ((False, 1.0), (True, 1.0), (True, 4096.0)):
        torch.manual_seed(0)
        model = MLPClassifier(
            (1, 8, 8), 10, width=16, depth=1, optimizer=lambda p, f=fused: sgd(p, f), lr_scheduler=None
        )
        start = parameters_to_vector(model.parameters()).detach().clone()
        plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))
        clipping = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": algorithm}
        trainer = quiet_trainer(max_steps=1, limit_val_batches=0, plugins=[plugin], **clipping)
        trainer.fit(model, Digits(batch_size=32))
        weights.append(parameters_to_vector(model.parameters()).detach() - start)
    if algorithm == "norm":
        assert weights[0].norm().item() == pytest.approx(0.01, rel=1e-3), "the learning rate is 1"
    else:
        assert weights[0].abs().max().item() == pytest.approx(0.01, rel=1e-3)
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=0.05, atol=1e-5)


def test_an_overflow_in_float16_skips_the_clipped_step_of_a_fused_optimizer():
    model = MLPClassifier((1, 8, 8), 10, width=16, depth=1, optimizer=lambda p: sgd(p, True), lr_scheduler=None)
    start = parameters_to_vector(model.parameters()).detach().clone()
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**40))
    clipping = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}
    quiet_trainer(max_steps=1, limit_val_batches=0, plugins=[plugin], **clipping).fit(model, Digits(batch_size=32))
    assert parameters_to_vector(model.parameters()).equal(start)
    assert plugin.scaler.get_scale() == 2.0**39


def sgd(parameters, fused):
    return torch.optim.SGD(parameters, lr=1.0, fused=fused)


class Small(ZooModule):
    """The least that a subclass sets."""

    def __init__(self, half_life: float = 0.0, compile: Compile = False) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        self.ema = EMA(self.network, half_life) if half_life else None
        self.compile_network = compile
        self.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.count_images(len(x))
        return nn.functional.cross_entropy(self.network(x), y)


def fit(model: ZooModule, steps: int, **options):
    trainer = quiet_trainer(max_steps=steps, limit_val_batches=0, **options)
    trainer.fit(model, datamodule=Digits(batch_size=32))
    return trainer


def test_the_constraint_on_parameters_is_applied_after_the_step_and_before_the_average():
    class Constrained(Small):
        def after_optimizer_step(self):
            nn.init.constant_(self.network[1].weight, 7.0)

    model = Constrained(half_life=100)
    fit(model, 1)
    assert model.network[1].weight.eq(7).all()
    # In the first update, the weight of the initial value is 2^-20.
    torch.testing.assert_close(model.ema.network[1].weight.detach(), torch.full((10, 64), 7.0), rtol=1e-4, atol=0)


def test_the_average_counts_the_images_of_all_ranks_and_accumulated_batches(monkeypatch):
    model = Small(half_life=100)
    updates = []
    monkeypatch.setattr(EMA, "update", lambda self, network, images: updates.append(images))
    trainer = quiet_trainer(max_steps=2, limit_val_batches=0, accumulate_grad_batches=3)
    monkeypatch.setattr(type(trainer), "world_size", 4)
    trainer.fit(model, datamodule=Digits(batch_size=10))
    assert updates == [4 * 3 * 10] * 2


def test_the_network_is_compiled_for_training_only(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, *args, **kwargs: compiled.append(self))
    model = Small(compile=True)
    for stage in ("validate", "test", "predict"):
        model.setup(stage)
    assert not compiled
    model.setup("fit")
    assert compiled == [model.network]
    Small().setup("fit")
    assert len(compiled) == 1, "not without the option"


@pytest.mark.parametrize(("given", "mode"), [(True, None), ("reduce-overhead", "reduce-overhead")])
def test_the_network_is_compiled_in_the_given_mode(given, mode, monkeypatch):
    modes = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, mode: modes.append(mode))
    Small(compile=given).setup("fit")
    assert modes == [mode]


def test_an_unknown_mode_of_compilation_is_one_line():
    with pytest.raises(UserError, match="compile is 'fast'; choose one of true, false, default, reduce-overhead"):
        check_compile("fast")


def test_validation_and_sampling_in_between_compile_nothing_anew(monkeypatch):
    from torch._dynamo.testing import CompileCounter

    counter, compile = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, mode: compile(function, backend=counter))
    model = MLPClassifier((1, 8, 8), 10, width=8, depth=1, ema_half_life=100, compile=True)
    options = {"max_epochs": 3, "limit_train_batches": 2, "limit_val_batches": 2}
    frames = []

    class Count(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            frames.append(counter.frame_count)

    quiet_trainer(callbacks=[Count()], **options).fit(model, datamodule=Digits(batch_size=10))
    assert frames[0] > 0
    assert frames == frames[:1] * 3


def test_a_resumed_run_repeats_the_random_numbers_and_the_parameters_of_an_uninterrupted_one(tmp_path):
    class Noisy(Small):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch[0] + torch.randn_like(batch[0]), batch[1]), batch_idx)

    def train(steps: int, ckpt_path=None):
        torch.manual_seed(3)
        model = Noisy(half_life=100)
        trainer = quiet_trainer(max_steps=steps, limit_val_batches=0)
        trainer.fit(model, datamodule=Digits(batch_size=400), ckpt_path=ckpt_path, weights_only=True)
        return trainer, model

    _, whole = train(6)  # two epochs of three batches
    train(3)[0].save_checkpoint(tmp_path / "half.ckpt")
    _, resumed = train(6, tmp_path / "half.ckpt")
    for name, value in whole.state_dict().items():
        if torch.is_tensor(value):
            assert torch.equal(resumed.state_dict()[name], value), name


def test_a_checkpoint_names_the_class_and_holds_training_state_only_while_fitting(tmp_path):
    trainer = fit(Small(), 1)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    checkpoint = torch.load(tmp_path / "after.ckpt", weights_only=True)
    assert checkpoint["model_class"].endswith("test_base.Small")
    assert checkpoint["format"] == 1
    assert len(checkpoint["training"]["random"]) == 1, "the random state of one rank"
    trainer = quiet_trainer()
    trainer.strategy.connect(Small())
    trainer.save_checkpoint(tmp_path / "untrained.ckpt")
    assert "training" not in torch.load(tmp_path / "untrained.ckpt", weights_only=True)


def test_the_attached_trainer_is_none_without_one():
    model = Small()
    assert attached_trainer(model) is None
    assert attached_trainer(model) is None, "asking does not attach one"
    trainer = fit(model, 1)
    assert attached_trainer(model) is trainer


def test_eval_mode_restores_the_mode_of_every_submodule():
    network = nn.Sequential(nn.Linear(64, 8), nn.Dropout(0.5), nn.BatchNorm1d(8)).train()
    network[2].eval()
    modes = [m.training for m in network.modules()]

    def fail():
        with eval_mode(network):
            assert not any(m.training for m in network.modules())
            assert not network(torch.randn(4, 64)).requires_grad
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [m.training for m in network.modules()] == modes
    assert torch.is_grad_enabled()


def drawn_at(rank: int, model: ZooModule, monkeypatch) -> torch.Tensor:
    monkeypatch.setattr(ZooModule, "global_rank", rank, raising=False)
    torch.manual_seed(7)
    torch.rand(3)  # as the parameters are
    model.on_train_start()
    return torch.rand(5)


@pytest.mark.parametrize("model", [ZooModule(), MLPClassifier((2,), 2, 4, 1)], ids=["base", "classifier"])
def test_ranks_draw_different_numbers_and_rank_0_those_of_a_single_process(model, monkeypatch):
    torch.manual_seed(7)
    torch.rand(3)
    alone = torch.rand(5)
    draws = [drawn_at(rank, model, monkeypatch) for rank in range(3)]
    assert draws[0].equal(alone)
    assert len({tuple(draw.tolist()) for draw in draws}) == 3
    assert draws[2].equal(drawn_at(2, model, monkeypatch)), "the same in every run"


def test_the_name_of_the_current_hook_is_an_attribute_like_others():
    model = MLPClassifier((1, 8, 8), 10, width=4, depth=1)
    model._current_fx_name = "training_step"
    assert model._current_fx_name == "training_step"
    assert "_current_fx_name" in vars(model)
    model.further = nn.Linear(1, 1)  # a submodule still becomes one
    assert "further.weight" in dict(model.named_parameters())
