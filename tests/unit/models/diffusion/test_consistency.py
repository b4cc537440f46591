"""The student of a diffusion model: what it begins with, what it learns, and that it stands on its own."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import seed_everything

from tests.helpers.command import fails
from tests.unit.models.diffusion.test_module import SMALL, fit, quiet
from zoo import GAN, ConsistencyModel, Diffusion
from zoo.checkpoints.reading import load_model
from zoo.datamodules import Digits, Points
from zoo.errors import UserError
from zoo.metrics.wasserstein import wasserstein1


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A checkpoint of a diffusion model of digits by class, hardly trained, and the model."""
    seed_everything(0, verbose=False)
    model = Diffusion(**SMALL, conditional=True)
    path = tmp_path_factory.mktemp("teacher") / "teacher.ckpt"
    fit(model, 20).save_checkpoint(path)
    return str(path), model.eval()


def student(path: str, **options) -> ConsistencyModel:
    return ConsistencyModel((1, 8, 8), 10, teacher=path, **options)


def test_it_begins_as_its_teacher_whose_shape_it_has_without_being_told(teacher):
    path, model = teacher
    pupil = student(path).eval()
    assert pupil.conditional
    assert pupil.calibrated
    x, sigma, labels = torch.randn(5, 1, 8, 8), torch.tensor([0.01, 0.1, 1.0, 10.0, 80.0]), torch.arange(5)
    for network in (pupil.network, pupil.ema):
        assert torch.equal(pupil.end(network, x, sigma, labels), model.denoise(x, sigma, labels))


def test_without_noise_it_leaves_a_sample_as_it_is(teacher):
    pupil = student(teacher[0])
    torch.nn.init.normal_(next(iter(pupil.network.head[-1].parameters())))  # whatever the network says
    x = torch.randn(4, 1, 8, 8)
    end = pupil.end(pupil.network, x, torch.full((4,), 1e-6), torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(end, x, atol=1e-4, rtol=0)


def test_at_first_it_is_asked_for_the_clean_sample_and_at_last_for_a_neighbour(teacher):
    pupil = student(teacher[0])
    sigma = torch.logspace(-3, 1.9, 50)
    assert torch.equal(pupil.next_sigma(sigma, 2.0)[sigma < 1.9], torch.zeros(int((sigma < 1.9).sum())))
    gap = 1 - pupil.next_sigma(sigma, 256.0) / sigma
    assert gap.max() <= 5 / 256 + 1e-6, "n(sigma) is 5 at low noise"
    assert gap.min() == pytest.approx(1 / 256, rel=1e-3), "and 1 at high noise"


def test_the_loss_is_by_hand_and_pulls_only_at_the_end_with_more_noise(teacher):
    pupil = student(teacher[0], smooth=0.1)
    x, noise, labels = torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8), torch.arange(3)
    sigma = torch.tensor([0.5, 2.0, 40.0])
    loss = pupil.consistency_loss(pupil.network, x, noise, sigma, labels, 16.0)
    with torch.no_grad():
        less = pupil.next_sigma(sigma, 16.0)
        near, far = (pupil.end(pupil.network, x + s.view(-1, 1, 1, 1) * noise, s, labels) for s in (less, sigma))
        sd = pupil.sigma_data
        error = (far - near) * ((sigma**2 + sd**2).sqrt() / (sigma * sd)).view(-1, 1, 1, 1)
        expected = (error.square().mean((1, 2, 3)) + 0.01).sqrt() - 0.1
    torch.testing.assert_close(loss.detach(), expected)
    weight = pupil.network.head[-1].bias
    (gradient,) = torch.autograd.grad(loss.sum(), weight)
    with torch.no_grad():  # the far end moves alone: a shift of the output by h changes the error by h
        up, down = ((error + h).square().mean((1, 2, 3)).add(0.01).sqrt() for h in (0.01, -0.01))
    assert gradient.item() == pytest.approx(((up - down).sum() / 0.02).item(), rel=0.01)


def test_one_step_of_it_gives_the_distribution_where_one_of_its_teacher_gives_the_mean(tmp_path):
    seed_everything(0, verbose=False)
    data = Points("gaussians", batch_size=512)
    model = Diffusion((1,), widths=(64,), blocks=2, excess_samples=0)
    fit(model, 400, data).save_checkpoint(tmp_path / "teacher.ckpt")
    pupil = ConsistencyModel((1,), teacher=str(tmp_path / "teacher.ckpt"))
    fit(pupil, 600, data)
    real = data.reference(4000)
    generator = torch.Generator().manual_seed(0)
    drawn = {
        "teacher": model.sample(4000, steps=1, solver="euler", generator=generator),
        "one step": pupil.sample(4000, steps=1, generator=generator),
        "two steps": pupil.sample(4000, generator=generator),
    }
    distance = {name: wasserstein1(x.flatten(), real.flatten()).item() for name, x in drawn.items()}
    assert distance["teacher"] > 0.8, "the mean of all data"
    assert distance["one step"] < 0.35
    assert distance["two steps"] < 0.2


def test_it_draws_in_as_many_evaluations_as_steps_and_each_sample_by_its_own_seed(teacher):
    pupil = student(teacher[0]).eval()
    calls = []
    pupil.ema.register_forward_hook(lambda *_: calls.append(1))
    seeds, labels = torch.tensor([5, 6, 7]), torch.tensor([1, 2, 3])
    together = pupil.sample(3, seeds=seeds, labels=labels)
    assert len(calls) == 2
    alone = pupil.sample(1, seeds=seeds[1:2], labels=labels[1:2])
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=0)
    assert pupil.karras_sigmas(3) == pytest.approx([80, 8, 0.8, 0])
    assert pupil.karras_sigmas(1) == [80, 0]
    with pytest.raises(UserError, match="steps is 0; it must be at least 1"):
        pupil.sample(1, steps=0)


def test_its_checkpoint_needs_no_teacher(teacher, tmp_path):
    seed_everything(0, verbose=False)
    source = tmp_path / "teacher.ckpt"
    source.write_bytes(Path(teacher[0]).read_bytes())
    pupil = student(str(source))
    fit(pupil, 3).save_checkpoint(tmp_path / "student.ckpt")
    source.unlink()
    loaded = load_model(str(tmp_path / "student.ckpt"))
    seeds, labels = torch.arange(4), torch.arange(4)
    assert torch.equal(loaded.sample(4, seeds=seeds, labels=labels), pupil.eval().sample(4, seeds=seeds, labels=labels))


def test_validation_is_by_the_same_noise_every_time_and_measures_the_distance_to_data(teacher):
    pupil, trainer = student(teacher[0]), quiet(limit_val_batches=1)
    first, second = (trainer.validate(pupil, Digits(batch_size=64), verbose=False)[0] for _ in range(2))
    assert first == second
    assert 0 < first["val/loss"] < 1
    assert first["val/fd"] > 0


def test_a_teacher_that_is_none_is_named(teacher, tmp_path):
    with pytest.raises(UserError, match="learns from a trained Diffusion: give its checkpoint"):
        fit(ConsistencyModel((1, 8, 8), 10))
    with pytest.raises(UserError, match="teacher nowhere"):
        student("nowhere.ckpt")
    with pytest.raises(UserError, match=r"of the shape \(1, 8, 8\) in 10 classes, and the data has \(3, 8, 8\) in 10"):
        ConsistencyModel((3, 8, 8), 10, teacher=teacher[0])
    gan = GAN((1, 8, 8), latent_dim=4)
    fit(gan, 1).save_checkpoint(tmp_path / "gan.ckpt")
    with pytest.raises(UserError, match="holds a GAN; a student learns from a Diffusion"):
        student(str(tmp_path / "gan.ckpt"))


@pytest.mark.parametrize(
    ("option", "value", "way_out"),
    [("sigma_middle", 90.0, "between 0.002 and 80.0"), ("divisor", 1.0, "at least 2"), ("smooth", 0.0, "above 0")],
)
def test_what_is_out_of_range_is_named(option, value, way_out):
    with pytest.raises(UserError, match=f"{option} is {value}; it must be {way_out}"):
        ConsistencyModel((1, 8, 8), 10, **{option: value})


def test_it_is_not_taken_for_a_denoiser_by_the_command_edit(teacher, tmp_path, capsys):
    fit(student(teacher[0]), 1).save_checkpoint(tmp_path / "student.ckpt")
    line = fails(
        capsys, "edit", "--ckpt_path", str(tmp_path / "student.ckpt"), "--task", "vary", "--image", "x.png"
    )  # fmt: skip
    assert "holds a ConsistencyModel; edit needs a diffusion model" in line
