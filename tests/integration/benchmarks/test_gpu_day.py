"""The command for the day on a GPU: a rehearsal of its items on the CPU, and what it does when a part goes wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.gpu_day import __main__ as gpu_day
from benchmarks.gpu_day import report, supervise
from benchmarks.gpu_day.checkout import CheckoutFinder
from benchmarks.gpu_day.recipes import set_up
from benchmarks.gpu_day.results import Options, Results
from benchmarks.gpu_day.supervise import Item, run_apart, run_here
from benchmarks.gpu_day.tests_on_gpu import run_pytest
from tests.helpers.command import CHECKOUT

OPTIONS = Options("cpu", tiny=True)
NEVER = 1e12  # seconds

#: Parts that end in every way. Each appends its name to the file `calls`; "slow" hangs in its first call only.
PLANTED = """
import os
import time
from pathlib import Path

from benchmarks.gpu_day.results import Skipped

CALLS = Path(__file__).with_name("calls")


def call(name):
    before = CALLS.read_text().split() if CALLS.exists() else []
    CALLS.write_text(" ".join([*before, name]))
    return before.count(name)


def fails():
    call("fails")
    raise RuntimeError("a planted failure")


def hangs():
    print("the last line before it hangs", flush=True)
    call("hangs")
    time.sleep(60)


def crashes():
    call("crashes")
    print("the last line before it crashes", flush=True)
    os._exit(3)


def skips():
    call("skips")
    raise Skipped("no such thing here")


def good():
    call("good")
    return {"value": 1.5, "places": ["a | b", "c"]}


def slow():
    if not call("slow"):
        time.sleep(60)
    return {"value": 2}


def all_parts(options):
    return {part.__name__: part for part in (fails, hangs, crashes, skips, good)}


def slow_part(options):
    return {"slow": slow, "good": good}


def hanging_part(options):
    return {"hangs": hangs}


def no_parts(options):
    raise ImportError("a planted import that is missing")
"""


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """Function from the name of a function of `PLANTED`, and the limit of its parts, to an item."""
    (tmp_path / "planted_parts.py").write_text(PLANTED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(supervise, "LEAST_TIME", 0.0)
    yield lambda function, limit=NEVER: Item("item", "An item", f"planted_parts:{function}", limit)
    sys.modules.pop("planted_parts", None)


@pytest.fixture
def clock(tmp_path, monkeypatch):
    """Time passes only while a part that hangs is running: 100 seconds each time that it is read."""

    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            calls, running = tmp_path / "calls", Results(tmp_path / "item.json").running
            if running in ("hangs", "slow") and calls.exists() and calls.read_text().endswith(running):
                self.now += 100
            return self.now

    clock = Clock()
    monkeypatch.setattr(supervise, "time", clock)
    return clock


def statuses(path: Path) -> dict[str, str]:
    return {name: part["status"] for name, part in Results(path).parts.items()}


def test_a_part_that_fails_hangs_or_crashes_is_kept_with_its_last_lines_and_the_rest_goes_on(planted, tmp_path, clock):
    path, item = tmp_path / "item.json", planted("all_parts", limit=50)
    run_apart(item, OPTIONS, path, NEVER)
    results = Results(path)
    assert results.complete
    assert statuses(path) == {
        "fails": "failed", "hangs": "failed", "crashes": "failed", "skips": "skipped", "good": "done",
    }  # fmt: skip
    errors = {name: part.get("error", []) for name, part in results.parts.items()}
    assert errors["fails"][-1] == "RuntimeError: a planted failure"
    assert errors["hangs"] == ["ended after 50 s without a result", "the last line before it hangs"]
    assert errors["crashes"] == ["the process ended with code 3", "the last line before it crashes"]
    assert results.parts["good"]["result"] == {"value": 1.5, "places": ["a | b", "c"]}
    report.write(tmp_path / "report.md", [item], tmp_path, OPTIONS)
    written = (tmp_path / "report.md").read_text()
    assert re.search(r"\| good \| 1\.5 \| a \\\| b<br>c \| [\d.]+ \|\n", written)
    assert "**hangs: failed**" in written
    assert "  the last line before it crashes\n" in written
    assert "skips was skipped: no such thing here" in written
    calls = (tmp_path / "calls").read_text()
    run_apart(item, OPTIONS, path, NEVER)
    assert (tmp_path / "calls").read_text() == calls, "a second call measures nothing again"


def test_a_part_that_the_end_of_a_call_cuts_off_is_repeated_by_the_next_call(planted, tmp_path, clock):
    path, item = tmp_path / "item.json", planted("slow_part")
    run_apart(item, OPTIONS, path, 50)
    assert statuses(path) == {"slow": "cut off"}
    assert not Results(path).complete
    assert "not complete: call again" in "\n".join(report.section(item, Results(path)))
    run_apart(item, OPTIONS, path, NEVER)
    assert statuses(path) == {"slow": "done", "good": "done"}
    assert Results(path).complete
    assert (tmp_path / "calls").read_text() == "slow slow good"


def test_a_part_that_is_cut_off_twice_fails(planted, tmp_path, clock):
    path, item = tmp_path / "item.json", planted("hanging_part")
    for expected in ("cut off", "failed"):
        (tmp_path / "calls").unlink(missing_ok=True)  # of the call before
        run_apart(item, OPTIONS, path, clock.now + 50)
        assert statuses(path) == {"hangs": expected}


def test_a_part_that_was_running_when_everything_was_killed_is_repeated(planted, tmp_path):
    path, item = tmp_path / "item.json", planted("slow_part")
    (tmp_path / "calls").write_text("slow")  # its first call
    path.write_text(json.dumps({"complete": False, "parts": {"slow": {"status": "running"}}}))
    run_apart(item, OPTIONS, path, NEVER)
    assert statuses(path) == {"slow": "done", "good": "done"}


@pytest.mark.parametrize("run", [lambda *a: run_apart(*a, NEVER), run_here], ids=["apart", "here"])
def test_an_item_that_does_not_load_is_recorded(planted, tmp_path, run):
    path = tmp_path / "item.json"
    run(planted("no_parts"), OPTIONS, path)
    results = Results(path)
    assert results.complete
    assert results.error[-1] == "ImportError: a planted import that is missing"


def test_nothing_is_started_when_the_time_is_over(planted, tmp_path):
    run_apart(planted("slow_part"), OPTIONS, tmp_path / "item.json", deadline=-1.0)
    assert not (tmp_path / "item.json").exists()


def test_a_synchronization_is_counted_by_the_line_that_causes_it():
    from benchmarks.gpu_day.agreement import recorded_syncs

    places: Counter[str] = Counter()
    with recorded_syncs(places, cuda=False):
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    ((place, count),) = places.items()
    assert count == 3
    assert "test_gpu_day.py:" in place
    assert place.endswith('warnings.warn("called a synchronizing CUDA operation", stacklevel=1)')


def test_its_help_describes_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        gpu_day.main(["--help"])
    assert stop.value.code == 0
    options = re.split(r"\n(?=  -)", capsys.readouterr().out.partition("\noptions:\n")[2].rstrip())
    assert len(options) == 8
    assert all(re.search(r"\S(  +|\n +)\S", option) for option in options)


def test_an_item_that_there_is_not_is_refused(capsys):
    with pytest.raises(SystemExit):
        gpu_day.main(["--out", "nowhere", "--items", "3,8"])
    assert "items are 1 to 7" in capsys.readouterr().err


def test_the_packages_beside_zoo_are_found_without_an_installation():
    finder = CheckoutFinder()
    for name in ("callbacks", "datamodules"):
        spec = finder.find_spec(f"zoo.{name}", None)
        assert spec.origin == str(CHECKOUT / name / "__init__.py")
        assert spec.submodule_search_locations == [str(CHECKOUT / name)]
    assert finder.find_spec("zoo.models", None) is None
    assert sum(isinstance(found, CheckoutFinder) for found in sys.meta_path) == 1


@pytest.mark.slow
def test_what_pytest_says_is_kept(tmp_path):
    path = tmp_path / "test_two.py"
    path.write_text("def test_good(): pass\ndef test_bad(): assert 1 == 2\n")
    found = run_pytest(str(path))
    assert found["code"] == 1
    assert re.match(r"1 failed, 1 passed in [\d.]+s", found["summary"])
    assert len(found["failed"]) == 1
    assert "test_bad - assert 1 == 2" in found["failed"][0]
    assert any("assert 1 == 2" in line for line in found["last lines"])


def test_the_clothes_in_the_package_stand_in_for_all_of_them_with_every_cache():
    for cache in ("memory", "auto"):
        setup = set_up("mlp.yaml", Options("cpu"), data={"cache": cache})
        assert (type(setup.data()).__name__, setup.data().cache) == ("FashionMNISTSubset", cache)
    assert setup.source == "the part of Fashion-MNIST in the package"


@pytest.mark.slow
def test_every_item_can_be_rehearsed_on_the_cpu_without_an_installation(tmp_path):
    program = (
        "import sys; sys.modules.update(jsonargparse=None, wandb=None); "
        "sys.meta_path = [finder for finder in sys.meta_path if 'Editable' not in repr(finder)]; "
        "from benchmarks.gpu_day.__main__ import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", program, "--out", str(tmp_path), "--device=cpu", "--tiny", "--in_process"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == sorted([*(f"{item.name}.json" for item in gpu_day.ITEMS), "report.md"])
    counts = {}
    for item in gpu_day.ITEMS:
        found = json.loads((tmp_path / f"{item.name}.json").read_text())
        assert found["complete"]
        assert not found["error"]
        bad = {name: part for name, part in found["parts"].items() if part["status"] not in ("done", "skipped")}
        assert not bad, bad
        counts[item.name] = sum(part["status"] == "done" for part in found["parts"].values())
    assert counts == {
        "1_tests": 0, "2_distributed": 10, "3_agreement": 16, "4_syncs": 8, "5_steps": 21, "6_options": 17,
        "7_quality": 4,
    }  # fmt: skip
    for name, part in json.loads((tmp_path / "3_agreement.json").read_text())["parts"].items():
        assert not name.startswith("resume") or part["result"]["resumed the same"], name
    written = (tmp_path / "report.md").read_text()
    assert "jsonargparse" in written
    assert all(f"## {item.title}\n" in written for item in gpu_day.ITEMS)
