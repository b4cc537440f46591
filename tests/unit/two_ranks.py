"""Training on two ranks: python -m tests.unit.two_ranks FOLDER, started once by the fixture of this name.

The ranks are forks of one process that has imported everything, so that this takes seconds. Each part leaves what it
found in FOLDER.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from zoo import GAN, MLPClassifier
from zoo.callbacks import ClassReport, GradientFlow, PredictionWriter
from zoo.contracts import data_of
from zoo.datamodules import Digits
from zoo.distributed.fsdp import FSDP2Strategy
from zoo.errors import UserError
from zoo.optim import ScalarAdam

SCOPES, SCALES = ("global", "group", "tensor"), ("norm", "rms")


def trainer(devices: int, **options: Any) -> Trainer:
    warnings.filterwarnings("ignore")
    strategy = options.pop("strategy", "ddp" if devices > 1 else "auto")
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", devices=devices, strategy=strategy, **(quiet | options))


# PredictionWriter


def write_predictions(path: Path, devices: int = 1) -> None:
    """Writes the predictions of an untrained classifier on the 297 test digits."""
    seed_everything(0, verbose=False)
    model = MLPClassifier((1, 8, 8), 10, width=8, depth=1)
    callbacks = [PredictionWriter(str(path))]
    trainer(devices, logger=False, callbacks=callbacks).predict(model, datamodule=Digits(eval_batch_size=40))


# ClassReport and temperature scaling


def report_classes(folder: Path, devices: int = 1) -> None:
    """Tests an untrained classifier, whose temperature is fitted on 101 validation digits before."""
    seed_everything(0, verbose=False)
    model = MLPClassifier((1, 8, 8), 10, width=8, depth=1, calibrate=True)
    callbacks = [ClassReport(str(folder / "report"))]
    run = trainer(devices, logger=False, callbacks=callbacks)
    (metrics,) = run.test(model, datamodule=Digits(eval_batch_size=40, val_size=101), verbose=False)
    if run.is_global_zero:
        (folder / "report" / "metrics.json").write_text(json.dumps(metrics | {"T": model.temperature.item()}))


# Metrics of generated samples


class NoisyTraining(GAN):
    """Draws training digits with noise on them, chosen by the seeds."""

    def sample(self, n, *, labels=None, generator=None, seeds=None):
        x = data_of(self.trainer).reference(1000)
        return torch.stack(
            [
                x[s % 1000] + 0.2 * torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(s))
                for s in seeds.tolist()
            ]
        )


def measure_generator(devices: int = 1) -> dict[str, float]:
    """Metrics of these samples on the 297 test digits."""
    run = trainer(devices, logger=False)
    (metrics,) = run.test(NoisyTraining((1, 8, 8)), datamodule=Digits(eval_batch_size=40), verbose=False)
    return metrics


# GradientFlow


class SmallRegression(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))

    def configure_model(self):
        if isinstance(self.trainer.strategy, FSDP2Strategy):  # rank 1 has no shard of the last layer's only row
            for layer in (self.network[0], self.network[2], self.network):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, batch_idx):
        return self.network(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train_with_gradient_flow(folder: Path, devices: int = 1, **options: Any) -> None:
    """Trains on global batches of 32 samples."""
    data = TensorDataset(torch.randn(32, 4, generator=torch.Generator().manual_seed(0)))
    logger = CSVLogger(folder, name="", version="")
    callbacks = [GradientFlow(every_n_steps=2)]
    trainer(devices, max_epochs=3, logger=logger, callbacks=callbacks, **options).fit(
        SmallRegression(), DataLoader(data, batch_size=32 // devices)
    )


# ScalarAdam


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1)).double()  # rank 1 has no shard of the last layer


def scalar_adam(model: nn.Module, **options: Any) -> ScalarAdam:
    weights, biases = ([p for p in model.parameters() if (p.ndim == 2) == wide] for wide in (True, False))
    return ScalarAdam([{"params": weights}, {"params": biases, "weight_decay": 0.1}], lr=0.05, **options)


def train(model: nn.Module, optimizer: ScalarAdam, x: Tensor, steps: int = 6) -> list[Tensor]:
    for _ in range(steps):
        optimizer.zero_grad()
        ((model(x).squeeze(1) - x.sum(1).sin()) ** 2).mean().backward()
        optimizer.step()
    return [p.full_tensor() if isinstance(p, DTensor) else p.detach().clone() for p in model.parameters()]


def sharded(mesh: Any) -> nn.Module:
    model = small_network()
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train_partial_gradient(mesh: Any, scope: str, x: Tensor) -> tuple[Tensor, bool]:
    """Trains a weight that is replicated while each rank holds a summand of its gradient ("partial" in DTensor)."""
    w = nn.Parameter(distribute_tensor(torch.ones(5, 3, dtype=torch.float64), mesh, [Replicate()]))
    optimizer = ScalarAdam([w], lr=0.05, scope=scope)
    shards = distribute_tensor(x, mesh, [Shard(0)])
    for _ in range(4):
        optimizer.zero_grad()
        (shards @ w).pow(2).sum().backward()
        partial = w.grad.placements[0].is_partial()
        optimizer.step()
    return w.full_tensor().detach(), partial


def resume_from_distributed_checkpoint(mesh: Any, scope: str, x: Tensor, folder: Path) -> tuple[Any, Any]:
    """Parameters of a run and of its resumed copy, three steps after the checkpoint."""
    model, other = sharded(mesh), sharded(mesh)
    optimizer, resumed = scalar_adam(model, scope=scope), scalar_adam(other, scope=scope)
    train(model, optimizer, x, 3)
    other.load_state_dict(model.state_dict())
    dcp.save(get_optimizer_state_dict(model, optimizer), checkpoint_id=str(folder / scope))
    saved = get_optimizer_state_dict(other, resumed)
    dcp.load(saved, checkpoint_id=str(folder / scope))
    set_optimizer_state_dict(other, resumed, saved)
    return train(model, optimizer, x, 3), train(other, resumed, x, 3)


def refusal_of_flat_shards() -> str:
    """Message about parameters that FSDP's first implementation has flattened."""
    try:
        flat = FullyShardedDataParallel(nn.Linear(4, 4), use_orig_params=True, device_id=torch.device("cpu"))
        ScalarAdam(flat.parameters())
    except UserError as error:
        return str(error)
    return ""


def train_with_scalar_adam(rank: int, folder: Path) -> None:
    """Trains by DDP and sharded, for every scope and scale, and saves the parameters by name."""
    mesh = init_device_mesh("cpu", (2,))
    hybrid = init_device_mesh("cpu", (2, 1), mesh_dim_names=("copies", "shards"))
    x = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    half = x[4 * rank : 4 * rank + 4]
    found: dict[Any, Any] = {"fsdp1": refusal_of_flat_shards()}
    for scope in SCOPES:
        for scale in SCALES:
            options = {"scope": scope, "scale": scale}
            model = small_network()
            found["one", scope, scale] = train(model, scalar_adam(model, **options), x)
            ddp = DistributedDataParallel(small_network())
            found["ddp", scope, scale] = train(ddp, scalar_adam(ddp, **options), half)
            for foreach in (True, False):
                model = sharded(mesh)
                optimizer = scalar_adam(model, **options, foreach=foreach)
                found["sharded", scope, scale, foreach] = train(model, optimizer, half)
        model = sharded(hybrid)
        found["hybrid", scope] = train(model, scalar_adam(model, scope=scope), half)
        found["whole", scope], found["resumed", scope] = resume_from_distributed_checkpoint(mesh, scope, half, folder)
        found["partial", scope], found["partial gradient"] = train_partial_gradient(mesh, scope, x)
    torch.save(found, folder / f"rank_{rank}.pt")


# Ranks


def run_rank(rank: int, folder: Path, port: int) -> None:
    # The variables that Lightning sets for a process that it starts.
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    rank_zero_only.rank = rank  # determined on import, when there was one process
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    train_with_scalar_adam(rank, folder)
    train_with_gradient_flow(folder / "gradient_flow", devices=2)
    train_with_gradient_flow(folder / "sharded_flow", devices=2, strategy=FSDP2Strategy())
    write_predictions(folder / "predictions.csv", devices=2)
    report_classes(folder, devices=2)
    (folder / f"generator_{rank}.json").write_text(json.dumps(measure_generator(devices=2)))
    dist.destroy_process_group()


def main(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(run_rank, (folder, port), nprocs=2, start_method="fork")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
