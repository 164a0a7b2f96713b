"""What a restored copy can silently lose or change is found: one mutation at a time, between restore and comparison."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backupd.postgres.server import ThrowawayServer
from tests.mutations.__main__ import row
from tests.mutations.campaign import HASHED, Books, books
from tests.mutations.mutations import ALL, Mutation

PAIRS = [(15, 15), (15, 17), (15, 18), (17, 17)]


@pytest.fixture(scope="module")
def same_major(tmp_path_factory: pytest.TempPathFactory, pg15: ThrowawayServer) -> Iterator[Books]:
    with books(tmp_path_factory.mktemp("books"), pg15, pg15) as found:
        yield found


@pytest.mark.parametrize("mutation", ALL, ids=lambda mutation: mutation.what)
def test_it_is_caught(same_major: Books, mutation: Mutation) -> None:
    failed = same_major.mutated(mutation)
    assert mutation.check in failed, f"these fail: {failed}"
    assert mutation.named in failed[mutation.check]
    if mutation.level == "content":
        assert not failed.keys() - HASHED, "more than hashes finds it"


def test_names_are_unique_and_there_are_enough() -> None:
    assert len({mutation.what for mutation in ALL}) == len(ALL) >= 40


@pytest.mark.large
@pytest.mark.parametrize("old, new", PAIRS)
def test_right_copies_never_fail(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, old: int, new: int
) -> None:
    source: ThrowawayServer = request.getfixturevalue(f"pg{old}")
    target: ThrowawayServer = request.getfixturevalue(f"pg{new}")
    for _ in range(20):
        with books(tmp_path_factory.mktemp("books"), source, target) as found, found.copy() as name:
            wrong = [check for check in found.compare(name).checks if check.status != "passed"]
            assert wrong == []


def test_the_table_of_the_documents_is_of_these() -> None:
    """`make mutate` writes it; what it does not know any more, or not yet, shows here."""
    page = (Path(__file__).parents[2] / "docs/verify.md").read_text()
    for mutation in ALL:
        assert row(mutation, mutation.check) in page, mutation.what
    assert page.count(" | caught | ") == len(ALL)
