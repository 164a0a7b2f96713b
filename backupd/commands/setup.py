"""`backupd init` and `backupd check`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from backupd import console
from backupd.commands import opening
from backupd.config_models import Database
from backupd.console import Style
from backupd.errors import BackupdError, ConfigError


def init(style: Style, path: str | None, repository: str | None, databases: Sequence[str]) -> None:
    from backupd.init import IDENTITY_NAME
    from backupd.init import init as write

    pairs: dict[str, str] = {}
    for text in databases:
        name, equals, dsn = text.partition("=")
        if not equals or not name or not dsn or name in pairs:
            raise ConfigError(
                "--database takes NAME=DSN, each name once",
                hint="--database shop=postgresql://backupd@db.internal/shop",
            )
        pairs[name] = dsn
    result = write(Path(path or "backupd.toml"), repository, pairs)
    for created in result.files:
        console.emit(str(created))
    identity = next(file for file in result.files if file.name == IDENTITY_NAME)
    console.say(style, f"Keep a copy of {identity} somewhere else: without it no backup can be opened.", "warning")
    console.say(style, f"Next: backupd --config {result.config} check")


def check(path: str | None, databases: Sequence[str], as_json: bool) -> int:
    from backupd import discovery
    from backupd.check import examine
    from backupd.daemon import telling
    from backupd.finding import Finding, failed

    config = opening.load(path)
    chosen: list[Database] = [config.database(name) for name in databases]
    troubles: dict[str, BackupdError] = {}
    if not databases:
        found = discovery.every(config)
        chosen, troubles = list(found.databases.values()), found.troubles

    def messages() -> Iterator[Finding]:
        if config.notify.urls:
            try:
                telling.check(config.notify)
                yield Finding(
                    "messages", "ok", f"{len(config.notify.urls)} addresses that apprise knows; nothing was sent"
                )
            except ConfigError as error:
                yield failed("messages", error)

    worst, rows = 0, []
    server = examine(config, chosen, [opening.dsn(each) for each in chosen], troubles)
    for finding in chain(server, messages()):
        worst = worst or finding.exit_code
        rows.append({"name": finding.name, "status": finding.status, "detail": finding.detail, "hint": finding.hint})
        if not as_json:
            hint = f"\n         {finding.hint}" if finding.hint and finding.status != "ok" else ""
            console.emit(f"{finding.status:<7}  {finding.name}: {finding.detail}{hint}")
    if as_json:
        console.emit_json(rows)
    return worst
