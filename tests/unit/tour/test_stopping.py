"""Claims of the figure on early stopping: gradient descent and weight decay in closed form, patience, and choices."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.trainer.states import TrainerFn

from zoo.tour import stopping
from zoo.tour.stopping import Run


def test_shrinkage_is_that_of_gradient_descent_and_of_ridge_regression():
    x, y = stopping.shuffled_digits(0)
    batch = x[:40], y[:40]
    features, targets = stopping._linear(batch)
    eigenvalues, vectors, coordinates = stopping.linear_problem(batch)
    weights = torch.zeros(64, 10, dtype=torch.double)
    for _ in range(30):
        weights -= 0.05 * features.T @ (features @ weights - targets) / 40
    inverse = torch.where(eigenvalues > 1e-12, 1 / eigenvalues, 0.0)
    kept = stopping.shrinkage_of_steps(eigenvalues, 30, 0.05)
    torch.testing.assert_close(vectors @ ((kept * inverse).unsqueeze(1) * coordinates), weights, atol=1e-9, rtol=0)
    ridge = torch.linalg.solve(
        features.T @ features / 40 + 0.3 * torch.eye(64, dtype=torch.double), features.T @ targets / 40
    )
    kept = stopping.shrinkage_of_decay(eigenvalues, 0.3)
    torch.testing.assert_close(vectors @ ((kept * inverse).unsqueeze(1) * coordinates), ridge, atol=1e-9, rtol=0)


def test_steps_and_weight_decay_agree_at_both_ends_and_differ_by_a_fifth_at_most():
    eigenvalues = torch.logspace(-6, 1, 500, dtype=torch.double)
    steps = stopping.shrinkage_of_steps(eigenvalues, 1000, 0.01)
    gap = steps - stopping.shrinkage_of_decay(eigenvalues, 1 / 10)
    assert gap[0].item() == pytest.approx(0, abs=1e-4)
    assert gap[-1].item() == pytest.approx(0, abs=0.01)
    assert gap.max().item() == pytest.approx(0.204, abs=0.002)
    assert eigenvalues[gap.argmax()].item() * 10 == pytest.approx(2.51, abs=0.05)


def test_best_of_both_regularizers_is_the_same_within_a_percent():
    x, y = stopping.shuffled_digits(0)
    times = torch.logspace(-1, 5, 25).tolist()
    by_steps, by_decay = stopping.linear_losses((x[:100], y[:100]), (x[100:], y[100:]), times)
    assert min(by_steps) == pytest.approx(min(by_decay), rel=0.02)
    assert by_steps[-1] > 1.2 * min(by_steps), "it overfits"
    assert by_steps[0] > 1.2 * min(by_steps), "it underfits at first"


@pytest.mark.parametrize(("patience", "stop", "chosen"), [(1, 2, 1), (2, 5, 3), (3, 8, 7), (4, 8, 7)])
def test_patience_is_that_of_early_stopping(patience, stop, chosen):
    losses = [3.0, 2.0, 2.5, 1.9, 1.9, 2.0, 1.95 - 0.1 * (patience > 2), 1.0, 1.5]
    assert stopping.stopped_epoch(losses, patience) == stop
    assert stopping.chosen_epoch(losses, patience) == chosen


@pytest.mark.parametrize("patience", [1, 2, 4, 7])
def test_stopped_epoch_is_that_of_lightning(patience):
    losses = torch.rand(60, generator=torch.Generator().manual_seed(0)) + torch.linspace(1, 0, 60)
    callback = EarlyStopping("val/loss", patience=patience, check_on_train_epoch_end=False)
    trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.state.fn = TrainerFn.FITTING
    validations = 0
    while not trainer.should_stop and validations < len(losses):
        trainer.callback_metrics["val/loss"] = losses[validations]
        callback.on_validation_end(trainer, None)
        validations += 1
    assert stopping.stopped_epoch(losses.tolist(), patience) == validations - 1


def test_regret_is_zero_if_the_best_epoch_is_chosen():
    run = Run(torch.zeros(4), torch.tensor([[4.0, 4.0, 5.0], [3.0, 2.0, 2.5], [3.5, 1.0, 1.0], [5.0, 5.0, 5.0]]))
    assert stopping.regret(run, validation=2, patience=5) == 0
    assert stopping.regret(run, validation=1, patience=5) == pytest.approx(1.25), "epoch 1 instead of epoch 2"


def test_minimum_of_equal_candidates_is_optimistic_by_that_of_normal_draws():
    generator = torch.Generator().manual_seed(0)
    candidates = torch.randn(2, 4000, generator=generator)
    candidates -= candidates.mean(1, keepdim=True)
    found = stopping.choose(candidates, 100, 2000, generator)
    # The lower of two means of 100 standard normal losses is -1 / sqrt(100 pi) on average.
    assert found.validation == pytest.approx(-1 / math.sqrt(100 * math.pi), rel=0.1)
    assert abs(found.measured) < 0.01
    assert found.best <= found.measured


def test_choice_by_all_but_few_images_is_the_better_candidate():
    candidates = torch.stack([torch.full((50,), 2.0), torch.full((50,), 1.0)])
    assert stopping.choose(candidates, 5, 10, torch.Generator()) == stopping.Choice(1.0, 1.0, 1.0)


@pytest.mark.slow
def test_network_on_few_digits_overfits_and_stops_early():
    run = stopping.train(100, 120)
    losses = run.validation(200)
    assert run.held_out.shape == (121, 1100)
    assert run.training[-1] < 0.01
    assert losses[-1] > 1.2 * losses.min()
    assert stopping.stopped_epoch(losses.tolist(), 10) < 60
    large = stopping.train(800, 8)
    assert (large.validation(200) - large.training)[-1] < (losses - run.training)[-1] / 2
