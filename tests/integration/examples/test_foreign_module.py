"""The example of callbacks on a LightningModule that knows nothing of the zoo."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch


@pytest.mark.usefixtures("cheap_reports")
def test_the_callbacks_leave_their_files(enter, caplog):
    example = enter("foreign_module")
    assert not re.search(r"^\s*(from|import) zoo", (example.folder / "flow.py").read_text(), re.MULTILINE)
    caplog.set_level("INFO")
    (command,) = example.commands
    example.run(command, "--max_steps", "20")
    run = Path("runs/foreign_module/version_0")
    names = ["samples/step_0000000.png", "samples/step_0000020.png", "samples/film.gif", "gradient_flow_couplings.png"]
    for name in [*names, "gradient_flow.csv", "curves.png", "checkpoints/best.ckpt", "checkpoints/last.ckpt"]:
        assert (run / name).is_file(), name
    assert any(message.startswith("Gradient flow in couplings") for message in caplog.messages)
    assert any("leaves out training points behind the samples" in message for message in caplog.messages)


def test_the_density_of_the_flow_integrates_to_one_and_is_that_of_its_samples(enter):
    enter("foreign_module")
    from flow import Flow

    torch.manual_seed(0)
    model = Flow(depth=3, width=8)
    grid = torch.linspace(-12, 12, 601)
    with torch.no_grad():
        density = model.log_prob(torch.cartesian_prod(grid, grid)).exp().view(601, 601)
    cell = (grid[1] - grid[0]).square()
    assert (density.sum() * cell).item() == pytest.approx(1, abs=1e-3)
    samples = model.sample(100_000, generator=torch.Generator().manual_seed(0))
    mean = torch.stack([(density.sum(1) * grid).sum(), (density.sum(0) * grid).sum()]) * cell
    torch.testing.assert_close(samples.mean(0), mean, rtol=0, atol=0.02)


@pytest.mark.slow
def test_samples_get_closer_to_the_half_circles(enter):
    enter("foreign_module")
    import train
    from flow import moons
    from zoo.metrics import SlicedWasserstein

    data = next(iter(moons(2000, seed=2, batch_size=2000)))
    distances = []
    for steps in (1, 1000):
        distance = SlicedWasserstein(dimension=2)
        distance.update(data, real=True)
        torch.manual_seed(0)
        model = train.main(["--max_steps", str(steps)]).lightning_module
        distance.update(model.sample(2000, generator=torch.Generator().manual_seed(0)), real=False)
        distances.append(distance.compute())
    assert distances[1] < 0.1 < distances[0] / 3, distances
