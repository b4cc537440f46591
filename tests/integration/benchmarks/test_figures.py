"""The published tables are those of the records, and `reproduce` judges new figures by its rule."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import reproduce, tables
from benchmarks.judgment import judge, t_quantile
from benchmarks.records import Metric, Records
from tests.helpers.command import CHECKOUT
from zoo.errors import UserError

RECORDS = Records()
MEASURED = [row for row in RECORDS.rows.values() if row.command]


def test_pages_and_records_agree():
    assert list(tables.update(RECORDS, CHECKOUT, write=False)) == []


def test_every_page_of_results_is_made_from_records():
    pages = {path.relative_to(CHECKOUT).as_posix() for path in (CHECKOUT / "docs" / "results").glob("*.md")}
    assert {table.page for table in RECORDS.tables.values()} == pages | {"README.md"}
    for page in pages:
        assert not re.search(r"^\| ---", tables.MARKED.sub("", (CHECKOUT / page).read_text(encoding="utf-8")), re.M), (
            f"{page} has a table that is not made from records"
        )


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: row.name)
def test_command_of_a_row_exists(row):
    (first, *_) = reproduce.commands_of(row, row.seeds, "data", "best.ckpt")
    if first.startswith(reproduce.CLI):
        return  # its options are those of `zoo fit`, as are those of the pages' commands
    name, rest = re.fullmatch(r"python -m benchmarks\.(\w+)(.*)", first).groups()
    source = (CHECKOUT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8")
    for option in re.findall(r"--[\w.]+", rest):
        assert f'"{option}"' in source or option.startswith(("--model.", "--data.", "--trainer.")), option
    if row.seeds:
        assert "{seeds}" in row.command or "{seed}" in row.command or len(row.seeds) == 3, "the number of its seeds"
    assert ("{data}" in row.command) <= ("needs" in row.fields), "it reads --data and says not what it needs there"


def test_every_row_has_a_command_or_a_source():
    assert [name for name, row in RECORDS.rows.items() if not row.command and "source" not in row.fields] == []


def test_rows_have_names_that_the_benchmarks_print():
    from benchmarks import classifier_quality, diffusion_physics, finetune, optimizer_quality, optimizer_speed
    from zoo.models.diffusion.solvers import SOLVERS

    networks = ("MLP 2x256", "ResNet-8", "Transformer")
    known = {
        "classifier_quality": {row.name for rows in classifier_quality.TABLES.values() for row in rows}
        | set(classifier_quality.SPEED_VARIANTS),
        "diffusion_physics": {"floor", *diffusion_physics.VARIANTS},
        "diffusion_quality": {"test", *SOLVERS},
        "finetune": {"pretraining"} | {f"{row.name}, lr {row.lr:g}" for row in finetune.ROWS.values()},
        "optimizer_quality": {f"{a}, {b}" for a in networks for b in optimizer_quality.OPTIMIZERS},
        "optimizer_speed": set(optimizer_speed.OPTIMIZERS),
    }
    rows = [(re.search(r"benchmarks\.(\w+)", row.command), row) for row in MEASURED]
    checked = [(found[1], row.fields["output"]) for found, row in rows if found and found[1] in known]
    assert len(checked) > 50
    assert [(name, output) for name, output in checked if output not in known[name]] == []


@pytest.mark.parametrize(
    ("text", "mean", "std", "decimals"),
    [
        ("3.69 ± 0.54", 3.69, 0.54, 2),
        ("34 to 38", 36.0, None, 0),
        ("3e-4", 3e-4, None, 4),
        (["0.991", "0.980", "0.985"], 0.98533, 0.00551, 3),
        ("2.652 ± 0.829 (3.610, 2.175, 2.171)", 2.652, 0.829, 3),
    ],
)
def test_metric_is_read(text, mean, std, decimals):
    metric = Metric.parse(text)
    assert metric.mean == pytest.approx(mean, abs=1e-5)
    assert metric.std == (std if std is None else pytest.approx(std, abs=1e-5))
    assert metric.decimals == decimals


@pytest.mark.parametrize("text", ["about 3", "", [], "3 +- 1", ["1", "x"]])
def test_metric_that_is_none_is_named(text):
    with pytest.raises(UserError, match=r"a metric is .*; write 3\.69 ± 0\.54"):
        Metric.parse(text)


def test_metric_is_written():
    accuracy = Metric.parse("0.9067 ± 0.0019")
    assert (
        f"{accuracy:p}; {accuracy:%}; {accuracy}; {accuracy:.2f}"
        == "90.67 ± 0.19; 90.67 ± 0.19%; 0.9067 ± 0.0019; 0.91 ± 0.00"
    )
    shares = Metric.parse(["0.991", "0.980", "0.985"])
    assert f"{shares.each:%}; {shares:.3f}; {shares.complement:%}" == "99.1%, 98.0%, 98.5%; 0.985 ± 0.006; 1.5 ± 0.6%"
    assert f"{Metric.parse('107469'):,}; {Metric.parse('34 to 38')}; {Metric.parse('2.0')}" == "107,469; 34 to 38; 2.0"


# The table of Student's t in any textbook.
@pytest.mark.parametrize(
    ("probability", "freedom", "quantile"),
    [(0.975, 1, 12.706), (0.975, 2, 4.303), (0.975, 3, 3.182), (0.975, 4, 2.776), (0.95, 9, 1.833), (0.995, 30, 2.750)],
)
def test_quantiles_of_students_t_are_those_of_the_table(probability, freedom, quantile):
    assert t_quantile(probability, freedom) == pytest.approx(quantile, abs=5e-4)


def test_interval_is_that_of_a_prediction():
    found = judge(Metric.parse("10.00000 ± 1.00000"), [10.0, 10.0, 10.0], n=3)
    assert found.high - 10 == pytest.approx(4.30265 * (2 / 3) ** 0.5, abs=1e-4)  # 1/3 + 1/3
    one = judge(Metric.parse("10.00000 ± 1.00000"), [14.9], n=3)
    assert one.high - 10 == pytest.approx(4.30265 * (4 / 3) ** 0.5, abs=1e-4)  # 1/3 + 1
    assert one.agrees and not judge(Metric.parse("10.00000 ± 1.00000"), [15.0], n=3).agrees


@pytest.mark.parametrize(
    ("record", "new", "options", "agrees"),
    [
        ("0.238 ± 0.000", [0.2384], {}, True),  # rounded on record
        ("0.238 ± 0.000", [0.242], {}, False),
        (["8", "8", "8"], [8], {}, True),  # counts are not rounded
        (["8", "8", "8"], [8, 7, 8], {}, False),
        ("2.00", [2.19], {}, True),  # one value: 10%
        ("2.00", [2.22], {}, False),
        ("2.00", [2.22], {"noise": 0.1}, True),
        ("0.90", [0.92], {"tolerance": 0.01}, False),
        ("34 to 38", [41], {}, True),
        ("34 to 38", [43], {}, False),
        ("0.505 ± 0.001", [0.52], {"noise": 0.005}, True),  # a spread below that of the measurement
        ("0.505 ± 0.001", [0.52], {}, False),
    ],
)
def test_figures_are_judged(record, new, options, agrees):
    assert judge(Metric.parse(record), new, n=3, **options).agrees is agrees


@pytest.fixture
def fake(tmp_path, monkeypatch) -> Path:
    """A folder of records with a table of two rows, in place of ours."""
    (tmp_path / "page.yaml").write_text(
        """
page: page.md
torch: 2.14.1
tables:
  t:
    command: python -m benchmarks.fake --root {data} --seeds {seeds}
    seeds: [0, 1, 2]
    needs: [images]
    columns: [model, FD]
    cells: ["{label}", "{fd}"]
    rows:
      a: {label: first, output: one, metrics: {fd: 3.0 ± 0.5, cpu_seconds: 10}}
      b: {label: second, output: two, metrics: {fd: 7.0}}
  u:
    rows:
      of-others: {source: their paper, metrics: {fd: 1.0}}
      of-cli:
        command: python cli.py fit --config x.yaml --seed_everything {seed}
        seeds: [4, 5]
        test: best
        metrics: {val/fd: [1.0, 1.2]}
""",
        encoding="utf-8",
    )
    (tmp_path / "images").mkdir()
    monkeypatch.setattr("benchmarks.reproduce.Records", lambda: Records(tmp_path))
    return tmp_path


def benchmark(*lines: dict) -> reproduce.Execute:
    """What runs a command, and prints these lines."""
    return lambda command, folder: (["a table\n", *(json.dumps(line) + "\n" for line in lines)], 1.0)


def test_row_is_measured_again_and_judged(fake, capsys):
    commands = []

    def run(command, folder):
        commands.append(list(command))
        lines = [{"row": "one", "seed": seed, "fd": 3 + seed / 2, "cpu_seconds": 15} for seed in range(2)]
        return benchmark(*lines, {"row": "two", "seed": 0, "fd": 7.1})(command, folder)

    out = fake / "rows.jsonl"
    reproduce.main(["t/a", "t/b", "--seeds", "2", "--data", str(fake), "--out", str(out)], run)
    printed = capsys.readouterr().out
    assert commands == [["python", "-m", "benchmarks.fake", "--root", str(fake), "--seeds", "2"]], "once for both"
    assert "t/a, 2 of 3 seeds: agrees" in printed
    assert "fd: 3.2 ± 0.4, on record 3.0 ± 0.5: agrees with" in printed
    assert "cpu_seconds: 15.0 ± 0.0, 1.50 times the 10 on record (not judged)" in printed
    assert "; cost 1 CPU seconds\n  on record: torch 2.14.1\n" in printed
    assert "metrics: {fd: [3, 3.5], cpu_seconds: [15, 15]}" in printed
    assert [json.loads(line)["metrics"]["fd"] for line in out.read_text().splitlines()] == [[3.0, 3.5], [7.1]]


@pytest.mark.parametrize(
    ("count", "commands"),
    [
        (None, ["python -m benchmarks.diffusion_physics"]),
        (1, ["python -m benchmarks.diffusion_physics --seeds 1"]),
        (5, ["python -m benchmarks.diffusion_physics --seeds 5"]),
    ],
)
def test_number_of_seeds_is_the_benchmark_s_or_the_user_s(count, commands):
    (row,) = RECORDS.find("diffusion-physics/lecture")
    assert list(reproduce.commands_of(row, reproduce.seeds_of(row, count), "data", None)) == commands


def test_a_run_of_the_command_line_takes_each_seed():
    (row,) = RECORDS.find("gan-theory/recipe")
    commands = reproduce.commands_of(row, reproduce.seeds_of(row, 2), "data", None)
    assert [command.split()[-2:] for command in commands] == [["--seed_everything", seed] for seed in "01"]


def test_row_outside_of_its_interval_is_an_exit_code(fake, capsys):
    run = benchmark({"row": "one", "seed": 0, "fd": 6.0, "cpu_seconds": 10})
    with pytest.raises(SystemExit) as stop:
        reproduce.main(["t/a", "--seeds", "1", "--data", str(fake)], run)
    assert stop.value.code == 1
    assert "t/a, 1 of 3 seeds: DOES NOT AGREE\n  fd: 6.0, on record 3.0 ± 0.5: OUTSIDE of" in capsys.readouterr().out


def test_row_of_the_command_line_is_read_from_its_run_folder(fake, capsys):
    def run(command, folder):
        run_folder = folder / "runs" / "x" / "version_0"
        if "fit" in command:
            (run_folder / "checkpoints").mkdir(parents=True)
            (run_folder / "checkpoints" / "best.ckpt").touch()
            seed = float(command[command.index("--seed_everything") + 1])
            (run_folder / "metrics.csv").write_text(f"step,val/fd\n1,9\n2,{seed / 4}\n3,\n")
        else:
            assert command[command.index("--ckpt_path") + 1] == str(run_folder / "checkpoints" / "best.ckpt")
        return [], 1.0

    reproduce.main(["u/of-cli"], run)
    assert "metrics: {val/fd: [1, 1.25]}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["t/aa"], r"there is no row 't/aa'; did you mean t/a\?"),
        (["t/a", "--data", "nowhere"], "t/a needs images in the folder nowhere"),
        (["u/of-others"], "u/of-others is not measured by a command: their paper"),
        (["t/a", "--seeds", "0"], "--seeds is 0; it must be at least 1"),
        ([], "give a ROW, or --list"),
    ],
)
def test_what_cannot_be_measured_is_one_line(arguments, message, fake, capsys):
    with pytest.raises(SystemExit) as stop:
        reproduce.main(arguments, benchmark())
    assert stop.value.code == 2
    assert re.search(f"error: {message}", capsys.readouterr().err)


def test_command_that_prints_no_such_row_is_named(fake, capsys):
    with pytest.raises(SystemExit):
        reproduce.main(["t/a", "--data", str(fake)], benchmark({"row": "three", "seed": 0, "fd": 1.0}))
    assert "the command of t/a prints no row 'one', but three" in capsys.readouterr().err


def test_command_that_fails_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"python -c .* ends with code 1: ZeroDivisionError: division by zero"):
        reproduce.execute(["python", "-c", "1 / 0"], tmp_path)


def test_packages_that_are_missing_are_named():
    (row,) = RECORDS.find("diffusion-peer/peer")
    with pytest.raises(UserError, match="needs the package denoising-diffusion-pytorch"):
        reproduce.check_needs(type(row)(row.name, row.metrics, {**row.fields, "needs": []}), "data")


def test_page_that_differs_from_its_records_is_written_again(fake):
    page = fake / "page.md"
    page.write_text("`python -m benchmarks.fake --root data\n--seeds 3`\n\n<!-- table: t -->\nold\n<!-- end -->\n")
    records = Records(fake)
    assert list(tables.update(records, fake, write=False)) == [
        "page.md differs from its data: python -m benchmarks.tables writes its tables"
    ]
    assert list(tables.update(records, fake, write=True)) == []
    table = "| model | FD |\n| --- | --- |\n| first | 3.0 ± 0.5 |\n| second | 7.0 |\n"
    assert f"<!-- table: t -->\n\n{table}\n<!-- end -->" in page.read_text()
    assert list(tables.update(records, fake, write=False)) == []


def test_page_without_its_table_or_its_command_is_named(fake):
    page = fake / "page.md"
    page.write_text("<!-- table: other -->\n<!-- end -->\n")
    with pytest.raises(UserError, match=r"page\.md and its records do not have the same tables, each once: other, t"):
        list(tables.update(Records(fake), fake, write=False))
    page.write_text("`python -m benchmarks.fake --root data`\n\n<!-- table: t -->\n<!-- end -->\n")
    assert "page.md does not say: python -m benchmarks.fake --root data --seeds 3" in list(
        tables.update(Records(fake), fake, write=True)
    )


@pytest.mark.slow
def test_cheapest_published_row_is_reproduced(capsys):
    cheapest = "diffusion-physics/lecture"
    reproduce.main([cheapest])  # 25 CPU seconds; ends the program where it does not agree
    assert f"{cheapest}, 3 of 3 seeds: agrees" in capsys.readouterr().out
