"""The record of a test restore: it comes back as it was written, and nothing else is taken for one."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd import proof as records
from backupd.errors import IntegrityError
from backupd.proof import Check, Proof, Scratch

START = datetime(2026, 11, 22, 6, 14, 3, 123456, tzinfo=UTC)
PROOF = Proof(
    repository="0f" * 16,
    database="shop",
    id="20261122T061403Z-k3f9qa",
    manifest_sha256="ab" * 32,
    taken_at=START,
    started_at=START,
    finished_at=START + timedelta(seconds=12.3456),
    host="db1",
    backupd_version="0.1.0",
    source_version="15.18",
    scratch=Scratch(kind="ephemeral", server_version="15.18", server_major=15),
    level="content",
    status="passed",
    phases={"restore": 1.5},
    tables_compared=3,
    rows_compared=10**12,
    checks=(Check(name="rows", status="passed", detail="3 tables"),),
)

texts = st.text(max_size=40)
check_lists = st.lists(
    st.builds(
        Check,
        name=texts,
        status=st.sampled_from(["passed", "failed", "skipped"]),
        detail=texts,
        items=st.lists(texts, max_size=3).map(tuple),
        accepted=st.booleans(),
    ),
    max_size=4,
).map(tuple)
proofs = st.builds(
    lambda **changes: PROOF.model_copy(update=changes),
    checks=check_lists,
    reason=texts,
    host=texts,
    scratch=st.none() | st.just(PROOF.scratch),
    rehearsal=st.booleans(),
    status=st.sampled_from(["passed", "failed", "inconclusive"]),
    finished_at=st.timedeltas(timedelta(0), timedelta(days=9)).map(lambda span: START + span),
    phases=st.dictionaries(texts, st.floats(0, 1e6), max_size=3),
)


@given(proofs)
def test_comes_back(made: Proof) -> None:
    assert records.decode(made.encode(), "it") == made


@given(proofs)
def test_the_document_is_the_contract(made: Proof) -> None:
    document = json.loads(made.encode())
    assert {"database", "id", "status", "seconds", "tables_compared", "rows_compared", "checks"} <= set(document)
    assert all({"name", "status", "detail"} <= set(check) for check in document["checks"])
    assert abs(document["seconds"] - (made.finished_at - made.started_at).total_seconds()) < 0.001
    assert all(document[key].endswith("Z") for key in ("taken_at", "started_at", "finished_at"))


def test_keys_of_later_versions_are_ignored() -> None:
    raw = json.loads(PROOF.encode())
    raw["later"] = {"a": 1}
    raw["checks"][0]["later"] = []
    assert records.decode(json.dumps(raw).encode(), "it") == PROOF


def test_keys_that_older_versions_lacked_have_defaults() -> None:
    raw = json.loads(PROOF.encode())
    for key in ("rehearsal", "reason", "phases", "tables_compared", "rows_compared", "checks", "seconds"):
        del raw[key]
    found = records.decode(json.dumps(raw).encode(), "it")
    assert (found.rehearsal, found.checks, found.phases) == (False, (), {})


@pytest.mark.parametrize("version", [records.FORMAT + 1, "1", None, 1.5, [1]])
def test_a_newer_format_is_refused(version: object) -> None:
    raw = json.loads(PROOF.encode()) | {"format": version}
    with pytest.raises(IntegrityError, match="the proof shop/it has format version") as caught:
        records.decode(json.dumps(raw).encode(), "shop/it")
    assert "newer backupd" in caught.value.hint


@pytest.mark.parametrize(
    "change",
    [
        {"status": "great"},
        {"status": None},
        {"level": "all"},
        {"manifest_sha256": "ab"},
        {"rows_compared": -1},
        {"finished_at": "yesterday"},
        {"finished_at": "2026-11-22T06:14:03"},  # no zone
        {"checks": [{"name": "rows", "status": "perhaps", "detail": ""}]},
        {"checks": [{"status": "passed", "detail": ""}]},
        {"scratch": {"kind": "moon"}},
        {"id": 7},
    ],
)
def test_what_is_wrong_is_refused(change: dict[str, object]) -> None:
    raw = json.loads(PROOF.encode()) | change
    with pytest.raises(IntegrityError, match="the proof shop/it is not readable") as caught:
        records.decode(json.dumps(raw).encode(), "shop/it")
    assert next(iter(change)) in caught.value.detail


@given(st.binary(max_size=200) | st.text().map(str.encode))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        records.decode(data, "it")


@given(st.integers(0, len(PROOF.encode()) - 1))
def test_a_cut_one_is_refused(length: int) -> None:
    data = PROOF.encode()[:length]
    if data != PROOF.encode().rstrip():
        with pytest.raises(IntegrityError):
            records.decode(data, "it")


def test_what_failed() -> None:
    checks = [Check(name=status, status=status, detail="") for status in ("passed", "failed", "skipped")]
    assert [check.name for check in PROOF.model_copy(update={"checks": tuple(checks)}).failed] == ["failed"]
