"""What the pages say is so: generated parts are up to date, and whatever they name exists."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import click
import pytest

from peerlm.cli import views
from peerlm.cli.main import cli
from peerlm.config import NodeSettings, Plan
from peerlm.node.lifecycle import Phase

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def load_make_docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "tools" / "make_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_docs = load_make_docs()


# ----------------------------------------------------------------------------- generated parts


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_generated_parts_are_up_to_date(page: Path) -> None:
    text = page.read_text()
    assert make_docs.filled(text) == text, f"run: python tools/make_docs.py ({page.name})"


def test_every_generated_part_is_on_a_page() -> None:
    text = "".join(page.read_text() for page in PAGES)
    assert {m["name"] for m in make_docs.PART.finditer(text)} == set(make_docs.PARTS)


def test_every_setting_is_on_the_page_of_settings() -> None:
    rows = (ROOT / "docs" / "settings.md").read_text().splitlines()
    for kind in (Plan, NodeSettings):
        for section in fields(kind()):
            for field in fields(getattr(kind(), section.name)):
                assert any(row.startswith(f"| `{field.name}` |") for row in rows), field.name


def test_what_cannot_change_is_what_nodes_and_the_command_line_refuse() -> None:
    from peerlm.cli.plan import CHANGEABLE, FIXED, FOLLOW

    for section in fields(Plan()):
        for field in fields(getattr(Plan(), section.name)):
            dotted = f"{section.name}.{field.name}"
            by = FOLLOW.get(dotted, dotted)
            offered = bool({by, section.name} & set(CHANGEABLE)) and dotted not in FIXED
            assert offered != make_docs.is_fixed(section.name, field.name), dotted


# --------------------------------------------------------------------------------------- links


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        file = page if not name else (page.parent / name).resolve()
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors_of(file), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_that_are_named_exist(page: Path) -> None:
    for span in code_in(page.read_text()):
        for name in re.findall(r"(?<![\w./])(?:peerlm|tests|tools|docs)/[\w./-]*\w", span):
            assert (ROOT / name).exists(), f"{page.name}: {name}"


def anchors_of(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# ------------------------------------------------------------------------------------- commands


def commands_named(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each `peerlm …` in code, as (its whole span, the words after `peerlm`)."""
    for span in code_in(text):
        for line in span.splitlines():
            if found := re.search(r"(?:^|[\s/$])peerlm ([a-z].*)", line.split("#")[0]):
                words = re.split(r"[|;&]", found[1])[0].split()
                yield line, words


def code_in(text: str) -> list[str]:
    """Code spans, and blocks that are indented or fenced."""
    fenced = re.findall(r"```[^\n]*\n(.*?)```", text, re.DOTALL)
    rest = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    indented = re.findall(r"^(?: {4,})(\S.*)$", rest, re.MULTILINE)
    prose = re.sub(r"^(?: {4,})\S.*$", "", rest, flags=re.MULTILINE)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    return [*fenced, *indented, *spans]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_that_are_named_exist_with_their_options(page: Path) -> None:
    for line, words in commands_named(page.read_text()):
        command: click.Command = cli
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            found = command.get_command(click.Context(command), words[0])
            assert found is not None, f"{page.name}: {line}: no command {words[0]!r}"
            command, words = found, words[1:]
        known = {"--help", "-h", *(name for p in command.params for name in p.opts)}
        for word in words:
            if re.match(r"--?[a-z]", word):
                assert word.partition("=")[0] in known, f"{page.name}: {line}: no option {word}"


def test_every_command_is_on_the_page_for_operators() -> None:
    text = (ROOT / "README.md").read_text() + (ROOT / "docs" / "operate.md").read_text()
    for name, command in make_docs.command_tree():
        if not isinstance(command, click.Group):
            assert f"`peerlm {name}`" in text, name


def test_every_command_has_an_example() -> None:
    for name, command in make_docs.command_tree():
        assert command.help is not None, name
        assert "Example" in command.help, name
        assert f"peerlm {name.split()[0]}" in command.help, name


# ---------------------------------------------------------------------------- words and samples


@pytest.mark.parametrize("name", [name for name in NAMES if name != "docs/status.md"])
def test_settings_that_are_named_exist(name: str) -> None:
    """status.md is about keys of an answer, which look like settings; it has a test of its own."""
    known = {
        f"{section.name}.{field.name}"
        for kind in (Plan(), NodeSettings())
        for section in fields(kind)
        for field in fields(getattr(kind, section.name))
    }
    sections = {name.partition(".")[0] for name in known}
    for span in code_in((ROOT / name).read_text()):
        found = re.fullmatch(r"([a-z]+)\.([a-z_]+)(?: ?=.*)?", span)
        if found and found[1] in sections and found[2] not in ("toml", "safetensors", "sock"):
            is_module = (ROOT / "peerlm" / found[1] / f"{found[2]}.py").exists()
            assert is_module or f"{found[1]}.{found[2]}" in known, f"{name}: {span}"


def test_every_state_and_logged_event_of_the_operators_page_exists() -> None:
    page = (ROOT / "docs" / "operate.md").read_text()
    states = first_column(page, "| state | meaning |")
    assert states == set(Phase)
    source = "".join(path.read_text() for path in sorted((ROOT / "peerlm").rglob("*.py")))
    for event in first_column(page, "| event | meaning |"):
        assert f'"{event}"' in source, event


def first_column(page: str, head: str) -> set[str]:
    """The code words in the first column of the table with this head."""
    rows = page.split(head)[1].split("\n\n")[0].splitlines()[2:]
    return {word for row in rows for word in re.findall(r"`(\w+)`", row.split("|")[1])}


def test_the_sample_in_the_readme_has_the_columns_that_are_printed() -> None:
    lines = [line.strip() for line in (ROOT / "README.md").read_text().splitlines()]
    heads = [line.split() for line in lines]
    assert list(views.MEMBER_COLUMNS) in heads
    rows = lines[heads.index(list(views.MEMBER_COLUMNS)) + 1 :][:3]
    row_of_one = r"[0-9a-f]{8}\*? +\S+:\d+ +(training +yes|dead +no) "
    assert all(re.match(row_of_one, row) for row in rows)


# ----------------------------------------------------------------------- the README in two languages


def outline(page: Path) -> list[str]:
    """Depths of headings, commands without their comments, links and pictures, in order."""
    found, is_code = [], re.compile(r"^    (?! )(?P<words>(?:sudo )?(?:peerlm|make) .*)$")
    for line in page.read_text().splitlines():
        if line.startswith("#"):
            found.append("#" * (len(line) - len(line.lstrip("#"))))
        elif match := is_code.match(line):
            found.append(re.split(r"\s{2,}", match["words"])[0])
        found += re.findall(r"\]\(((?!README)[^)]+)\)", line)
    return found


def test_the_chinese_readme_has_the_same_headings_commands_and_links() -> None:
    english, chinese = outline(ROOT / "README.md"), outline(ROOT / "README.zh.md")
    assert len(english) > 30
    assert chinese == english


def shapes(page: Path) -> list[list[str]]:
    """Under each heading what there is, in order: paragraphs, and code, lists and tables with how many lines, items
    and rows they have."""
    found: list[list[str]] = [[]]
    for block in re.split(r"\n(?:\s*\n)+", page.read_text().strip()):
        lines = block.splitlines()
        if block.startswith("#"):
            found.append([])
        elif all(line.startswith("    ") for line in lines):
            found[-1].append(f"code of {len(lines)} lines")
        elif block.startswith("|"):
            found[-1].append(f"table of {len(lines)} rows")
        elif block.startswith("- "):
            found[-1].append(f"list of {sum(line.startswith('- ') for line in lines)} items")
        else:
            found[-1].append("paragraph")
    return found


def test_the_chinese_readme_has_as_many_paragraphs_items_and_rows_under_each_heading() -> None:
    english, chinese = shapes(ROOT / "README.md"), shapes(ROOT / "README.zh.md")
    assert {"paragraph", "code of 1 lines", "list of 9 items"} <= {
        s for part in english for s in part
    }
    assert chinese == english


def test_the_chinese_readme_names_whom_the_english_one_names() -> None:
    english, chinese = ((ROOT / name).read_text() for name in ("README.md", "README.zh.md"))
    names = re.findall(r"\b(?:[A-Z][a-z]+[A-Z]\w*|Hivemind|Petals|Ray)\b", english)
    assert {"DiLoCo", "NoLoCo", "Petals", "OpenAI"} <= set(names)
    assert [name for name in names if name not in chinese] == []


def test_the_chinese_readme_explains_commands_in_chinese() -> None:
    code = r"^ {4}(?:sudo )?peerlm .*?#\s*(.+)$"
    comments = re.findall(code, (ROOT / "README.zh.md").read_text(), re.MULTILINE)
    assert len(comments) > 5
    for comment in comments:
        assert re.search(r"[\u4e00-\u9fff]", comment) or comment.startswith("http"), comment


def test_both_readmes_show_the_same_code() -> None:
    def spans(page: Path) -> list[str]:
        return sorted(re.findall(r"`([^`]+)`", page.read_text()))

    assert spans(ROOT / "README.zh.md") == spans(ROOT / "README.md")
