"""What holds for every model of the registry: on one, two and three ranks, sharded, and on GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from tests.helpers.command import TINY, run_program
from tests.helpers.models import CALLBACKS, GAN_OF_POINTS, MODELS, callback_arguments, tiny_arguments
from tests.helpers.one_process import carry_out, launch, metrics, parameters_after_the_same_batches
from tests.helpers.ranks import only_rank
from zoo import GAN
from zoo.checkpoints.reading import load_model
from zoo.cli.fit import ZooCLI, run_trainer
from zoo.contracts import PredictiveClassifier, offers
from zoo.distributed.fsdp import shard
from zoo.distributed.launching import ending_together
from zoo.errors import UserError
from zoo.registry import entries

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")

#: 101 samples in batches of 25: no number of ranks divides them, and the last batch is smaller than the others.
UNEVEN = ["--data.eval_batch_size=25"]
SHARDED = ["Diffusion", "TransformerLM", "ViTClassifier"]
SHARDED_RECIPES = ["TransformerLM", "ViTClassifier"]  # whose tiny runs need no other network for it
QUIET = ["--trainer.enable_progress_bar=false", "--wandb.mode=disabled"]


def on(processes: int) -> list[str]:
    strategy = ["--trainer.strategy=ddp"] if processes > 1 else []
    return ["--trainer.accelerator=cpu", f"--trainer.devices={processes}", *strategy]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> dict[str, list[str]]:
    """Options of a tiny run of each model."""
    return {name: [*tiny_arguments(name, tmp_path_factory.mktemp(name)), *UNEVEN, *TINY, *QUIET] for name in MODELS}


@pytest.fixture(scope="module")
def single(tiny, tmp_path_factory) -> tuple[dict, Path]:
    """What one process finds: each model trained for six batches, validated and tested; and the checkpoints."""
    folder = tmp_path_factory.mktemp("single")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "disabled")
        evaluated = {name: str(folder / f"{name}.ckpt") for name in MODELS}
        runs = {name: [*args, *on(1)] for name, args in tiny.items()}
        return carry_out(runs, evaluated, str(folder)), folder


@pytest.fixture(scope="module")
def steps_of_one() -> dict[str, list[float]]:
    return parameters_after_the_same_batches(1)


@pytest.fixture(scope="module", params=[2, 3])
def several(request, tiny, single, tmp_path_factory) -> tuple[list[dict], Path]:
    """What two or three ranks find: each model trained by them, and the one of one process validated and tested."""
    folder = tmp_path_factory.mktemp("several")
    runs = {name: [*args, *on(request.param)] for name, args in tiny.items()}
    runs[MODELS[0]] += ["--wandb.mode=offline"]  # one run of W&B is enough
    if request.param == 2:
        runs |= sharded_runs(tiny, folder)
    evaluated = {name: str(single[1] / f"{name}.ckpt") for name in MODELS}
    return launch(folder, request.param, runs=runs, evaluated=evaluated), folder


def agree(name: str, found: list[dict]) -> None:
    """Asserts that all ranks end with the same parameters and metrics, and draw noise of their own."""
    first, *others = [on_rank[name] for on_rank in found]
    for other in others:
        assert other["parameters"] == first["parameters"]
        assert other["metrics"] == first["metrics"]
        assert other["random"] != first["random"], "noise of their own"
    assert first["metrics"]
    if first["images"] is not None:
        assert first["images"] == 6 * 32 * len(found), "images of all ranks"


def share_the_data(name: str, found: list[dict]) -> None:
    """Asserts that the training data is cut without overlap or loss."""
    seen = [on_rank[name]["loader"] for on_rank in found]
    together = [index for share in seen for index in share]
    assert len(set(together)) == len(together)
    assert len({len(share) for share in seen}) == 1, "as many on every rank"
    batch = 8 if name == "TransformerLM" else 32
    lost = found[0][name]["train_size"] - len(together)
    assert seen[0]
    assert lost < batch * len(seen), "a last, smaller batch and nothing else"


def only_rank_0_writes(names: list[str], folder: Path) -> None:
    first, *others = sorted(folder.glob("place_of_*"))
    assert [list(place.iterdir()) for place in others] == [[]] * len(others)
    for name in names:
        assert len(list(first.glob(f"runs/{name.lower()}/*"))) == 1
    assert len(list(first.glob("runs/*/version_0/wandb/offline-run-*"))) == 1, "one W&B run"


def test_two_ranks_train_one_model(tiny, tmp_path):
    """The quick test of DDP: one launch, one model."""
    name = "MLPClassifier"
    runs = {name: [*tiny[name], *on(2), "--wandb.mode=offline"]}
    found = launch(tmp_path, 2, in_order=False, runs=runs, evaluated={})
    agree(name, found)
    share_the_data(name, found)
    only_rank_0_writes([name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_all_ranks_end_with_the_same_parameters_and_metrics(name, several):
    agree(name, several[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("command", ["validate", "test"])
def test_metrics_are_those_of_one_process(name, command, single, several):
    expected = single[0][name][command]
    assert expected
    for found in several[0]:
        assert found[name][command] == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MLPClassifier", "TransformerLM", "ViTClassifier"])
def test_the_same_global_batches_give_the_parameters_of_one_process(name, steps_of_one, several):
    """For models whose samples are independent: no batch norm, and no random numbers in training."""
    for found in several[0]:
        assert found["in order"][name] == pytest.approx(steps_of_one[name], rel=1e-4, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_training_data_is_cut_without_overlap_or_loss(name, several):
    share_the_data(name, several[0])


@pytest.mark.slow
def test_only_rank_0_writes(several):
    only_rank_0_writes(MODELS, several[1])


# Fully sharded


def sharded_runs(tiny: dict[str, list[str]], folder: Path) -> dict[str, list[str]]:
    """The same training by DDP and by FSDP, and the one by FSDP continued from its own checkpoint."""
    runs = {}
    for name in SHARDED:
        args = [*tiny[name], *on(2), "--trainer.gradient_clip_val=0.5"]
        if name == "TransformerLM":  # samples are drawn during training, to which all ranks must contribute
            args += ["--data.tokenizer=bytes", "--trainer.callbacks=SampleLogger", "--trainer.callbacks.n=2"]
        elif name == "Diffusion":
            args = [word for word in args if not word.startswith("--model.network")]
            args += ["--model.network=DiT", *(f"--model.network.{o}" for o in ("layers=1", "width=16", "heads=2"))]
        else:
            args += ["--model.ema_half_life=1000"]
        runs[f"ddp {name}"] = [*args, f"--run.name=ddp_{name}"]
        args = ["--config=fsdp.yaml", *(a for a in args if "strategy" not in a)]
        runs[f"fsdp {name}"] = [*args, f"--run.name=fsdp_{name}"]
        again = ["--trainer.max_steps=8", f"--ckpt_path={folder / f'fsdp {name}.ckpt'}"]
        runs[f"again {name}"] = [*args, f"--run.name=again_{name}", *again]
    return runs


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARDED)
def test_sharded_training_is_that_of_ddp_and_its_checkpoint_is_like_any_other(name, several):
    found, folder = several
    if len(found) > 2:
        pytest.skip("runs on two ranks")
    assert found[0][f"fsdp {name}"]["metrics"] == pytest.approx(found[0][f"ddp {name}"]["metrics"], rel=1e-4)
    replicated, sharded = (load_model(folder / f"{kind} {name}.ckpt").state_dict() for kind in ("ddp", "fsdp"))
    assert sharded.keys() == replicated.keys()
    for key, value in replicated.items():
        if torch.is_tensor(value):
            torch.testing.assert_close(sharded[key], value, rtol=1e-3, atol=1e-5)
    again = torch.load(folder / f"again {name}.ckpt", weights_only=True)
    assert again["global_step"] == 8
    assert again["optimizer_states"][0]["state"][0]["step"] == 8


def test_a_model_without_parts_to_shard_is_refused():
    model = GAN((1, 8, 8))
    with pytest.raises(UserError, match=r"GAN with a MLPGenerator does not support FSDP.* --config ddp.yaml"):
        shard(model, model.sharded_networks())


# One rank, with all callbacks: on a GPU by NCCL, and on the CPU by gloo


ALONE = [*MODELS, "GAN of points"]
#: Options by which a model computes more than by default.
MORE = {"Diffusion": ["--model.likelihood_samples=2", "--model.likelihood_probes=1"]}


def alone(name: str, tiny: dict[str, list[str]]) -> list[str]:
    args = tiny.get(name, [*GAN_OF_POINTS, *TINY, *QUIET])
    return [*args, "--trainer.devices=1", *MORE.get(name, []), *callback_arguments(name)]


def train_and_evaluate(args: list[str], backend: str) -> ZooCLI:
    """Trains for six steps, validates, tests and predicts; asserts that all that is measured is finite.

    Args:
        args: arguments of `fit`.
        backend: name of the library that must carry out the collectives, "gloo" or "nccl".
    """
    cli = run_trainer(["fit", *args])
    measured = metrics(cli)
    assert torch.distributed.get_backend() == backend
    assert cli.trainer.global_step == 6
    with ending_together(cli.trainer):
        for command in ("validate", "test"):
            getattr(cli.trainer, command)(cli.model, datamodule=cli.datamodule, verbose=False)
            measured |= metrics(cli)
        if offers(cli.model, PredictiveClassifier):
            cli.trainer.predict(cli.model, datamodule=cli.datamodule, return_predictions=False)
    assert {name.partition("/")[0] for name in measured} >= {"val", "test"}
    assert torch.tensor(list(measured.values())).isfinite().all(), measured
    return cli


def test_every_callback_is_tested_with_a_strategy():
    tested = {word for words in CALLBACKS.values() for word in words if "=" not in word}
    untested = {"NotebookProgress", "ShortProgressBar", "StopOnSignal"}
    assert {entry.name for entry in entries("callbacks")} - tested == untested


@pytest.mark.parametrize(
    "name", [n if n == "ViTClassifier" else pytest.param(n, marks=pytest.mark.slow) for n in ALONE]
)
def test_every_model_trains_and_is_evaluated_by_ddp_on_one_rank_with_all_callbacks(name, tiny, cheap_reports, reports):
    with only_rank():
        train_and_evaluate([*alone(name, tiny), "--trainer.strategy=ddp"], "gloo")


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARDED_RECIPES)
def test_a_sharded_model_trains_and_is_evaluated_on_one_rank_with_all_callbacks(name, tiny, cheap_reports, reports):
    with only_rank():
        train_and_evaluate(["--config=fsdp.yaml", *alone(name, tiny)], "gloo")


# On GPUs


class FirstWeights(Callback):
    """Keeps the weights before the first step."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.state = {name: value.detach().cpu().clone() for name, value in pl_module.named_parameters()}


FIRST_WEIGHTS = [f"--trainer.callbacks+={__name__}.FirstWeights"]


def movements(cli: ZooCLI) -> dict[str, float]:
    """Largest change of an element of each weight that is trained, by name."""
    (first,) = (callback for callback in cli.trainer.callbacks if isinstance(callback, FirstWeights))
    parameters = {name: p for name, p in cli.model.named_parameters() if p.requires_grad and name.endswith("weight")}
    return {name: (p.detach().cpu() - first.state[name]).abs().max().item() for name, p in parameters.items()}


def test_the_movement_of_weights_is_that_of_the_learning_rate(tiny):
    """As the test in float16 measures it, which needs a GPU."""
    still = [
        "--model.optimizer_g=SGD",
        "--model.optimizer_g.lr=0",
        "--model.optimizer_d=SGD",
        "--model.optimizer_d.lr=0",
    ]
    for options, moves in (([], True), (still, False)):
        moved = movements(run_trainer(["fit", *tiny["GAN"], *FIRST_WEIGHTS, *options]))
        assert {name.partition(".")[0] for name in moved} == {"generator", "discriminator"}
        assert all((distance > 0) == moves for distance in moved.values())


def needs_gpus(count: int) -> list[pytest.MarkDecorator]:
    too_few = torch.cuda.device_count() < count
    return [pytest.mark.gpu, pytest.mark.skipif(too_few, reason=f"needs {count} GPU{'s' * (count > 1)} with CUDA")]


def fit_on_gpus(args: list[str], *options: str) -> ZooCLI:
    cli = run_trainer(["fit", "--config=gpu.yaml", *args, "--trainer.accelerator=gpu", *options])
    assert cli.trainer.global_step == 6
    values = [value.item() for value in cli.trainer.callback_metrics.values()]
    assert values
    assert torch.tensor(values).isfinite().all()
    assert {p.dtype for p in cli.model.parameters()} == {torch.float32}
    return cli


class TestOnOneGPU:
    pytestmark = needs_gpus(1)

    @pytest.mark.parametrize("name", ALONE)
    def test_by_nccl_every_model_trains_and_is_evaluated_with_all_callbacks(self, name, tiny, cheap_reports, reports):
        args = ["--config=gpu.yaml", *alone(name, tiny), "--trainer.accelerator=gpu", "--trainer.strategy=ddp"]
        with only_rank():
            train_and_evaluate(args, "nccl")

    @pytest.mark.parametrize("name", SHARDED_RECIPES)
    @pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
    def test_by_nccl_a_sharded_model_trains_and_is_evaluated(self, name, precision, tiny, cheap_reports, reports):
        stack = ["--config=gpu.yaml", "--config=fsdp.yaml"]
        options = ["--trainer.accelerator=gpu", f"--trainer.precision={precision}"]
        with only_rank():
            train_and_evaluate([*stack, *alone(name, tiny), *options], "nccl")

    @pytest.mark.parametrize("name", MODELS)
    @pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
    def test_every_model_trains_in_mixed_precision(self, name, precision, tiny):
        fit_on_gpus(tiny[name], f"--trainer.precision={precision}")

    @pytest.mark.parametrize("penalty", ["none", "r1", "r2", "r1_r2", "gradient_penalty"])
    def test_float16_moves_both_networks_of_a_gan_with_every_penalty(self, penalty, tiny):
        options = [f"--model.penalty={penalty}", "--model.penalty_interval=1", "--model.gradient_clip_val=1.0"]
        moved = movements(fit_on_gpus(tiny["GAN"], *options, *FIRST_WEIGHTS, "--trainer.precision=16-mixed"))
        for network in ("generator", "discriminator"):
            distances = [distance for name, distance in moved.items() if name.startswith(network)]
            assert min(distances) > 0
            assert max(distances) < 1


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("recipe", ["ddp.yaml", "fsdp.yaml"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
class TestOnTwoGPUs:
    pytestmark = needs_gpus(2)

    def test_every_model_trains_and_is_read_again(self, name, recipe, precision, tiny, tmp_path):
        if recipe == "fsdp.yaml" and name not in SHARDED:
            pytest.skip("does not support FSDP")
        stack = ["--config=gpu.yaml", f"--config={recipe}"]
        options = ["--trainer.accelerator=gpu", "--trainer.devices=2", f"--trainer.precision={precision}"]
        done = run_program("fit", *stack, *tiny[name], *options, "--run.name=run", cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        (checkpoint,) = (tmp_path / "runs" / "run" / "version_0" / "checkpoints").glob("*.ckpt")
        for value in load_model(checkpoint).state_dict().values():
            assert not torch.is_tensor(value) or value.float().isfinite().all()
