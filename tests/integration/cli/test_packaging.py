"""The package: what its import loads, what is in the wheel, and a project beside it with folders of the same names."""

import importlib
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.helpers.command import CHECKOUT

#: Folders of the checkout, by their place in the wheel.
FOLDERS = {
    "zoo": CHECKOUT / "zoo",
    "zoo/datamodules": CHECKOUT / "datamodules",
    "zoo/callbacks": CHECKOUT / "callbacks",
}
CODE, PAGES = {".py", ".pyi"}, {".html", ".css", ".js"}
#: Endings of files that are in the wheel, of all that are in these folders.
SHIPPED = CODE | PAGES | {".yaml", ".safetensors", ".npz", ".txt", ".json", ".csv", ".md", ".png"}
#: Packages with public names; the first four load them on first use.
PUBLIC = ["zoo", "zoo.callbacks", "zoo.datamodules", "zoo.testing", "zoo.metrics", "zoo.optim"]

LIGHT = """
import sys, tempfile
from pathlib import Path
import zoo
from zoo.cli.main import main
run = Path(tempfile.mkdtemp())
(run / "metrics.csv").write_text("step,val/loss\\n0,1.5\\n")
for args in ([], ["--help"], ["--version"], ["list"], ["tour"], ["report", str(run)]):
    main(args)
    loaded = {"torch", "lightning", "jsonargparse", "wandb", "matplotlib"} & set(sys.modules)
    assert not loaded, (args, loaded)
"""


def test_the_lock_has_a_hash_for_every_package_and_the_versions_of_the_constraints():
    """After a change of constraints.txt or pyproject.toml: make lock."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has none")
    text = (CHECKOUT / "requirements.lock").read_text().replace("\\\n", "")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    locked = {Requirement(line.split("--hash")[0]).name: line for line in lines}
    assert all(re.search(r"==\S+ .*--hash=sha256:[0-9a-f]{64}", line) for line in lines)
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    extras = [one for given in project["optional-dependencies"].values() for one in given]
    pins = [line for line in (CHECKOUT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    for requirement in map(Requirement, [*project["dependencies"], *extras, *pins]):
        if requirement.name == "lightning-zoo":
            continue
        if requirement.marker is None or requirement.marker.evaluate({"python_version": "3.11"}):
            version = locked[canonicalize_name(requirement.name)].split("==")[1].split()[0]
            assert requirement.specifier.contains(version), f"{requirement} is {version} in requirements.lock"


def test_import_help_version_and_list_load_neither_torch_nor_lightning():
    done = subprocess.run([sys.executable, "-c", LIGHT], cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: zoo COMMAND") == 2
    assert "lightning-zoo 0." in done.stdout
    assert "gan.yaml" in done.stdout


@pytest.mark.parametrize("package", PUBLIC)
def test_every_public_name_exists(package):
    module = importlib.import_module(package)
    assert module.__all__
    for name in module.__all__:
        assert getattr(module, name) is not None
    assert set(module.__all__) <= set(dir(module))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout, so the files of the project are not known")
    for name in filter(None, tracked.stdout.split("\0")):
        if (CHECKOUT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((CHECKOUT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_wheel_puts_only_zoo_into_site_packages_with_every_file_of_it(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"zoo"}
    assert {"zoo/py.typed", "zoo/__init__.pyi", "zoo/configs/overlays/ddp.yaml"} <= set(names)
    for place, folder in FOLDERS.items():
        for path in folder.rglob("*"):
            if path.suffix in SHIPPED or path.name == "py.typed":
                assert f"{place}/{path.relative_to(folder).as_posix()}" in names


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
        "import importlib, callbacks, datamodules, zoo, zoo.callbacks, zoo.datamodules\n"
        "from zoo import GAN\n"
        "print(callbacks.WHOSE, datamodules.WHOSE, zoo.callbacks.SampleLogger.__name__, zoo.__file__, sep='|')\n"
        "print(tuple(GAN(input_shape=(1, 8, 8)).sample(2).shape))\n"
        "print(len(zoo.datamodules.Digits().load_split(train=True)[0]))\n"
        f"for package in {PUBLIC}:\n"
        "    module = importlib.import_module(package)\n"
        "    assert module.__all__ and all(getattr(module, name) is not None for name in module.__all__)\n"
    )
    done = subprocess.run([python, "use.py"], cwd=project, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert first.startswith("the project, callbacks|the project, datamodules|SampleLogger|")
    assert str(site) in first
    assert second == "(2, 1, 8, 8)"
    assert third == "1500"
    listed = subprocess.run(
        [python, "-c", "from zoo.cli.main import main; main(['list'])"], cwd=project, capture_output=True, text=True
    )
    assert "gan.yaml" in listed.stdout and "ddp.yaml" in listed.stdout, listed.stderr
