"""The campaign: one backup, one restore, and for each mutation a copy of its own that is compared with the source."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg import sql

from backupd import config, pipeline, reference
from backupd.catalog import Catalog
from backupd.compare import Found, Question, compare
from backupd.manifest import Manifest
from backupd.postgres.process import Running
from backupd.postgres.properties import apply_properties
from backupd.postgres.server import ThrowawayServer
from backupd.postgres.session import Dsn
from backupd.postgres.target import Server, inspect
from backupd.reference import Reference
from backupd.storage.connect import connect
from tests.mutations.mutations import Mutation
from tests.postgres import drop_database
from tests.site import Site, local_site

SOURCE = (Path(__file__).parent / "source.sql").read_text()
# What only hashes can find.
HASHED = frozenset({"content", "large object content"})


@dataclass
class Books:
    """A backup with hashes of every row, and a right copy of it on another server."""

    site: Site
    server: ThrowawayServer
    base: str  # the right copy, a template
    manifest: Manifest
    reference: Reference
    target: Server = field(init=False)

    def __post_init__(self) -> None:
        self.target = inspect(Dsn(self.server.dsn()))

    @contextmanager
    def copy(self) -> Iterator[str]:
        """One more right copy, for a mutation."""
        name = f"mutant_{os.getpid()}"
        with psycopg.connect(self.server.dsn(), autocommit=True) as connection:
            connection.execute(
                sql.SQL("create database {} template {}").format(sql.Identifier(name), sql.Identifier(self.base))
            )
        try:
            # What CREATE DATABASE does not copy, set by the code of a restore.
            assert apply_properties(self.target, name, self.manifest.properties, owners=True) == []
            yield name
        finally:
            drop_database(self.server, name)

    def compare(self, name: str) -> Found:
        question = Question(
            manifest=self.manifest,
            reference=self.reference,
            copy=Dsn(self.server.dsn(name)),
            copy_major=self.target.major,
            content=True,
        )
        return compare(question, Running())

    def mutated(self, mutation: Mutation) -> dict[str, str]:
        """The checks that fail, and what they say."""
        with self.copy() as name:
            with psycopg.connect(self.server.dsn(name), autocommit=True) as connection:
                connection.execute(mutation.sql.replace(":database", f'"{name}"').encode())
            found = self.compare(name)
        return {c.name: "\n".join([c.detail, *c.items]) for c in found.checks if c.status == "failed"}


@contextmanager
def books(folder: Path, source: ThrowawayServer, target: ThrowawayServer) -> Iterator[Books]:
    """`target` may be of a newer major than `source`, or the same server."""
    name, base = f"books_{os.getpid()}", f"books_copy_{os.getpid()}"
    with psycopg.connect(source.dsn(), autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    try:
        with psycopg.connect(source.dsn(name), autocommit=True) as connection:
            connection.execute(SOURCE.replace(":database", f'"{name}"').encode())
        site = local_site(folder, {"books": source.dsn(name)})
        site.set("fingerprint", '"content"', table="databases.books.verify")
        site.run("backup")
        site.run("restore", "books", "--at", "latest", "--target", target.dsn(base), "--create-roles", "--json")
        given = config.load(site.config, {})
        with closing(connect(given.repository.url, given.s3_settings())) as storage:
            catalog = Catalog(storage, given.trusted_signers())
            manifest = catalog.manifest(catalog.find("books", None))
            assert manifest.reference is not None
            data = pipeline.read(storage, manifest.reference, given.load_identities())
        yield Books(site, target, base, manifest, reference.decode(data, "the reference"))
    finally:
        drop_database(target, base)
        drop_database(source, name)
        for server in (source, target):
            _drop_roles(server)


def _drop_roles(server: ThrowawayServer) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        for role in ("mutant_owner", "mutant_reader"):
            connection.execute(sql.SQL("drop role if exists {}").format(sql.Identifier(role)))
