"""The pages as HTML. Whatever comes from databases, servers or the storage is text in them, never markup, and no
control character comes through."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import cache
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from backupd import __version__, console, times
from backupd.status import STATES, Backup, Details, Overview
from backupd.web import plots

PAGE = 100  # backups on one page
_REFUSED = {404: "There is no such page.", 405: "This page can only be read."}


def printable(text: str) -> str:
    """As on a terminal: control characters, and those that turn the direction of writing, as escapes."""
    return console.printable(text).replace("\t", " ")


def overview(found: Overview) -> str:
    return _render("overview.html", found=found, states=STATES)


def database(found: Details, number: int) -> str | None:
    """One page of a database's backups; None if there is no such page."""
    count = max(1, -(-len(found.backups) // PAGE))
    if not 1 <= number <= count:
        return None
    headlines = [each for each in found.backups if each.seconds is not None]
    return _render(
        "database.html",
        found=found,
        row=found.summary,
        backups=found.backups[(number - 1) * PAGE : number * PAGE],
        number=number,
        count=count,
        strip=plots.strip([(each.taken_at, _proof(each), _mark(each)) for each in found.backups], found.at),
        sizes=plots.line(
            "Stored size", [(e.taken_at, float(e.stored_bytes or 0)) for e in headlines], times.human_bytes
        ),
        durations=plots.line("Duration", [(e.taken_at, e.seconds or 0.0) for e in headlines], _brief),
    )


def refused(code: int, text: str) -> str:
    return _render("refused.html", code=code, text=_REFUSED.get(code, text))


def _proof(backup: Backup) -> str:
    return backup.proof if backup.proof in ("passed", "failed") else "untested"


def _mark(backup: Backup) -> str:
    kept = "kept" if backup.keep else "to be pruned"
    return f"{_stamp(backup.taken_at)}: {_proof(backup)}, {kept}"


# ---- how things read


def _stamp(moment: datetime) -> str:
    return times.iso(moment.replace(microsecond=0)).replace("T", " ").replace("Z", " UTC")


def _brief(seconds: float) -> str:
    """A duration at a glance."""
    if 0 < seconds < 10:
        return f"{seconds:.1f} s"
    return times.brief_duration(timedelta(seconds=seconds))


def _until(moment: datetime, now: datetime) -> str:
    left = (moment - now).total_seconds()
    return f"in {_brief(left)}" if left >= 1 else "now"


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("backupd.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    made.filters |= {
        "stamp": _stamp,
        "iso": times.iso,
        "brief": _brief,
        "until": _until,
        "size": times.human_bytes,
        "place": lambda name: f"/databases/{quote(name, safe='')}",
    }
    made.globals["version"] = __version__
    return made


def _render(template: str, **values: object) -> str:
    return _environment().get_template(template).render(**values)
