"""What one backup is: the records that its manifest holds, and their JSON. docs/format.md describes each key.

A reader ignores keys that it does not know, and refuses a newer format version by name.
"""

from __future__ import annotations

import json
import re
import secrets
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, ValidationError

from backupd import times
from backupd.errors import IntegrityError

FORMAT = 1
SHARED_STREAM = "data-0000"  # that of the small tables, the sequences and the large objects
_ID = re.compile(r"(\d{8}T\d{6}Z)-[a-z0-9]{6}")
_HINT = "Its signature is right, so it was written like this. Choose another backup: backupd list."
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"


def new_id(taken_at: datetime) -> str:
    """`20261122T061403Z-k3f9qa`: the snapshot's second in UTC, and chance to keep two backups apart."""
    return f"{times.compact(taken_at)}-{''.join(secrets.choice(_ALPHABET) for _ in range(6))}"


def id_second(backup_id: str) -> datetime | None:
    """The second in which the snapshot was taken, or None if this is not an ID."""
    match = _ID.fullmatch(backup_id)
    if not match:
        return None
    try:
        return datetime.strptime(match[1], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:  # the digits of no date
        return None


def _aware(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError("a time without a zone")
    return moment.astimezone(UTC)


Moment = Annotated[datetime, AfterValidator(_aware), PlainSerializer(times.iso)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Stream(_Record):
    """One stored object of a backup."""

    key: str  # in the repository
    kind: Literal["schema", "data", "globals", "reference"]
    tables: tuple[str, ...] = ()  # whose rows it holds, quoted as SQL: public.orders
    raw_bytes: Size  # what the dump program wrote
    stored_bytes: Size  # the object, compressed and encrypted
    sha256: Sha256  # of the stored object
    header_sha256: Sha256  # of its age header and payload nonce: binds the file's key to this manifest
    seconds: float = 0.0  # how long it took

    @property
    def name(self) -> str:
        """`data-0003`, `schema`, `globals`."""
        return self.key.rsplit("/", 1)[-1].split(".", 1)[0]


class Table(_Record):
    """One table whose rows are in the backup."""

    schema_: Annotated[str, Field(alias="schema")]
    name: str
    rows: Size  # count(*) in the backup's own snapshot
    bytes: Size  # heap and TOAST on the source
    content: str | None = None  # hash of its rows in that snapshot; None if it was not asked for
    stream: str  # the stream that holds it: data-0003
    root: str | None = None  # of a partition: the table at the top of its tree, quoted as SQL. Rows may come back in
    # another partition of it: pg_dump loads hash partitions by enum through the root, as such hashes differ by server

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class Extension(_Record):
    name: str
    version: str
    schema_: Annotated[str, Field(alias="schema")]

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class Setting(_Record):
    """One `ALTER DATABASE … SET` or `ALTER ROLE … IN DATABASE … SET`."""

    role: str | None  # None: for everybody
    name: str
    value: str


class Grant(_Record):
    """One privilege on the database itself."""

    grantor: str
    grantee: str | None  # None: PUBLIC
    privilege: Literal["CREATE", "CONNECT", "TEMPORARY"]
    grantable: bool


class DatabaseProperties(_Record):
    """What `CREATE DATABASE` and `ALTER DATABASE` set; pg_dump leaves these to whoever restores."""

    name: str
    owner: str
    encoding: str
    collate: str
    ctype: str
    locale_provider: Literal["libc", "icu", "builtin"] = "libc"
    locale: str | None = None  # of ICU or the built-in provider
    icu_rules: str | None = None
    connection_limit: int = -1
    comment: str | None = None
    grants: tuple[Grant, ...] | None = None  # None: the defaults
    settings: tuple[Setting, ...] = ()
    has_public_schema: bool = True


class Manifest(_Record):
    format: int
    kind: Literal["logical"]
    repository: str  # the id in backupd.json
    database: str  # the key in the configuration
    id: str
    taken_at: Moment  # the snapshot: everything in the backup was committed at or before it (the server's clock)
    started_at: Moment
    finished_at: Moment
    backupd_version: str
    server_version: str  # "17.2"
    server_major: int
    tools: dict[str, str]  # program -> version
    standby: bool = False
    properties: DatabaseProperties
    extensions: tuple[Extension, ...] = ()
    roles: tuple[str, ...] = ()  # every role that the dump's owners and grants name
    policy_roles: tuple[str, ...] = ()  # those of them that policies and user mappings name: needed in any case
    large_object_owners: tuple[str, ...] = ()  # those are in an archive of rows, all other owners in that of the schema
    tablespaces: tuple[str, ...] = ()
    database_bytes: Size = 0  # pg_database_size at the time
    streams: tuple[Stream, ...]
    tables: tuple[Table, ...]
    reference: Stream | None = None  # what else a restored copy is held against; no part of any restore

    @property
    def raw_bytes(self) -> int:
        return sum(stream.raw_bytes for stream in self.streams)

    @property
    def stored_bytes(self) -> int:
        return sum(stream.stored_bytes for stream in self.objects)

    @property
    def objects(self) -> tuple[Stream, ...]:
        """Everything that is stored."""
        return (*self.streams, self.reference) if self.reference is not None else self.streams

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables)

    @property
    def duration(self) -> timedelta:
        return self.finished_at - self.started_at

    @property
    def dump_major(self) -> int:
        """Of the pg_dump that wrote the archives: an older pg_restore can't read them."""
        return int(self.tools.get("pg_dump", str(self.server_major)).split(".")[0])

    def of_kind(self, kind: str) -> list[Stream]:
        return [stream for stream in self.streams if stream.kind == kind]

    @property
    def schema_stream(self) -> Stream:
        return self.of_kind("schema")[0]

    def encode(self) -> bytes:
        """The manifest's JSON, as it is stored and signed."""
        return (json.dumps(self.model_dump(mode="json", by_alias=True), ensure_ascii=False, indent=1) + "\n").encode()


def decode(data: bytes, where: str) -> Manifest:
    """Read a manifest whose signature was checked. Raises IntegrityError naming `where`."""
    try:
        raw = json.loads(data)
        version = raw["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"the manifest {where} is not readable", detail=f"{type(error).__name__}: {error}", hint=_HINT
        ) from error
    if not isinstance(version, int) or version > FORMAT:
        raise IntegrityError(
            f"the manifest {where} has format version {version}, and this backupd reads up to {FORMAT}",
            hint="Use a newer backupd.",
        )
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        detail = f"{place}: {first['msg']}"
        raise IntegrityError(f"the manifest {where} is not readable", detail=detail, hint=_HINT) from error
    if len(manifest.of_kind("schema")) != 1:
        raise IntegrityError(f"the manifest {where} does not name exactly one schema archive", hint=_HINT)
    return manifest
