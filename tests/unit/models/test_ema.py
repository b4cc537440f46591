"""The moving average against its closed form."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from tests.helpers.meta import CountedTransfers
from zoo.models import CIFARResNet, UNet
from zoo.models.ema import EMA


def constant(value: float) -> nn.Linear:
    network = nn.Linear(1, 1)
    for parameter in network.parameters():
        nn.init.constant_(parameter, value)
    return network


def test_the_weight_of_a_value_halves_in_the_half_life():
    ema = EMA(constant(1.0), half_life=1000, warmup=1e9)
    ema.images = 1  # not the first image, at which warm-up discards the initial weights
    for _ in range(10):
        ema.update(constant(0.0), images=100)
    assert ema.network.weight.item() == pytest.approx(0.5, rel=1e-5)


def test_the_average_does_not_depend_on_the_batch_size():
    averages = []
    for images in (10, 100):
        ema = EMA(constant(1.0), half_life=500, warmup=1e9)
        for _ in range(1000 // images):
            ema.update(constant(0.0), images=images)
        averages.append(ema.network.weight.item())
    assert averages[0] == pytest.approx(averages[1], rel=1e-5)


def test_with_warmup_the_initial_weights_are_forgotten_early():
    ema = EMA(constant(1.0), half_life=1e6, warmup=0.05)
    for _ in range(100):
        ema.update(constant(0.0), images=10)
    assert ema.network.weight.item() < 1e-3, "without warm-up it would be 0.999"


def test_average_and_number_of_images_are_in_the_state_dict():
    ema = EMA(constant(1.0), half_life=1000)
    ema.update(constant(0.3), images=64)
    other = EMA(constant(0.0), half_life=1000)
    other.load_state_dict(ema.state_dict())
    assert other.images == 64
    assert torch.equal(other.network.weight, ema.network.weight)


def test_the_average_has_no_gradients_and_its_own_memory():
    network = constant(1.0)
    ema = EMA(network, half_life=1000)
    assert not any(p.requires_grad for p in ema.parameters())
    network.weight.data.fill_(5.0)
    assert ema.network.weight.item() == 1.0


def test_running_statistics_are_those_of_the_original_until_they_are_measured():
    network = nn.BatchNorm1d(1)
    ema = EMA(network, half_life=1000, warmup=1e9)
    ema.images = 1
    nn.init.constant_(network.weight, 3.0)
    network.running_mean.fill_(2.0)
    network.num_batches_tracked.fill_(7)
    for _ in range(10):
        ema.update(network, images=100)
    assert ema.network.weight.item() == pytest.approx(2.0, rel=1e-5), "half way from 1 to 3"
    assert ema.network.running_mean.item() == 2.0
    assert ema.network.num_batches_tracked.item() == 7
    assert ema.stale


def test_measured_statistics_are_the_means_over_batches_under_the_averaged_weights():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))
    ema = EMA(network, half_life=1000, warmup=1e9)
    ema.images = 1
    nn.init.normal_(network[0].weight, std=5.0)
    ema.update(network, images=500)
    ema.network.eval()
    batches = torch.randn(5, 8, 3)
    hidden = [ema.network[0](x).detach() for x in batches]
    ema.measure(batches, ema.network)
    norm = ema.network[2]
    torch.testing.assert_close(norm.running_mean, torch.stack([h.mean(0) for h in hidden]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([h.var(0) for h in hidden]).mean(0))
    assert not ema.stale and norm.momentum == 0.1 and not any(m.training for m in ema.network.modules())


@pytest.mark.parametrize("frozen", ["in eval mode", "without statistics"])
def test_statistics_that_the_original_keeps_are_not_measured(frozen):
    network = nn.BatchNorm1d(2)
    network.running_mean.fill_(3.0)
    if frozen == "in eval mode":
        network.eval()
    else:
        network.track_running_stats = False  # as Lightning's finetuning callbacks freeze a backbone
    ema = EMA(network, half_life=1000)
    ema.update(network, images=8)
    assert not ema.stale
    assert ema.network.running_mean.tolist() == [3, 3]


def test_in_half_precision_the_average_stays_in_float32_and_moves():
    owner = nn.ModuleDict({"network": constant(1.0), "ema": EMA(constant(0.0), half_life=1e6, warmup=1e9)})
    owner.to(torch.bfloat16)
    ema, network = owner["ema"], owner["network"]
    assert (network.weight.dtype, ema.network.weight.dtype) == (torch.bfloat16, torch.float32)
    ema.images = 1
    nn.init.constant_(ema.network.weight, 0.9)
    for _ in range(10):
        ema.update(network, images=100)
    assert ema.network.weight.item() == pytest.approx(1 - 0.1 * 0.5**0.001, rel=1e-6)
    assert owner.double()["ema"].network.weight.dtype == torch.float64


def test_constant_buffers_are_kept_exactly_also_infinite_ones():
    network = nn.Linear(1, 1)
    network.register_buffer("mask", torch.tensor([-torch.inf, 0.1, torch.inf]))
    ema = EMA(network, half_life=1000)
    for _ in range(5):
        ema.update(network, images=64)
    assert ema.network.mask.equal(network.mask)


def test_an_update_of_a_network_is_one_operator_for_each_group_of_tensors():
    network = CIFARResNet((3, 8, 8), depth=8, widths=(4, 4, 4))
    ema = EMA(network, half_life=1000)
    ema.update(network, images=64)
    with CountedTransfers() as counted:
        ema.update(network, images=64)
    # Weights; statistics of batch normalization; the numbers of batches they are of.
    assert dict(counted.step.operators) == {"aten::_foreach_lerp_.Scalar": 1, "aten::_foreach_copy_": 2}


def test_an_average_is_the_same_to_the_bit_as_of_each_tensor_alone():
    torch.manual_seed(0)
    network = UNet((1, 8, 8), widths=(16,), blocks=1)
    ema, expected = EMA(network, half_life=1000, warmup=1.0), copy.deepcopy(network)
    for _ in range(3):
        for parameter in network.parameters():
            nn.init.normal_(parameter)
        ema.update(network, images=100)
        for mine, its in zip(expected.parameters(), network.parameters(), strict=True):
            mine.data.lerp_(its.data, 1 - ema.decay(100))
    assert all(a.equal(b) for a, b in zip(ema.network.parameters(), expected.parameters(), strict=True))


def test_tensors_that_are_replaced_between_two_updates_are_found():
    network = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    ema = EMA(network, half_life=1000)
    ema.update(network, images=64)
    network.double()
    network[0].weight = nn.Parameter(torch.full((1, 1), 3.0, dtype=torch.float64))
    network[1].running_mean = torch.full((1,), 5.0, dtype=torch.float64)
    ema.double()
    ema.images = 0  # the next update takes the weights over
    ema.warmup = 0
    ema.update(network, images=64)
    assert ema.network[0].weight.item() == 3.0
    assert ema.network[1].running_mean.item() == 5.0


def test_layers_that_are_replaced_before_a_run_are_found():
    network = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    ema = EMA(network, half_life=1000, warmup=0.0)
    ema.update(network, images=64)
    network[1] = constant(4.0)
    ema.start()
    ema.update(network, images=64)
    assert ema.network[1].weight.item() == 4.0


def test_a_copy_of_an_average_leaves_the_trained_network_behind():
    network = constant(1.0)
    ema = EMA(network, half_life=1000)
    ema.update(network, images=64)
    other = copy.deepcopy(ema)
    assert vars(other)["_pairs"] is None
    other.update(network, images=64)
    assert other.images == 128


@pytest.fixture
def one_rank():
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_a_network_in_shards_is_averaged_beside_buffers_that_are_whole():
    network = constant(1.0)
    network.register_buffer("positions", torch.ones(2))
    ema = EMA(network, half_life=1000, warmup=0.0)
    ema.update(network, images=64)
    for whole in (network, ema.network):
        fully_shard(whole)
    nn.init.constant_(network.weight, 3.0)
    network.positions.fill_(2.0)
    ema.update(network, images=64)
    assert ema.network.weight.full_tensor().item() == 3.0
    assert ema.network.positions.tolist() == [2.0, 2.0]


def test_the_number_of_images_is_written_when_the_state_is_read():
    ema = EMA(constant(1.0), half_life=1000)
    owner = nn.ModuleDict({"ema": ema})
    ema.update(constant(1.0), images=64)
    assert owner.state_dict()["ema.images_seen"].item() == 64
