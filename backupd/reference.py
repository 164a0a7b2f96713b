"""What a restored copy is held against beside the rows in the manifest: the record of the source that lies, encrypted
like the dump, beside each backup. docs/format.md describes each key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backupd.errors import IntegrityError
from backupd.postgres.objects import Inventory
from backupd.postgres.sequences import Span

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Reference:
    """The source in the dump's own snapshot."""

    inventory: Inventory
    sequences: Mapping[str, Span] | None  # by quoted name; None if they could not be read
    bootstrap: str  # the role that initdb made, whose objects a dump does not always name
    probe: str  # how the source's server hashes
    large_objects: tuple[int, str] | None  # how many, and the hash of their bytes; None if they were not hashed

    def encode(self) -> bytes:
        """As JSON. Bytes of a SQL_ASCII database that are no UTF-8 survive as lone surrogates."""
        document = {
            "format": FORMAT,
            "bootstrap": self.bootstrap,
            "probe": self.probe,
            "large_objects": self.large_objects,
            "sequences": None
            if self.sequences is None
            else {name: span.model_dump() for name, span in self.sequences.items()},
            "objects": self.inventory.objects,
            "unread": self.inventory.unread,
        }
        return (json.dumps(document, separators=(",", ":")) + "\n").encode()


def decode(data: bytes, where: str) -> Reference:
    """Read a record that was authenticated. Raises IntegrityError naming `where`."""
    try:
        raw: dict[str, Any] = json.loads(data)
        version = int(raw["format"])
        if version <= FORMAT:
            large, spans = raw["large_objects"], raw["sequences"]
            return Reference(
                inventory=Inventory(_nested(raw["objects"], 3), _nested(raw["unread"], 1)),
                sequences=None if spans is None else {name: Span.model_validate(s) for name, s in spans.items()},
                bootstrap=str(raw["bootstrap"]),
                probe=str(raw["probe"]),
                large_objects=None if large is None else (int(large[0]), str(large[1])),
            )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise IntegrityError(f"{where} is not readable", detail=f"{type(error).__name__}: {error}") from error
    raise IntegrityError(
        f"{where} has format version {version}, and this backupd reads up to {FORMAT}", hint="Use a newer backupd."
    )


def _nested(value: Any, depth: int) -> dict[str, Any]:
    """An object of objects, as many levels deep. Raises TypeError for anything else."""
    if not isinstance(value, dict):
        raise TypeError("its objects are not kinds with names and facts")
    if depth > 1:
        for each in value.values():
            _nested(each, depth - 1)
    return value
