"""The command `tour`: draws the figure of a section of the tour, or lists the sections.

The list imports neither torch nor Lightning. The options of a section are the arguments of its function `draw`.
"""

from __future__ import annotations

from collections.abc import Sequence

from zoo.cli.output import has_screen
from zoo.cli.program import program
from zoo.errors import UserError, did_you_mean
from zoo.tour.sections import SECTIONS, find_section


def run_tour(args: Sequence[str]) -> None:
    """Parses the command line, writes the figure, and opens it if a person can see it."""
    words = list(args[1:])
    if not words or words[0] in ("-h", "--help"):
        _list_sections()
        return
    name = words[0]
    if name not in SECTIONS:
        if name.startswith("-"):
            raise UserError(f"the section comes before its options: {program()} tour SECTION {name}")
        raise UserError(f"the tour has no section {name}{did_you_mean(name, SECTIONS)}")
    _draw(name, words[1:])


def _list_sections() -> None:
    print(f"usage: {program()} tour SECTION [options]\n\nsections:")
    for name, summary in SECTIONS.items():
        print(f"  {name:<12} {summary}")
    print(f"\n{program()} tour SECTION --help lists the options of a section.")


def _draw(name: str, words: Sequence[str]) -> None:
    from zoo.cli.options import add_function_options
    from zoo.cli.parser import OneLineParser
    from zoo.files import output_path
    from zoo.plotting.images import save_png

    draw = find_section(name)
    parser = OneLineParser(prog=f"{program()} tour {name}", description=f"Figure of the tour: {SECTIONS[name]}.")
    parser.add_argument("--out", type=str, help=f"file to write (default: {name}.png, with a number if it exists).")
    parser.add_argument(
        "--open", type=bool, default=True, help="open the figure, if a terminal has a screen beside it."
    )
    add_function_options(parser, draw)
    given = parser.parse_args(list(words)).as_dict()
    out, shown, overwrite = (given.pop(key) for key in ("out", "open", "overwrite"))
    path = output_path(out, f"{name}.png", overwrite)
    save_png(path, draw(**given), overwrite, colors=256)
    print(f"wrote {path}")
    if shown and has_screen():
        import webbrowser

        webbrowser.open(path.absolute().as_uri())
