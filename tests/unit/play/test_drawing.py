"""Pictures of samples: what is drawn, by which seed, and what it cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.helpers.networks import mlps, residual_mlp, unet
from zoo import GAN, Diffusion
from zoo.errors import NonFiniteError, UserError
from zoo.play.cost import measured
from zoo.play.drawing import EACH_CLASS, draw, film, frame_at, path, picture_of, wander
from zoo.plotting.samples import render_samples
from zoo.seeding import sample_seeds

DIGITS = {"input_shape": (1, 8, 8), "num_classes": 3}


@pytest.fixture(scope="module")
def gan():
    return GAN(**DIGITS, **mlps(8), latent_dim=4, conditional=True)


@pytest.fixture(scope="module")
def diffusion():
    return Diffusion(**DIGITS, conditional=True, network=unet(8), steps=3, solver="heun")


def test_a_seed_draws_what_the_command_sample_draws(gan):
    seeds = sample_seeds(4, torch.Generator().manual_seed(5))
    expected = picture_of(gan.sample(4, seeds=seeds))
    assert np.array_equal(draw(gan, 4, 5).picture, expected)
    assert not np.array_equal(draw(gan, 4, 6).picture, expected)


def test_a_class_is_drawn_by_its_name_and_each_class_in_a_row(gan):
    seeds = sample_seeds(2, torch.Generator().manual_seed(0))
    of_class = gan.sample(2, seeds=seeds, labels=torch.tensor([2, 2]))
    assert np.array_equal(draw(gan, 2, 0, "2").picture, picture_of(of_class))
    rows = draw(gan, 2, 0, EACH_CLASS)
    assert rows.description.startswith("6 samples: ")
    height, width, _ = rows.picture.shape
    assert height / width == pytest.approx(3 / 2, rel=0.02), "three classes below one another, two samples each"


def test_evaluations_of_the_network_are_counted(diffusion):
    assert draw(diffusion, 2, 0, options={"steps": 4, "solver": "euler"}).description.startswith(
        "2 samples: 4 network evaluations, "
    )
    assert "5 network evaluations" in draw(diffusion, 1, 0, options={"solver": "heun"}).description, "2 steps - 1"
    guided = draw(diffusion, 1, 0, options={"steps": 4, "solver": "euler", "guidance_scale": 1.0})
    assert "1 sample: 8 network evaluations" in guided.description, "guidance doubles them"
    assert not diffusion.averaged.network._forward_pre_hooks, "and nothing is left in the model"


def test_a_model_without_a_denoiser_costs_time_only(gan):
    with measured(gan) as cost:
        gan.sample(1)
    assert cost.evaluations is None
    assert str(cost) == f"{1000 * cost.seconds:,.0f} ms"


@pytest.mark.parametrize("name", ["gan", "diffusion"])
def test_the_way_between_two_samples_begins_and_ends_with_them(name, request):
    model = request.getfixturevalue(name)
    ends = [
        model.sample(1, seeds=sample_seeds(1, torch.Generator().manual_seed(seed)), labels=torch.tensor([1]))
        for seed in (3, 8)
    ]
    start, middle, end = (wander(model, 3, 8, weight, "1").picture.astype(int) for weight in (0, 0.5, 1))
    assert np.abs(start - picture_of(ends[0])).max() <= 1
    assert np.abs(end - picture_of(ends[1])).max() <= 1
    assert np.abs(middle - start).max() > 1


def test_the_class_on_the_way_is_that_of_the_first_seed(gan):
    seed = sample_seeds(1, torch.Generator().manual_seed(3))
    label = str(int(gan.draw_labels(seed)))
    assert np.array_equal(wander(gan, 3, 8, 0.3).picture, wander(gan, 3, 8, 0.3, label).picture)


def test_a_film_ends_with_the_sample(diffusion):
    frames = film(diffusion, 4, 3, "0", {"solver": "euler"})
    sample = draw(diffusion, 1, 4, "0", {"steps": 2, "solver": "euler"}).picture
    assert len(frames) == 3
    assert np.abs(frames[-1].astype(int) - sample).max() <= 1
    assert not np.array_equal(frames[0], sample)
    assert [frame_at("abc", position) for position in (0, 0.5, 1)] == ["a", "b", "c"]


def test_a_path_is_the_models_interpolation(gan):
    frames = path(gan, 2, 3, "1")
    expected = gan.interpolate(1, 3, labels=torch.tensor([1]), generator=torch.Generator().manual_seed(2))
    assert all(np.array_equal(frame, picture_of(x)) for frame, x in zip(frames, expected.transpose(0, 1), strict=True))


def test_points_are_a_scatter_plot():
    model = Diffusion((2,), network=residual_mlp(8), steps=1)
    seeds = sample_seeds(50, torch.Generator().manual_seed(0))
    assert np.array_equal(draw(model, 50, 0).picture, render_samples(model.sample(50, seeds=seeds)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda gan: draw(gan, 0, 0), "number is 0; it must be at least 1"),
        (lambda gan: draw(gan, 101, 0), "number is 101; it must be at most 100"),
        (lambda gan: draw(gan, 34, 0, EACH_CLASS), "number is 34; it must be at most 33"),
        (lambda gan: draw(gan, 1, -1), "seed is -1; it must be at least 0 and below"),
        (lambda gan: draw(gan, 1, 0, "shoe"), "class is 'shoe'; choose one of 0, 1, 2"),
        (lambda gan: wander(gan, 0, 2**32, 0), "second is 4294967296; it must be"),
        (lambda gan: wander(gan, 0, 1, 1.5), "position is 1.5; it must be"),
        (lambda gan: film(gan, 0, 1), "frames is 1; it must be at least 2"),
        (lambda gan: path(gan, 0, 201), "frames is 201; it must be at most 200"),
    ],
)
def test_a_wrong_number_is_named(gan, call, message):
    with pytest.raises(UserError, match=message):
        call(gan)


def test_samples_that_are_nan_are_no_picture(gan, monkeypatch):
    monkeypatch.setattr(GAN, "forward", lambda self, z, labels=None: torch.full((len(z), 1, 8, 8), torch.nan))
    with pytest.raises(NonFiniteError):
        draw(gan, 2, 0)
