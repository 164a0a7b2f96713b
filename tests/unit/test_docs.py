"""The documents say everything that there is, nothing that there is not, and every command in them can be typed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from backupd import manifest
from backupd.cli import Globals, app
from backupd.errors import BackupdError
from backupd.manifest import Manifest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FORMAT, OPERATIONS, README = (ROOT / name for name in ("docs/format.md", "docs/operations.md", "README.md"))
# Where people look for what the program can do. The changelog may speak of the past.
MANUAL = "\n".join(page.read_text() for page in PAGES if page.name not in ("CHANGELOG.md", "CONTRIBUTING.md"))

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^\]\n]*(?:\n[^\]\n]*)?\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text())


# ---- commands and options


def parameters(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            yield from (name for name in (*parameter.opts, *parameter.secondary_opts) if name.startswith("--"))


@pytest.mark.parametrize("name", app.commands)
def test_every_command_is_documented(name: str) -> None:
    assert f"`backupd {name}" in README.read_text()
    for option in parameters(app.commands[name]):
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", MANUAL), f"{option} of {name}"


def test_every_global_option_is_documented() -> None:
    options = [*parameters(app), "--help"]
    assert len(options) >= 6
    for option in options:
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", README.read_text()), option


def shell_lines(page: Path) -> Iterator[str]:
    for language, block in _FENCE.findall(page.read_text()):
        if language == "sh":
            yield from block.replace("\\\n", " ").splitlines()


def typed(line: str) -> list[str] | None:
    """The arguments of `backupd` in a line of shell; None if it is another program's."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # a part of a text of several lines
        return None if "backupd" not in line else [line]
    for end, word in enumerate(words):
        if word in ("|", "||", "&&", ";", ">", "<", "&"):
            words = words[:end]
            break
    while words and (re.match(r"[A-Z_]+=", words[0]) or words[0] in ("sudo", "export")):
        words = words[1:]
    return words[1:] if words and Path(words[0]).name == "backupd" else None


def parse(arguments: list[str]) -> None:
    """Read the arguments as the program would, and run nothing. Raises click's error, or KeyError for no command."""
    at = next((i for i, word in enumerate(arguments) if word in app.commands), None)
    if at is None:
        raise KeyError(f"no command in {arguments}")
    with app.make_context("backupd", arguments[: at + 1], obj=Globals()) as context:
        app.commands[arguments[at]].make_context(arguments[at], arguments[at + 1 :], parent=context).close()


def test_every_command_line_can_be_typed() -> None:
    lines = [(page.name, line, typed(line)) for page in PAGES for line in shell_lines(page)]
    ours = [(page, line, arguments) for page, line, arguments in lines if arguments is not None]
    assert len(ours) >= 9
    for page, line, arguments in ours:
        try:
            parse(arguments)
        except (click.ClickException, KeyError) as error:
            pytest.fail(f"{page}: {line}: {error}")


def test_command_lines_that_cannot_be_typed_are_found() -> None:
    for line in (
        "backupd frobnicate",
        "backupd restore shop",
        "backupd --nonsense list",
        "X=1 /opt/b/backupd list --at 1",
    ):
        arguments = typed(line)
        assert arguments is not None
        with pytest.raises((click.ClickException, KeyError)):
            parse(arguments)
    assert typed("python -m backupd list") is None
    assert typed("backupd list | head  # ten") == ["list"]


def test_only_commands_that_exist_are_named() -> None:
    named = {
        (page.name, match[1])
        for page in PAGES
        for code in _INLINE.findall(prose(page))
        if (match := re.match(r"backupd ([a-z]+)\b", code))
    }
    assert len(named) >= 10
    assert {(page, name) for page, name in named if name not in app.commands} == set()


# ---- exit codes


def errors(above: type[BackupdError] = BackupdError) -> Iterator[type[BackupdError]]:
    yield above
    for below in above.__subclasses__():
        yield from errors(below)


def test_every_exit_code_is_documented() -> None:
    codes = {0, *(error.exit_code for error in errors())}
    assert {0, 1, 2, 75} <= codes
    for page in (OPERATIONS, README):
        for code in codes:
            assert re.search(rf"^\| {code} \| \S", page.read_text(), re.MULTILINE), f"{code} in {page.name}"


# ---- the manifest


def keys(model: type[manifest._Record]) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}


def records() -> list[type[manifest._Record]]:
    return manifest._Record.__subclasses__()


def test_every_key_of_the_manifest_is_documented() -> None:
    section = FORMAT.read_text().partition("## The manifest\n")[2].partition("\n## ")[0]
    known = set().union(*map(keys, records()))
    assert len(records()) >= 7
    for key in known:
        assert f"`{key}`" in section, key
    columns = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    documented = {key for column in columns for key in _INLINE.findall(column)}
    assert len(documented) > 30
    assert documented <= known, "documented, and not in manifest.py"


def test_the_example_of_a_manifest_is_one() -> None:
    (example,) = (block for language, block in _FENCE.findall(FORMAT.read_text()) if language == "json")
    document = json.loads(example)
    made = Manifest.model_validate(document)
    assert made.format == manifest.FORMAT
    assert manifest.id_second(made.id) == made.taken_at.replace(microsecond=0)
    assert made.streams[0].name == made.tables[0].stream

    def check(part: object, model: type[manifest._Record]) -> None:
        assert isinstance(part, dict)
        assert set(part) == keys(model), model.__name__

    check(document, Manifest)
    check(document["properties"], manifest.DatabaseProperties)
    check(document["properties"]["grants"][0], manifest.Grant)
    check(document["properties"]["settings"][0], manifest.Setting)
    check(document["extensions"][0], manifest.Extension)
    check(document["streams"][0], manifest.Stream)
    check(document["tables"][0], manifest.Table)


# ---- links


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of headings."""
    headings = (heading.replace("`", "") for heading in _HEADING.findall(prose(page)))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in _LINK.findall(prose(page)):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target), link
