"""Ways in which a restored copy can silently differ from its source: what is done to it, and who notices.

Each is applied alone, by SQL, to a copy that is otherwise right, between restore and comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Mutation:
    what: str  # in the table of docs/verify.md
    sql: str
    check: str  # the check of the proof that must fail
    named: str  # what its items must name
    level: Literal["rows", "content"] = "rows"  # the lowest that catches it


_HIDDEN = "set session_replication_role = replica;"  # so that triggers and foreign keys keep still

DATA = (
    Mutation("a row is missing", f"{_HIDDEN} delete from m.orders where id = 500", "rows", "m.orders"),
    Mutation(
        "a row is there twice",
        "alter table m.child disable trigger all; insert into m.child select * from only m.child where a = 7",
        "rows",
        "m.child",
    ),
    Mutation("a table is empty", f"{_HIDDEN} truncate m.secrets", "rows", "m.secrets"),
    Mutation("a table has a row too many", "insert into m.empty_one values (1)", "rows", "m.empty_one"),
    Mutation("an unlogged table is empty", "truncate m.fleeting", "rows", "m.fleeting"),
    Mutation(
        "a row is replaced by another",
        "update m.parted set v = 'other' where k = 7",
        "content",
        "m.parted",
        "content",
    ),
    Mutation(
        "one column of one row differs",
        f"{_HIDDEN} update m.orders set note = 'order 13 ' where id = 13",
        "content",
        "m.orders",
        "content",
    ),
    Mutation(
        "one bit of a bytea",
        "update m.customers set photo = set_bit(photo, 77, 1 - get_bit(photo, 77)) where id = 42",
        "content",
        "m.customers",
        "content",
    ),
    Mutation(
        "the last digit of a float",
        "update m.customers set score = score + 1.1102230246251565e-16 where id = 1",
        "content",
        "m.customers",
        "content",
    ),
    Mutation(
        "a numeric's trailing zero",
        f"{_HIDDEN} update m.orders set amount = 11.00 where id = 10",
        "content",
        "m.orders",
        "content",
    ),
    Mutation(
        "NULL in place of an empty text",
        "update m.secrets set what = null where id = 1",
        "content",
        "m.secrets",
        "content",
    ),
    Mutation(
        "a timestamp, by a microsecond",
        "update m.customers set seen = seen + interval '1 microsecond' where id = 3",
        "content",
        "m.customers",
        "content",
    ),
    Mutation(
        "an array's element",
        "update m.customers set tags[2] = 'NULL' where id = 9",
        "content",
        "m.customers",
        "content",
    ),
    Mutation(
        "two rows have swapped a value",
        "update m.secrets set what = case id when 1 then 'y' else 'x' end",
        "content",
        "m.secrets",
        "content",
    ),
    Mutation("a sequence is rewound", "select setval('m.numbers', 495)", "sequence values", "m.numbers"),
    Mutation("a sequence is ahead", "select setval('m.numbers', 505)", "sequence values", "m.numbers"),
    Mutation("a new sequence was used", "select nextval('m.unused')", "sequence values", "m.unused"),
    Mutation("a large object is lost", "select lo_unlink(4712)", "large objects", "large objects"),
    Mutation(
        "a large object's byte",
        "select lo_put(4711, 3000, '\\x00')",
        "large object content",
        "large objects",
        "content",
    ),
    Mutation("a large object's grant", "revoke select on large object 4711 from mutant_reader", "grants", "large"),
)

TABLES = (
    Mutation("a table is missing", "drop table m.empty_one", "tables", "m.empty_one"),
    Mutation("a table that was not there", "create table m.extra (a int)", "tables", "m.extra"),
    Mutation("an unlogged table is logged", "alter table m.fleeting set logged", "tables", "m.fleeting"),
    Mutation("a storage parameter", "alter table m.orders reset (fillfactor)", "tables", "m.orders"),
    Mutation("the replica identity", "alter table m.orders replica identity default", "tables", "m.orders"),
    Mutation("row security is off", "alter table m.secrets disable row level security", "tables", "m.secrets"),
    Mutation("row security is not forced", "alter table m.secrets no force row level security", "tables", "m.secrets"),
    Mutation("a partition is detached", "alter table m.parted detach partition m.parted_high", "tables", "parted_high"),
    Mutation("inheritance is gone", "alter table m.child no inherit m.parent", "tables", "m.child"),
    Mutation("a column default", "alter table m.customers alter name drop default", "columns", "name"),
    Mutation("a column's type", "alter table m.empty_one alter a type bigint", "columns", "empty_one"),
    Mutation("NOT NULL is gone", "alter table m.customers alter name drop not null", "columns", "name"),
    Mutation("an identity column gives always", "alter table m.customers alter id set generated always", "columns", ""),
    Mutation(
        "a generated column's expression",
        "alter table m.customers drop shout; alter table m.customers add shout text"
        " generated always as (lower(name)) stored",
        "columns",
        "shout",
    ),
    Mutation("a statistics target", "alter table m.customers alter name set statistics 10", "columns", "name"),
    Mutation("a column's storage", "alter table m.customers alter photo set storage extended", "columns", "photo"),
    Mutation("a column is missing", "alter table m.child drop b", "columns", "m.child"),
    Mutation("an index is missing", "drop index m.customers_name", "indexes", "customers_name"),
    Mutation(
        "an index is on something else",
        "drop index m.customers_name; create index customers_name on m.customers (name desc)",
        "indexes",
        "customers_name",
    ),
    Mutation(
        "a partial index covers all",
        "drop index m.customers_email; create unique index customers_email on m.customers (lower(email))",
        "indexes",
        "customers_email",
    ),
    Mutation(
        "an index is invalid",
        "update pg_index set indisvalid = false where indexrelid = 'm.customers_name'::regclass",
        "indexes",
        "customers_name",
    ),
    Mutation("a table is not clustered", "alter table m.orders set without cluster", "indexes", "orders_pkey"),
    Mutation("extended statistics are missing", "drop statistics m.customers_stats", "statistics", "customers_stats"),
)

RULES = (
    Mutation("a check constraint is missing", "alter table m.customers drop constraint adult", "constraints", "adult"),
    Mutation(
        "a constraint is left invalid",
        "alter table m.orders drop constraint amount_known;"
        " alter table m.orders add constraint amount_known check (amount >= 0) not valid",
        "constraints",
        "amount_known",
    ),
    Mutation("a constraint was validated", "alter table m.orders validate constraint later", "constraints", "later"),
    Mutation(
        "a foreign key is missing",
        "alter table m.orders drop constraint orders_customer_fkey",
        "constraints",
        "orders_customer_fkey",
    ),
    Mutation(
        "a foreign key acts otherwise",
        "alter table m.orders drop constraint orders_customer_fkey;"
        " alter table m.orders add constraint orders_customer_fkey foreign key (customer) references m.customers",
        "constraints",
        "orders_customer_fkey",
    ),
    Mutation(
        "a primary key is missing", "alter table m.secrets drop constraint secrets_pkey", "constraints", "secrets"
    ),
    Mutation("an exclusion is missing", "alter table m.orders drop constraint no_overlap", "constraints", "no_overlap"),
    Mutation(
        "a domain's check",
        "alter domain m.positive drop constraint positive_check",
        "constraints",
        "positive",
    ),
    Mutation("a trigger is missing", "drop trigger orders_note on m.orders", "triggers", "orders_note"),
    Mutation("a trigger is disabled", "alter table m.orders disable trigger orders_note", "triggers", "orders_note"),
    Mutation(
        "a trigger fires always",
        "alter table m.orders enable always trigger orders_note",
        "triggers",
        "orders_note",
    ),
    Mutation("an event trigger is disabled", "alter event trigger m_watch disable", "event triggers", "m_watch"),
    Mutation("a rule is missing", "drop rule orders_keep on m.orders", "rules", "orders_keep"),
    Mutation("a policy is missing", "drop policy write on m.secrets", "policies", "write"),
    Mutation("a policy lets more through", "alter policy own on m.secrets using (true)", "policies", "own"),
    Mutation("a policy is for everybody", "alter policy own on m.secrets to public", "policies", "own"),
)

CODE = (
    Mutation(
        "a function's body",
        "create or replace function m.twice(int) returns int language sql immutable as 'select $1 * 3'",
        "functions",
        "m.twice",
    ),
    Mutation("a function is volatile", "alter function m.twice(int) volatile", "functions", "m.twice"),
    Mutation("a function runs as its caller", "alter function m.guard() security invoker", "functions", "m.guard"),
    Mutation("a function's settings", "alter function m.note() set search_path = m", "functions", "m.note"),
    Mutation("a procedure is missing", "drop procedure m.tidy()", "functions", "m.tidy"),
    Mutation("an aggregate is missing", "drop aggregate m.total(int)", "functions", "m.total"),
    Mutation("an operator is missing", "drop operator m.@+ (int, int)", "operators", "@+"),
    Mutation("a cast is missing", "drop cast (m.pair as text)", "casts", "pair"),
    Mutation(
        "a view's definition",
        "create or replace view m.rich with (security_barrier) as select id, name from m.customers where balance > 11",
        "views",
        "m.rich",
    ),
    Mutation("a view is no barrier", "alter view m.rich reset (security_barrier)", "views", "m.rich"),
    Mutation(
        "a materialized view is empty",
        "refresh materialized view m.totals with no data",
        "materialized views",
        "totals",
    ),
    Mutation("a materialized view is missing", "drop materialized view m.totals", "materialized views", "totals"),
    Mutation("an enum has a label more", "alter type m.mood add value 'angry' before 'ok'", "types", "m.mood"),
    Mutation("a composite type's attribute", "alter type m.pair alter attribute b type varchar(9)", "types", "m.pair"),
    Mutation("a collation is missing", "drop collation m.plain", "collations", "m.plain"),
    Mutation("a text search configuration", "drop text search configuration m.search", "text search", "m.search"),
    Mutation("an extension is missing", "drop extension citext", "extensions", "citext"),
    Mutation(
        "an extension has another version",
        "drop extension citext; create extension citext with schema m version '1.4'",
        "extensions",
        "citext",
    ),
    Mutation("a sequence counts otherwise", "alter sequence m.numbers increment 6", "sequences", "m.numbers"),
    Mutation("a sequence belongs to nothing", "alter sequence m.orders_id_seq owned by none", "sequences", "orders_id"),
    Mutation("a foreign server's options", "alter server m_server options (set host 'z')", "foreign data", "m_server"),
    Mutation("a foreign table is missing", "drop foreign table m.remote", "tables", "m.remote"),
    Mutation("a publication lost a table", "alter publication m_pub drop table m.orders", "publications", "m_pub"),
    Mutation("a publication says more", "alter publication m_pub set (publish = 'insert, delete')", "publications", ""),
    Mutation("a schema that was not there", "create schema other", "schemas", "other"),
)

RIGHTS = (
    Mutation("a table's owner", "alter table m.orders owner to current_user", "owners", "m.orders"),
    Mutation("a function's owner", "alter function m.twice(int) owner to current_user", "owners", "m.twice"),
    Mutation("a schema's owner", "alter schema m owner to mutant_owner", "owners", "m"),
    Mutation("a grant is missing", "revoke update on m.customers from mutant_reader", "grants", "m.customers"),
    Mutation(
        "a grant cannot be passed on",
        "revoke grant option for select on m.customers from mutant_reader",
        "grants",
        "m.customers",
    ),
    Mutation("a grant too many", "grant select on m.secrets to public", "grants", "m.secrets"),
    Mutation("a column's grant", "revoke select (id) on m.orders from mutant_reader", "grants", "m.orders"),
    Mutation("a schema's grant", "revoke usage on schema m from mutant_reader", "grants", "m"),
    Mutation("what was taken from PUBLIC", "grant execute on procedure m.tidy() to public", "grants", "m.tidy"),
    Mutation(
        "a default privilege",
        "alter default privileges for role mutant_owner in schema m revoke select on tables from mutant_reader",
        "default privileges",
        "mutant_owner",
    ),
    Mutation("a comment", "comment on table m.customers is 'folks'", "comments", "m.customers"),
    Mutation("a column's comment", "comment on column m.orders.note is null", "comments", "m.orders"),
    Mutation("a setting of the database", "alter database :database reset work_mem", "database settings", "work_mem"),
    Mutation("the connection limit", "alter database :database connection limit -1", "database settings", "connection"),
    Mutation("the database's comment", "comment on database :database is null", "database settings", "comment"),
    Mutation("the database's owner", "alter database :database owner to mutant_owner", "database owner and grants", ""),
    Mutation(
        "a grant on the database",
        "revoke connect on database :database from mutant_reader",
        "database owner and grants",
        "mutant_reader",
    ),
)

ALL = (*DATA, *TABLES, *RULES, *CODE, *RIGHTS)
