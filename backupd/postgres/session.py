"""Connections to PostgreSQL: for our own SQL, and as arguments and environment for its programs.

A password never stands on a command line: programs get it in their environment.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import psycopg
from psycopg import conninfo

from backupd.errors import ConfigError, PostgresError

# Parameters that must not be seen in a process list. PGPASSWORD has a variable; the others have none.
_SECRET = ("password", "sslpassword", "scram_client_key", "scram_server_key", "oauth_client_secret")
# A peer that vanished is noticed within two minutes, not within the system's two hours. What the operator sets wins.
_PATIENCE = {
    "connect_timeout": "15",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "6",
    "tcp_user_timeout": "90000",
}
_PASSED_ON = ("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TZ", "LD_LIBRARY_PATH")
_PASSED_ON_PREFIXES = ("PG", "SSL_", "KRB5", "GSS")
# These would change what a dump holds or how a program behaves, not how it connects.
_NOT_PASSED_ON = ("PGCLIENTENCODING", "PGDATESTYLE", "PGTZ", "PGGEQO", "PG_COLOR", "PGAPPNAME")


class Dsn:
    """A libpq connection string, URI or key=value. Its repr and its errors never show a password."""

    def __init__(self, text: str) -> None:
        try:
            self._parameters = {key: str(value) for key, value in conninfo.conninfo_to_dict(text).items() if value}
        except psycopg.ProgrammingError:
            raise ConfigError(
                "the connection string cannot be read",
                hint="Use postgresql://user@host:5432/database, or key=value pairs: host=… dbname=… user=…",
            ) from None  # the cause quotes the string
        for key in _SECRET[1:]:
            if key in self._parameters:
                raise ConfigError(
                    f"the connection string sets {key}, which PostgreSQL's programs take only where all can see it",
                    hint="Use a client key without a passphrase and file mode 0600, or a password.",
                )

    def __repr__(self) -> str:
        return f"Dsn({self.shown()!r})"

    @property
    def database(self) -> str | None:
        """The database that the string itself names."""
        return self._parameters.get("dbname")

    @property
    def server(self) -> str:
        """`db.internal:5432`, for messages."""
        host = self._parameters.get("host") or self._parameters.get("hostaddr") or os.environ.get("PGHOST")
        port = self._parameters.get("port") or os.environ.get("PGPORT")
        if "service" in self._parameters and not host:
            return f"service {self._parameters['service']}"
        return f"{host or 'the local socket'}{':' + port if port else ''}"

    def shown(self) -> str:
        """The connection string without its secrets."""
        return conninfo.make_conninfo(**{k: v for k, v in self._parameters.items() if k not in _SECRET})

    def text(self) -> str:
        """All of it, for psycopg only."""
        return conninfo.make_conninfo(**{**_PATIENCE, **self._parameters})

    def replace(self, **changes: str | None) -> Dsn:
        """The same server with other parameters; None removes one."""
        merged = {k: v for k, v in {**self._parameters, **changes}.items() if v is not None}
        return Dsn(conninfo.make_conninfo(**merged))

    def with_options(self, **settings: str) -> Dsn:
        """With these settings from the very start of each session."""
        own = self._parameters.get("options") or os.environ.get("PGOPTIONS", "")
        return self.replace(
            options=" ".join([own, *(f"-c {name}={value}" for name, value in settings.items())]).strip()
        )

    def with_password(self, password: str | None) -> Dsn:
        return self if password is None else self.replace(password=password)

    def pinned(self, connection: psycopg.Connection) -> Dsn:
        """The very server that `connection` reached, where the string names several."""
        changes: dict[str, str | None] = {"dbname": connection.info.dbname}
        if "," in self._parameters.get("host", "") or "," in self._parameters.get("hostaddr", ""):
            changes |= {
                "host": connection.info.host or None,
                "hostaddr": connection.info.hostaddr or None,
                "port": str(connection.info.port),
                "target_session_attrs": None,
                "load_balance_hosts": None,
            }
        return self.replace(**changes)

    def program_argument(self) -> str:
        """For `--dbname=`. Session settings go by the environment, where ours can join them."""
        given = {k: v for k, v in self._parameters.items() if k not in (*_SECRET, "options", "application_name")}
        return conninfo.make_conninfo(**{**_PATIENCE, **given})

    def program_environment(self, **settings: str) -> dict[str, str]:
        """The environment for one of PostgreSQL's programs; `settings` become session settings (PGOPTIONS)."""
        env = {
            key: value
            for key, value in os.environ.items()
            if (key in _PASSED_ON or key.startswith(_PASSED_ON_PREFIXES)) and key not in _NOT_PASSED_ON
        }
        env |= {"LC_ALL": "C", "PGAPPNAME": "backupd"}  # messages we quote and match are in English
        if "password" in self._parameters:
            env["PGPASSWORD"] = self._parameters["password"]
        own = self._parameters.get("options") or env.get("PGOPTIONS", "")
        options = " ".join([own, *(f"-c {name}={value}" for name, value in settings.items())]).strip()
        if options:
            env["PGOPTIONS"] = options
        return env


_SANE = {
    "statement_timeout": "0",
    "transaction_timeout": "0",  # 17 and later
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",  # 14 and later
    "row_security": "off",
    "default_transaction_read_only": "off",
    "DateStyle": "ISO",
    "TimeZone": "UTC",
    # If this host vanishes, the server must notice soon, and let our locks go.
    "tcp_keepalives_idle": "60",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "6",
    "client_connection_check_interval": "10s",  # 14 and later
}


def _secure(connection: psycopg.Connection, settings: Mapping[str, str]) -> None:
    """Nothing that the database's owner made may stand in for what we call: ALTER DATABASE … SET search_path could
    put functions and operators of theirs before the system's, and a login trigger a temporary table in a catalog's
    place. So that goes first, fully qualified; then the settings that this server knows."""
    connection.execute("select pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false)")
    connection.execute(
        "select set_config(name, value, false) from unnest(%s::text[], %s::text[]) as wanted (name, value)"
        " join pg_settings using (name)",
        [list(settings), list(settings.values())],
    )
    row = connection.execute("select current_setting('search_path'), current_setting('row_security')").fetchone()
    if row != ("pg_catalog, pg_temp", "off"):
        raise PostgresError("the session's settings could not be made safe", detail=str(row))


class Interruptible:
    """A session whose query another thread may end."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection

    def kill(self) -> None:
        """Cancel what runs; if the server does not even answer that, cut the connection."""
        try:
            self._connection.cancel_safe(timeout=5)
        except psycopg.Error:
            with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(self._connection.fileno())) as peer:
                peer.shutdown(socket.SHUT_RDWR)


def connect(dsn: Dsn, *, settings: Mapping[str, str] | None = None, autocommit: bool = True) -> psycopg.Connection:
    """A session that waits for nothing forever and is not ended for idling. Raises PostgresError."""
    try:
        connection = psycopg.connect(dsn.text(), autocommit=True, application_name="backupd", client_encoding="utf8")
    except psycopg.Error as error:
        raise PostgresError(
            f"cannot connect to PostgreSQL at {dsn.server}",
            detail=str(error).strip(),
            hint=_connection_hint(str(error)),
        ) from error
    with explained("cannot set up a session"):
        _secure(connection, _SANE | dict(settings or {}))
        connection.autocommit = autocommit
    return connection


@contextmanager
def explained(message: str, *, hint: str = "") -> Iterator[None]:
    """What the server refuses inside this block becomes a PostgresError with this message."""
    try:
        yield
    except psycopg.Error as error:
        raise PostgresError(message, detail=describe(error), hint=hint or _hint(error)) from error


def describe(error: psycopg.Error) -> str:
    diagnostic = error.diag
    if not diagnostic.message_primary:
        return str(error).strip()
    parts = [f"{diagnostic.severity}: {diagnostic.message_primary}", diagnostic.message_detail, diagnostic.context]
    return "\n".join(part for part in parts if part)


def _connection_hint(text: str) -> str:
    if "too many clients" in text or "remaining connection slots" in text:
        return "The server has no connection to spare: end some sessions, or raise max_connections."
    if "password" in text:
        return "Check user and password: password_file (not for --target), the dsn's own, PGPASSWORD or ~/.pgpass."
    if "Connection refused" in text or "No such file" in text or "timeout" in text:
        return "Is the server running, and are host and port of the dsn right?"
    if "does not exist" in text:
        return "Correct the name in the dsn."
    if "pg_hba.conf" in text:
        return "The server's pg_hba.conf must let this host and user in."
    return "Check the dsn, the password (password_file or ~/.pgpass) and pg_hba.conf on the server."


def _hint(error: psycopg.Error) -> str:
    if error.diag.message_hint:
        return error.diag.message_hint
    if "row-level security" in (error.diag.message_primary or ""):
        return "The user needs BYPASSRLS, or must own the table: a dump must see every row."
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return "Grant the user what is missing: GRANT pg_read_all_data TO … (PostgreSQL 14 and later) reads everything."
    if isinstance(error, psycopg.errors.AdminShutdown | psycopg.errors.CrashShutdown) or error.diag.sqlstate is None:
        return "The connection to the server was lost. Run it again when the server is back."
    return ""
