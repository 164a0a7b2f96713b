"""`make mutate`: every mutation on copies in the same and in newer majors; what is caught goes into docs/verify.md.

Ends with 1 if one was not caught, or a right copy failed.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from backupd.postgres.server import FAST, ThrowawayServer
from backupd.postgres.tools import choose_server, find_installations
from tests.mutations.campaign import HASHED, books
from tests.mutations.mutations import ALL, CODE, DATA, RIGHTS, RULES, TABLES, Mutation

PAGE = Path(__file__).parents[2] / "docs/verify.md"
BEGIN, END = "<!-- mutations: written by `make mutate` -->\n", "<!-- end of mutations -->\n"
GROUPS = {
    "Data": DATA,
    "Tables, columns, indexes": TABLES,
    "Constraints, triggers, rules, policies": RULES,
    "Functions, views, types and the rest": CODE,
    "Owners, grants, settings": RIGHTS,
}
PAIRS = ((15, 15), (15, 17), (15, 18), (17, 17))


def table(caught: dict[str, str]) -> Iterator[str]:
    """The lines of docs/verify.md: per mutation the check that found it, and the lowest level that has this check."""
    for title, group in GROUPS.items():
        yield f"| **{title}** | | | |"
        for mutation in group:
            yield row(mutation, caught.get(mutation.what, "NOT CAUGHT"))


def row(mutation: Mutation, check: str) -> str:
    at_rows = "caught" if mutation.level == "rows" else "no"
    return f"| {mutation.what} | {at_rows} | caught | {check} |"


def main() -> int:
    caught: dict[str, set[str]] = {mutation.what: set() for mutation in ALL}
    wrong: list[str] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {
            major: stack.enter_context(
                ThrowawayServer(
                    choose_server(find_installations(), major), folder / f"pg{major}", port=0, settings=FAST
                )
            )
            for major in sorted({major for pair in PAIRS for major in pair})
        }
        for old, new in PAIRS:
            with books(folder / f"{old}-{new}", servers[old], servers[new]) as found:
                with found.copy() as name:
                    wrong += [f"{old} to {new}: {c}" for c in found.compare(name).checks if c.status != "passed"]
                for mutation in ALL:
                    failed = found.mutated(mutation)
                    if mutation.check in failed and (mutation.level == "rows" or not failed.keys() - HASHED):
                        caught[mutation.what].add(mutation.check)
                    else:
                        wrong.append(f"{old} to {new}: {mutation.what}: {failed or 'not caught'}")
            print(f"{old} to {new}: {len(ALL)} mutations", flush=True)
    lines = [
        "| what differs in the copy | `rows` | `content` | found by the check |",
        "| --- | --- | --- | --- |",
        *table({what: min(checks) for what, checks in caught.items() if checks}),
    ]
    text = PAGE.read_text()
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n\n" + END + after)
    print("\n".join(wrong) or f"all {len(ALL)} are caught in {len(PAIRS)} pairs of majors; right copies pass")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
