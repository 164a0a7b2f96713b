"""A backup and a restore through the command line: the main road, on local storage and on S3."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from backupd.postgres.server import ThrowawayServer
from tests.postgres import NewDatabase, client_for, drop_database, dump_sql
from tests.seaweed import SeaweedServer
from tests.site import Site, local_site, s3_site

SHOP = """
create table customers (id int primary key, name text not null);
create table orders (id bigserial primary key, customer int references customers, total numeric);
insert into customers select g, 'customer ' || g from generate_series(1, 500) g;
insert into orders (customer, total) select 1 + g % 500, g / 7.0 from generate_series(1, 20000) g;
create index on orders (customer);
create materialized view totals as select customer, sum(total) from orders group by 1;
"""


@pytest.fixture(params=["local", "s3"])
def shop(request: pytest.FixtureRequest, tmp_path: Path, pg15: ThrowawayServer, new_database: NewDatabase) -> Site:
    dsn = new_database(pg15, "shop")
    with psycopg.connect(dsn) as connection:
        connection.execute(SHOP)
    if request.param == "local":
        return local_site(tmp_path, {"shop": dsn})
    server: SeaweedServer = request.getfixturevalue("s3_server")
    return s3_site(tmp_path, server, request.getfixturevalue("s3_bucket"), {"shop": dsn})


def test_restored_database_is_the_same(shop: Site, pg15: ThrowawayServer) -> None:
    (made,) = shop.run("backup", "--json").json
    assert (made["rows"], made["tables"]) == (20500, 2)
    plan = shop.run("restore", "shop", "--at", "latest", "--into", "shop_back", "--json").json
    try:
        assert plan["id"] == made["id"]
        client = client_for(pg15)
        assert dump_sql(client, pg15.dsn("shop_back")) == dump_sql(client, pg15.dsn("shop"))
    finally:
        drop_database(pg15, "shop_back")
