"""Fully sharded data parallelism: every process keeps a share of parameters, gradients and optimizer states.

It is PyTorch's second kind of FSDP (`fully_shard`), which Lightning runs as ModelParallelStrategy. The first kind,
Lightning's FSDPStrategy, cuts flattened parameters: the weight decay would no longer know matrices from biases, a
moving average would be cut elsewhere than its network, and gradients could not be clipped by their norm.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard

from zoo.errors import UserError


class FSDP(ModelParallelStrategy):
    """Shards a model over all processes, as the recipe fsdp.yaml says.

    Args:
        save_distributed_checkpoint: every process writes its shard into a folder, instead of the first process all of
            it into a file, which is a checkpoint like any other.
        **kwargs: of Lightning's ModelParallelStrategy.
    """

    def __init__(self, save_distributed_checkpoint: bool = False, **kwargs: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=save_distributed_checkpoint, **kwargs)

    def setup_environment(self) -> None:
        # How many processes there are is known only now; Lightning's "auto" stands for the number of machines.
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def shard(module: LightningModule, blocks: tuple[type[nn.Module], ...]) -> None:
    """Shards a model's `network`, and its moving average `ema`, over the processes of its Trainer.

    Args:
        module: that the Trainer has, with a `ModelParallelStrategy`.
        blocks: parts of the network whose parameters are gathered, one part after the other, while it computes.

    Raises:
        UserError: there are none.
    """
    if not blocks:
        raise UserError(
            f"{type(module).__name__} is not made for FSDP; on several devices it trains by --config ddp.yaml"
        )
    mesh = module.device_mesh["data_parallel"]  # type: ignore[index]
    ema = getattr(module, "ema", None)
    for network in (module.network, *([ema.network] if ema is not None else [])):
        if isinstance(network, FSDPModule):  # for an earlier command of the same Trainer
            continue
        # Sharded again after each forward pass, the outermost part too: what moves the average sees shards of both.
        for part in (*(m for m in network.modules() if isinstance(m, blocks)), network):
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
