"""What a configuration holds: one frozen model per TOML table, every key with its default.

The models check what keys of one table say about each other; single values are config_types.py's. Files, environment
variables and messages are the business of config_source.py and config.py. Secrets are SecretStr: no repr, no str.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Literal, Self, get_args
from urllib.parse import quote, urlsplit
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    SecretStr,
    field_validator,
    model_validator,
)

from backupd.config_types import (
    EPHEMERAL,
    Command,
    Count,
    Dsn,
    Duration,
    FilePath,
    Password,
    ScheduleText,
    Texts,
    Url,
    at_least_a_second,
    at_least_an_hour,
    checked_scratch,
    has_password,
    not_nothing,
    parsed_by,
    problem,
)
from backupd.config_values import (
    Address,
    Compression,
    Window,
    parse_address,
    parse_compression,
    parse_duration,
    parse_size,
    parse_timezone,
    parse_window,
)

# What makes a throw-away server reachable for us alone.
_OURS = frozenset({"listen_addresses", "port", "unix_socket_directories", "data_directory", "hba_file", "config_file"})


class Table(BaseModel):
    """A TOML table: its keys and no others, of exactly these types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class Repository(Table):
    """[repository]: where backups are kept. Everything but `url` is for S3."""

    url: str  # s3://BUCKET[/PREFIX] or file:///FOLDER
    endpoint_url: str | None = None  # default: Amazon's own
    region: str | None = None
    profile: str | None = None  # of ~/.aws/config
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    storage_class: str | None = None
    checksums: Literal["auto", "when_supported", "when_required"] = "auto"
    ca_bundle: FilePath | None = None
    access_key_id: Password | None = None
    secret_access_key: Password | None = None
    session_token: Password | None = None

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        # Only the shape: storage.connect has the last word. Not urlsplit: prefixes may hold `?` and `#`.
        scheme, _, rest = value.partition("://")
        place, _, path = rest.partition("/")
        if "@" in place:
            raise problem("holds a key; put it into access_key_id and secret_access_key_file")
        s3 = scheme == "s3" and re.fullmatch(r"[A-Za-z0-9._-]{3,63}", place)
        local = scheme == "file" and place in ("", "localhost") and path.strip("/")
        if not (s3 or local):
            raise ValueError('expected "s3://BUCKET", "s3://BUCKET/PREFIX" or "file:///FOLDER"')
        return value

    @field_validator("endpoint_url")
    @classmethod
    def _check_endpoint(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
        except ValueError:
            parts = urlsplit("")
        if "@" in parts.netloc:
            raise problem("holds a key; put it into access_key_id and secret_access_key_file")
        if parts.scheme not in ("https", "http") or not parts.netloc:
            raise ValueError('expected "https://HOST" or "http://HOST:PORT"')
        return value

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise problem("access_key_id and secret_access_key belong together, and only one is given")
        return self


class Encryption(Table):
    """[encryption]: who can open backups, and whose backups are believed."""

    recipients: Texts = ()
    identity_file: FilePath | None = None
    signing_key_file: FilePath | None = None
    trusted_signers: Texts = ()

    # Only the shape is checked here: enough to keep a secret key, pasted by mistake, out of everything printed.
    @field_validator("recipients")
    @classmethod
    def _check_recipients(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(text.upper().startswith("AGE-SECRET-KEY-") for text in value):
            raise problem("holds a secret key (AGE-SECRET-KEY-…); public keys belong here, they start with age1")
        if not all(text.startswith("age1") for text in value):
            raise problem('expected age public keys, "age1…"')
        return value

    @field_validator("trusted_signers")
    @classmethod
    def _check_signers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(text.startswith("RW") and len(text) == 56 for text in value):
            raise problem('expected minisign public keys, "RW" and 54 characters: the second line of signing.pub')
        return value


class Retention(Table):
    """Which backups stay: what any of the rules keeps. 0: the rule is off."""

    keep_last: Count = 0
    keep_within: Annotated[timedelta, parsed_by(parse_duration), AfterValidator(not_nothing)] | None = None
    hourly: Count = 0
    daily: Count = 0
    weekly: Count = 0
    monthly: Count = 0
    yearly: Count = 0

    @model_validator(mode="after")
    def _check_any(self) -> Self:
        if not any(getattr(self, rule) for rule in type(self).model_fields):
            raise problem("has no rule; give one, such as keep_last = 7, or leave retention out to keep every backup")
        return self


class Check(Table):
    """An assertion on the restored copy: `sql` must return one true."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    sql: Annotated[str, Field(min_length=1)]


class Anomalies(Table):
    """What is too large a change against the last proven backups."""

    max_shrink: Annotated[int, Field(ge=1, le=100)] = 50  # percent of a table's or the database's rows, or of all bytes
    min_rows: Count = 10  # tables that had fewer may shrink by any share
    ignore: Texts = ()  # patterns of tables that come and go as they like: "public.queue_*"


class Verify(Table):
    """How a backup is proven."""

    schedule: ScheduleText | None = None  # default: none
    scratch: Annotated[SecretStr, AfterValidator(checked_scratch)] = SecretStr(EPHEMERAL)
    scratch_folder: FilePath | None = None  # where a throw-away server keeps its data; default: the temporary folder
    scratch_settings: dict[str, str] = {}  # of a throw-away server's postgresql.conf
    fingerprint: Literal["rows", "content", "off"] = "rows"
    checks: Annotated[tuple[Check, ...], Field(strict=False)] = ()
    check_timeout: Annotated[timedelta, parsed_by(parse_duration), AfterValidator(at_least_a_second)] = timedelta(
        seconds=60
    )
    anomalies: Anomalies = Anomalies()

    @field_validator("scratch_settings")
    @classmethod
    def _check_settings(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)?", name):
                raise problem("has a name that is no setting of PostgreSQL")
            if name.lower() in _OURS:
                raise problem(f"sets {name.lower()}, which keeps the throw-away server private")
        return value

    @field_validator("checks")
    @classmethod
    def _check_names(cls, value: tuple[Check, ...]) -> tuple[Check, ...]:
        if len({check.name for check in value}) < len(value):
            raise problem("has two checks of the same name; results are told apart by it")
        return value

    @property
    def scratch_dsn(self) -> SecretStr | None:
        """Where to create scratch databases; None: on a throw-away server of this machine."""
        return None if self.scratch.get_secret_value() == EPHEMERAL else self.scratch


class Hooks(Table):
    """Programs that run before and after each backup: argv lists, no shell."""

    before: Command = ()
    after: Command = ()
    timeout: Annotated[timedelta, parsed_by(parse_duration), AfterValidator(not_nothing)] = timedelta(minutes=5)


class Defaults(Table):
    """[defaults]: any key of a database, but its dsn."""

    password: Password | None = None
    schedule: ScheduleText | None = None  # default: none, backups are made by `backupd backup`
    timezone: Annotated[InstanceOf[ZoneInfo], parsed_by(parse_timezone)] = ZoneInfo("UTC")
    jobs: Annotated[int, Field(ge=1, le=64)] = 2
    compression: Annotated[InstanceOf[Compression], parsed_by(parse_compression)] = Compression("zstd", 1)
    lock_wait_timeout: Annotated[timedelta, parsed_by(parse_duration), AfterValidator(at_least_a_second)] = timedelta(
        seconds=30
    )
    large_table_size: Annotated[int, parsed_by(parse_size)] = 64 << 20  # bytes
    retention: Retention | None = None  # default: every backup stays
    leftover_grace: Annotated[timedelta, parsed_by(parse_duration), AfterValidator(at_least_an_hour)] = timedelta(
        days=2
    )  # how old the leftovers of a failed backup must be to be removed: longer than any backup runs
    max_duration: Annotated[Duration, AfterValidator(not_nothing)] = timedelta(days=1)  # of a job of the daemon
    window: Annotated[InstanceOf[Window], parsed_by(parse_window)] | None = None  # when the daemon may begin a backup
    give_way_after: Duration = timedelta(minutes=10)  # of others' waiting for a backup's locks; 0: never
    bandwidth_limit: Annotated[int, parsed_by(parse_size)] = 0  # bytes a second to the storage; 0: no limit
    hooks: Hooks = Hooks()
    ping_url: Url | None = None  # of a dead man's switch, told of each scheduled backup
    verify: Verify = Verify()


class DatabaseTable(Defaults):
    """[databases.NAME] as written."""

    dsn: Dsn

    @model_validator(mode="after")
    def _check_password(self) -> Self:
        if self.password is not None and has_password(self.dsn):
            raise problem("there is a password in dsn and another in password; keep one")
        return self


class Database(DatabaseTable):
    """A database with the defaults merged in. `dsn` holds its password, if `password` is None and it has one."""

    name: str


class ClusterTable(DatabaseTable):
    """[clusters.NAME]: every database of a server that the patterns take, as CLUSTER.DATABASE."""

    include: Texts = ("*",)
    exclude: Texts = ("postgres", "*_restored_*Z", "*_replaced_*Z")


class Cluster(ClusterTable):
    """A cluster with the defaults merged in."""

    name: str


def member(cluster: Cluster, database: str) -> Database:
    """A database of a cluster, with the cluster's keys. Its name is CLUSTER.DATABASE, percent-encoded."""
    values = {name: getattr(cluster, name) for name in Database.model_fields if name not in ("name", "dsn")}
    from psycopg.conninfo import make_conninfo

    dsn = make_conninfo(cluster.dsn.get_secret_value(), dbname=database)
    return Database.model_construct(name=member_name(cluster.name, database), dsn=SecretStr(dsn), **values)


def member_name(cluster: str, database: str) -> str:
    """What a database of a cluster is called here: in commands, in the repository, in metrics."""
    return f"{cluster}.{quote(database, safe='').replace('~', '%7E')}"


class Daemon(Table):
    """[daemon]: how `backupd run` goes about it."""

    jobs: Annotated[int, Field(ge=1, le=64)] = 2  # at the same time
    jitter: Duration = timedelta(seconds=30)  # over which the jobs of one slot are spread
    retries: Annotated[int, Field(ge=0, le=100)] = 3
    retry_delay: Annotated[Duration, AfterValidator(not_nothing)] = timedelta(minutes=1)  # doubled with each attempt
    refresh: Annotated[Duration, AfterValidator(at_least_a_second)] = timedelta(minutes=5)
    shutdown_timeout: Duration = timedelta(seconds=30)  # in which running jobs may finish


class Notify(Table):
    """[notify]: who is told of failures, recoveries and failed proofs."""

    urls: Annotated[tuple[SecretStr, ...], Field(strict=False)] = ()  # as apprise has them


class Postgres(Table):
    """[postgres]: where programs are looked for first, before PATH and the usual folders."""

    bin_dirs: Annotated[tuple[FilePath, ...], Field(strict=False)] = ()


class Server(Table):
    """[server]: metrics, health and the status page. Anybody on this machine may look, unless there are tokens or
    users; from other machines only those who have one."""

    listen: Annotated[InstanceOf[Address], parsed_by(parse_address)] = Address("127.0.0.1", 9847)
    hosts: Texts = ()  # names by which it is reached, beside localhost and addresses
    tls_certificate_file: FilePath | None = None  # PEM: its own, then those that vouch for it
    tls_key_file: FilePath | None = None
    plain_http: bool = False  # unencrypted also where others can reach it
    tokens_sha256: Texts = ()  # SHA-256 of bearer tokens, in hexadecimal digits
    users: dict[str, str] = {}  # name to the bcrypt hash of a password, for basic authentication

    @field_validator("tokens_sha256")
    @classmethod
    def _check_tokens(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(re.fullmatch(r"[0-9a-f]{64}", text) for text in value):
            raise problem("expected SHA-256 in 64 hexadecimal digits, as `printf %s TOKEN | sha256sum` prints")
        return value

    @field_validator("users")
    @classmethod
    def _check_users(cls, value: dict[str, str]) -> dict[str, str]:
        if not all(re.fullmatch(r"\$2[aby]\$(0[4-9]|1[0-6])\$[./A-Za-z0-9]{53}", text) for text in value.values()):
            raise problem('expected bcrypt hashes, "$2y$…", of a cost up to 16, as `htpasswd -nB NAME` prints them')
        if any(not name or ":" in name for name in value):
            raise problem("has a name that is empty or holds a colon")
        return value

    @model_validator(mode="after")
    def _check_doors(self) -> Self:
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            raise problem("tls_certificate_file and tls_key_file belong together, and only one is given")
        if self.listen.is_loopback:
            return self
        if self.tls_key_file is None and not self.plain_http:
            raise problem(
                "listens where other machines can reach it: give tls_certificate_file and tls_key_file,"
                " or plain_http = true where something else encrypts"
            )
        if not (self.tokens_sha256 or self.users):
            raise problem("listens where other machines can reach it: give tokens_sha256 or users")
        return self


class Document(Table):
    """The whole file."""

    repository: Repository
    encryption: Encryption = Encryption()
    defaults: Defaults = Defaults()
    databases: dict[str, DatabaseTable] = {}
    clusters: dict[str, ClusterTable] = {}
    daemon: Daemon = Daemon()
    notify: Notify = Notify()
    postgres: Postgres = Postgres()
    server: Server = Server()


def secret_keys(model: type[BaseModel]) -> frozenset[str]:
    """The keys of a table whose value is a secret, and which may be given as KEY_file instead."""
    return frozenset(name for name, field in model.model_fields.items() if _is_secret(field.annotation))


def _is_secret(annotation: object) -> bool:
    return annotation is SecretStr or any(_is_secret(part) for part in get_args(annotation))
