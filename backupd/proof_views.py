"""Proofs as people read them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from backupd import console, times
from backupd.errors import IntegrityError
from backupd.proof import Check, Proof

NOTHING = "there are none"  # how a check says that it had nothing to compare
_ITEMS = 20  # differences of one check that are told; the proof has them all


def proof(made: Proof) -> str:
    """What did not pass, check by check; what did, in short; and the verdict last, where the eye is."""
    passed = [check for check in made.checks if check.status == "passed" and not check.accepted]
    others = [check for check in made.checks if check not in passed]
    told = ", ".join(f"{check.name} ({check.detail})" for check in passed if check.detail != NOTHING)
    lines = textwrap.wrap(f"passed   {told}", 110, subsequent_indent=" " * 9) if told else []
    return "\n".join([*lines, *(line for check in others for line in _lines(check)), *verdict(made)])


def verdict(made: Proof) -> list[str]:
    where = f"restored into PostgreSQL {made.scratch.server_version}" if made.scratch else "not restored"
    what = "upgrade rehearsal" if made.rehearsal else "proof"
    told = f"{made.database} {made.id}: {what} {made.status.upper()}, {where}, {made.seconds:.1f} s"
    if made.status == "inconclusive":
        return [told, *(f"  {line}" for line in made.reason.splitlines())]
    if made.status == "failed":
        why = [f"  {line}" for line in made.reason.splitlines()]  # what came after that was not asked
        return [told, f"  failed: {', '.join(check.name for check in made.failed)}", *why, *_way_on(made)]
    compared = f"  {made.tables_compared} tables and {made.rows_compared} rows compared"
    phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in made.phases.items())
    return [told, f"{compared}; {phases}"]


def _way_on(made: Proof) -> list[str]:
    if made.failed and all(check.name.startswith("anomaly:") for check in made.failed):
        command = f"backupd verify {made.database} --at {made.id} --accept"
        equal = "" if made.reason or made.level == "off" else "The copy equals its source. "
        return [f"  {equal}If the change was meant, say so: {command}"]
    return []


def _lines(check: Check) -> list[str]:
    first, *more = check.detail.splitlines() or [""]
    items = check.shown or check.items
    shown = items[:_ITEMS]
    rest = len(items) - len(shown)
    status = "accepted" if check.accepted else check.status
    return [
        f"{status:<8} {check.name}: {first}",
        *(f"           {line}" for line in more),
        *(f"         - {line}" for item in shown for line in item.splitlines()),
        *([f"         - and {rest} more: backupd show --json has them all"] if rest else []),
    ]


def history(found: Sequence[Proof | IntegrityError]) -> str:
    """Every proof of a backup, for `show`."""
    rows = [
        (
            times.iso(each.finished_at),
            each.status + (" (rehearsal)" if each.rehearsal else ""),
            each.scratch.server_version if each.scratch else "",
            f"{each.seconds:.1f} s",
            str(each.rows_compared),
            ", ".join(check.name for check in each.failed) or each.reason.partition("\n")[0],
        )
        if isinstance(each, Proof)
        else ("?", "NOT BELIEVED", "", "", "", each.message)
        for each in found
    ]
    return console.table(("PROVEN AT", "VERDICT", "SERVER", "TIME", "ROWS", "WHAT"), rows, right=(3, 4))
