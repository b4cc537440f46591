"""What the registry finds: built-in classes, recipes, weights and plugins."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType, SimpleNamespace

import pytest
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch import nn

import zoo
import zoo.callbacks
import zoo.datamodules
import zoo.models
from zoo import registry
from zoo.errors import UserError
from zoo.registry import KINDS, entries, find_class, recipe_files

PACKAGES = {"models": (zoo, LightningModule), "networks": (zoo.models, nn.Module),
            "data": (zoo.datamodules, LightningDataModule), "callbacks": (zoo.callbacks, Callback)}  # fmt: skip

INSTALLED = entries()


@pytest.mark.parametrize("kind", PACKAGES)
def test_every_public_class_is_listed_but_those_that_need_other_objects(kind):
    package, base = PACKAGES[kind]
    public = {name for name in package.__all__ if inspect.isclass(getattr(package, name))}
    classes = {name for name in public if issubclass(getattr(package, name), base)}
    assert {entry.name for entry in entries(kind)} == classes - registry.NOT_LISTED
    assert len(classes) >= 6


@pytest.mark.parametrize("entry", entries(*PACKAGES), ids=lambda entry: entry.name)
def test_the_summary_of_a_class_is_the_first_line_of_its_docstring(entry):
    loaded = entry.load()
    assert loaded.__name__ == entry.name
    assert f"{loaded.__module__}.{loaded.__qualname__}" == entry.import_path
    assert entry.summary == inspect.getdoc(loaded).splitlines()[0]
    assert entry.summary.endswith(".") and len(entry.summary) > 10


def test_entries_are_sorted_by_kind_and_name_without_duplicates():
    found = entries()
    order = [(KINDS.index(entry.kind), entry.name) for entry in found]
    assert order == sorted(set(order))
    assert {entry.kind for entry in found} == set(KINDS)


def test_recipes_are_described_by_their_first_line_and_include_overlays():
    summaries = {entry.name: entry.summary for entry in entries("recipes")}
    assert {"gan.yaml", "diffusion.yaml", "ddp.yaml", "gpu.yaml"} <= set(summaries) == set(recipe_files())
    for name, summary in summaries.items():
        assert recipe_files()[name].read_text(encoding="utf-8").startswith(f"# {summary}\n"), name


def test_weights_are_described_by_size_and_hash():
    for entry in entries("weights"):
        assert entry.name.endswith(".safetensors")
        assert entry.summary.startswith(tuple("123456789")) and " KiB, sha256 " in entry.summary


def test_a_class_is_found_by_name_or_import_path_and_nothing_else_is_imported():
    assert find_class("GAN") is find_class("zoo.models.gan.module.GAN") is zoo.GAN
    for path in ("os.system", "zoo.models.gan.module", "zoo.models.gan.network.mlp", "GANN"):
        with pytest.raises(UserError, match=f"{path} is not in the zoo"):
            find_class(path)
    with pytest.raises(UserError, match="did you mean GAN"):
        find_class("somewhere.GANN")


# Plugins


class PluginModel(LightningModule):
    """A model of a plugin.

    Its description.
    """


class PluginCallback(Callback):
    """A callback of a plugin."""


@pytest.fixture
def plugins(monkeypatch):
    """Registers the entry points `zoo.plugins` that the test returns by name."""
    points: dict[str, object] = {}

    def load(name):
        if isinstance(points[name], Exception):
            raise points[name]
        return points[name]

    def entry_points(group):
        assert group == "zoo.plugins"
        return [SimpleNamespace(name=name, value=f"{name}:value", load=lambda name=name: load(name)) for name in points]

    monkeypatch.setattr(registry.metadata, "entry_points", entry_points)
    monkeypatch.setattr(registry, "_plugin_points", registry._plugin_points.__wrapped__)  # which remembers them
    return points


def test_classes_of_a_plugin_module_are_listed_by_kind(plugins):
    module = ModuleType("tests.plugin")
    for value in (PluginModel, PluginCallback, LightningModule, pytest):
        setattr(module, value.__name__, value)
    module._Private = type("_Private", (Callback,), {"__module__": "tests.plugin"})
    module.__name__ = PluginModel.__module__  # only classes of the plugin's own package count, not what it imports
    plugins["plugin"] = module
    added = {entry.name: entry for entry in entries() if entry not in INSTALLED}
    assert set(added) == {"PluginModel", "PluginCallback"}
    assert added["PluginModel"].kind == "models" and added["PluginModel"].summary == "A model of a plugin."
    assert added["PluginCallback"].kind == "callbacks"
    assert find_class("PluginModel") is PluginModel


def test_a_plugin_that_is_installed_while_the_program_runs_is_found(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    before = entries("callbacks")
    assert entries("callbacks") == before
    info = tmp_path / "late-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: late\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[zoo.plugins]\nlate = {__name__}:PluginCallback\n")
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or ModuleType(__name__))
    monkeypatch.setattr(sys.modules[__name__], "PluginCallback", PluginCallback, raising=False)
    assert [entry.name for entry in entries("callbacks") if entry not in before] == ["PluginCallback"]


def test_a_plugin_can_be_one_class_and_a_broken_one_is_a_warning(plugins):
    plugins["broken"] = ImportError("no module named x")
    plugins["one"] = PluginCallback
    with pytest.warns(UserWarning, match=r"the plugin broken \(broken:value\) does not load: ImportError: no module"):
        names = [entry.name for entry in entries("callbacks")]
    assert "PluginCallback" in names and "SampleLogger" in names


def test_all_of_a_plugin_chooses_its_classes(plugins):
    module = ModuleType("plugin")
    module.PluginModel, module.PluginCallback, module.__all__ = PluginModel, PluginCallback, ["PluginCallback"]
    plugins["plugin"] = module
    assert {entry.name for entry in entries() if entry not in INSTALLED} == {"PluginCallback"}


def test_a_plugin_class_with_abstract_methods_is_not_listed(plugins):
    class Base(LightningModule):
        """A base class."""

        @staticmethod
        def sample():
            raise NotImplementedError

        sample.__func__.__isabstractmethod__ = True

    class Complete(Base):
        """A complete class."""

        @staticmethod
        def sample():
            return None

    plugins["base"], plugins["complete"] = Base, Complete
    assert [entry.name for entry in entries("models") if entry not in INSTALLED] == ["Complete"]
