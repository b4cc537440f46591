"""The distance between samples and data, and the interpolation of latent vectors."""

import json
import math
import re
from functools import partial

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from tests.helpers.networks import mlps, unet
from tests.unit.models.diffusion.small import untrained
from tests.unit.training import quiet_trainer
from tests.unit.two_ranks import measure_generator
from zoo import GAN, ConsistencyModel, Diffusion
from zoo.datamodules import Digits, Points
from zoo.errors import UserError
from zoo.metrics import fidelity_scores, load_extractor
from zoo.metrics.wasserstein import wasserstein1
from zoo.models.diffusion.solvers import SOLVERS
from zoo.models.generative import FLOOR_DRAWS, slerp
from zoo.seeding import sample_seeds

SMALL = {"input_shape": (1, 8, 8), "num_classes": 10, "latent_dim": 4, **mlps(16)}


def test_slerp_keeps_the_norm_and_is_exact_for_equal_vectors():
    start, end = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    torch.testing.assert_close(slerp(start, end, 0.5), torch.full((1, 2), math.sqrt(2)))
    torch.testing.assert_close(slerp(start, start, 0.3), start)


def test_the_distance_of_images_is_at_its_floor_for_test_images_as_samples():
    data = Digits()
    data.setup()

    class Copies(GAN):
        """Returns test images as samples."""

        def sample(self, n, *, labels=None, generator=None, seeds=None):
            return data.split("test")[0][torch.arange(n) % 297]

    results = {}
    for model in (GAN(**SMALL), Copies(**SMALL)):
        (metrics,) = quiet_trainer(limit_val_batches=1.0).validate(model, datamodule=Digits(), verbose=False)
        results[type(model)] = metrics
    assert results[GAN]["val/fd_floor"] == results[Copies]["val/fd_floor"]
    assert 0 < results[Copies]["val/fd_floor"] < 5
    assert results[Copies]["val/fd"] < 5
    assert results[GAN]["val/fd"] > 30


def test_the_floor_of_a_conditional_model_is_that_of_the_held_out_classes(caplog):
    """A split of two classes: training samples of all ten are far from it, those of its own classes are near."""

    class Few(Digits):
        def setup(self, stage=None):
            super().setup(stage)
            val = self._splits["val"]
            val.index = val.index[val.y[val.index] < 2]

    floors = {}
    for conditional in (False, True):
        with caplog.at_level("INFO"):
            trainer = quiet_trainer(limit_val_batches=1.0)
            (metrics,) = trainer.validate(GAN(**SMALL, conditional=conditional), datamodule=Few(), verbose=False)
        floors[conditional] = metrics["val/fd_floor"]
    assert floors[True] < 0.2 * floors[False]
    lines = [line for line in caplog.messages if "floor" in line]
    assert re.search(r"training against held-out data: \S+ ± \S+ \(4 draws\)$", lines[0])
    assert re.search(r"training against held-out data of the same classes: \S+ ± \S+ \(4 draws\)$", lines[1])


SCORES = ("precision", "recall", "density", "coverage")


def test_a_test_tells_poor_samples_from_missing_ones_beside_the_floors_of_training_data():
    data = Digits()
    data.setup()
    x, y = data.split("train")

    class Threes(GAN):
        """Draws training digits of one class."""

        def sample(self, n, *, labels=None, generator=None, seeds=None):
            return x[y == 3][seeds % int((y == 3).sum())]

    results = {}
    for model in (GAN(**SMALL), Threes(**SMALL)):
        (results[type(model)],) = quiet_trainer().test(model, datamodule=Digits(eval_batch_size=100), verbose=False)
    noise, threes = results[GAN], results[Threes]
    assert list(noise) == [f"test/{name}{end}" for end in ("", "_floor") for name in ("fd", *SCORES)]
    for name in SCORES:
        floor = noise[f"test/{name}_floor"]
        assert floor == threes[f"test/{name}_floor"]
        assert 0.85 < floor < 1.1
        assert noise[f"test/{name}"] < 0.05
    assert threes["test/precision"] > 0.85
    assert max(threes["test/recall"], threes["test/coverage"]) < 0.2


def test_the_floors_of_the_scores_are_means_over_draws_of_the_held_out_classes():
    """A test split of two classes: training samples of all ten are mostly outside of its balls."""

    class Few(Digits):
        def setup(self, stage=None):
            super().setup(stage)
            test = self._splits["test"]
            test.index = (test.y < 2).nonzero().flatten()

    data = Few()
    data.setup()
    x, y = data.split("test")
    found = {}
    for conditional in (False, True):
        model = GAN(**SMALL, conditional=conditional)
        (found[conditional],) = quiet_trainer().test(model, datamodule=Few(), verbose=False)
    draws = [data.training_samples(len(x), labels=y, seed=seed) for seed in range(4)]
    real, *fakes = (load_extractor("digits")(images) for images in (x, *draws))
    expected = torch.stack([torch.stack(fidelity_scores(real, fake)) for fake in fakes]).mean(0)
    for name, value in zip(SCORES, expected.tolist(), strict=True):
        assert found[True][f"test/{name}_floor"] == pytest.approx(value, abs=1e-5)
    assert found[False]["test/precision_floor"] < 0.4 < 0.8 < found[True]["test/precision_floor"]


def test_features_are_extracted_once_for_all_metrics():
    model, seen = GAN(**SMALL), []
    model.distance.extractor.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    quiet_trainer().test(model, datamodule=Digits(eval_batch_size=297), verbose=False)
    assert seen == [297] * (2 + FLOOR_DRAWS), "data, samples and the draws of the floors"


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (lambda: GAN((1,)), lambda: Points("gaussians", num_train=1100, val_size=100)),
        (lambda: GAN(**SMALL, extractor="none"), Digits),
    ],
    ids=["points", "no extractor"],
)
def test_without_features_there_are_no_scores(model, data):
    (metrics,) = quiet_trainer().test(model(), datamodule=data(), verbose=False) or [{}]
    assert not [name for name in metrics if name.removesuffix("_floor").endswith(SCORES)]


def test_validation_leaves_out_the_scores_and_a_second_test_begins_anew():
    model = GAN(**SMALL)
    (validated,) = quiet_trainer().validate(model, datamodule=Digits(), verbose=False)
    assert list(validated) == ["val/fd", "val/fd_floor"]
    first, second = (quiet_trainer().test(model, datamodule=Digits(), verbose=False) for _ in range(2))
    assert first == second
    assert not model.fidelity.real and not model.fidelity_floor.real, "the features are not kept"


def test_two_ranks_have_the_scores_of_one(two_ranks):
    one = measure_generator()
    first, second = (json.loads((two_ranks / f"generator_{rank}.json").read_text()) for rank in range(2))
    assert first == second
    for name in SCORES:
        assert first[f"test/{name}"] == pytest.approx(one[f"test/{name}"], abs=1e-5)
        assert 0.2 < first[f"test/{name}"] < 1.5
        assert first[f"test/{name}_floor"] == pytest.approx(one[f"test/{name}_floor"], abs=0.01)


def test_a_floor_is_the_mean_distance_of_independent_draws():
    data = Points("gaussians", num_train=1100, val_size=100)
    model = GAN((1,))
    (metrics,) = quiet_trainer(limit_val_batches=1.0).validate(model, datamodule=data, verbose=False)
    held_out = data.split("val")[0]
    draws = [wasserstein1(data.training_samples(100, seed=seed), held_out).item() for seed in range(4)]
    assert metrics["val/w1_floor"] == pytest.approx(sum(draws) / 4, rel=1e-4)
    assert max(draws) > 1.1 * min(draws)


def test_data_without_draws_has_a_floor_of_one(caplog):
    class OneDraw(Bare):
        def reference(self, n):
            return self.tensors[0][:n]

    with caplog.at_level("INFO"):
        trainer = fit(GAN(**SMALL, conditional=True), OneDraw(images(), torch.arange(32) % 10))
    assert trainer.callback_metrics["val/fd_floor"] == pytest.approx(0, abs=1e-3), "the same images"
    assert re.search(r"training against held-out data: \S+$", caplog.text, re.MULTILINE)


def test_the_distance_of_points_is_logged_as_w1_with_its_floor():
    data = Points(distribution="gaussians", num_train=21_000)
    model = GAN(input_shape=(1,))
    (metrics,) = quiet_trainer(limit_val_batches=1.0).validate(model, datamodule=data, verbose=False)
    assert metrics["val/w1_floor"] < 0.1 < metrics["val/w1"]


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_first_samples_of_a_diffusion_model_do_not_depend_on_their_number(solver):
    model = randomized(untrained(conditional=True, steps=2))
    assert_same_beginning(lambda n, g: model.sample(n, generator=g, solver=solver))


@pytest.mark.parametrize("method", ["sample", "interpolate", "trajectory"])
@pytest.mark.parametrize(
    "build",
    [
        lambda: GAN(**SMALL, conditional=True),
        lambda: GAN((1,), latent_dim=1, **mlps(16)),  # torch.randn of 4 and of 8 numbers begin differently
        lambda: ConsistencyModel((1, 8, 8), 10, network=unet(16), conditional=True),
        lambda: untrained(conditional=True, steps=2),
    ],
    ids=["GAN", "GAN of points", "ConsistencyModel", "Diffusion"],
)
def test_the_first_samples_do_not_depend_on_their_number(build, method):
    model = randomized(build())
    if not hasattr(model, method):
        pytest.skip(f"no {method}")
    dimension = 1 if method == "trajectory" else 0
    options = {"interpolate": {"steps": 3}, "trajectory": {"frames": 3}}.get(method, {})
    assert_same_beginning(lambda n, g: getattr(model, method)(n, generator=g, **options).transpose(0, dimension))


def randomized(model):
    """The model with random weights, so that its samples depend on their classes."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def assert_same_beginning(draw):
    four, eight = (draw(n, torch.Generator().manual_seed(0)) for n in (4, 8))
    torch.testing.assert_close(eight[:4], four, rtol=0, atol=1e-4)
    assert not torch.allclose(eight[4:], four, atol=0.01)


def test_classes_are_drawn_uniformly_and_belong_to_the_seeds():
    model = GAN(**SMALL, conditional=True)
    labels = model.draw_labels(sample_seeds(10_000, torch.Generator().manual_seed(0)))
    counts = labels.bincount(minlength=10)
    assert len(counts) == 10
    assert (counts - 1000).abs().max().item() < 4.5 * 30
    seeds = torch.tensor([7, 123, 7])
    samples = model.sample(3, seeds=seeds)
    torch.testing.assert_close(samples[2], samples[0])
    assert GAN(**SMALL).draw_labels(seeds) is None


def test_without_an_extractor_no_distance_is_logged():
    model = GAN(**SMALL, extractor="none")
    (metrics,) = quiet_trainer(limit_val_batches=1.0).validate(model, datamodule=Digits(), verbose=False) or [{}]
    assert not metrics


# Data of one's own


class Bare(LightningDataModule):
    """Batches and nothing else."""

    def __init__(self, *tensors):
        super().__init__()
        self.tensors = tensors

    def train_dataloader(self):
        return DataLoader(TensorDataset(*self.tensors), 16)

    val_dataloader = train_dataloader


def fit(model, data):
    trainer = quiet_trainer(max_steps=2, limit_val_batches=1)
    trainer.fit(model, data)
    return trainer


def images(n=32):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(
    ("build", "left_out"),
    [
        (lambda: GAN(**SMALL), "GAN on Bare leaves out the floor of val/fd (no reference())"),
        (
            lambda: Diffusion((1, 8, 8), 10, network=unet(8), steps=2),
            "Diffusion on Bare leaves out the floor of val/fd and mean and deviation of the data from more than the "
            "first batch (no reference()), the comparison with the ideal denoiser and the search for copies of "
            "training data (no split())",
        ),
    ],
    ids=["gan", "diffusion"],
)
def test_data_with_nothing_but_unlabelled_batches_trains_with_one_line_on_what_is_left_out(build, left_out, caplog):
    with caplog.at_level("INFO"):
        trainer = fit(build(), Bare(images()))
    assert [line for line in caplog.messages if "leaves out" in line] == [left_out]
    assert trainer.callback_metrics["val/fd"] > 0
    assert "val/fd_floor" not in trainer.callback_metrics


@pytest.mark.parametrize(
    ("options", "tensors", "message"),
    [
        ({"conditional": True}, (images(),), "conditional is true, but the batches have no labels"),
        ({}, (images(), images(), images()), "a batch is a list of Tensor, Tensor, Tensor; it must be"),
        ({}, (images()[..., :4],), r"samples have the shape \(1, 8, 4\), and the model is for \(1, 8, 8\)"),
        ({}, (images().mul(100).byte(),), r"samples are torch\.uint8; they must be floats"),
    ],
)
def test_batches_that_do_not_fit_are_named(options, tensors, message):
    with pytest.raises(UserError, match=message):
        quiet_trainer(max_steps=1, limit_val_batches=0).fit(GAN(**SMALL, **options), Bare(*tensors))


def test_every_validation_draws_from_the_same_noise_and_every_sample_from_its_own():
    """With a learning rate of 0 the samples are the same to the bit in every validation."""
    still = partial(torch.optim.SGD, lr=0.0)
    model, drawn = GAN(**SMALL, optimizer_g=still, optimizer_d=still), []
    model.inspect_samples = lambda fake, *_: drawn.append(fake)
    trainer = quiet_trainer(max_steps=4, val_check_interval=2, check_val_every_n_epoch=None)
    trainer.fit(model, datamodule=Digits(eval_batch_size=100))
    first, second = (torch.cat(drawn[start : start + 3]) for start in (0, 3))
    assert len(drawn) == 6
    assert torch.equal(first, second)
    assert len(first.unique(dim=0)) == len(first) == 300


@pytest.mark.parametrize("model", [GAN, Diffusion])
@pytest.mark.parametrize("num_classes", [0, 1])
def test_a_condition_on_fewer_than_two_classes_is_refused(model, num_classes):
    message = f"conditional is true, but num_classes is {num_classes}, .* at least 2 classes: set conditional to false"
    with pytest.raises(UserError, match=message):
        model((1, 8, 8), num_classes, conditional=True)
    model((1, 8, 8), num_classes, conditional=False)


def test_batches_by_name_are_refused_with_their_names():
    with pytest.raises(UserError, match="a batch is a dict with the keys image, label; it must be"):
        GAN(**SMALL).unpack({"image": images(), "label": None})


def test_images_in_another_range_are_a_warning(recwarn):
    GAN(**SMALL).on_train_batch_start(images(), 0)
    assert not list(recwarn)
    model, positive = GAN(**SMALL), (images() + 1) / 2
    with pytest.warns(UserWarning, match=r"images of the first batch are in \[\S+, 1\], and the model draws in"):
        model.on_train_batch_start(positive, 0)
    recwarn.clear()
    model.on_train_batch_start(positive, 1)
    assert not list(recwarn), "only the first batch is looked at, since this waits for the device"
