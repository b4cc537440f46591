"""Fully sharded data parallelism (FSDP): every process keeps a shard of parameters, gradients and optimizer states.

This is PyTorch's second implementation (`fully_shard`, "FSDP2"), which Lightning runs as ModelParallelStrategy. The
first one, Lightning's FSDPStrategy, shards flattened parameters: weight decay could no longer tell matrices from
biases, a moving average would be sharded differently from its network, and gradients could not be clipped by norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard

from zoo._lightning import set_data_parallel_size
from zoo.errors import UserError


class FSDP2Strategy(ModelParallelStrategy):
    """Shards a model over all processes; used by the recipe fsdp.yaml.

    Args:
        save_distributed_checkpoint: write one shard per process into a folder, instead of one complete checkpoint
            from rank 0.
        **kwargs: further arguments of Lightning's ModelParallelStrategy.
    """

    def __init__(self, save_distributed_checkpoint: bool = False, **kwargs: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=save_distributed_checkpoint, **kwargs)

    def setup_environment(self) -> None:
        # The number of processes is known only now.
        set_data_parallel_size(self, self.num_nodes * self.num_processes)
        super().setup_environment()


def shard(module: LightningModule, networks: Sequence[nn.Module]) -> None:
    """Shards networks over the processes of a model's Trainer.

    The blocks whose parameters are gathered one at a time are those of the classes in a network's own attribute
    `sharded`.

    Args:
        module: model attached to a Trainer with a `ModelParallelStrategy`.
        networks: networks of the model that are called on their own, such as the trained one and its moving average.

    Raises:
        UserError: a network does not say what its blocks are.
    """
    for network in networks:
        if not getattr(network, "sharded", ()):
            raise UserError(
                f"{type(module).__name__} with a {type(network).__name__} does not support FSDP, since this network "
                "does not name its blocks (attribute sharded); for several devices use --config ddp.yaml"
            )
    for loop in (module.trainer.validate_loop, module.trainer.test_loop, module.trainer.predict_loop):
        # FSDP keeps the gathered parameters, and tensors that were made in inference mode cannot be trained later.
        loop.inference_mode = False
    mesh = module.device_mesh["data_parallel"]  # type: ignore[index]
    for network in networks:
        blocks: Any = network.sharded
        if isinstance(network, FSDPModule):  # sharded by an earlier call of the same Trainer
            continue
        # Resharding after forward, also of the root, keeps network and average in the same layout for EMA's update.
        for part in (*(m for m in network.modules() if isinstance(m, blocks)), network):
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
