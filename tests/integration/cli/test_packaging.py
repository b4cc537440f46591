"""The wheel: what is in it, and that it lives beside a project with folders of the same names."""

import ast
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.helpers.command import CHECKOUT

PACKAGES = {"zoo": CHECKOUT / "zoo", "datamodules": CHECKOUT / "datamodules", "callbacks": CHECKOUT / "callbacks"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout, so it is not known which files belong to the project")
    for name in filter(None, tracked.stdout.split("\0")):
        if (CHECKOUT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((CHECKOUT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_wheel_puts_only_zoo_into_site_packages_with_all_that_belongs_to_it(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"zoo"}
    for package, folder in PACKAGES.items():
        prefix = "zoo/" if package == "zoo" else f"zoo/{package}/"
        for path in folder.rglob("*"):
            if path.suffix in (".py", ".yaml", ".safetensors"):
                assert prefix + path.relative_to(folder).as_posix() in names


@pytest.mark.slow
def test_wheel_works_beside_a_project_with_its_own_callbacks_and_datamodules(wheel, tmp_path):
    environment = tmp_path / "env"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    site = next((environment / "lib").glob("python*")) / "site-packages"
    zipfile.ZipFile(wheel).extractall(site)
    # The dependencies are those of this environment; a plain path in a .pth file does not run the .pth files beside
    # it, so the editable installation of the checkout is not seen.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    project = tmp_path / "project"
    for name in ("callbacks", "datamodules"):
        (project / name).mkdir(parents=True)
        (project / name / "__init__.py").write_text(f"WHOSE = 'the project, {name}'\n")
    (project / "use.py").write_text(
        "import callbacks, datamodules, zoo, zoo.callbacks, zoo.datamodules\n"
        "from zoo import GAN\n"
        "print(callbacks.WHOSE, datamodules.WHOSE, zoo.callbacks.SampleLogger.__name__, zoo.__file__, sep='|')\n"
        "print(tuple(GAN(input_shape=(1, 8, 8)).sample(2).shape))\n"
    )
    done = subprocess.run([python, "use.py"], cwd=project, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("the project, callbacks|the project, datamodules|SampleLogger|")
    assert str(site) in first
    assert second == "(2, 1, 8, 8)"
    listed = subprocess.run(
        [python, "-c", "from zoo.cli import main; main(['list'])"], cwd=project, capture_output=True, text=True
    )
    assert "gan.yaml" in listed.stdout, listed.stderr


def test_import_of_zoo_brings_in_nothing_heavy_that_lightning_does_not():
    script = "import sys; {}; print(' '.join(sorted(m for m in sys.modules if m in {!r})))"
    heavy = {"wandb", "sklearn", "torchvision.datasets", "scipy", "rich.progress", "jsonargparse", "matplotlib.pyplot"}
    loaded = {}
    for statement in ("import lightning.pytorch", "import zoo, zoo.datamodules, zoo.callbacks"):
        done = subprocess.run(
            [sys.executable, "-c", script.format(statement, heavy)], capture_output=True, text=True, timeout=120
        )
        loaded[statement] = set(done.stdout.split())
        assert done.returncode == 0, done.stderr
    of_lightning, of_zoo = loaded.values()
    assert of_zoo <= of_lightning


def imports_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def test_networks_import_torch_only():
    networks = list((CHECKOUT / "zoo").glob("*/network.py"))
    assert networks
    standard = set(sys.stdlib_module_names)
    for path in networks:
        foreign = {name for name in imports_of(path) if name.split(".")[0] not in standard | {"torch"}}
        assert all(name.endswith(".network") for name in foreign), (path, foreign)


@pytest.mark.parametrize("package", ["datamodules", "callbacks"])
def test_data_modules_and_callbacks_import_no_model(package):
    models = {f"zoo.{path.parent.name}" for path in (CHECKOUT / "zoo").glob("*/network.py")}
    for path in PACKAGES[package].glob("*.py"):
        assert not [name for name in imports_of(path) if any(name.startswith(model) for model in models)], path


def test_models_import_no_other_model():
    models = {path.parent.name for path in (CHECKOUT / "zoo").glob("*/module.py")}
    for model in models:
        others = {f"zoo.{other}.module" for other in models - {model}} | {f"zoo.{other}" for other in models - {model}}
        for path in (CHECKOUT / "zoo" / model).glob("*.py"):
            assert not imports_of(path) & others, path
