"""Checks of a data module: what every LightningDataModule of the zoo, and of a plugin, must do."""

from __future__ import annotations

import hashlib
import pickle
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn

from zoo.contracts import (
    ClassNames,
    Data,
    MirrorSymmetry,
    Preprocessing,
    ReferenceSamples,
    Tokens,
    TrainingSamples,
    WholeSplits,
    lacking,
    offers,
)
from zoo.errors import UserError
from zoo.testing.answers import explained, holds, plain, same
from zoo.testing.ranks import on_ranks, rank_options
from zoo.testing.runs import build, quiet, run_checks, seeded, trainer_for

SPLITS = ("train", "val", "test")
#: Fraction of a split whose samples may also be in the training split: real data has some duplicates.
DUPLICATES = 0.1

Digests = list[str]


def check_datamodule(
    cls: Callable[..., LightningDataModule],
    *,
    processes: int = 2,
    checks: Collection[str] | None = None,
    **arguments: Any,
) -> None:
    """Checks that a data module keeps the contracts of the zoo; every split is read several times.

    | check | what must hold |
    | --- | --- |
    | attributes | `input_shape`, `num_classes`, `class_names` are right, known before `setup()`, and constant |
    | batches | after the transfer, `(x, y)` have the declared shapes, dtypes and ranges |
    | splits | `split(name)` and `reference(n)`, if there are any, return samples as models see them |
    | disjoint | validation and test samples are not training samples |
    | reproducible | the same arguments give the same splits, and the same seed the same training batches |
    | held_out_test | (a data module with `load_split`) `fit` and `validate` do not read the test split |
    | prediction | (a data module with `predict_dataloader`) `predict` works by itself |
    | pickling | a pickled copy gives the same batches, as processes that are started need it |
    | processes | ranks see every validation and test sample once, and share the training samples |

    A data module may have no test split; its `test_dataloader` raises a `UserError` then.

    Example:
        >>> def test_my_data_keeps_the_contract(tmp_path):
        ...     check_datamodule(MyData, root=str(tmp_path))

    Args:
        cls: class of the data module, or a function that builds it.
        processes: number of processes of the check of that name; 1 leaves it out.
        checks: names of the checks to run; None for all.
        **arguments: arguments of the data module; make it small.

    Raises:
        ContractError: a check fails, an AssertionError; one sentence says what does not hold and how to mend it.
        UserError: there is no check of a name.
    """
    name = getattr(cls, "__name__", type(cls).__name__)
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(partial(build, cls, arguments), name, Path(folder), processes)
        with explained(f"{name} cannot be built", "name its arguments in check_datamodule"), quiet():
            subject.make()
        run_checks(DATAMODULE_CHECKS, checks, subject)


class Subject:
    """A data module that is checked, and what one process sees of it.

    Args:
        make: function that builds it anew.
        name: name of its class.
        folder: folder for what a Trainer writes.
        processes: number of processes.
    """

    def __init__(self, make: Callable[[], Any], name: str, folder: Path, processes: int) -> None:
        self.make, self.name, self.folder, self.processes = make, name, folder, processes

    @cached_property
    def seen(self) -> Probe:
        """What a model sees in one process."""
        with explained(f"{self.name} gives no batches", "run Trainer.fit with it by itself to see the whole error"):
            return look(self.make, self.folder)


class Probe(LightningModule):
    """A model that keeps what it sees.

    Attributes:
        samples: digests of all samples of each split, before the transfer to the device.
        batches: the first batches of each split, after the transfer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.samples: dict[str, Digests] = {}
        self.batches: dict[str, list[Any]] = {name: [] for name in SPLITS}

    def on_train_start(self) -> None:
        self.samples["train"] = digests(self.trainer.train_dataloader)

    def on_validation_start(self) -> None:
        self.samples["val"] = digests(self.trainer.val_dataloaders)

    def on_test_start(self) -> None:
        self.samples["test"] = digests(self.trainer.test_dataloaders)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.batches["train"].append(batch)
        return self.weight.square()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.batches["val"].append(batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.batches["test"].append(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def look(make: Callable[[], Any], folder: Path, processes: int = 1) -> Probe:
    """Trains and tests a probe for a few batches."""
    probe = Probe()
    with quiet(), seeded(0):
        trainer = trainer_for(folder, max_epochs=1, **rank_options(processes))
        trainer.fit(probe, datamodule=make())
        data = make()
        if has_test_split(data):
            trainer.test(probe, datamodule=data, verbose=False)
    return probe


def has_test_split(data: LightningDataModule) -> bool:
    """Whether there is a test split; a data module without one raises a UserError."""
    data.prepare_data()
    data.setup("test")
    try:
        data.test_dataloader()
    except UserError:
        return False
    return True


def digests(batches: Any) -> Digests:
    """A digest of every sample of a loader, label included."""
    found = []
    for batch in batches:
        parts = [part.detach().cpu().contiguous() for part in batch if isinstance(part, Tensor)]
        for row in zip(*parts, strict=True):
            content = b"".join(part.contiguous().numpy().tobytes() for part in row)
            found.append(hashlib.blake2b(content, digest_size=12).hexdigest())
    return found


def check_attributes(subject: Subject) -> None:
    """Attributes are known before `setup()`, have the right types, and do not change."""
    name, data = subject.name, subject.make()
    missing = lacking(data, Data)
    holds(not missing, f"{name} has no {_joined(missing)} before setup(); set it in the class or its constructor")
    shape, classes = data.input_shape, data.num_classes
    whole = isinstance(shape, tuple | list) and len(shape) > 0 and all(type(n) is int and n > 0 for n in shape)
    holds(whole, f"{name} has the input_shape {shape!r}; use a tuple of positive integers, such as (3, 32, 32)")
    holds(type(classes) is int and classes >= 0, f"{name} has num_classes {classes!r}; use an integer, 0 for no labels")
    names = data.class_names if offers(data, ClassNames) else None
    if names is not None:
        right = len(names) == classes and all(isinstance(n, str) for n in names)
        holds(right, f"{name} has {len(names)} class_names for {classes} classes; use one string for each")
    if offers(data, MirrorSymmetry):
        right = isinstance(data.mirror_symmetric, bool)
        holds(right, f"{name} has mirror_symmetric {data.mirror_symmetric!r}; use True or False")
    if offers(data, Preprocessing):
        right = plain(data.preprocessing)
        holds(right, f"{name} has a preprocessing that is no plain value; use numbers, strings, lists and dictionaries")
    _set_up(subject, data, None)
    after = (data.input_shape, data.num_classes, data.class_names if offers(data, ClassNames) else None)
    holds(
        after == (shape, classes, names),
        f"{name} changes input_shape, num_classes or class_names in setup(); know them before",
    )


def check_batches(subject: Subject) -> None:
    """Batches have the declared shapes, dtypes and ranges after the transfer."""
    name, data = subject.name, subject.make()
    for split, batches in subject.seen.batches.items():
        holds(batches or split == "test", f"{name} has no {split} batch; check batch_size and the size of the split")
        for batch in batches:
            pair = isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(p, Tensor) for p in batch)
            holds(pair, f"{name} has {split} batches of the type {type(batch).__name__}; return two tensors, (x, y)")
            _check_batch(f"the {split} batches of {name}", data, *batch)


def _check_batch(what: str, data: Any, x: Tensor, y: Tensor) -> None:
    shape = tuple(data.input_shape)
    holds(
        tuple(x.shape[1:]) == shape and len(x) > 0,
        f"{what} have samples of the shape {tuple(x.shape[1:])}; make them those of input_shape, {shape}",
    )
    holds(len(x) == len(y), f"{what} have {len(x)} samples and {len(y)} labels; give each sample one label")
    holds(y.dtype == torch.int64, f"{what} have labels of {y.dtype}; use int64")
    count = data.num_classes
    holds(
        not count or (y.min() >= 0 and y.max() < count),
        f"{what} have labels from {y.min()} to {y.max()}; use 0 to {count - 1}, or correct num_classes",
    )
    if offers(data, Tokens) and data.tokens:
        right = x.dtype == torch.int64 and x.min() >= 0 and x.max() < count
        holds(right, f"{what} have tokens of {x.dtype} from {x.min()} to {x.max()}; use int64 from 0 to {count - 1}")
        return
    holds(y.ndim == 1, f"{what} have labels of the shape {tuple(y.shape)}; use (N,)")
    holds(x.dtype == torch.float32, f"{what} have samples of {x.dtype}; use float32 after on_after_batch_transfer")
    holds(x.isfinite().all(), f"{what} have NaN or Inf; leave out broken samples")
    if len(shape) == 3:
        low, high = x.min().item(), x.max().item()
        inside = low >= -1 and high <= 1 and high - low > 0.02
        holds(
            inside, f"{what} have pixels from {low:.3g} to {high:.3g}; scale them to [-1, 1], as x / 127.5 - 1 of bytes"
        )


def check_splits(subject: Subject) -> None:
    """`split(name)` and `reference(n)` return samples as models see them."""
    name, data = subject.name, subject.make()
    _set_up(subject, data, "fit")
    if offers(data, Tokens) and data.tokens:  # one long text, or sources without noise
        return
    if offers(data, WholeSplits):
        for split in ("train", "val"):
            with explained(f"{name} has no split({split!r}) after setup('fit')", "return samples and labels of it"):
                x, y = data.split(split)
            _check_batch(f"the samples of split({split!r}) of {name}", data, x, y)
    if offers(data, ReferenceSamples):
        with explained(f"{name} has no reference(5) after setup('fit')", "return training samples"):
            first, again = data.reference(5), data.reference(5)
        holds(same(first, again), f"{name} returns other reference samples at each call; draw them by a fixed seed")
        _check_batch(f"the samples of reference(5) of {name}", data, first, torch.zeros(5, dtype=torch.int64))
    if offers(data, TrainingSamples):
        labels = torch.zeros(5, dtype=torch.int64)
        with explained(f"{name} has no training_samples(5) after setup('fit')", "return training samples"):
            drawn = [data.training_samples(5, labels=labels, seed=0) for _ in range(2)]
        holds(same(*drawn), f"{name} draws other training samples by the same seed; draw them by a generator of it")
        _check_batch(f"the samples of training_samples(5) of {name}", data, drawn[0], labels)


def check_disjoint(subject: Subject) -> None:
    """Validation and test samples are not training samples."""
    seen = subject.seen.samples
    for split in ("val", "test"):
        samples = seen.get(split, [])
        for other in SPLITS[: SPLITS.index(split)]:
            known = set(seen[other])
            shared = sum(sample in known for sample in samples)
            holds(
                shared <= DUPLICATES * len(samples),
                f"{subject.name} has {shared} of {len(samples)} {split} samples in the {other} split as well; hold "
                "them out of it",
            )


def check_reproducible(subject: Subject) -> None:
    """The same arguments give the same splits, and the same seed the same training batches."""
    with explained(f"{subject.name} cannot be read twice", "leave files as they are, and keep no state of the process"):
        again = look(subject.make, subject.folder).samples
    for split, samples in subject.seen.samples.items():
        remedy = "split by a seed of its own, and draw other random numbers from torch's generators"
        holds(samples == again[split], f"{subject.name} has other {split} samples when built again; {remedy}")


def check_held_out_test(subject: Subject) -> None:
    """`fit` and `validate` do not read the test split."""
    data = subject.make()
    if not hasattr(data, "load_split"):
        return
    reads: list[bool] = []
    load_split = data.load_split

    def recorded(train: bool) -> Any:
        reads.append(train)
        return load_split(train)

    data.load_split = recorded
    for stage in ("fit", "validate"):
        _set_up(subject, data, stage)
    holds(all(reads), f"{subject.name} reads the test split in setup('fit'); read it for test and predict only")


def check_prediction(subject: Subject) -> None:
    """Prediction works without training, on samples of the declared shape."""
    data = subject.make()
    if type(data).predict_dataloader is LightningDataModule.predict_dataloader or not has_test_split(data):
        return
    data = subject.make()
    _set_up(subject, data, "predict")
    remedy = "set up in setup('predict') what predict_dataloader needs"
    with explained(f"{subject.name} has no prediction batches after setup('predict')", remedy):
        loader = data.predict_dataloader()
        batch = next(iter(loader)) if loader is not None else None
    x = batch[0] if isinstance(batch, tuple | list) else batch
    right = isinstance(x, Tensor) and tuple(x.shape[1:]) == tuple(data.input_shape)
    holds(right, f"{subject.name} predicts no samples of its input_shape; return a loader from predict_dataloader")


def check_pickling(subject: Subject) -> None:
    """A pickled copy gives the same batches."""
    with explained(f"{subject.name} cannot be pickled", "keep no lambdas, open files or generators in attributes"):
        content = pickle.dumps(subject.make())
        copies = look(partial(pickle.loads, content), subject.folder).samples
    different = [split for split, samples in subject.seen.samples.items() if samples != copies.get(split)]
    holds(not different, f"a pickled copy of {subject.name} has other {_joined(different)} samples; pickle all options")


def check_processes(subject: Subject) -> None:
    """Ranks see every validation and test sample once, and share the training samples."""
    name, processes = subject.name, subject.processes
    if processes < 2:
        return
    one = subject.seen.samples
    task = partial(_look_on_rank, subject.make, subject.folder, processes)
    remedy = "give every rank the same number of batches; see zoo.datamodules.evaluation"
    with explained(f"{name} does not work on {processes} processes", remedy):
        ranks = on_ranks(task, processes)
    for split in ("val", "test"):
        together = Counter(sample for rank in ranks for sample in rank.get(split, []))
        expected = Counter(one.get(split, []))
        holds(
            together == expected,
            f"{name} shows {processes} ranks {together.total()} {split} samples instead of each of the "
            f"{expected.total()} once; use zoo.datamodules.evaluation.evaluation_loader",
        )
    first, *others = (rank["train"] for rank in ranks)
    for other in others:
        remedy = "use zoo.datamodules.loading.training_loader"
        equal = len(first) == len(other)
        holds(equal, f"{name} gives {len(first)} and {len(other)} training samples to two ranks; {remedy}")
        shared = sum((Counter(first) & Counter(other)).values())
        holds(
            shared <= DUPLICATES * len(first),
            f"{name} gives {shared} of {len(first)} training samples to both ranks; {remedy}",
        )


def _look_on_rank(make: Callable[[], Any], folder: Path, processes: int) -> dict[str, Digests]:
    return look(make, folder, processes).samples


def _set_up(subject: Subject, data: LightningDataModule, stage: str | None) -> None:
    named = f"setup({stage!r})" if stage else "setup()"
    with explained(f"{subject.name} fails in {named}", "set up every stage by itself"), quiet(), seeded(0):
        data.prepare_data()
        data.setup(stage)  # type: ignore[arg-type]


def _joined(names: list[str]) -> str:
    return " and ".join(names)


#: Checks of `check_datamodule`, by name, in the order in which they run.
DATAMODULE_CHECKS: Mapping[str, Callable[[Subject], None]] = {
    "attributes": check_attributes,
    "batches": check_batches,
    "splits": check_splits,
    "disjoint": check_disjoint,
    "reproducible": check_reproducible,
    "held_out_test": check_held_out_test,
    "prediction": check_prediction,
    "pickling": check_pickling,
    "processes": check_processes,
}
