-- What can go wrong with a copy, and what a comparison with its source must say of it: the check, and the whole line.
-- Statements for the torture database on PostgreSQL 18, each group in a transaction that is given up.

-- schema missing
drop schema empty_schema;
--> schemas | schema empty_schema: missing

-- schema extra
create schema surplus;
--> schemas | schema surplus: is not in the source

-- schema owner
alter schema hidden owner to torture_reader;
--> owners | schema hidden: owner is 'torture_reader', and was 'postgres'

-- schema grant
revoke usage on schema torture from torture_grantor;
--> grants | schema torture: lacks grants USAGE to torture_grantor (by torture_owner)

-- grant on public
revoke create on schema public from torture_writer;
--> grants | schema public: lacks grants CREATE to torture_writer (by pg_database_owner)

-- schema comment
comment on schema public is 'theirs';
--> comments | schema public: comment is 'theirs', and was 'ours, too'

-- table missing
drop table torture.triggered cascade;
--> tables | table torture.triggered: missing
--> views | view torture.checked: missing
--> views | view torture.checked_twice: missing
--> views | view torture.grouped_by_key: missing
--> views | view torture.on_grouped: missing
--> materialized views | materialized view torture.mat_on_key: missing
--> rules | rule log_it on torture.ruled: missing

-- table extra
create table torture.surplus (a int);
--> tables | table torture.surplus: is not in the source

-- table owner
alter table torture.wide owner to torture_owner;
--> owners | table torture.wide: owner is 'torture_owner', and was 'postgres'
--> owners | sequence torture.wide_id_seq: owner is 'torture_owner', and was 'postgres'

-- table grant revoked
revoke select on torture.wide from torture_reader;
--> grants | table torture.wide: lacks grants SELECT to torture_reader (by postgres)

-- table grant extra
grant delete on torture.wide to public;
--> grants | table torture.wide: has also grants DELETE to PUBLIC (by postgres)

-- grant option
set local role torture_grantor;
revoke grant option for select on torture.serials from torture_writer cascade;
reset role;
--> grants | table torture.serials: lacks grants SELECT* to torture_writer (by torture_grantor), SELECT to torture_owner (by torture_writer) and has also grants SELECT to torture_writer (by torture_grantor)

-- column grant
revoke update (c) on torture.serials from torture_reader;
--> grants | column torture.serials.c: lacks grants UPDATE to torture_reader (by "torture_Odd ""Röle"" \ 1")

-- table comment
comment on table torture.wide is null;
--> comments | table torture.wide: comment is nothing, and was 'several lines\n-- not a comment\n\connect postgres\n\.\n\t'quoted' $$ ; äöü 🐘'

-- column comment
comment on column torture.wide.payload is 'else';
--> comments | column torture.wide.payload: comment is 'else', and was '\'

-- row security off
alter table torture.secured disable row level security;
--> tables | table torture.secured: row security is no, and was yes

-- row security not forced
alter table torture.secured no force row level security;
--> tables | table torture.secured: forced row security is no, and was yes

-- replica identity
alter table torture.defaults replica identity default;
--> tables | table torture.defaults: replica identity is nothing, and was 'full'

-- replica identity index
alter table torture.several replica identity default;
--> tables | table torture.several: replica identity is nothing, and was 'index torture.several_identity'

-- storage parameters
alter table torture.defaults reset (fillfactor);
--> tables | table torture.defaults: lacks options fillfactor=55

-- toast parameters
alter table torture.defaults reset (toast.autovacuum_enabled);
--> tables | table torture.defaults: lacks toast options autovacuum_enabled=false

-- unlogged
alter table torture.unlogged set logged;
--> tables | table torture.unlogged: persistence is nothing, and was 'unlogged'
--> sequences | sequence torture.unlogged_id_seq: persistence is nothing, and was 'unlogged'

-- access method
alter table torture.other_method set access method heap;
--> tables | table torture.other_method: access method is 'heap', and was 'torture_heap'

-- inheritance
alter table torture.adopted no inherit torture.mother;
--> tables | table torture.adopted: lacks parents torture.mother

-- partition detached
alter table torture.parted_enum detach partition torture.parted_enum_1;
--> tables | table torture.parted_enum_1: bound is nothing, and was 'FOR VALUES WITH (modulus 2, remainder 1)'; lacks parents torture.parted_enum

-- partition bound
alter table torture.mixed detach partition torture.mixed_1;
alter table torture.mixed attach partition torture.mixed_1 for values in (1, 3);
--> tables | table torture.mixed_1: bound is 'FOR VALUES IN (1, 3)', and was 'FOR VALUES IN (1)'

-- of type
alter table torture.typed not of;
--> tables | table torture.typed: of type is nothing, and was 'torture.pair'

-- clustered index
alter table torture.wide set without cluster;
--> indexes | index torture.wide_kind: clustered is no, and was yes

-- column default
alter table torture.defaults alter nn set default 1;
--> columns | column torture.defaults.nn: default is '1', and was '0'

-- column default dropped
alter table torture.defaults alter nn drop default;
--> columns | column torture.defaults.nn: default is nothing, and was '0'

-- column type
alter table torture.indexed alter g type timestamp(3) with time zone;
--> columns | column torture.indexed.g: type is 'timestamp(3) with time zone', and was 'timestamp with time zone'

-- column not null
alter table torture.wide alter raw drop not null;
--> columns | column torture.wide.raw: not null is no, and was yes

-- column added
alter table torture.wide add surplus int;
--> columns | column torture.wide.surplus: is not in the source

-- column dropped
alter table torture.toasted drop raw;
--> columns | column torture.toasted.raw: missing

-- column order
alter table torture.toasted add again bytea;
alter table torture.toasted drop raw;
alter table torture.toasted rename again to raw;
alter table torture.toasted add again text;
alter table torture.toasted drop body;
alter table torture.toasted rename again to body;
--> columns | column torture.toasted.body: position is 3, and was 2
--> columns | column torture.toasted.raw: position is 2, and was 3

-- generated expression
alter table torture.defaults alter doubled set expression as (func * 3);
--> columns | column torture.defaults.doubled: default is '(func * 3)', and was '(func * 2)'

-- generated no more
alter table torture.defaults alter doubled drop expression;
--> columns | column torture.defaults.doubled: default is nothing, and was '(func * 2)'; generated is nothing, and was 'stored'

-- identity kind
alter table torture.defaults alter always set generated by default;
--> columns | column torture.defaults.always: identity is 'by default', and was 'always'

-- collation of a column
alter table torture.copied alter id type text collate "C";
--> columns | column torture.copied.id: collation is 'pg_catalog."C"', and was nothing; type is 'text', and was 'integer'

-- storage
alter table torture.defaults alter stored_main set storage extended;
--> columns | column torture.defaults.stored_main: storage is nothing, and was 'm'

-- compression
alter table torture.defaults alter compressed set compression default;
--> columns | column torture.defaults.compressed: compression is nothing, and was 'pglz'

-- statistics target
alter table torture.defaults alter stats set statistics -1;
--> columns | column torture.defaults.stats: statistics is nothing, and was 321

-- column options
alter table torture.defaults alter opts reset (n_distinct);
--> columns | column torture.defaults.opts: lacks options n_distinct=-0.25

-- primary key
alter table torture.set_some drop constraint set_some_pkey;
--> constraints | constraint set_some_pkey on torture.set_some: missing

-- check constraint
alter table torture.constrained drop constraint no_inherit;
--> constraints | constraint no_inherit on torture.constrained: missing

-- foreign key
alter table torture.chicken drop constraint from_egg;
--> constraints | constraint from_egg on torture.chicken: missing

-- foreign key deferred
alter table torture.chicken alter constraint from_egg initially deferred;
--> constraints | constraint from_egg on torture.chicken: definition is 'FOREIGN KEY (egg) REFERENCES torture.egg(id) DEFERRABLE INITIALLY DEFERRED', and was 'FOREIGN KEY (egg) REFERENCES torture.egg(id) DEFERRABLE'

-- constraint unvalidated
update pg_constraint set convalidated = false where conname = 'heavy' and conrelid = 'torture.father'::regclass;
--> constraints | constraint heavy on torture.father: definition is 'CHECK ((weight > (0)::numeric)) NOT VALID', and was 'CHECK ((weight > (0)::numeric))'

-- constraint validated
alter table torture.on_18 validate constraint a_later;
--> constraints | constraint a_later on torture.on_18: definition is 'NOT NULL a', and was 'NOT NULL a NOT VALID'

-- constraint enforced
delete from torture.on_18_unenforced;
alter table torture.on_18_unenforced alter constraint on_18_unenforced_a_fkey enforced;
--> constraints | constraint on_18_unenforced_a_fkey on torture.on_18_unenforced: definition is 'FOREIGN KEY (a) REFERENCES torture.wide(id)', and was 'FOREIGN KEY (a) REFERENCES torture.wide(id) NOT ENFORCED'

-- constraint comment
comment on constraint no_overlap on torture.constrained is null;
--> comments | constraint no_overlap on torture.constrained: comment is nothing, and was 'rooms'

-- index missing
drop index torture.partial;
--> indexes | index torture.partial: missing

-- index extra
create index surplus on torture.wide (payload);
--> indexes | index torture.surplus: is not in the source

-- index invalid
update pg_index set indisvalid = false where indexrelid = 'torture.partial'::regclass;
--> indexes | index torture.partial: invalid is yes, and was no

-- index changed
drop index torture.wide_kind;
create index wide_kind on torture.wide (kind desc);
alter table torture.wide cluster on wide_kind;
--> indexes | index torture.wide_kind: definition is 'CREATE INDEX wide_kind ON torture.wide USING btree (kind DESC)', and was 'CREATE INDEX wide_kind ON torture.wide USING btree (kind)'

-- index parameters
alter index torture.covering_index set (fillfactor = 81);
--> indexes | index torture.covering_index: definition has ', g) NULLS NOT DISTINCT WITH (deduplicate_items=off, fillfactor='81')' at character 111, and had ', g) NULLS NOT DISTINCT WITH (fillfactor='80', deduplicate_items=off)'

-- index statistics
alter index torture.expression alter column 2 set statistics 78;
--> indexes | index torture.expression: statistics 2 is 78, and was 77

-- index no longer attached
delete from pg_inherits where inhrelid = 'torture.own_index'::regclass;
--> indexes | index torture.own_index: parent is nothing, and was 'torture.parted_id_at'

-- statistics missing
drop statistics torture.stat_all;
--> statistics | statistics torture.stat_all: missing

-- statistics target of an object
alter statistics torture.stat_some set statistics 3;
--> statistics | statistics torture.stat_some: target is 3, and was 333

-- trigger missing
drop trigger plain on torture.triggered;
--> triggers | trigger plain on torture.triggered: missing

-- trigger disabled
alter table torture.triggered disable trigger plain;
--> triggers | trigger plain on torture.triggered: enabled is 'D', and was 'O'

-- trigger on a partition
alter table torture.parted_2020 enable trigger on_parts;
--> triggers | trigger on_parts on torture.parted_2020: enabled is 'O', and was 'D'

-- event trigger disabled
alter event trigger torture_event disable;
--> event triggers | event trigger torture_event: enabled is 'D', and was 'O'

-- event trigger missing
drop event trigger torture_event_off;
--> event triggers | event trigger torture_event_off: missing

-- rule disabled
alter table torture.ruled disable rule never;
--> rules | rule never on torture.ruled: enabled is 'D', and was 'A'

-- rule changed
create or replace rule never as on delete to torture.ruled do instead select 1;
--> rules | rule never on torture.ruled: definition is 'CREATE RULE never AS\n    ON DELETE TO torture.ruled DO INSTEAD  SELECT 1 AS "?column?";', and was 'CREATE RULE never AS\n    ON DELETE TO torture.ruled DO INSTEAD NOTHING;'

-- policy missing
drop policy inserts on torture.secured;
--> policies | policy inserts on torture.secured: missing

-- policy roles
alter policy readers on torture.secured to torture_reader;
--> policies | policy readers on torture.secured: lacks roles "torture_Odd ""Röle"" \ 1"

-- policy expression
alter policy inserts on torture.secured with check (level > 1);
--> policies | policy inserts on torture.secured: check is '(level > 1)', and was 'true'

-- view changed
create or replace view torture.simple as select id, kind + 0 as "Kind ""of""" from torture.wide;
--> views | view torture.simple: definition is ' SELECT id,\n    (kind + 0) AS "Kind ""of"""\n   FROM torture.wide;', and was ' SELECT id,\n    kind AS "Kind ""of"""\n   FROM torture.wide;'

-- view options
alter view torture.barrier reset (security_barrier);
--> views | view torture.barrier: lacks options security_barrier=true

-- view check option
alter view torture.checked set (check_option = cascaded);
--> views | view torture.checked: lacks options check_option=local and has also options check_option=cascaded

-- view default
alter view torture.checked alter a drop default;
--> columns | column torture.checked.a: default is nothing, and was '5'

-- view owner
alter view torture.joined owner to torture_owner;
--> owners | view torture.joined: owner is 'torture_owner', and was 'postgres'

-- materialized view empty
refresh materialized view torture.mat_on_key with no data;
--> materialized views | materialized view torture.mat_on_key: unpopulated is yes, and was no

-- materialized view changed
drop materialized view torture.mat_on_key;
create materialized view torture.mat_on_key as select * from torture.on_grouped where id > 1;
--> materialized views | materialized view torture.mat_on_key: definition is ' SELECT id,\n    owner,\n    count\n   FROM torture.on_grouped\n  WHERE (id > 1);', and was ' SELECT id,\n    owner,\n    count\n   FROM torture.on_grouped;'

-- sequence increment
alter sequence torture.seq_plain increment 2;
--> sequences | sequence torture.seq_plain: increment is 2, and was 1

-- sequence owned by
alter sequence torture.wide_id_seq owned by none;
--> sequences | sequence torture.wide_id_seq: owned by is nothing, and was 'torture.wide.id'

-- sequence cycle
alter sequence torture.seq_down no cycle;
--> sequences | sequence torture.seq_down: cycle is no, and was yes

-- function body
create or replace function torture.trap_after() returns trigger language plpgsql as $$ BEGIN RETURN NEW; END $$;
--> functions | function torture.trap_after(): body is ' BEGIN RETURN NEW; END ', and was ' BEGIN RETURN NULL; END '

-- function volatility
alter function torture.is_short(text) stable;
--> functions | function torture.is_short(text): volatility is 'stable', and was 'immutable'

-- function definer
alter function torture.lines(int) security invoker;
--> functions | function torture.lines(integer): security definer is no, and was yes

-- function setting
alter function torture.lines(int) set work_mem = '8MB';
--> functions | function torture.lines(integer): lacks settings work_mem=7MB and has also settings work_mem=8MB

-- function owner
alter function torture.trap() owner to torture_owner;
--> owners | function torture.trap(): owner is 'torture_owner', and was 'postgres'

-- function grant
grant execute on function torture.trap() to public;
--> grants | function torture.trap(): has also grants EXECUTE to PUBLIC (by postgres)

-- function missing
drop function torture.poly;
--> functions | function torture.poly(anyelement, anyarray): missing

-- procedure
create or replace procedure torture.proc_atomic(a int) begin atomic select 1; end;
--> functions | function torture.proc_atomic(integer): body is 'BEGIN ATOMIC\n SELECT 1;\nEND', and was 'BEGIN ATOMIC\n SELECT torture.add(a, 3) AS add;\n SELECT 1;\nEND'

-- default of an argument
create or replace function torture.add(a text, b text default 'other') returns text language sql stable as $$ SELECT a || b $$;
--> functions | function torture.add(text, text): arguments is 'a text, b text DEFAULT 'other'::text', and was 'a text, b text DEFAULT 'it''s "x" \'::text'

-- aggregate
drop aggregate torture.my_concat(text, text);
create aggregate torture.my_concat(a text, b text) (sfunc = torture.concat3, stype = text, initcond = '');
--> functions | aggregate torture.my_concat(text, text): initial is '', and was nothing

-- enum label
alter type torture.mood add value 'new';
--> types | type torture.mood: has also labels new

-- domain check
alter domain torture.small_positive drop constraint small_positive_check;
--> constraints | constraint small_positive_check on domain torture.small_positive: missing

-- domain default
alter domain torture.c_text drop default;
--> types | type torture.c_text: default is nothing, and was ''x''y'::text'

-- composite type
alter type torture.nested_pair add attribute surplus int;
--> types | attribute torture.nested_pair.surplus: is not in the source

-- type missing
drop type torture.nothing;
--> types | type torture.nothing: missing

-- type owner
alter type torture.empty_enum owner to torture_owner;
--> owners | type torture.empty_enum: owner is 'torture_owner', and was 'postgres'

-- type grant
revoke usage on type torture.positive from torture_writer;
--> grants | type torture.positive: lacks grants USAGE to torture_writer (by postgres)

-- operator
drop operator torture.!@# (none, numeric);
--> operators | operator torture.!@# (none, numeric): missing

-- operator estimator
alter operator torture.<> (torture.base, torture.base) set (restrict = none);
--> operators | operator torture.<> (torture.base, torture.base): restrict is nothing, and was 'neqsel(internal,oid,internal,integer)'

-- operator family
alter operator family torture.base_family using btree drop operator 3 (torture.base, int);
--> operators | operator family torture.base_family using btree: lacks operators 3 torture.=(torture.base,integer)

-- cast
drop cast (torture.mood as torture.base);
--> casts | cast (torture.mood as torture.base): missing

-- collation
drop collation torture.c_copy;
--> collations | collation torture.c_copy: missing

-- conversion
drop conversion torture.torture_conversion;
--> collations | conversion torture.torture_conversion: missing

-- text search configuration
alter text search configuration torture.torture_config drop mapping for email;
--> text search | text search configuration torture.torture_config: lacks mappings 4

-- text search dictionary
alter text search dictionary torture.torture_dictionary (accept = true);
--> text search | text search dictionary torture.torture_dictionary: options is 'stopwords = 'english', accept = 'true'', and was 'stopwords = 'english', accept = 'false''

-- language
alter language torture_lang owner to torture_reader;
--> owners | language torture_lang: owner is 'torture_reader', and was 'torture_owner'

-- language grant
grant usage on language torture_lang to public;
--> grants | language torture_lang: has also grants USAGE to PUBLIC (by torture_owner)

-- access method dropped
drop access method torture_gist;
--> languages | access method torture_gist: missing

-- extension dropped
drop extension tablefunc;
--> extensions | extension tablefunc: missing

-- extension version
update pg_extension set extversion = '0.9' where extname = 'cube';
--> extensions | extension cube: version is '0.9', and was '1.5'

-- extension schema
alter extension tablefunc set schema hidden;
--> extensions | extension tablefunc: schema is 'hidden', and was 'public'

-- grant on an extension's function
grant execute on function public.similarity(text, text) to public;
--> grants | function public.similarity(pg_catalog.text,pg_catalog.text): has also grants EXECUTE to PUBLIC

-- grant on a system function
revoke execute on function pg_ls_waldir() from torture_reader;
--> grants | function pg_catalog.pg_ls_waldir(): lacks grants EXECUTE to torture_reader

-- wrapper option
alter foreign data wrapper torture_fdw options (set debug 'false');
--> foreign data | foreign-data wrapper torture_fdw: options debug has another value

-- server option
alter server torture_server options (drop note);
--> foreign data | server torture_server: lacks options note

-- server grant
revoke usage on foreign server torture_server from torture_owner;
--> grants | server torture_server: lacks grants USAGE to torture_owner (by torture_owner)

-- user mapping
drop user mapping for public server torture_server;
--> foreign data | user mapping PUBLIC on server torture_server: missing

-- user mapping option
alter user mapping for torture_owner server torture_server options (drop password);
--> foreign data | user mapping torture_owner on server torture_server: lacks options password

-- foreign table column
alter foreign table torture.foreign_table alter id options (drop column_name);
--> columns | column torture.foreign_table.id: lacks foreign options column_name=ID

-- foreign table option
alter foreign table torture.foreign_table options (set table_name 'other');
--> tables | table torture.foreign_table: lacks foreign options table_name=it's and has also foreign options table_name=other

-- publication tables
alter publication torture_some drop table only torture.mother;
--> publications | publication torture_some: lacks tables {"name": "torture.mother"}

-- publication row filter
alter publication torture_some set table torture.wide (id, kind) where (kind > 4 and payload is not null), only torture.mother, torture.parted;
--> publications | publication torture_some: lacks tables {"name": "torture.wide", "where": "((kind > 3) AND (payload IS NOT NULL))", "columns": ["id", "kind"]} and has also tables {"name": "torture.wide", "where": "((kind > 4) AND (payload IS NOT NULL))", "columns": ["id", "kind"]}

-- publication schemas
alter publication torture_schemas drop tables in schema hidden;
--> publications | publication torture_schemas: lacks schemas hidden

-- publication actions
alter publication torture_all set (publish = 'insert');
--> publications | publication torture_all: actions is 'insert', and was 'insert truncate'

-- subscription
alter subscription "torture ""sub""" set publication other with (refresh = false);
--> subscriptions | subscription "torture ""sub""": lacks publications Pub "x"

-- default privileges
alter default privileges revoke select on tables from torture_reader;
--> default privileges | default privileges for role postgres on tables: missing

-- default privileges extra
alter default privileges in schema torture grant select on tables to public;
--> default privileges | default privileges for role postgres in schema torture on tables: is not in the source

-- large object missing
select lo_unlink(700010);
--> large objects | large objects: count is 24, and was 25

-- large object owner
alter large object 700002 owner to torture_owner;
--> owners | large objects: a owner differs

-- large object grant
revoke select on large object 700001 from torture_reader;
--> grants | large objects: their grants differ

-- large object comment
comment on large object 700003 is 'small';
--> comments | large objects: a comment differs

-- dependency on an extension
alter function torture.trap() depends on extension tablefunc;
--> extensions | extension dependency function torture.trap() on extension tablefunc: is not in the source
