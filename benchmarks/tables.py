"""The tables of docs/results/ and README.md, made of the records in docs/results/data/.

Each stands in its page between `<!-- table: NAME -->` and `<!-- end -->`, and is written again where it differs. What
else a page says of figures is checked where the records have a template for it (`prose`), and so are the commands of
the tables. Usage:

    python -m benchmarks.tables
    python -m benchmarks.tables --check
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.output import markdown_table, new_parser
from benchmarks.records import CHECKOUT, Records, Table
from zoo.errors import UserError

MARKED = re.compile(r"<!-- table: (\S+) -->\n(.*?)<!-- end -->", re.DOTALL)


def render(table: Table, records: Records) -> str:
    """A table in Markdown."""
    columns: Sequence[str] = table.fields["columns"]
    if "lines" in table.fields:
        lines = [[records.fill(cell) for cell in line] for line in table.fields["lines"]]
    else:
        lines = [[records.fill(cell, row) for cell in row.fields["cells"]] for row in table.rows.values()]
    for line in lines:
        if len(line) != len(columns):
            raise UserError(f"the table {table.name} has {len(columns)} columns, and a line of {len(line)}: {line}")
    return markdown_table(columns, lines)


def filled(page: str, text: str, records: Records) -> str:
    """The text of a page with its tables.

    Raises:
        UserError: it marks a table that is not on record or that is another page's, or lacks one.
    """
    marked = [name for name, _ in MARKED.findall(text)]
    due = [table.name for table in records.tables.values() if table.page == page and "columns" in table.fields]
    if sorted(marked) != sorted(due):
        differing = ", ".join(sorted(set(marked) ^ set(due)) or marked)
        raise UserError(f"{page} and its records do not have the same tables, each once: {differing}")
    return MARKED.sub(
        lambda found: f"<!-- table: {found[1]} -->\n\n{render(records.tables[found[1]], records)}\n\n<!-- end -->", text
    )


def typed(command: str, seeds: Sequence[int]) -> str:
    """A command as the pages show it."""
    filling = {"seeds": str(len(seeds)), "seed": "K", "data": "data", "ckpt_path": "best.ckpt"}
    return re.sub(r"\{(\w+)\}", lambda found: filling.get(found[1], found[0]), command)


def missing(page: str, text: str, records: Records) -> Iterator[str]:
    """What the records have and the text of a page does not say."""
    words = " ".join(re.sub(r"^> ?", "", text, flags=re.MULTILINE).split())
    for table in records.tables.values():
        if table.page != page:
            continue
        commands = [table.fields["command"]] if "command" in table.fields else []
        seeds = [int(seed) for seed in table.fields.get("seeds", ())]
        expected = [typed(command, seeds) for command in commands]
        expected += [records.fill(template) for template in table.fields.get("prose", ())]
        for part in expected:
            if " ".join(part.split()) not in words:
                yield f"{page} does not say: {part}"


def main(args: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, and fail where a page and its data differ")
    options = parser.parse_args(args)
    try:
        records = Records()
        wrong = list(update(records, CHECKOUT, write=not options.check))
    except UserError as error:
        parser.error(str(error))
    if wrong:
        raise SystemExit("\n".join(wrong))
    shown = [table for table in records.tables.values() if "columns" in table.fields]
    print(f"{len(shown)} tables in {len({table.page for table in shown})} pages agree with their data")


def update(records: Records, root: Path, write: bool) -> Iterator[str]:
    """Writes the tables into their pages, or says which differ; says what else the pages lack.

    Args:
        records: what was measured.
        root: folder of the pages.
        write: whether to write.
    """
    for page in dict.fromkeys(table.page for table in records.tables.values()):
        path = root / page
        text = path.read_text(encoding="utf-8")
        new = filled(page, text, records)
        if new != text:
            if write:
                path.write_text(new, encoding="utf-8")
            else:
                yield f"{page} differs from its data: python -m benchmarks.tables writes its tables"
        yield from missing(page, new, records)


if __name__ == "__main__":
    main()
