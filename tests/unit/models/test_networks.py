"""Networks as arguments of a model: by name, as a factory, as a module, and from a checkpoint."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

from tests.unit.training import quiet_trainer
from zoo import GAN, Classifier, Diffusion, TransformerLM
from zoo.checkpoints.reading import load_model
from zoo.datamodules import Digits
from zoo.errors import UserError
from zoo.models import ConvGenerator, MLPGenerator, PooledResNet, UNet
from zoo.models.networks import build_network, check_output, describe_factory, find_factory
from zoo.models.transformer.blocks import Block


class Linear(nn.Module):
    """A network of a user's: samples to logits."""

    def __init__(self, shape, classes, bias: bool = True, activation=torch.tanh):
        super().__init__()
        self.layer = nn.Linear(torch.Size(shape).numel(), classes, bias=bias)
        self.activation = activation

    def forward(self, x):
        return self.activation(self.layer(x.flatten(1)))


class Generator(nn.Module):
    """A generator of a user's, with batch normalization and dropout."""

    def __init__(self, shape, latent_dim, classes, width: int = 8):
        super().__init__()
        self.shape = shape
        pixels = torch.Size(shape).numel()
        self.body = nn.Sequential(nn.Linear(latent_dim, width), nn.BatchNorm1d(width), nn.Dropout())
        self.out = nn.Linear(width, pixels)

    def forward(self, z, labels):
        return self.out(self.body(z)).view(-1, *self.shape)


class Denoising(nn.Module):
    """A denoising network of a user's."""

    def __init__(self, shape, classes):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(shape))

    def forward(self, x, c_noise, labels):
        return self.scale * x


def save(model, path) -> str:
    trainer = quiet_trainer(max_steps=0)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(path)
    return str(path)


# Descriptions


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        (PooledResNet, {"class_path": "zoo.models.resnet.network.PooledResNet", "init_args": {}}),
        (
            partial(partial(UNet, widths=(16, 32), blocks=1), blocks=2),
            {"class_path": "zoo.models.diffusion.network.UNet", "init_args": {"widths": [16, 32], "blocks": 2}},
        ),
        (partial(Linear, activation=torch.relu), {"class_path": f"{__name__}.Linear", "own": True}),
        (partial(Linear, (4,)), {"class_path": f"{__name__}.Linear", "own": True}),
        (partial(Linear, bias=False), {"class_path": f"{__name__}.Linear", "init_args": {"bias": False}}),
    ],
)
def test_a_factory_is_described_by_its_class_and_its_plain_options(factory, expected):
    assert describe_factory(factory) == expected


def test_a_factory_that_the_parser_made_is_described_by_its_class():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=Callable[[tuple, int, int], nn.Module])
    words = [f"--network={__name__}.Generator", "--network.width=5"]
    factory = parser.instantiate_classes(parser.parse_args(words)).network
    assert describe_factory(factory) == {"class_path": f"{__name__}.Generator", "init_args": {"width": 5}}


# Building


def test_a_network_is_a_name_a_factory_or_a_module():
    arguments, choices = ((1, 8, 8), 4, 0), {"mlp": MLPGenerator}
    by_name, description = build_network("generator", "mlp", arguments, choices)
    assert isinstance(by_name, MLPGenerator)
    assert description == "mlp"
    by_class_name, description = build_network("generator", "MLPGenerator", arguments, choices)
    assert isinstance(by_class_name, MLPGenerator)
    built, description = build_network("generator", partial(MLPGenerator, width=3), arguments)
    assert built.out.in_features == 3
    again, _ = build_network("generator", description, arguments)
    assert again.out.in_features == 3, "from its description"
    assert build_network("generator", built, arguments)[0] is built


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("cnv", r"generator cnv is not a network of the zoo; did you mean conv\?"),
        (3, r"generator is 3; it must be a name, a factory or a torch\.nn\.Module"),
        (lambda *_: "text", r"generator: .* returns a str, not a torch\.nn\.Module"),
        (lambda shape: nn.Identity(), r"generator: .* does not take what it is handed, \(\(1, 8, 8\), 4, 0\)"),
        (partial(MLPGenerator, wdth=3), r"generator: MLPGenerator does not take what it is handed.*'wdth'"),
        (partial(MLPGenerator, width=0), r"generator: width is 0; it must be at least 1"),
        ({"class_path": "os.system"}, r"generator is one of your own, os\.system, .* hand it in again"),
        ({"class_path": "zoo.models.gan.network.MLPGenerator", "own": True}, r"hand it in again, generator=\.\.\."),
    ],
)
def test_a_network_that_cannot_be_built_is_a_one_line_error(given, message):
    with pytest.raises(UserError, match=message) as error:
        build_network("generator", given, ((1, 8, 8), 4, 0), {"conv": ConvGenerator})
    assert "\n" not in str(error.value)


def test_an_error_inside_of_a_network_keeps_its_traceback():
    class Broken(nn.Module):
        def __init__(self, shape, classes):
            super().__init__()
            len(classes)

    with pytest.raises(TypeError, match="has no len"):
        build_network("network", Broken, ((3,), 2))


def test_what_a_network_returns_is_checked_without_a_trace():
    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    network = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(), Noise(), nn.Linear(4, 3))
    torch.manual_seed(0)
    before = torch.get_rng_state(), network[0].running_mean.clone(), network[0].num_batches_tracked.clone()
    check_output("network", network, (torch.ones(2, 4),), (2, 3))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(network[0].running_mean, before[1])
    assert network[0].num_batches_tracked == before[2]
    assert network.training
    with pytest.raises(UserError, match=r"Sequential returns \(2, 3\) for \(2, 4\); it must return \(2, 5\)"):
        check_output("network", network, (torch.ones(2, 4),), (2, 5))
    with pytest.raises(UserError, match=r"Sequential does not run on \(2, 9\): "):
        check_output("network", network, (torch.ones(2, 9),), (2, 3))


# In models


def test_networks_of_the_zoo_come_back_from_a_checkpoint(tmp_path):
    models = {
        "gan": GAN((1, 8, 8), latent_dim=4, generator=partial(MLPGenerator, width=7), discriminator="mlp"),
        "diffusion": Diffusion((1, 8, 8), network=partial(UNet, widths=[8], blocks=1)),
        "classifier": Classifier((1, 8, 8), 10, partial(PooledResNet, widths=[4, 6, 8])),
    }
    for name, model in models.items():
        loaded = load_model(save(model, tmp_path / f"{name}.ckpt"))
        assert {k: v.shape for k, v in loaded.state_dict().items() if hasattr(v, "shape")} == {
            k: v.shape for k, v in model.state_dict().items() if hasattr(v, "shape")
        }


@pytest.mark.parametrize(
    ("role", "build"),
    [
        ("network", lambda n: Classifier((1, 8, 8), 10, n or Linear)),
        ("network", lambda n: Classifier((1, 8, 8), 10, n or Linear((1, 8, 8), 10))),
        ("generator", lambda n: GAN((1, 8, 8), latent_dim=4, generator=n or Generator)),
        ("network", lambda n: Diffusion((1, 8, 8), network=n or Denoising)),
    ],
    ids=["factory", "module", "gan", "diffusion"],
)
def test_a_network_of_ones_own_trains_and_is_handed_in_again_on_loading(role, build, tmp_path):
    model = build(None)
    trainer = quiet_trainer(max_steps=2, limit_val_batches=1)
    trainer.fit(model, datamodule=Digits(batch_size=32))
    path = tmp_path / "model.ckpt"
    trainer.save_checkpoint(path)
    with pytest.raises(UserError, match=rf"the {role} is one of your own, {__name__}\.\w+, .* {role}=\.\.\. in Python"):
        type(model).load_from_checkpoint(path, weights_only=True)
    handed = {"Classifier": Linear, "GAN": Generator, "Diffusion": Denoising}[type(model).__name__]
    loaded = load_model(str(path), **{role: handed})
    for name, value in model.state_dict().items():
        assert not isinstance(value, torch.Tensor) or torch.equal(loaded.state_dict()[name], value), name


def test_the_network_of_a_subclass_is_its_own_affair(tmp_path):
    class Own(Classifier):
        def __init__(self, input_shape, num_classes, bias=True, **kwargs):
            super().__init__(input_shape, num_classes, partial(Linear, bias=bias), **kwargs)

    model = Own((1, 8, 8), 10, bias=False)
    assert "network" not in model.hparams
    loaded = Own.load_from_checkpoint(save(model, tmp_path / "own.ckpt"), weights_only=True)
    assert loaded.network.layer.bias is None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: Classifier((1, 8, 8), 10, nn.Flatten()),
            r"network Flatten returns \(2, 64\) .* must return \(2, 10\)",
        ),
        (lambda: GAN((1, 8, 8), generator=nn.Identity()), "generator Identity does not run on"),
        (
            lambda: GAN((1, 8, 8), discriminator=partial(Linear, bias=False)),
            r"discriminator: Linear|discriminator Linear does not run on \(2, 1, 8, 8\) and None",
        ),
        (lambda: Diffusion((1, 8, 8), network=nn.Identity()), "network Identity does not run on"),
    ],
)
def test_a_network_of_another_shape_is_refused_when_the_model_is_built(build, message):
    with pytest.raises(UserError, match=message):
        build()


class Parallel(Block):
    """A block whose attention and feed-forward network see the same input."""

    def forward(self, x, mask=None, causal=False, rotation=None, memory=None, memory_mask=None, cache=None):
        h = self.attention_norm(x)
        return x + self.attention(h, None, mask, causal, rotation, cache) + self.feed_forward(h)


def test_a_language_model_takes_blocks_of_ones_own_and_generates_with_their_caches(tmp_path):
    def build(**block):
        return TransformerLM((8,), 3, "characters:abc", layers=2, width=8, heads=2, **block)

    model = build(block=Parallel)
    assert all(isinstance(block, Parallel) for block in model.network.stack.blocks)
    generator = torch.Generator().manual_seed(0)
    text = model.sample(2, generator=generator, prompt="ab", max_new_tokens=12)
    assert text.shape == (2, 12)
    path = save(model, tmp_path / "model.ckpt")
    with pytest.raises(UserError, match="the block is one of your own"):
        load_model(path)
    loaded = load_model(path, block=Parallel)
    again = loaded.sample(2, generator=torch.Generator().manual_seed(0), prompt="ab", max_new_tokens=12)
    assert torch.equal(text, again)
    with pytest.raises(UserError, match=r"block LanguageModel does not run on \(2, 3\)"):
        build(block=lambda width, heads: nn.Linear(width, width))


def test_a_description_cannot_ask_for_pretrained_weights():
    held = {"class_path": "TorchvisionResNet", "init_args": {"name": "resnet18", "weights": "DEFAULT"}}
    factory, described = find_factory("network", held)
    assert factory.keywords == described["init_args"] == {"name": "resnet18", "weights": None}
