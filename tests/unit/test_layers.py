"""Imports point downward only, and what is dangerous to scatter stays in its room."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# From the top down. A row holds rooms, a room holds modules or packages. A module imports from lower rows, and from its
# own room; a new module fails here until somebody has decided where it belongs.
ROWS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli",),
    ("demo",),
    ("commands",),
    ("daemon",),
    ("web",),
    ("discovery",),
    ("views", "check check_server finding", "init"),  # how results read; the two commands about the set-up
    ("proof_views",),
    ("metrics", "plans", "status"),
    ("jobs",),
    ("verify",),
    ("console", "backup", "prune", "restore restore_build restore_rows restore_work", "reload", "export", "evidence"),
    ("restore_plan", "compare", "anomalies"),
    ("standing",),
    ("holdings",),
    ("summaries",),
    ("preflight", "instructions", "proofs", "differences difference_text majors"),
    ("contents", "reference", "retention"),
    ("agenda",),
    ("schedules",),
    ("repository",),
    ("catalog", "pipeline"),
    ("pace", "hooks"),
    ("config config_models config_problems config_source config_types config_values private_files", "postgres"),
    ("storage", "crypto"),
    ("proof",),
    ("manifest",),
    ("times", "progress", "signals"),
    ("errors", "backupd"),  # backupd: the package itself, its version
)

# Which modules (or packages) may import a library, or call a function.
ONLY_IN = {
    "boto3": ("storage",),
    "botocore": ("storage",),
    "psycopg": ("postgres", "config_models", "config_types", "check_server", "init", "demo", "compare"),
    "subprocess": ("postgres", "hooks"),
    "zstandard": ("pipeline",),
    "cryptography": ("crypto",),
    "click": ("cli", "commands"),
    "rich": ("console",),
    "prometheus_client": ("metrics",),
    "starlette": ("web",),
    "uvicorn": ("web",),
    "jinja2": ("web",),
    "bcrypt": ("web",),
    "anyio": ("web",),
}
PRINTS = ("console", "demo")


@cache
def modules() -> dict[str, Path]:
    """Every module by its name below backupd; the package itself is `backupd`."""
    found = {}
    for path in sorted((ROOT / "backupd").rglob("*.py")):
        parts = path.relative_to(ROOT / "backupd").with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name or "backupd"] = path
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported(name: str, path: Path) -> Iterator[str]:
    """Absolute names of everything a module imports, wherever in it, for types too."""
    package = ["backupd", *name.split(".")] if name != "backupd" else ["backupd"]
    if path.name != "__init__.py":
        package.pop()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


@cache
def own_imports() -> dict[str, set[str]]:
    """Module to the modules of backupd that it imports."""
    known = modules()
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        graph[name] = set()
        for full in imported(name, path):
            if full.split(".")[0] == "backupd":
                graph[name].add(_module(full.split(".")[1:], known))
    return graph


def _module(parts: list[str], known: dict[str, Path]) -> str:
    """The module that `backupd.PARTS` is, or that defines it."""
    while parts and ".".join(parts) not in known:
        parts = parts[:-1]
    return ".".join(parts) or "backupd"


def within(name: str, places: tuple[str, ...]) -> str:
    """The most specific of these modules or packages that a module is or lies in; "" if none."""
    fitting = [place for place in places if name == place or name.startswith(f"{place}.")]
    return max(fitting, key=len, default="")


def place(name: str) -> tuple[int, str]:
    """The row and the room of a module."""
    rooms = {member: (row, room) for row, rooms in enumerate(ROWS) for room in rooms for member in room.split()}
    member = within(name, tuple(rooms))
    assert member, f"backupd/{name.replace('.', '/')}.py is in no room of {__file__}"
    return rooms[member]


@pytest.mark.parametrize("name", modules())
def test_imports_point_downward(name: str) -> None:
    row, room = place(name)
    for target in own_imports()[name]:
        target_row, target_room = place(target)
        assert target_row > row or target_room == room, f"{name} (row {row}) imports {target} (row {target_row})"


def test_the_rows_name_what_there_is() -> None:
    known = set(modules())
    members = [member for row in ROWS for room in row for member in room.split()]
    assert len(members) == len(set(members))
    assert set(members) <= known
    assert {place for places in ONLY_IN.values() for place in places} <= known


def test_no_module_imports_itself_by_a_detour() -> None:
    assert (
        len(list(TopologicalSorter(own_imports()).static_order())) == len(modules()) > 50
    )  # CycleError tells the detour


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_stays_in_its_room(library: str) -> None:
    users = {
        name for name, path in modules().items() if library in {full.split(".")[0] for full in imported(name, path)}
    }
    assert users, f"nothing imports {library}: remove it here"
    assert {name for name in users if not within(name, ONLY_IN[library])} == set()


def test_only_the_console_prints() -> None:
    printing = {name for name, path in modules().items() if any(map(_prints, ast.walk(tree(path))))}
    assert printing == set(PRINTS)


def _prints(node: ast.AST) -> bool:
    """`print(…)`, `click.echo(…)`, `sys.stdout.write(…)` and the like."""
    if not isinstance(node, ast.Call):
        return False
    called = ast.unparse(node.func)
    return called in ("print", "click.echo", "pprint") or called.endswith(("stdout.write", "stderr.write"))
