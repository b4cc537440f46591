"""The consistency model: how it starts, what it learns, and its checkpoints."""

from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, seed_everything

from tests.helpers.command import fails
from tests.unit.models.diffusion.small import SMALL, fit
from tests.unit.training import quiet_trainer
from zoo import GAN, ConsistencyModel, Diffusion
from zoo.checkpoints.reading import load_model
from zoo.datamodules import Digits, Points
from zoo.errors import UserError
from zoo.metrics.wasserstein import wasserstein1


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Checkpoint of a conditional diffusion model of digits after a few steps, and the model."""
    seed_everything(0, verbose=False)
    model = Diffusion(**SMALL, conditional=True)
    path = tmp_path_factory.mktemp("teacher") / "teacher.ckpt"
    fit(model, 20).save_checkpoint(path)
    return str(path), model.eval()


def student_of(path: str, **options) -> ConsistencyModel:
    return ConsistencyModel((1, 8, 8), 10, teacher=path, **options)


def test_it_starts_as_its_teacher_and_inherits_its_options(teacher):
    path, model = teacher
    student = student_of(path).eval()
    assert student.conditional
    assert student.calibrated
    x, sigma, labels = torch.randn(5, 1, 8, 8), torch.tensor([0.01, 0.1, 1.0, 10.0, 80.0]), torch.arange(5)
    for denoiser in (student.denoiser, student.ema):
        assert torch.equal(denoiser(x, sigma, labels), model.denoise(x, sigma, labels))


def test_it_is_the_identity_without_noise(teacher):
    student = student_of(teacher[0])
    network = student.denoiser.network
    torch.nn.init.normal_(next(iter(network.head[-1].parameters())))  # the network's output does not matter
    x = torch.randn(4, 1, 8, 8)
    outputs = student.denoiser(x, torch.full((4,), 1e-6), torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(outputs, x, atol=1e-4, rtol=0)


def test_the_target_is_the_clean_sample_at_first_and_a_close_noise_level_at_last(teacher):
    student = student_of(teacher[0])
    sigma = torch.logspace(-3, 1.9, 50)
    assert torch.equal(student.next_sigma(sigma, 2.0)[sigma < 1.9], torch.zeros(int((sigma < 1.9).sum())))
    gap = 1 - student.next_sigma(sigma, 256.0) / sigma
    assert gap.max() <= 5 / 256 + 1e-6, "n(sigma) is 5 at low noise"
    assert gap.min() == pytest.approx(1 / 256, rel=1e-3), "and 1 at high noise"


def test_the_loss_is_its_formula_and_only_the_noisier_output_has_a_gradient(teacher):
    student = student_of(teacher[0], smooth=0.1)
    x, noise, labels = torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8), torch.arange(3)
    sigma = torch.tensor([0.5, 2.0, 40.0])
    loss = student.consistency_loss(student.denoiser, x, noise, sigma, labels, 16.0)
    with torch.no_grad():
        less = student.next_sigma(sigma, 16.0)
        near, far = (student.denoiser(x + s.view(-1, 1, 1, 1) * noise, s, labels) for s in (less, sigma))
        sd = student.denoiser.sigma_data
        error = (far - near) * ((sigma**2 + sd**2).sqrt() / (sigma * sd)).view(-1, 1, 1, 1)
        expected = (error.square().mean((1, 2, 3)) + 0.01).sqrt() - 0.1
    torch.testing.assert_close(loss.detach(), expected)
    weight = student.denoiser.network.head[-1].bias
    (gradient,) = torch.autograd.grad(loss.sum(), weight)
    with torch.no_grad():  # a shift of the noisier output by h changes the error by h
        up, down = ((error + h).square().mean((1, 2, 3)).add(0.01).sqrt() for h in (0.01, -0.01))
    assert gradient.item() == pytest.approx(((up - down).sum() / 0.02).item(), rel=0.01)


def test_one_step_samples_the_distribution_where_one_step_of_the_teacher_samples_the_mean(mixture_checkpoint):
    seed_everything(0, verbose=False)
    data = Points("gaussians", batch_size=256)
    model, student = load_model(mixture_checkpoint), ConsistencyModel((1,), teacher=mixture_checkpoint)
    fit(student, 300, data)
    real = data.reference(4000)
    generator = torch.Generator().manual_seed(0)
    drawn = {
        "teacher": model.sample(4000, steps=1, solver="euler", generator=generator),
        "one step": student.sample(4000, steps=1, generator=generator),
        "two steps": student.sample(4000, generator=generator),
    }
    distance = {name: wasserstein1(x.flatten(), real.flatten()).item() for name, x in drawn.items()}
    assert distance["teacher"] > 0.8, "the mean of all data"
    assert distance["one step"] < 0.35
    assert distance["two steps"] < 0.2


def test_a_step_is_one_evaluation_and_a_sample_depends_on_its_own_seed_only(teacher):
    student = student_of(teacher[0]).eval()
    calls = []
    student.averaged.register_forward_hook(lambda *_: calls.append(1))
    seeds, labels = torch.tensor([5, 6, 7]), torch.tensor([1, 2, 3])
    together = student.sample(3, seeds=seeds, labels=labels)
    assert len(calls) == 2
    alone = student.sample(1, seeds=seeds[1:2], labels=labels[1:2])
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=0)
    assert student.sampling_sigmas(3) == pytest.approx([80, 8, 0.8, 0])
    assert student.sampling_sigmas(1) == [80, 0]
    with pytest.raises(UserError, match="steps is 0; it must be at least 1"):
        student.sample(1, steps=0)


def test_the_divisor_grows_from_the_clean_sample_to_the_closest_pair_within_four_fifths_of_the_run(
    teacher, monkeypatch
):
    student, divisors, loss = student_of(teacher[0], divisor=128.0), [], ConsistencyModel.consistency_loss

    def recorded(self, denoiser, x, noise, sigma, labels, divisor):
        divisors.append(divisor)
        return loss(self, denoiser, x, noise, sigma, labels, divisor)

    monkeypatch.setattr(ConsistencyModel, "consistency_loss", recorded)
    fit(student, 10, Digits(batch_size=8))
    assert divisors == pytest.approx([2 * 64 ** (min(step, 8) / 8) for step in range(10)])


def test_no_label_is_dropped(teacher):
    """The weights of no class stay as they are, since the student never sees it."""
    student, seen = student_of(teacher[0]), []
    student.denoiser.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
    fit(student, 8, Digits(batch_size=64))
    labels = torch.cat(seen)
    assert len(labels) == 2 * 8 * 64
    assert labels.max().item() == 9
    with pytest.raises(TypeError, match="class_dropout"):
        student_of(teacher[0], class_dropout=0.1)


def test_every_validation_of_a_run_draws_the_same_noise(teacher):
    student = student_of(teacher[0], optimizer=partial(torch.optim.SGD, lr=0.0), lr_scheduler=None)
    losses = []

    class Recorded(Callback):
        def on_validation_end(self, trainer, pl_module):
            losses.append(trainer.callback_metrics["val/loss"].item())

    options = {"limit_val_batches": 1, "val_check_interval": 1, "callbacks": [Recorded()]}
    fit(student, 3, Digits(batch_size=8, val_size=40), **options)
    assert len(losses) == 3
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_its_checkpoint_needs_no_teacher(teacher, tmp_path):
    seed_everything(0, verbose=False)
    source = tmp_path / "teacher.ckpt"
    source.write_bytes(Path(teacher[0]).read_bytes())
    student = student_of(str(source))
    fit(student, 3).save_checkpoint(tmp_path / "student.ckpt")
    source.unlink()
    loaded = load_model(str(tmp_path / "student.ckpt"))
    seeds, labels = torch.arange(4), torch.arange(4)
    assert torch.equal(
        loaded.sample(4, seeds=seeds, labels=labels), student.eval().sample(4, seeds=seeds, labels=labels)
    )


def test_validation_draws_the_same_noise_every_time_and_logs_the_distance(teacher):
    student, trainer = student_of(teacher[0]), quiet_trainer(limit_val_batches=1)
    first, second = (trainer.validate(student, Digits(batch_size=64), verbose=False)[0] for _ in range(2))
    assert first == second
    assert 0 < first["val/loss"] < 1
    assert first["val/fd"] > 0


def test_a_missing_or_unsuitable_teacher_is_named(teacher, tmp_path):
    with pytest.raises(UserError, match=r"is tuned from a trained Diffusion.*--model\.teacher"):
        fit(ConsistencyModel((1, 8, 8), 10))
    with pytest.raises(UserError, match="teacher nowhere"):
        student_of("nowhere.ckpt")
    with pytest.raises(UserError, match=r"of the shape \(1, 8, 8\) in 10 classes, and the data has \(3, 8, 8\) in 10"):
        ConsistencyModel((3, 8, 8), 10, teacher=teacher[0])
    gan = GAN((1, 8, 8), latent_dim=4)
    fit(gan, 1).save_checkpoint(tmp_path / "gan.ckpt")
    with pytest.raises(UserError, match="holds a GAN; the teacher must be a Diffusion"):
        student_of(str(tmp_path / "gan.ckpt"))


@pytest.mark.parametrize(
    ("option", "value", "accepted"),
    [("sigma_middle", 90.0, "between 0.002 and 80.0"), ("divisor", 1.0, "at least 2"), ("smooth", 0.0, "above 0")],
)
def test_options_out_of_range_are_named(option, value, accepted):
    with pytest.raises(UserError, match=f"{option} is {value}; it must be {accepted}"):
        ConsistencyModel((1, 8, 8), 10, **{option: value})


def test_the_command_edit_refuses_it(teacher, tmp_path, capsys):
    fit(student_of(teacher[0]), 1).save_checkpoint(tmp_path / "student.ckpt")
    line = fails(
        capsys, "edit", "--ckpt_path", str(tmp_path / "student.ckpt"), "--task", "vary", "--image", "x.png"
    )  # fmt: skip
    assert "holds a ConsistencyModel; edit needs a diffusion model" in line
