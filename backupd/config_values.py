"""The small languages inside configuration values: durations, sizes, compression, schedules, time zones, addresses.

Every parser takes the text and raises ValueError whose message is a phrase, "expected …", without the text itself:
the caller knows whether it may be shown.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

_DURATION = re.compile(r"(?:([0-9]{1,6})d)?(?:([0-9]{1,7})h)?(?:([0-9]{1,8})m)?(?:([0-9]{1,10})s)?")
_SIZE = re.compile(r"([0-9]{1,18}) ?(B|[kK]B|MB|GB|TB|KiB|MiB|GiB|TiB)")
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_COMPRESSION = re.compile(r"zstd:([0-9]{1,2})")
_WINDOW = re.compile(r"([0-9]{2}:[0-9]{2})-([0-9]{2}:[0-9]{2})")
_DATABASE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]/@]+):([0-9]{1,5})")


def parse_duration(text: str) -> timedelta:
    """`30s`, `5m`, `2h`, `3d`, or several together, the largest unit first: `1h30m`."""
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        raise ValueError('expected a duration such as "30s", "5m", "2h", "3d" or "1h30m"')
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


def format_duration(value: timedelta) -> str:
    """The shortest text that `parse_duration` reads back; fractions of a second are cut off."""
    minutes, seconds = divmod(value.days * 86400 + value.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = ((days, "d"), (hours, "h"), (minutes, "m"), (seconds, "s"))
    return "".join(f"{number}{unit}" for number, unit in parts if number) or "0s"


def parse_size(text: str) -> int:
    """Bytes: `64MiB` is 64 x 1024 x 1024, `100MB` is 100 x 1000 x 1000, `0` needs no unit."""
    if text == "0":
        return 0
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError('expected a size such as "64MiB", "100MB", "2GiB" or "0"')
    return int(match[1]) * _UNITS[match[2].upper()]


@dataclass(frozen=True, slots=True)
class Compression:
    """How a stream is compressed. `method` is always "zstd" in this release; `level` 1 (fast) to 19 (small)."""

    method: str
    level: int

    def __str__(self) -> str:
        return f"{self.method}:{self.level}"


def parse_compression(text: str) -> Compression:
    """`zstd:LEVEL`, 1 to 19."""
    match = _COMPRESSION.fullmatch(text)
    if match is None or not 1 <= int(match[1]) <= 19:
        raise ValueError('expected "zstd:LEVEL" with a level from 1 to 19, such as "zstd:1"')
    return Compression("zstd", int(match[1]))


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a job is due: a cron expression (`every` is None), or every so often."""

    text: str  # as written
    every: timedelta | None = None


def parse_schedule(text: str) -> Schedule:
    """Five cron fields, or `@every DURATION` of at least a minute."""
    if text.startswith("@every "):
        every = parse_duration(text.removeprefix("@every ").strip())
        if every < timedelta(minutes=1):
            raise ValueError('expected "@every" with a duration of at least 1m')
        return Schedule(text, every)
    expected = 'expected five cron fields such as "0 */6 * * *" (minute hour day month weekday), or "@every 6h"'
    if len(text.split()) != 5:  # cronsim also takes a sixth, for seconds
        raise ValueError(expected)
    try:
        next(CronSim(text, datetime.now(UTC)), None)
    except CronSimError as error:
        reason = str(error).lower()  # names the field only: "bad hour"
    else:
        return Schedule(text)
    raise ValueError(f"{expected}; {reason}")


class Window(NamedTuple):
    """Hours of the day, by the clock on the wall; from after until: over midnight."""

    begins: time
    ends: time

    def has(self, local: time) -> bool:
        if self.begins < self.ends:
            return self.begins <= local < self.ends
        return local >= self.begins or local < self.ends

    def __str__(self) -> str:
        return f"{self.begins:%H:%M}-{self.ends:%H:%M}"


def parse_window(text: str) -> Window:
    """`22:00-06:00`."""
    match = _WINDOW.fullmatch(text)
    try:
        if match is not None and match[1] != match[2]:
            return Window(time.fromisoformat(match[1]), time.fromisoformat(match[2]))
    except ValueError:
        pass
    raise ValueError('expected hours of the day such as "22:00-06:00"')


def parse_timezone(text: str) -> ZoneInfo:
    """A name of the IANA database, `Europe/Berlin`."""
    try:
        return ZoneInfo(text)
    except (KeyError, ValueError, OSError):  # unknown; malformed; a folder of the database, such as "Europe"
        near = nearest(text, available_timezones())
    raise ValueError("expected a time zone such as " + (f'"{near}"' if near else '"Europe/Berlin" or "UTC"'))


class Address(NamedTuple):
    """Where a server listens; `host` has no brackets."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:  # a name
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """`HOST:PORT`, `[::1]:9847`; port 0 lets the system choose one."""
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match[2]) > 65535:
        raise ValueError('expected "HOST:PORT" such as "127.0.0.1:9847" or "[::1]:9847"')
    return Address(match[1].strip("[]"), int(match[2]))


def resolve_path(text: str, folder: Path, home: str) -> Path:
    """`~` is the home folder; a relative path starts at `folder`, that of the configuration file."""
    if text == "~" or text.startswith("~/"):
        text = home + text[1:]
    return Path(os.path.normpath(folder / text))


def is_database_name(name: str) -> bool:
    """Whether it can name a database here: it becomes a folder of the repository, beside the file backupd.json."""
    return _DATABASE_NAME.fullmatch(name) is not None and len(name) <= 200 and name != "backupd.json"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was probably meant to be; letter case does not count."""
    by_lower = {candidate.lower(): candidate for candidate in sorted(known)}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None
