"""What models, data modules, callbacks and loggers use of one another, as typing Protocols.

Nothing has to derive from these classes. A class offers a contract if it has its methods and attributes, and an
attribute that is None counts as missing. Every contract but `Data` is optional: who uses one asks `offers`, works
without it, and names what is left out in one line (`left_out`), or refuses (`require`).

    data = data_of(trainer)
    if offers(data, ReferenceSamples):
        self.calibrate(data.reference(10_000))
    left_out(self, data, {ReferenceSamples: "the floor of val/fd"})

`zoo.testing` checks classes against these contracts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, TypeVar
from weakref import WeakKeyDictionary

from torch import Generator, Tensor, nn

from zoo.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

Contract = TypeVar("Contract")

# Data modules


class Data(Protocol):
    """Required of every data module: the shape of a sample and the number of classes, known before `setup()`.

    A batch is `(x, y)`. After `on_after_batch_transfer`, images `x` are floats in [-1, 1], (N, C, H, W), points are
    floats (N, D), and labels `y` are int64 (N,). For tokens both are int64 (N, T); see `TokenData`.

    Attributes:
        input_shape: shape of a sample: (C, H, W), (D,), or (T,) for tokens.
        num_classes: number of classes, or of different tokens; 0 for data without labels.
    """

    input_shape: tuple[int, ...]
    num_classes: int


class ClassNames(Protocol):
    """Names of the classes, known before `setup()`. Without them, tables and plots show the classes' numbers.

    Attributes:
        class_names: one name per class.
    """

    class_names: Sequence[str]


class MirrorSymmetry(Protocol):
    """Whether mirrored images keep their class, known before `setup()`. Without it, they are taken to keep it.

    Attributes:
        mirror_symmetric: whether the mirror image of a sample has the same class.
    """

    mirror_symmetric: bool


class Preprocessing(Protocol):
    """How any picture is brought to the model's input, known before `setup()`.

    Without it, a checkpoint does not say how to prepare a picture, and the caller does it.

    Attributes:
        preprocessing: plain values: `size`, `channels`, `fit`, `background`, `range`; see `zoo.datamodules`.
    """

    preprocessing: Mapping[str, Any]


class ReferenceSamples(Protocol):
    """Training samples, after `setup("fit")`.

    Without them there is no floor of a generative model's distance (`val/fd_floor`, `val/w1_floor`), a diffusion model
    measures mean and standard deviation on its first batch, and plots of points show no data.
    """

    def reference(self, n: int, /) -> Tensor:
        """Random training samples, the same at every call, as models see them.

        Args:
            n: maximum number of samples.

        Returns:
            Floats (n, *input_shape), or all training samples if there are fewer.
        """


class TrainingSamples(Protocol):
    """Draws of training samples, also by class, after `setup("fit")`.

    Without them the floor of a generative model's distance is that of one draw, and of a conditional model it is
    measured with the classes as they come, not with those of the held-out samples.
    """

    def training_samples(self, n: int, /, *, labels: Tensor | None = None, seed: int = 0) -> Tensor:
        """Random training samples, as models see them.

        Args:
            n: number of samples.
            labels: class of each sample, int64 (n,); drawn without regard to classes by default.
            seed: random seed of the draw.

        Returns:
            Floats (n, *input_shape), each training sample at most once. With labels, samples of a class that has fewer
            than are asked for come several times, and one without any is replaced by samples of all classes; without,
            there are as many samples as the data has at most.
        """


class WholeSplits(Protocol):
    """A whole split in memory, after `setup()`.

    Without it a diffusion model is not compared with the ideal denoiser (`val/excess`, `val/distance_to_ideal`), and
    memorization is not measured (`val/near_copies`).
    """

    def split(self, name: str, /) -> tuple[Tensor, Tensor]:
        """Samples (N, *input_shape) as models see them, and labels int64 (N,), of "train", "val" or "test"."""


class SplitLabels(Protocol):
    """Labels of a split, after `setup()`. Without them the weights of the classes cannot be balanced."""

    def labels(self, name: str, /) -> Tensor:
        """Labels int64 (N,) of "train", "val" or "test"."""


class SamplePaths(Protocol):
    """Files that the samples were read from, after `setup()`. Without it, tables of predictions have no paths.

    Attributes:
        predict_split: split that `predict_dataloader` reads: "train", "val" or "test".
    """

    predict_split: str

    def paths(self, name: str, /) -> Sequence[Path]:
        """One file for each sample of "train", "val" or "test", in their order."""


class KnownDistribution(Data, Protocol):
    """Points from a distribution that can be sampled at will, known before `setup()`.

    Without it a generator cannot be compared with its data directly (`EquilibriumReport`).
    """

    def sample_points(self, n: int, generator: Generator | None = None, /) -> tuple[Tensor, Tensor]:
        """New points (n, D), which are in none of the splits, and their labels, int64 (n,)."""


class KnownDensity(KnownDistribution, Protocol):
    """Points from a distribution whose density is known. Without it, no density is drawn."""

    def log_prob(self, x: Tensor, /) -> Tensor:
        """Log-density at x (..., D), of shape (...)."""


class KnownModes(Protocol):
    """Points from a mixture whose components are known, before `setup()`. Without it, modes cannot be counted.

    Attributes:
        centers: means of the components, (K, D).
        std: standard deviation of each component in each direction.
    """

    centers: Tensor
    std: float


class Tokens(Protocol):
    """Declares, on a model or a data module, that samples are sequences of tokens or that they are not.

    Without it on either side, the two are not checked against each other before a run.

    Attributes:
        tokens: whether a sample is a sequence of tokens, not an image or a point.
    """

    tokens: bool


class TokenData(Data, Tokens, Protocol):
    """Text, known before `setup()`; a batch is tokens and the tokens that follow them, int64 (N, T) each.

    Without it, a language model needs its argument `tokenizer` from you.

    Attributes:
        tokenizer_description: string from which the tokenizer can be rebuilt; see `zoo.tokenizers`. It becomes the
            model's argument `tokenizer`.
    """

    tokenizer_description: str


class SequencePairs(Data, Tokens, Protocol):
    """Sources and targets, known before `setup()`; a batch is both, int64 (N, S) and (N, T).

    Without it, an encoder-decoder needs its argument `output_length` from you.

    Attributes:
        output_length: maximum length T of a target. It becomes the model's argument of this name.
    """

    output_length: int


# Models


class Generative(Protocol):
    """A model that draws samples. Without it, there is no `SampleLogger` and no command `sample`."""

    def sample(self, n: int, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        """Draws samples; the model's mode and the global random state are left unchanged.

        A model whose `sample` has the further argument `seeds`, int64 (n,), draws the same sample for the same seed in
        every batch; ask `accepts(model.sample, "seeds")`.

        Args:
            n: number of samples.
            labels: classes for a conditional model, int64 (n,).
            generator: random number generator; the same state gives the same samples.

        Returns:
            (n, *input_shape), images in [-1, 1], or tokens int64 (n, T).
        """


class Conditional(Protocol):
    """A model that can draw samples of a class. Without it, a model is unconditional; see `is_conditional`.

    Attributes:
        conditional: whether samples are drawn by class.
        num_classes: number of classes.
    """

    conditional: bool
    num_classes: int


class Trajectories(Protocol):
    """A generative model whose samples have a history. Without it, there is no animation of it."""

    def trajectory(self, n: int, *, labels: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        """States of the samples (frames, n, *input_shape), the last of which are the samples."""


class Interpolating(Protocol):
    """A generative model with a latent space. Without it, the command `sample` refuses to interpolate."""

    def interpolate(
        self, rows: int, steps: int, *, labels: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Samples between pairs of latent vectors, (rows, steps, *input_shape); `labels` are of the pairs, (rows,)."""


class LatentSpace(Protocol):
    """A generative model whose samples are a function of one latent vector each.

    Without it, the page of `play` has no slider between two samples.
    """

    def seeded_latents(self, seeds: Tensor, /) -> Tensor:
        """Latent vectors (n, D) by their seeds, int64 (n,): those of the samples that `sample` draws with them."""

    def sample_latents(self, latents: Tensor, /, *, labels: Tensor | None = None) -> Tensor:
        """Samples (n, *input_shape) of latent vectors (n, D), with classes for a conditional model, int64 (n,)."""


class OptionChoices(Protocol):
    """Values of the options of a model's methods that are names, such as the solvers of `sample`.

    Without it, the page of `play` has a text field for such an option instead of a list.

    Attributes:
        option_choices: valid values by the name of the option.
    """

    option_choices: Mapping[str, Sequence[str]]


class TextStream(Protocol):
    """A language model that yields text while it is generated. Without it, there is no page of `play` to write with.

    Attributes:
        tokenizer: object with `decode(tokens: list[int]) -> str`.
    """

    tokenizer: Any

    def stream(self, n: int = 1, *, generator: Generator | None = None) -> Iterator[Tensor]:
        """Next tokens of `n` texts, int64 (n,), as they are sampled."""


class Decoding(Protocol):
    """A generative model of text. Without it, samples are images or points."""

    def decode(self, tokens: Tensor, /) -> list[str]:
        """Tokens int64 (N, T) to N texts."""


class SequenceMapping(Protocol):
    """A model that maps sequences to sequences. Without it, `predict` and `play` take no texts."""

    def predict(self, texts: Sequence[str], /) -> list[str]:
        """Texts to texts, in their order."""

    def greedy_decode(self, source: Tensor) -> Tensor:
        """Sources int64 (N, S) to the most probable targets int64 (N, T)."""


class ClassPrediction(Protocol):
    """Prediction of a classifier for a batch, with its uncertainty in nats."""

    @property
    def probabilities(self) -> Tensor:
        """Mean probabilities over the ensemble, (N, C)."""

    @property
    def entropy(self) -> Tensor:
        """Entropy of the mean probabilities, (N,)."""

    @property
    def mutual_information(self) -> Tensor:
        """Mutual information of class and ensemble member, (N,); 0 for one member."""


class Averaged(Protocol):
    """A state without the weights that a moving average was made from. Without it, a saved model holds both."""

    def averaged_state_dict(self) -> dict[str, Any]:
        """State dict in which the trained network has the averaged weights, and shares their memory."""


class Exportable(Protocol):
    """A model that says what can be exported of it. Without it, that is its `forward`.

    Attributes:
        exports: names of parts, the default first. The method `export_<name>` builds each; its keyword arguments are
            options of the command `export`, and it returns a `zoo.models.exports.Export`.
    """

    exports: Sequence[str]


class PredictiveClassifier(Protocol):
    """A classifier with uncertainty, whose `test_step` and `predict_step` return a `ClassPrediction`.

    Without it, there are no tables of predictions (`PredictionWriter`, `predict --images`) and no `OutOfDistribution`.

    Attributes:
        input_shape: shape of a sample.
    """

    input_shape: tuple[int, ...]

    def predictive(self, x: Tensor, places: Tensor | None = None) -> ClassPrediction:
        """Prediction for samples (N, *input_shape).

        Random numbers, such as dropout masks, follow from the places of the samples in their split, int64 (N,); 0 to
        N - 1 by default.
        """


class Ensemble(Protocol):
    """A classifier that can average several members. Without it, mutual information is 0 and not reported.

    Attributes:
        mc_samples: number of passes with dropout on; 0 for one pass with dropout off.
        ensemble: checkpoints of further members.
    """

    mc_samples: int
    ensemble: Sequence[str]


class CrossAttention(Protocol):
    """An encoder-decoder whose attention can be looked at. Without it, there are no `AttentionMaps`.

    Attributes:
        padding: padding token.
    """

    padding: int

    def attention(self, source: Tensor, target: Tensor, /) -> Mapping[str, Tensor]:
        """Attention weights (N, H, T, S) by layer, for sources (N, S) and targets (N, T)."""


class Adversarial(Protocol):
    """A generative model that is trained against a discriminator. Without it, there is no `EquilibriumReport`."""

    def discriminator(self, x: Tensor, /, *labels: Tensor) -> Tensor:
        """Samples (N, *input_shape) to logits (N,), larger for real ones; it may be an nn.Module.

        That of a conditional model (`is_conditional`) is also handed the samples' classes, int64 (N,).
        """


class OwnLoss(Protocol):
    """An adversarial model that says what its logits mean. Without it, they are taken to be log-odds.

    Attributes:
        adversarial_loss: object with `offset(real_logits, fake_logits)`, the arbitrary number that the logits share, as
            `zoo.models.gan.losses.AdversarialLoss`.
    """

    adversarial_loss: Any


# Networks


class ClassifierNetwork(Protocol):
    """Network of a classifier, an nn.Module."""

    def __call__(self, x: Tensor) -> Tensor:
        """Samples (N, *input_shape) to logits (N, num_classes)."""


class ClassifierNetworkFactory(Protocol):
    """Builds the network of a classifier."""

    def __call__(self, input_shape: tuple[int, ...], num_classes: int, /) -> nn.Module:
        """Builds a `ClassifierNetwork`."""


class GeneratorNetwork(Protocol):
    """Generator of a GAN, an nn.Module."""

    def __call__(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Latent vectors (N, latent_dim), and labels int64 (N,) or None, to samples (N, *output_shape).

        Images are in [-1, 1].
        """


class GeneratorNetworkFactory(Protocol):
    """Builds the generator of a GAN."""

    def __call__(self, output_shape: tuple[int, ...], latent_dim: int, num_classes: int, /) -> nn.Module:
        """Builds a `GeneratorNetwork`; `num_classes` is 0 for an unconditional GAN."""


class DiscriminatorNetwork(Protocol):
    """Discriminator of a GAN, an nn.Module."""

    def __call__(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Samples (N, *input_shape), and labels int64 (N,) or None, to logits (N,)."""


class DiscriminatorNetworkFactory(Protocol):
    """Builds the discriminator of a GAN."""

    def __call__(self, input_shape: tuple[int, ...], num_classes: int, /) -> nn.Module:
        """Builds a `DiscriminatorNetwork`; `num_classes` is 0 for an unconditional GAN."""


class DenoiserNetwork(Protocol):
    """Network of a diffusion model, an nn.Module."""

    def __call__(self, x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        """Noisy samples of unit variance to a tensor of their shape (EDM, Karras et al. 2022, table 1).

        Args:
            x: noisy samples (N, *input_shape), scaled to unit variance.
            c_noise: ln(sigma) / 4, (N,).
            labels: classes, int64 (N,), with `num_classes` for no class; None for an unconditional model.
        """


class DenoiserNetworkFactory(Protocol):
    """Builds the network of a diffusion model."""

    def __call__(self, input_shape: tuple[int, ...], num_classes: int, /) -> nn.Module:
        """Builds a `DenoiserNetwork`; `num_classes` is 0 for an unconditional model."""


# Loggers


class ImageLogger(Protocol):
    """A logger that shows images, as Lightning's WandbLogger does. Without it, they are only on disk."""

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        """Logs images, uint8 arrays (H, W, 3)."""


class VideoLogger(Protocol):
    """A logger that shows animations. Without it, they are only on disk."""

    def log_video(self, key: str, videos: list[Any], step: int | None = None, **options: Any) -> None:
        """Logs animations, paths to GIF files."""


class TextLogger(Protocol):
    """A logger that shows tables of text. Without it, text is only on disk."""

    def log_text(self, key: str, columns: list[str], data: list[list[Any]], step: int | None = None) -> None:
        """Logs the rows of a table."""


class RowCount(Protocol):
    """A logger that counts what it has received. Without it, a resumed run can log rows twice.

    Attributes:
        rows: number of rows received.
    """

    rows: int

    def flush(self) -> None:
        """Makes sure that the rows are on the disk. Called before a checkpoint is written, which holds their number."""


# Asking


def attached_trainer(module: LightningModule) -> Trainer | None:
    """The Trainer that a module is attached to, or None."""
    try:
        return module.trainer
    except RuntimeError:
        return None


def data_of(trainer: Trainer | None) -> Any:
    """The data module of a Trainer; None for a Trainer with dataloaders only, or without a Trainer."""
    return getattr(trainer, "datamodule", None)


def members(contract: type) -> dict[str, bool]:
    """Names of a contract's methods and attributes, and whether each is a method."""
    found: dict[str, bool] = {}
    for base in reversed(contract.__mro__):
        if base.__module__ in ("builtins", "typing"):  # object, Protocol, Generic
            continue
        found |= dict.fromkeys(inspect.get_annotations(base), False)
        for name, value in vars(base).items():
            if not name.startswith("_") and isinstance(value, property):
                found[name] = False
            elif not name.startswith("_") and callable(value):
                found[name] = True
    return found


def lacking(candidate: object, contract: type) -> list[str]:
    """Members of a contract that an object does not have, methods as "name()"; an attribute of None is missing."""
    # Not `isinstance` with runtime_checkable protocols: from Python 3.12 on it does not see what `__getattr__` finds,
    # such as the submodules of an nn.Module.
    return [
        f"{name}()" if method else name
        for name, method in members(contract).items()
        if (value := getattr(candidate, name, None)) is None or (method and not callable(value))
    ]


def offers(candidate: object, contract: type[Contract]) -> TypeGuard[Contract]:
    """Whether an object has all methods and attributes of a contract.

    Args:
        candidate: model, data module, prediction or logger; None offers nothing.
        contract: Protocol of this module, or one of your own.
    """
    return candidate is not None and not lacking(candidate, contract)


def require(user: object, candidate: object, contract: type, remedy: str = "") -> None:
    """Raises a `UserError` that names what an object lacks of a contract, if anything.

    Args:
        user: object that cannot work without it.
        candidate: model or data module; None if there is none.
        contract: Protocol of this module, or one of your own.
        remedy: what to do instead; the end of the message.
    """
    if missing := lacking(candidate, contract):
        where = f"which {_name(candidate)} does not have" if candidate is not None else "and there is no data module"
        raise UserError(f"{_name(user)} needs {_joined(missing)}, {where}{remedy and f': {remedy}'}")


def accepts(function: Callable[..., Any], argument: str) -> bool:
    """Whether a function has a keyword argument of this name; `**kwargs` does not count."""
    parameter = inspect.signature(function).parameters.get(argument)
    return parameter is not None and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)


def is_conditional(model: object) -> TypeGuard[Conditional]:
    """Whether a model draws samples by class."""
    return offers(model, Conditional) and bool(model.conditional)


def check_condition(conditional: bool, num_classes: int) -> None:
    """Raises a `UserError` for a model that is to draw samples by class if there are fewer than two classes."""
    if conditional and num_classes < 2:
        raise UserError(
            f"conditional is true, but num_classes is {num_classes}, and a condition needs at least 2 classes: "
            "set conditional to false, or take data with classes"
        )


def left_out(user: object, data: object, parts: Mapping[type, str]) -> bool:
    """Logs one line on rank 0 that names what is left out because a data module lacks a contract.

    The same line of the same user is logged once.

    Args:
        user: model or callback that leaves something out.
        data: data module, or None.
        parts: what is left out without each contract.

    Returns:
        Whether anything is left out.
    """
    missing = {contract: lacking(data, contract) for contract in parts}
    reasons = [f"{part} (no {_joined(missing[contract])})" for contract, part in parts.items() if missing[contract]]
    if not reasons:
        return False
    where = f"on {_name(data)}" if data is not None else "without a data module"
    line = f"{_name(user)} {where} leaves out {', '.join(reasons)}"
    logged = _LOGGED.setdefault(user, set())
    if line not in logged:
        from lightning.pytorch.utilities import rank_zero_info

        logged.add(line)
        rank_zero_info(line)
    return True


#: Lines that each user has logged: a model is set up once for `fit` and again for `test`.
_LOGGED: WeakKeyDictionary[object, set[str]] = WeakKeyDictionary()


def _name(thing: object) -> str:
    return type(thing).__name__


def _joined(names: Sequence[str]) -> str:
    return " and ".join(", ".join(names).rsplit(", ", 1))
