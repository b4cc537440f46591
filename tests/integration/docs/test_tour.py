"""Pages of the tour: each section has a page in both languages with its parts, and its command draws a figure."""

from __future__ import annotations

import re

import pytest
from PIL import Image

from tests.helpers.command import CHECKOUT, fails
from tests.integration.docs.pages import QUICK_TOUR, Page
from zoo.cli.main import main
from zoo.tour.sections import SECTIONS

HEADINGS = {
    "": ["The idea", "The command", "What to look at", "What to change", "Exercises"],
    "zh/": ["思想", "命令", "看什么", "改什么", "练习"],
}
every_section = pytest.mark.parametrize("name", SECTIONS)
every_page = pytest.mark.parametrize(
    "page", [Page(f"docs/tour/{language}{name}.md") for name in SECTIONS for language in HEADINGS], ids=lambda p: p.name
)


def language_of(page: Page) -> str:
    return "zh/" if "/zh/" in page.name else ""


@every_section
def test_section_draws_its_figure(name, in_an_empty_folder, capsys):
    main(["tour", name, *QUICK_TOUR[name]])
    assert f"wrote {name}.png" in capsys.readouterr().out
    with Image.open(f"{name}.png") as figure, Image.open(CHECKOUT / "docs" / "tour" / f"{name}.png") as published:
        assert figure.size == published.size
        assert len(figure.convert("RGB").getcolors(256)) > 20


@every_page
def test_page_has_all_parts(page):
    name, language = page.path.stem, language_of(page)
    assert re.findall(r"^## (.*)$", page.prose, re.MULTILINE) == HEADINGS[language]
    assert f"python cli.py tour {name}" in page.commands
    assert len(page.commands) >= 2, "what to change has a command"
    figure = "../" * bool(language) + f"{name}.png"
    assert f"]({figure})" in page.text
    assert (page.path.parent / figure).stat().st_size < 150_000
    assert len(re.findall(r'<details markdown="1"><summary>.+?</summary>\n\n.+?\n\n</details>', page.text, re.S)) == 3
    assert "$$" in page.text


@every_section
def test_languages_have_the_same_formulas_and_commands(name):
    english, chinese = (Page(f"docs/tour/{language}{name}.md") for language in HEADINGS)
    formulas = [re.findall(r"\$\$(.*?)\$\$", page.prose, re.DOTALL) for page in (english, chinese)]
    assert formulas[0] == formulas[1]
    assert english.commands == chinese.commands
    assert all(f"tour {name}" in command for command in english.commands)


def test_index_and_list_name_every_section(capsys):
    main(["tour"])
    listed = re.findall(r"^  (\w+)", capsys.readouterr().out, re.MULTILINE)
    assert listed == list(SECTIONS)
    for language in HEADINGS:
        index = Page(f"docs/tour/{language}index.md").text
        places = [index.index(f"]({name}.md)") for name in SECTIONS]
        assert places == sorted(places), "the lecture's order"


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["backwrds"], "the tour has no section backwrds; did you mean backwards?"),
        (["gan"], f"the tour has no section gan; there are {', '.join(SECTIONS)}"),
        (["--angle=3"], "the section comes before its options"),
        (["optimizers", "--angel=3"], "--angel is not an option; did you mean --angle?"),
        (["optimizers", "--angle=400"], "angle is 400.0; it must be at most 360"),
        (["vanishing", "--depth=3"], "depth is 3; it must be at least 4"),
        (["attention", "--digits=12a"], "digits is '12a'; it must be 1 to 10 digits from 0 to 9"),
        (["attention", "--text=a"], "text has 1 characters; it must have 2 to 60"),
        (["attention", "--text=To be 1"], "the character '1' is not in the text on which the model was trained"),
        (["stopping", "--images=601"], "images is 601; it must be at most 600"),
        (["stopping", "--validation=600"], "validation is 600; it must be at most 500"),
        (["stopping", "--validation=0"], "validation is 0; it must be at least 10"),
        (["dropout", "--hidden_dropout=1"], "hidden_dropout is 1.0; it must be at least 0 and below 1"),
        (["dropout", "--hidden_dropout=0"], "hidden_dropout is 0.0; it must be at least 0.05"),
        (["dropout", "--images=20000"], "images is 20000; it must be at most 10000"),
        (["equilibrium", "--lr=0"], "it must be at least 0.001"),
        (["backwards", "--offset=-1000"], "offset is -1000.0; it must be at least -100"),
        (["residuals", "--blocks=1"], "blocks is 1; it must be at least 2"),
        (["residuals", "--images=5000"], "images is 5000; it must be at most 2000"),
        (["generation", "--images=298"], "images is 298; it must be at most 297"),
        (["generation", "--levels=0"], "levels is 0; it must be at least 1"),
        (["optimizers", "--seeds=0"], "seeds is 0; it must be at least 1"),
    ],
)
def test_mistakes_are_named(words, answer, capsys):
    assert answer in fails(capsys, "tour", *words)


def test_formulas_become_mathml():
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("mathml", CHECKOUT / "docs" / "mathml.py")
    hook = module_from_spec(spec)
    spec.loader.exec_module(hook)
    page = (
        r'<p>a <span class="arithmatex">\(a &lt; b\)</span></p><div class="arithmatex">\[' + "\n" + r"\sqrt{B}\]</div>"
    )
    found = hook.on_page_content(page)
    assert found.count("<math") == 2 and "arithmatex" not in found
    assert "<msqrt>" in found and 'display="block"' in found and "&amp;" not in found
