-- One database with everything pg_dump knows: the yardstick for backups. Apply with psql (torture.py does) as a
-- superuser to an empty UTF8 database; works on PostgreSQL 15 and newer. Roles are shared by the cluster: torture_*.
--
-- Left out, because plain pg_dump | pg_restore does not bring it back, or not in the database:
--   * checks and generated columns that read other tables or need a search_path: the restore runs without one;
--   * dropped columns: pg_dump leaves them out (tables here have some, the copy has not; dumps are equal);
--   * DETACH PARTITION CONCURRENTLY half done, invalid indexes: not dumped as such;
--   * ALTER DATABASE SET, ALTER ROLE IN DATABASE SET, the database's comment and grants: made at the end, and dumped
--     only with --create;
--   * security labels: no provider without an extra library; tablespaces: a matter of the machine;
--   * a configuration table of an extension: no contrib extension has one.

\set ON_ERROR_STOP on
\set QUIET on
SET client_min_messages = warning;
SET client_encoding = 'UTF8';
SET bytea_output = hex;
SELECT current_setting('server_version_num')::int >= 160000 AS v16,
       current_setting('server_version_num')::int >= 170000 AS v17,
       current_setting('server_version_num')::int >= 180000 AS v18,
       EXISTS (SELECT FROM pg_catalog.pg_collation WHERE collname = 'und-x-icu') AS icu,
       (SELECT setting FROM pg_catalog.pg_config WHERE name = 'CONFIGURE') LIKE '%--with-libxml%' AS xml,
       current_database() AS db \gset

-- roles ------------------------------------------------------------------------------------------------------------

SELECT pg_advisory_lock(7041776);  -- two databases may be made at once in one cluster
SELECT format('CREATE ROLE %I', name) FROM unnest(ARRAY['torture_owner', 'torture_reader', 'torture_writer',
  'torture_grantor', 'torture_Odd "Röle" \ 1']) AS name
  WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec
ALTER ROLE torture_owner CREATEDB;
ALTER ROLE torture_writer LOGIN CONNECTION LIMIT 7 PASSWORD 'SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0MTIzNA==$3fAv6V5n6JmNcN2ZQ4Zc0n8m4yB4E9vWmM9mWmE9dGg=:rE5m9a5mC3mW7lq4c2vCkqS4vR2o5oZ8yQ7o5lGv7mU=';
GRANT torture_reader TO torture_writer;
ALTER ROLE torture_reader SET statement_timeout = '1h';
COMMENT ON ROLE torture_reader IS 'may read
two lines';
SELECT pg_advisory_unlock(7041776);

-- schemas, names ---------------------------------------------------------------------------------------------------

CREATE SCHEMA torture AUTHORIZATION torture_owner;
COMMENT ON SCHEMA torture IS E'the main one\nsecond line -- ''quoted'' \\ backslash';
CREATE SCHEMA hidden;
CREATE SCHEMA empty_schema;
CREATE SCHEMA "select";
CREATE SCHEMA "We.ird ""schéma"" *?$\ '
line two";
GRANT USAGE ON SCHEMA torture TO torture_reader WITH GRANT OPTION;
GRANT USAGE, CREATE ON SCHEMA torture TO torture_writer;
GRANT USAGE ON SCHEMA "We.ird ""schéma"" *?$\ '
line two" TO "torture_Odd ""Röle"" \ 1";
GRANT CREATE ON SCHEMA public TO torture_writer;
SET search_path = torture, public;

-- extensions: before the default privileges, as a restore makes them in that order too ------------------------------

SELECT format('CREATE EXTENSION %I SCHEMA public', name)
  FROM unnest(ARRAY['btree_gist', 'hstore', 'pg_trgm', 'citext', 'postgres_fdw', 'file_fdw', 'cube', 'earthdistance',
    'intarray', 'ltree', 'isn', 'unaccent', 'tablefunc']) WITH ORDINALITY AS wanted(name, number)
  WHERE EXISTS (SELECT FROM pg_available_extensions available WHERE available.name = wanted.name)
  ORDER BY number \gexec
COMMENT ON EXTENSION hstore IS 'a comment of our own';
REVOKE EXECUTE ON FUNCTION public.similarity(text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION public.similarity(text, text) TO torture_reader;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_ls_waldir() TO torture_reader;
GRANT SELECT (rolname) ON pg_catalog.pg_authid TO torture_reader;

-- default privileges -----------------------------------------------------------------------------------------------

ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO torture_reader;
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE torture_owner IN SCHEMA torture GRANT INSERT, UPDATE ON TABLES TO torture_writer;
ALTER DEFAULT PRIVILEGES FOR ROLE torture_owner IN SCHEMA torture GRANT USAGE ON SEQUENCES TO torture_writer
  WITH GRANT OPTION;
ALTER DEFAULT PRIVILEGES FOR ROLE torture_owner REVOKE USAGE ON TYPES FROM PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE torture_owner GRANT CREATE ON SCHEMAS TO torture_writer;

-- one table per name, each with one row that says which name it is
SELECT format('CREATE TABLE %I.%I (%I int PRIMARY KEY, %I text)', schema, name, name, left(name, 20) || ' 2'),
       format('INSERT INTO %I.%I VALUES (%s, %L)', schema, name, number, name),
       format('COMMENT ON TABLE %I.%I IS %L', schema, name, name),
       format('COMMENT ON COLUMN %I.%I.%I IS %L', schema, name, name, 'column ' || name)
  FROM unnest(ARRAY['public', 'select', E'We.ird "schéma" *?$\\ \'\nline two']) AS schema,
       unnest(ARRAY['table', 'a*', 'a?', 'a.b', 'a"b', 'a''b', 'a\b', 'a b', E'a\nb', E'a\r\nb', E'a\tb', 'A', 'a', '$1',
         '*', '.', '"', '""', '\', '\.', 'ä', 'Ä', '表', 'ab', 'aab', '(a|b)', '[a]', 'a{1}', '^a$', '%s', '--', '/*',
         ' leading', 'trailing ', '$$', E'\u200b', '🐘', repeat('x', 63), repeat('x', 62) || 'y', '1', 'a,b', 'a=b'
       ]) WITH ORDINALITY AS names(name, number) \gexec

-- types ------------------------------------------------------------------------------------------------------------

CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
ALTER TYPE mood ADD VALUE 'so "so"' BEFORE 'ok';
ALTER TYPE mood ADD VALUE 'first' BEFORE 'sad';
ALTER TYPE mood ADD VALUE 'ver''y happy' AFTER 'happy';
ALTER TYPE mood RENAME VALUE 'ok' TO 'ök';
ALTER TYPE mood OWNER TO torture_owner;
COMMENT ON TYPE mood IS 'how one feels';
CREATE TYPE empty_enum AS ENUM ();
CREATE TYPE pair AS (x int, "Y y" text COLLATE "C");
COMMENT ON COLUMN pair."Y y" IS 'an attribute';
CREATE TYPE nested_pair AS (p pair, ps pair[], m mood);
ALTER TYPE nested_pair ADD ATTRIBUTE gone int;
ALTER TYPE nested_pair DROP ATTRIBUTE gone;
CREATE TYPE nothing AS ();
CREATE TYPE never_defined;
CREATE DOMAIN positive AS int DEFAULT 7 CONSTRAINT above_zero CHECK (VALUE > 0) NOT NULL;
CREATE DOMAIN small_positive AS positive CHECK (VALUE < 1000);
CREATE DOMAIN pairs AS pair[] CONSTRAINT not_too_many CHECK (array_length(VALUE, 1) < 10);
CREATE DOMAIN c_text AS text COLLATE "C" DEFAULT 'x''y';
ALTER DOMAIN c_text ADD CONSTRAINT later CHECK (VALUE <> 'never') NOT VALID;
COMMENT ON DOMAIN positive IS 'greater than zero';
COMMENT ON CONSTRAINT above_zero ON DOMAIN positive IS 'why not';
REVOKE USAGE ON TYPE positive FROM PUBLIC;
GRANT USAGE ON TYPE positive TO torture_writer;
CREATE TYPE float_range AS RANGE (subtype = float8, subtype_diff = float8mi, multirange_type_name = float_ranges);
CREATE TYPE c_range AS RANGE (subtype = text, collation = "C");

CREATE TYPE base;
CREATE FUNCTION base_in(cstring) RETURNS base LANGUAGE internal IMMUTABLE STRICT AS 'int4in';
CREATE FUNCTION base_out(base) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'int4out';
CREATE FUNCTION base_recv(internal) RETURNS base LANGUAGE internal IMMUTABLE STRICT AS 'int4recv';
CREATE FUNCTION base_send(base) RETURNS bytea LANGUAGE internal IMMUTABLE STRICT AS 'int4send';
CREATE TYPE base (INPUT = base_in, OUTPUT = base_out, RECEIVE = base_recv, SEND = base_send, LIKE = int4,
  CATEGORY = 'T', PREFERRED = false, DEFAULT = '42', DELIMITER = ';');
COMMENT ON TYPE base IS 'a base type';

-- operators, classes, families, casts ------------------------------------------------------------------------------

CREATE FUNCTION base_lt(base, base) RETURNS bool LANGUAGE internal IMMUTABLE STRICT LEAKPROOF PARALLEL SAFE AS 'int4lt';
CREATE FUNCTION base_le(base, base) RETURNS bool LANGUAGE internal IMMUTABLE STRICT AS 'int4le';
CREATE FUNCTION base_eq(base, base) RETURNS bool LANGUAGE internal IMMUTABLE STRICT AS 'int4eq';
CREATE FUNCTION base_ne(base, base) RETURNS bool LANGUAGE internal IMMUTABLE STRICT AS 'int4ne';
CREATE FUNCTION base_ge(base, base) RETURNS bool LANGUAGE internal IMMUTABLE STRICT AS 'int4ge';
CREATE FUNCTION base_gt(base, base) RETURNS bool LANGUAGE internal IMMUTABLE STRICT AS 'int4gt';
CREATE FUNCTION base_cmp(base, base) RETURNS int LANGUAGE internal IMMUTABLE STRICT AS 'btint4cmp';
CREATE FUNCTION base_hash(base) RETURNS int LANGUAGE internal IMMUTABLE STRICT AS 'hashint4';
CREATE OPERATOR < (LEFTARG = base, RIGHTARG = base, FUNCTION = base_lt, COMMUTATOR = >, NEGATOR = >=,
  RESTRICT = scalarltsel, JOIN = scalarltjoinsel);
CREATE OPERATOR <= (LEFTARG = base, RIGHTARG = base, FUNCTION = base_le, COMMUTATOR = >=, NEGATOR = >,
  RESTRICT = scalarlesel, JOIN = scalarlejoinsel);
CREATE OPERATOR = (LEFTARG = base, RIGHTARG = base, FUNCTION = base_eq, COMMUTATOR = =, NEGATOR = <>,
  RESTRICT = eqsel, JOIN = eqjoinsel, HASHES, MERGES);
CREATE OPERATOR <> (LEFTARG = base, RIGHTARG = base, FUNCTION = base_ne, COMMUTATOR = <>, NEGATOR = =,
  RESTRICT = neqsel, JOIN = neqjoinsel);
CREATE OPERATOR >= (LEFTARG = base, RIGHTARG = base, FUNCTION = base_ge, COMMUTATOR = <=, NEGATOR = <,
  RESTRICT = scalargesel, JOIN = scalargejoinsel);
CREATE OPERATOR > (LEFTARG = base, RIGHTARG = base, FUNCTION = base_gt, COMMUTATOR = <, NEGATOR = <=,
  RESTRICT = scalargtsel, JOIN = scalargtjoinsel);
CREATE OPERATOR !@# (RIGHTARG = numeric, FUNCTION = numeric_uminus);
COMMENT ON OPERATOR = (base, base) IS 'equal';
ALTER OPERATOR <> (base, base) OWNER TO torture_owner;
CREATE OPERATOR FAMILY base_family USING btree;
CREATE OPERATOR CLASS base_ops DEFAULT FOR TYPE base USING btree FAMILY base_family AS
  OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 base_cmp(base, base);
CREATE OPERATOR CLASS base_hash_ops DEFAULT FOR TYPE base USING hash AS OPERATOR 1 =, FUNCTION 1 base_hash(base);
CREATE FUNCTION base_int_cmp(base, int) RETURNS int LANGUAGE internal IMMUTABLE STRICT AS 'btint4cmp';
CREATE FUNCTION base_int_eq(base, int) RETURNS bool LANGUAGE internal IMMUTABLE STRICT AS 'int4eq';
CREATE OPERATOR = (LEFTARG = base, RIGHTARG = int, FUNCTION = base_int_eq);
ALTER OPERATOR FAMILY base_family USING btree ADD OPERATOR 3 = (base, int), FUNCTION 1 (base, int) base_int_cmp(base, int);
CREATE OPERATOR FAMILY lonely_family USING gin;
COMMENT ON OPERATOR FAMILY base_family USING btree IS 'a family';
COMMENT ON OPERATOR CLASS base_ops USING btree IS 'a class';
CREATE CAST (base AS int) WITHOUT FUNCTION AS ASSIGNMENT;
CREATE FUNCTION pair_to_text(pair) RETURNS text IMMUTABLE STRICT LANGUAGE sql AS $$ SELECT $1.x || '/' || $1."Y y" $$;
CREATE CAST (pair AS text) WITH FUNCTION pair_to_text(pair) AS IMPLICIT;
CREATE CAST (mood AS base) WITH INOUT;
COMMENT ON CAST (pair AS text) IS 'a cast';
CREATE ACCESS METHOD torture_heap TYPE TABLE HANDLER heap_tableam_handler;
CREATE ACCESS METHOD torture_gist TYPE INDEX HANDLER gisthandler;
COMMENT ON ACCESS METHOD torture_heap IS 'a heap by another name';
CREATE TRANSFORM FOR int LANGUAGE sql (FROM SQL WITH FUNCTION prsd_lextype(internal),
  TO SQL WITH FUNCTION int4recv(internal));
COMMENT ON TRANSFORM FOR int LANGUAGE sql IS 'never called';
-- A handler in pg_catalog would make pg_dump take the language for an extension.
CREATE FUNCTION lang_call() RETURNS language_handler LANGUAGE c AS '$libdir/plpgsql', 'plpgsql_call_handler';
CREATE FUNCTION lang_inline(internal) RETURNS void LANGUAGE c STRICT AS '$libdir/plpgsql', 'plpgsql_inline_handler';
CREATE FUNCTION lang_check(oid) RETURNS void LANGUAGE c STRICT AS '$libdir/plpgsql', 'plpgsql_validator';
CREATE TRUSTED LANGUAGE torture_lang HANDLER lang_call INLINE lang_inline VALIDATOR lang_check;
ALTER LANGUAGE torture_lang OWNER TO torture_owner;
REVOKE USAGE ON LANGUAGE torture_lang FROM PUBLIC;
GRANT USAGE ON LANGUAGE torture_lang TO torture_writer;
CREATE CONVERSION torture_conversion FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8;
COMMENT ON CONVERSION torture_conversion IS 'a conversion';

-- collations -------------------------------------------------------------------------------------------------------

CREATE COLLATION c_copy FROM "C";
CREATE COLLATION libc_c (provider = libc, lc_collate = 'C', lc_ctype = 'POSIX');
COMMENT ON COLLATION libc_c IS 'from the C library';
ALTER COLLATION libc_c OWNER TO torture_owner;
\if :icu
CREATE COLLATION ignore_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
CREATE COLLATION german_phone (provider = icu, locale = 'de-u-co-phonebk');
CREATE TABLE with_icu (name text COLLATE ignore_case PRIMARY KEY, phone text COLLATE german_phone);
INSERT INTO with_icu VALUES ('Ärger', 'Müller'), ('Bär', 'Mueller');
CREATE INDEX ON with_icu (phone);
\endif
\if :v17
CREATE COLLATION builtin_utf8 (provider = builtin, locale = 'C.UTF-8');
CREATE TABLE with_builtin (name text COLLATE builtin_utf8 PRIMARY KEY);
INSERT INTO with_builtin VALUES ('Ärger'), ('ärger');
\endif

-- text search ------------------------------------------------------------------------------------------------------

CREATE TEXT SEARCH PARSER torture_parser (START = prsd_start, GETTOKEN = prsd_nexttoken, END = prsd_end,
  LEXTYPES = prsd_lextype, HEADLINE = prsd_headline);
CREATE TEXT SEARCH TEMPLATE torture_template (INIT = dsimple_init, LEXIZE = dsimple_lexize);
CREATE TEXT SEARCH DICTIONARY torture_dictionary (TEMPLATE = torture_template, STOPWORDS = english, ACCEPT = false);
CREATE TEXT SEARCH CONFIGURATION torture_config (PARSER = torture_parser);
ALTER TEXT SEARCH CONFIGURATION torture_config ADD MAPPING FOR asciiword, word WITH torture_dictionary, simple;
ALTER TEXT SEARCH CONFIGURATION torture_config ADD MAPPING FOR email WITH simple;
ALTER TEXT SEARCH CONFIGURATION torture_config OWNER TO torture_owner;
COMMENT ON TEXT SEARCH PARSER torture_parser IS 'parser';
COMMENT ON TEXT SEARCH TEMPLATE torture_template IS 'template';
COMMENT ON TEXT SEARCH DICTIONARY torture_dictionary IS 'dictionary';
COMMENT ON TEXT SEARCH CONFIGURATION torture_config IS 'configuration';

-- functions --------------------------------------------------------------------------------------------------------

CREATE FUNCTION add(a int, b int DEFAULT 1 + 1) RETURNS int LANGUAGE sql IMMUTABLE PARALLEL SAFE COST 5
  RETURN a + b;
CREATE FUNCTION add(a text, b text DEFAULT 'it''s "x" \') RETURNS text LANGUAGE sql STABLE CALLED ON NULL INPUT
  AS $$ SELECT a || b $$;
CREATE FUNCTION add(VARIADIC items numeric[]) RETURNS numeric LANGUAGE sql IMMUTABLE
  AS 'SELECT sum(i) FROM unnest(items) i';
CREATE FUNCTION outs(IN a int, OUT b int, INOUT c text, OUT d pair) LANGUAGE plpgsql AS $body$
BEGIN
  b := a; d := (1, $x$ quoted $x$); -- $a comment
END
$body$;
CREATE FUNCTION lines(n int) RETURNS TABLE (line int, "The Text" text) LANGUAGE plpgsql ROWS 17 SECURITY DEFINER
  SET search_path = pg_catalog, torture SET work_mem = '7MB' SET "torture.custom" = 'a "b", ''c'''
  AS $$ BEGIN RETURN QUERY SELECT i, i::text FROM generate_series(1, n) i; END $$;
CREATE FUNCTION poly(anyelement, anyarray) RETURNS anyelement LANGUAGE sql IMMUTABLE AS 'SELECT $1';
CREATE FUNCTION typed_transform(int) RETURNS int TRANSFORM FOR TYPE int LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION my_row_number() RETURNS int8 WINDOW LANGUAGE internal IMMUTABLE AS 'window_row_number';
CREATE FUNCTION "Odd ""func"" .*
name"("arg ""1""" int) RETURNS int LANGUAGE torture_lang AS 'BEGIN RETURN 1; END';
CREATE FUNCTION is_short(text) RETURNS bool LANGUAGE sql IMMUTABLE RETURN length($1) < 1000;
CREATE FUNCTION concat3(text, text, text) RETURNS text LANGUAGE sql IMMUTABLE
  RETURN coalesce($1, '') || $2 || $3;
CREATE FUNCTION trap() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
CREATE FUNCTION trap_after() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE PROCEDURE proc(INOUT a int, b text DEFAULT NULL) LANGUAGE plpgsql AS $$ BEGIN a := a + 1; COMMIT; END $$;
CREATE PROCEDURE proc_atomic(a int) BEGIN ATOMIC SELECT add(a, 3); SELECT 1; END;
ALTER FUNCTION add(int, int) OWNER TO torture_owner;
GRANT EXECUTE ON FUNCTION add(int, int) TO torture_reader WITH GRANT OPTION;
REVOKE ALL ON PROCEDURE proc(int, text) FROM PUBLIC;
COMMENT ON FUNCTION add(text, text) IS 'overloaded';
COMMENT ON PROCEDURE proc(int, text) IS 'a procedure';

CREATE AGGREGATE my_sum(int) (SFUNC = int4pl, STYPE = int, INITCOND = '0', COMBINEFUNC = int4pl, PARALLEL = SAFE,
  MSFUNC = int4pl, MINVFUNC = int4mi, MSTYPE = int, MINITCOND = '0', SORTOP = >);
CREATE AGGREGATE my_percentile(float8 ORDER BY anyelement) (SFUNC = ordered_set_transition, STYPE = internal,
  FINALFUNC = percentile_disc_final, FINALFUNC_EXTRA, FINALFUNC_MODIFY = read_write);
CREATE AGGREGATE my_rank(VARIADIC "any" ORDER BY VARIADIC "any") (SFUNC = ordered_set_transition_multi,
  STYPE = internal, FINALFUNC = rank_final, FINALFUNC_EXTRA, HYPOTHETICAL);
CREATE AGGREGATE my_concat(a text, b text) (SFUNC = concat3, STYPE = text);
COMMENT ON AGGREGATE my_sum(int) IS 'an aggregate';
ALTER AGGREGATE my_sum(int) OWNER TO torture_owner;

-- sequences --------------------------------------------------------------------------------------------------------

CREATE SEQUENCE seq_plain;
SELECT setval('seq_plain', 41, true);
CREATE SEQUENCE seq_uncalled START 5;
SELECT setval('seq_uncalled', 99, false);
CREATE SEQUENCE seq_down AS smallint INCREMENT -3 MINVALUE -100 MAXVALUE 7 START 7 CACHE 5 CYCLE OWNED BY NONE;
SELECT nextval('seq_down');
CREATE SEQUENCE "Seq ""odd"".*" MAXVALUE 9223372036854775807;
CREATE UNLOGGED SEQUENCE seq_unlogged;
ALTER SEQUENCE seq_plain OWNER TO torture_owner;
GRANT USAGE, SELECT ON SEQUENCE seq_uncalled TO torture_reader;
COMMENT ON SEQUENCE seq_down IS 'counts down';

-- tables: values ---------------------------------------------------------------------------------------------------

CREATE TABLE "values" (
  id int GENERATED ALWAYS AS IDENTITY (START 10 INCREMENT 5) PRIMARY KEY,
  f4 float4, f8 float8, n numeric, n2 numeric(20, -3), d date, ts timestamp, tz timestamptz, t time, ttz timetz(3),
  iv interval, y2m interval year to month, m money, b bit(5), vb bit varying, x xml, j json, jb jsonb, by bytea,
  txt text, ch char(5), vc varchar(3), nm name, qc "char", bo bool, u uuid, ip inet, ci cidr, mac macaddr,
  mac8 macaddr8, pt point, ln line, ls lseg, bx box, pa path, po polygon, cr circle, tsv tsvector, tsq tsquery,
  ia int[], ta text[], i3 int[][][], r4 int4range, rn numrange, rd daterange, mr int8multirange, fr float_range,
  cmp nested_pair, dom small_positive, mo mood, moods mood[], ba base, bas base[], rc regclass, oi oid, ln2 pg_lsn,
  xi xid8, c2 char, jp jsonpath, dps pairs, cra c_range);
INSERT INTO "values" (f4, f8, n, d, ts, tz, iv, txt, dom) VALUES
  ('NaN', 'NaN', 'NaN', '-infinity', '-infinity', '-infinity', '-178000000 years', '', 1),
  ('Infinity', 'Infinity', 'Infinity', 'infinity', 'infinity', 'infinity', '178000000 years', NULL, 2),
  ('-Infinity', '-Infinity', '-Infinity', '4713-01-01 BC', '4713-01-01 00:00:00 BC', '0044-03-15 12:00:00.000001+00 BC',
   '-1 year +2 mons -3 days +04:05:06.789', '\.', 3),
  ('-0', '-0', 0.000, '5874897-12-31', '294276-12-31 23:59:59.999999', '294276-12-31 23:59:59.999999+00', '0', '\N', 4),
  (1.17549435e-38, 5e-324, -123456789012345678901234567890.123456789012345678901234567890, '0001-01-01 BC',
   '1999-12-31 23:59:59.5', '2016-10-30 02:30:00+01', '1 mon', E'tab\there\nnewline\r\nreturn\\', 999),
  (3.4028235e38, 1.7976931348623157e308, 1e1000, NULL, NULL, NULL, NULL, 'NULL', 5);
INSERT INTO "values" (n2, t, ttz, y2m, m, b, vb, x, j, jb, by, txt, ch, vc, nm, qc, bo, u, ip, ci, mac, mac8, pt, ln, ls,
  bx, pa, po, cr, tsv, tsq, ia, ta, i3, r4, rn, rd, mr, fr, cmp, dom, mo, moods, ba, bas, rc, oi, ln2, xi, c2, jp, dps, cra)
SELECT 123456, '24:00', '23:59:59.999-15:59', '1-2', '-92233720368547758.08', B'10101', B'',
  NULL, E'{"b": 1,  "a": "\\u0041\\\\", "a": null}',
  '{"b": 1.50, "a": ["x", {"": "\u00e9"}], "big": 1e400}',
  (SELECT decode(string_agg(lpad(to_hex(i), 2, '0'), '' ORDER BY i), 'hex') FROM generate_series(0, 255) i),
  (SELECT string_agg(chr(i), '' ORDER BY i) FROM generate_series(1, 159) i), 'ab', 'äöü', 'a name', '\377', true,
  'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '::ffff:1.2.3.4/64', '10.0.0.0/8', '08:00:2b:01:02:03',
  '08:00:2b:01:02:03:04:05', '(1.5,-Infinity)', '{1,2,3}', '[(0,0),(1,1)]', '((1,1),(0,0))', '[(0,0),(1,1),(2,0)]',
  '((0,0),(1,1),(2,0))', '<(0,0),1e-300>', $$'a':1A 'b c':2,3 'd''e':4$$, $$'a' & !('b' | 'c d':*AB) <-> 'e'$$,
  '[-1:1]={1,NULL,3}', ARRAY['', NULL, 'NULL', '{', '"', '\', ',', E'\n', ' '], '[0:1][-2:-1][7:8]={{{1,2},{3,4}},{{5,6},{7,NULL}}}',
  '(,5]', '[NaN,NaN]', 'empty', '{[1,3),[5,9)}', '[1.5,infinity)',
  ROW(ROW(1, 'a "b", (c)')::pair, ARRAY[ROW(NULL, ''), NULL]::pair[], 'so "so"'::mood)::nested_pair, 6, 'ver''y happy',
  ARRAY['first', NULL, 'so "so"']::mood[], '-7', '{1;2}', 'pg_class', 4294967295, 'FFFFFFFF/FFFFFFFF',
  '18446744073709551615', ' ', '$."a"[*] ? (@.b > 1)', ARRAY[ROW(1, NULL)]::pair[], '[Z,a)';

\if :xml
UPDATE "values" SET x = xmlparse(CONTENT '<a b="c">&amp;<!-- x --><![CDATA[ < ]]></a>text') WHERE by IS NOT NULL;
\endif
CREATE TABLE wide (id serial PRIMARY KEY, kind int NOT NULL, payload text NOT NULL, raw bytea NOT NULL);
INSERT INTO wide (kind, payload, raw)
  SELECT i % 17, repeat(md5(i::text), 5), decode(md5((-i)::text) || md5((-i - 1)::text), 'hex')
  FROM generate_series(1, 12000) i;
CREATE TABLE several (LIKE wide INCLUDING ALL);
INSERT INTO several SELECT * FROM wide WHERE id <= 700;
CREATE TABLE toasted (id int, body text, raw bytea);
INSERT INTO toasted SELECT i, string_agg(md5((i * j)::text), ''), decode(string_agg(md5((j - i)::text), ''), 'hex')
  FROM generate_series(1, 5) i, generate_series(1, 3000) j GROUP BY i;
CREATE TABLE no_columns ();
INSERT INTO no_columns SELECT FROM generate_series(1, 5);
CREATE TABLE lost_columns (gone int PRIMARY KEY, gone2 text);
INSERT INTO lost_columns VALUES (1, 'a'), (2, 'b');
ALTER TABLE lost_columns DROP COLUMN gone, DROP COLUMN gone2;
CREATE TABLE dropped (a int, gone text DEFAULT 'x', b int, gone2 int, c int GENERATED ALWAYS AS (a + b) STORED, d pair);
INSERT INTO dropped (a, b) SELECT i, NULLIF(i, 3) FROM generate_series(1, 5) i;
ALTER TABLE dropped DROP COLUMN gone, DROP COLUMN gone2;
ALTER TABLE dropped ADD COLUMN e text DEFAULT 'added later' NOT NULL, ADD COLUMN f int DEFAULT 5;
ALTER TABLE dropped ALTER COLUMN f DROP DEFAULT;
CREATE TABLE "user" ("select" int, "from" int, "order" int DEFAULT 1, "Ünï" int, "tab	col" int, "new
line" int, "*" int, "a.b" int, "q""q" int, "$1" int, "\." int, " " int, "ctid_" int);
INSERT INTO "user" VALUES (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13);
CREATE TABLE only_backslashes (t text);
INSERT INTO only_backslashes VALUES ('\.'), ('\\.'), ('\'), (''), (NULL), ('\N'), (E'\\.\n\\.'), (E'\n'), (E'\r'),
  (E'\r\n'), (E'\t'), ('--'), (''''), ('$$'), (';'), ('\connect postgres'), (E'\n\\connect postgres\n');
CREATE UNLOGGED TABLE unlogged (id bigserial PRIMARY KEY, t text);
INSERT INTO unlogged (t) SELECT 'row ' || i FROM generate_series(1, 30) i;
CREATE TABLE typed OF pair (x WITH OPTIONS DEFAULT 5 NOT NULL, PRIMARY KEY (x));
INSERT INTO typed VALUES (1, 'a');
CREATE TABLE other_method (a int) USING torture_heap;
INSERT INTO other_method SELECT generate_series(1, 3);
CREATE TABLE row_types (id int, w wide, ws only_backslashes[], u "user");
INSERT INTO row_types SELECT 1, ROW(1, 2, 'a,"b"', '\x00')::wide, ARRAY[ROW('\.')]::only_backslashes[], u FROM "user" u;
CREATE TABLE copied AS SELECT id, kind FROM wide WHERE id < 50;
CREATE TABLE extension_types (h hstore, c citext PRIMARY KEY, t text);
INSERT INTO extension_types VALUES ('a=>1, "b c"=>NULL', 'MiXed', 'trigram'), ('""=>""', 'ÄÖ', NULL);
CREATE INDEX ON extension_types USING gin (h);
CREATE INDEX ON extension_types USING gist (t gist_trgm_ops (siglen = 24));

-- tables: columns and constraints ----------------------------------------------------------------------------------

CREATE TABLE defaults (
  always int GENERATED ALWAYS AS IDENTITY,
  by_default smallint GENERATED BY DEFAULT AS IDENTITY (MINVALUE -5 MAXVALUE 300 START -2 INCREMENT 2 CYCLE),
  from_seq int DEFAULT nextval('"Seq ""odd"".*"'), func int DEFAULT add(1), cur timestamptz DEFAULT '2020-01-01 UTC',
  who text DEFAULT CURRENT_USER, doubled int GENERATED ALWAYS AS (func * 2) STORED,
  expr text DEFAULT ('a' || E'\n' || 'b'), arr int[] DEFAULT ARRAY[1, 2], mo mood DEFAULT 'ök', po positive,
  stored_main text, stored_ext text, compressed text COMPRESSION pglz, stats int, opts int, nn int NOT NULL DEFAULT 0);
ALTER TABLE defaults ALTER stored_main SET STORAGE MAIN, ALTER stored_ext SET STORAGE EXTERNAL,
  ALTER stats SET STATISTICS 321, ALTER opts SET (n_distinct = -0.25, n_distinct_inherited = 10);
INSERT INTO defaults (func) SELECT i FROM generate_series(1, 20) i;
ALTER TABLE defaults SET (fillfactor = 55, autovacuum_enabled = false, toast.autovacuum_enabled = false,
  toast_tuple_target = 512, parallel_workers = 3, log_autovacuum_min_duration = 7);
ALTER TABLE defaults REPLICA IDENTITY FULL;
ALTER TABLE wide REPLICA IDENTITY NOTHING;
CREATE UNIQUE INDEX several_identity ON several (kind, id);
ALTER TABLE several REPLICA IDENTITY USING INDEX several_identity;
CREATE INDEX wide_kind ON wide (kind);
ALTER TABLE wide CLUSTER ON wide_kind;
ALTER TABLE wide ALTER COLUMN kind SET STATISTICS 0;
\if :v18
CREATE TABLE on_18 (a int, b int GENERATED ALWAYS AS (a * 2) VIRTUAL, c int CONSTRAINT c_there NOT NULL,
  valid_at daterange, CONSTRAINT not_enforced CHECK (a > 1000) NOT ENFORCED,
  CONSTRAINT on_18_pk PRIMARY KEY (c, valid_at WITHOUT OVERLAPS));
INSERT INTO on_18 (a, c, valid_at) SELECT i, i % 3, daterange('2020-01-01'::date + i, '2020-01-02'::date + i)
  FROM generate_series(1, 50) i;
ALTER TABLE on_18 ADD CONSTRAINT a_later NOT NULL a NOT VALID;
CREATE TABLE on_18_child (c int, at daterange, FOREIGN KEY (c, PERIOD at) REFERENCES on_18 (c, PERIOD valid_at));
INSERT INTO on_18_child VALUES (1, '[2020-01-02,2020-01-03)');
CREATE TABLE on_18_unenforced (a int REFERENCES wide NOT ENFORCED);
INSERT INTO on_18_unenforced VALUES (-1);
\endif

CREATE TABLE constrained (
  id int CONSTRAINT "the ""key""" PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, code text,
  "A" int, "B" int, period tsrange, room int,
  UNIQUE NULLS NOT DISTINCT ("A", "B"), CONSTRAINT covering UNIQUE (code) INCLUDE ("A") WITH (fillfactor = 70),
  CONSTRAINT no_inherit CHECK (id > -1) NO INHERIT, CHECK (is_short(code)),
  CONSTRAINT no_overlap EXCLUDE USING gist (room WITH =, period WITH &&) WHERE (room > 0),
  CONSTRAINT late_exclusion EXCLUDE USING btree (("B" + 1) WITH =) DEFERRABLE);
INSERT INTO constrained SELECT i, 'code ' || i, i, i * 2, tsrange('2020-01-01'::timestamp + i * interval '1 day',
  '2020-01-02'::timestamp + i * interval '1 day'), i % 3 FROM generate_series(0, 200) i;
ALTER TABLE constrained ADD CONSTRAINT broken CHECK (id < 100) NOT VALID;
COMMENT ON CONSTRAINT broken ON constrained IS E'old rows\nbreak it';
COMMENT ON CONSTRAINT no_overlap ON constrained IS 'rooms';

CREATE TABLE chicken (id int PRIMARY KEY, egg int NOT NULL);
CREATE TABLE egg (id int PRIMARY KEY, chicken int NOT NULL REFERENCES chicken DEFERRABLE INITIALLY DEFERRED);
ALTER TABLE chicken ADD CONSTRAINT from_egg FOREIGN KEY (egg) REFERENCES egg DEFERRABLE INITIALLY IMMEDIATE;
BEGIN;
SET CONSTRAINTS ALL DEFERRED;
INSERT INTO chicken SELECT i, i FROM generate_series(1, 100) i;
INSERT INTO egg SELECT i, 101 - i FROM generate_series(1, 100) i;
COMMIT;
CREATE TABLE tree (id int PRIMARY KEY, parent int REFERENCES tree ON DELETE CASCADE ON UPDATE SET NULL, a int, b int,
  UNIQUE (a, b), FOREIGN KEY (a, b) REFERENCES tree (a, b) MATCH FULL ON DELETE SET NULL);
CREATE TABLE set_some (id int PRIMARY KEY, a int DEFAULT 0, b int,
  FOREIGN KEY (a, b) REFERENCES tree (a, b) ON DELETE SET DEFAULT (a));
INSERT INTO tree VALUES (3, NULL, NULL, NULL), (1, 3, 7, 7), (2, 1, NULL, NULL);
INSERT INTO set_some VALUES (1, 7, 7), (2, 7, NULL);
CREATE TABLE orphans (parent int);
INSERT INTO orphans VALUES (1), (-1);
ALTER TABLE orphans ADD CONSTRAINT orphans_fk FOREIGN KEY (parent) REFERENCES tree NOT VALID;

-- indexes and statistics -------------------------------------------------------------------------------------------

CREATE TABLE indexed (a int, b text, c jsonb, d int[], e point, f tsvector, g timestamptz, ba base);
INSERT INTO indexed SELECT i, 'text ' || i, jsonb_build_object('k', i), ARRAY[i, i + 1], point(i, -i),
  to_tsvector('simple', 'word' || i), '2020-01-01 UTC'::timestamptz + i * interval '1 hour', i::text::base
  FROM generate_series(1, 400) i;
CREATE INDEX partial ON indexed (b) WHERE a > 5 AND b IS NOT NULL;
CREATE INDEX expression ON indexed (lower(b), (a + 1) DESC NULLS LAST, (c ->> 'k') COLLATE "C");
CREATE UNIQUE INDEX covering_index ON indexed (a) INCLUDE (b, g) NULLS NOT DISTINCT
  WITH (fillfactor = 80, deduplicate_items = off);
CREATE INDEX ON indexed USING brin (g timestamptz_minmax_multi_ops (values_per_range = 16)) WITH (pages_per_range = 2);
CREATE INDEX ON indexed USING gin (c jsonb_path_ops) WITH (fastupdate = off);
CREATE INDEX ON indexed USING gin (d, f);
CREATE INDEX ON indexed USING gist (e) WITH (buffering = on);
CREATE INDEX ON indexed USING spgist (e);
CREATE INDEX ON indexed USING hash (b text_pattern_ops);
CREATE INDEX ON indexed (b text_pattern_ops);
CREATE INDEX base_index ON indexed (ba base_ops);
CREATE INDEX function_index ON indexed (add(a, 1));
CREATE INDEX "Index ""odd"" .*
name" ON indexed (a, b);
ALTER INDEX expression ALTER COLUMN 2 SET STATISTICS 77;
COMMENT ON INDEX partial IS 'some rows';
CREATE STATISTICS stat_all ON a, b, g FROM indexed;
CREATE STATISTICS stat_some (ndistinct, dependencies) ON a, b FROM indexed;
CREATE STATISTICS stat_mcv (mcv) ON a, (a % 7), (lower(b)) FROM indexed;
CREATE STATISTICS hidden."Stat ""odd""" ON (a * 3) FROM indexed;
ALTER STATISTICS stat_some SET STATISTICS 333;
ALTER STATISTICS stat_mcv OWNER TO torture_owner;
COMMENT ON STATISTICS stat_all IS 'all kinds';

-- partitions and inheritance ---------------------------------------------------------------------------------------

CREATE TABLE parted (id int, at date NOT NULL, region text DEFAULT 'parent', v int) PARTITION BY RANGE (at);
CREATE TABLE parted_2020 PARTITION OF parted FOR VALUES FROM (MINVALUE) TO ('2021-01-01');
CREATE TABLE parted_2021 PARTITION OF parted (region DEFAULT 'child', CONSTRAINT own CHECK (v < 1000000))
  FOR VALUES FROM ('2021-01-01') TO ('2022-01-01') PARTITION BY LIST (region);
CREATE TABLE parted_2021_eu PARTITION OF parted_2021 FOR VALUES IN ('eu', 'it''s "x"', NULL);
CREATE TABLE parted_2021_rest PARTITION OF parted_2021 DEFAULT PARTITION BY HASH (id);
CREATE TABLE parted_2021_rest_0 PARTITION OF parted_2021_rest FOR VALUES WITH (MODULUS 3, REMAINDER 0);
CREATE TABLE parted_2021_rest_1 PARTITION OF parted_2021_rest FOR VALUES WITH (MODULUS 3, REMAINDER 1);
CREATE TABLE hidden."Part 2 *" PARTITION OF parted_2021_rest FOR VALUES WITH (MODULUS 3, REMAINDER 2)
  WITH (fillfactor = 50);
CREATE TABLE parted_attached (gone int, v int, region text, id int NOT NULL, at date NOT NULL);
ALTER TABLE parted_attached DROP COLUMN gone;
ALTER TABLE parted ATTACH PARTITION parted_attached FOR VALUES FROM ('2022-01-01') TO ('2023-01-01');
CREATE TABLE parted_detached PARTITION OF parted FOR VALUES FROM ('2023-01-01') TO ('2024-01-01');
CREATE TABLE parted_default PARTITION OF parted DEFAULT;
INSERT INTO parted (id, at, region, v) SELECT i, '2020-06-01'::date + i, (ARRAY['eu', 'us', NULL, 'it''s "x"'])[i % 4 + 1], i
  FROM generate_series(1, 1500) i;
ALTER TABLE parted DETACH PARTITION parted_detached;
CREATE INDEX parted_v ON parted (v);
CREATE INDEX parted_only ON ONLY parted (region);
CREATE UNIQUE INDEX ON parted_2020 (id);
CREATE UNIQUE INDEX own_index ON parted_attached (id, at);
CREATE UNIQUE INDEX parted_id_at ON ONLY parted (id, at);
ALTER INDEX parted_id_at ATTACH PARTITION own_index;
CREATE TABLE parted_expr (a int, b text) PARTITION BY RANGE ((a % 10), b COLLATE "C" text_pattern_ops);
CREATE TABLE parted_expr_1 PARTITION OF parted_expr FOR VALUES FROM (MINVALUE, MINVALUE) TO (5, MAXVALUE);
CREATE TABLE parted_expr_2 PARTITION OF parted_expr FOR VALUES FROM (5, MAXVALUE) TO (MAXVALUE, MAXVALUE);
INSERT INTO parted_expr SELECT i, 'b' || i FROM generate_series(1, 40) i;
-- Hashes of an enum depend on OIDs, which a restore changes: rows would no longer fit their partitions unless pg_dump
-- loads through the parent, which it does for just this case.
CREATE TABLE parted_enum (m mood, n int) PARTITION BY HASH (m);
CREATE TABLE parted_enum_0 PARTITION OF parted_enum FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE parted_enum_1 PARTITION OF parted_enum FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO parted_enum SELECT m, 1 FROM unnest(enum_range(NULL::mood)) m;
CREATE TABLE parted_key (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
CREATE TABLE parted_key_1 PARTITION OF parted_key FOR VALUES FROM (0) TO (100);
CREATE TABLE parted_key_2 PARTITION OF parted_key FOR VALUES FROM (100) TO (200);
INSERT INTO parted_key SELECT i, i FROM generate_series(0, 199) i;
CREATE TABLE refers_to_parted (id int REFERENCES parted_key ON DELETE CASCADE) PARTITION BY HASH (id);
CREATE TABLE refers_to_parted_0 PARTITION OF refers_to_parted FOR VALUES WITH (MODULUS 1, REMAINDER 0);
INSERT INTO refers_to_parted SELECT i FROM generate_series(50, 150) i;
CREATE TABLE parted_empty (a int) PARTITION BY LIST (a);
\if :v17
CREATE TABLE parted_identity (id int GENERATED BY DEFAULT AS IDENTITY (START 100), v int) PARTITION BY RANGE (v);
CREATE TABLE parted_identity_1 PARTITION OF parted_identity FOR VALUES FROM (0) TO (100);
INSERT INTO parted_identity (v) SELECT i FROM generate_series(1, 5) i;
\endif
ALTER TABLE parted OWNER TO torture_owner;
COMMENT ON TABLE parted_2021 IS 'a partition with partitions';

CREATE TABLE mother (id int PRIMARY KEY, name text DEFAULT 'mother' NOT NULL, CONSTRAINT named CHECK (name <> ''));
CREATE TABLE father (name text DEFAULT 'father', weight numeric, CONSTRAINT heavy CHECK (weight > 0));
CREATE TABLE child (own int, name text DEFAULT 'child') INHERITS (mother, father);
CREATE TABLE grandchild (weight numeric DEFAULT 1.5 NOT NULL, gen int GENERATED ALWAYS AS (own + 1) STORED,
  CONSTRAINT heavy CHECK (weight > 0)) INHERITS (child);
CREATE TABLE adopted (id int NOT NULL, name text NOT NULL, extra int, CONSTRAINT named CHECK (name <> ''));
ALTER TABLE adopted INHERIT mother;
CREATE TABLE disowned () INHERITS (father);
ALTER TABLE disowned NO INHERIT father;
INSERT INTO mother VALUES (1);
INSERT INTO father VALUES ('f', 80);
INSERT INTO child (id, weight, own) VALUES (2, 10, 1), (3, 11, 2);
INSERT INTO grandchild (id, own) VALUES (4, 1);
INSERT INTO adopted VALUES (5, 'adopted', 6);
INSERT INTO disowned VALUES ('alone', 1);

-- ownership, privileges, row-level security ------------------------------------------------------------------------

CREATE SEQUENCE hidden.changed_owner;
CREATE TABLE serials (a serial, b bigserial, c int DEFAULT nextval('hidden.changed_owner'), d smallserial);
CREATE TABLE borrows (b bigint DEFAULT nextval('serials_b_seq'));
ALTER SEQUENCE serials_b_seq OWNED BY NONE;
ALTER SEQUENCE serials_a_seq RENAME TO "Serials A";
INSERT INTO serials DEFAULT VALUES;
INSERT INTO serials DEFAULT VALUES;
ALTER TABLE serials OWNER TO "torture_Odd ""Röle"" \ 1";
ALTER SEQUENCE hidden.changed_owner OWNER TO torture_writer;
GRANT SELECT, REFERENCES ON serials TO torture_grantor WITH GRANT OPTION;
GRANT SELECT (a, b), UPDATE (c) ON serials TO torture_reader;
GRANT TRUNCATE, TRIGGER, DELETE ON serials TO PUBLIC;
GRANT USAGE ON SCHEMA torture TO torture_grantor;
SET ROLE torture_grantor;
GRANT SELECT ON serials TO torture_writer WITH GRANT OPTION;
GRANT SELECT ON serials TO torture_reader;
SET ROLE torture_writer;
GRANT SELECT ON serials TO torture_owner;
RESET ROLE;
CREATE TABLE revoked (a int);
ALTER TABLE revoked OWNER TO torture_owner;
REVOKE ALL ON revoked FROM torture_owner, torture_reader;
\if :v17
GRANT MAINTAIN ON wide TO torture_writer;
\endif

CREATE TABLE secured (id int PRIMARY KEY, owner name DEFAULT CURRENT_USER, level int);
INSERT INTO secured SELECT i, 'torture_reader', i % 5 FROM generate_series(1, 60) i;
ALTER TABLE secured ENABLE ROW LEVEL SECURITY;
ALTER TABLE secured FORCE ROW LEVEL SECURITY;
ALTER TABLE secured OWNER TO torture_owner;
CREATE POLICY "own ""rows""" ON secured USING (owner = CURRENT_USER) WITH CHECK (level < 3);
CREATE POLICY readers ON secured AS RESTRICTIVE FOR SELECT TO torture_reader, "torture_Odd ""Röle"" \ 1"
  USING (level < (SELECT max(kind) FROM torture.wide));
CREATE POLICY inserts ON secured FOR INSERT TO torture_writer WITH CHECK (true);
COMMENT ON POLICY readers ON secured IS 'only these';
CREATE TABLE policies_off (a int);
CREATE POLICY idle ON policies_off FOR DELETE USING (false);

-- triggers, event triggers, rules ----------------------------------------------------------------------------------

CREATE TABLE triggered (id int PRIMARY KEY, a int, "B b" int);
INSERT INTO triggered SELECT i, i, i FROM generate_series(1, 10) i;
CREATE TRIGGER plain BEFORE INSERT OR UPDATE OF a, "B b" OR DELETE ON triggered FOR EACH ROW
  WHEN (pg_trigger_depth() < 1) EXECUTE FUNCTION trap('arg', 'it''s', '', E'\\ "\n');
CREATE TRIGGER switched_off AFTER UPDATE ON triggered FOR EACH STATEMENT EXECUTE FUNCTION trap_after();
CREATE TRIGGER always AFTER INSERT ON triggered FOR EACH ROW EXECUTE FUNCTION trap_after();
CREATE TRIGGER replica AFTER INSERT ON triggered FOR EACH ROW EXECUTE FUNCTION trap_after();
CREATE TRIGGER transition AFTER UPDATE ON triggered REFERENCING OLD TABLE AS "old rows" NEW TABLE AS new_rows
  FOR EACH STATEMENT EXECUTE FUNCTION trap_after();
CREATE TRIGGER truncated BEFORE TRUNCATE ON triggered EXECUTE FUNCTION trap_after();
CREATE CONSTRAINT TRIGGER late AFTER INSERT OR UPDATE ON triggered FROM wide DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW WHEN (NEW.a > 0) EXECUTE FUNCTION trap_after();
ALTER TABLE triggered DISABLE TRIGGER switched_off;
ALTER TABLE triggered ENABLE ALWAYS TRIGGER always;
ALTER TABLE triggered ENABLE REPLICA TRIGGER replica;
COMMENT ON TRIGGER plain ON triggered IS 'a trigger';
CREATE TRIGGER on_parts BEFORE INSERT ON parted FOR EACH ROW EXECUTE FUNCTION trap();
ALTER TABLE parted_2020 DISABLE TRIGGER on_parts;
CREATE TRIGGER on_one_part AFTER UPDATE ON parted_2020 FOR EACH ROW EXECUTE FUNCTION trap_after();
CREATE FUNCTION on_event() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN NULL; END $$;
CREATE EVENT TRIGGER torture_event ON ddl_command_end WHEN TAG IN ('CREATE TABLE', 'DROP TABLE')
  EXECUTE FUNCTION on_event();
CREATE EVENT TRIGGER torture_event_off ON sql_drop EXECUTE FUNCTION on_event();
ALTER EVENT TRIGGER torture_event_off DISABLE;
CREATE EVENT TRIGGER torture_event_always ON table_rewrite EXECUTE FUNCTION on_event();
ALTER EVENT TRIGGER torture_event_always ENABLE ALWAYS;
COMMENT ON EVENT TRIGGER torture_event IS 'an event trigger';
CREATE TABLE ruled (a int UNIQUE, b text);
INSERT INTO ruled VALUES (1, 'before the rules');
CREATE RULE log_it AS ON UPDATE TO ruled WHERE OLD.a <> NEW.a DO ALSO
  INSERT INTO triggered VALUES (OLD.a, NEW.a, 0);
CREATE RULE tell AS ON UPDATE TO ruled DO ALSO (NOTIFY torture_channel; INSERT INTO orphans VALUES (NEW.a));
CREATE RULE never AS ON DELETE TO ruled DO INSTEAD NOTHING;
CREATE RULE upsert AS ON INSERT TO ruled WHERE NEW.a < 0 DO INSTEAD
  INSERT INTO secured VALUES (NEW.a) ON CONFLICT (id) DO UPDATE SET level = 0;
ALTER TABLE ruled DISABLE RULE log_it;
ALTER TABLE ruled ENABLE ALWAYS RULE never;
COMMENT ON RULE never ON ruled IS 'rows stay';

-- views ------------------------------------------------------------------------------------------------------------

CREATE VIEW simple AS SELECT id, kind AS "Kind ""of""" FROM wide;
CREATE VIEW barrier WITH (security_barrier) AS SELECT * FROM secured WHERE level < 3;
CREATE VIEW invoker WITH (security_invoker = true) AS SELECT * FROM secured;
CREATE VIEW checked AS SELECT id, a FROM triggered WHERE a > 0 WITH LOCAL CHECK OPTION;
CREATE VIEW checked_twice AS SELECT id, a FROM checked WHERE a < 100 WITH CASCADED CHECK OPTION;
ALTER VIEW checked ALTER COLUMN a SET DEFAULT 5;
CREATE RECURSIVE VIEW nums (n) AS VALUES (1) UNION ALL SELECT n + 1 FROM nums WHERE n < 10;
CREATE VIEW no_columns_view AS SELECT FROM wide;
CREATE VIEW joined AS SELECT c.id, egg, chicken, line FROM chicken c LEFT JOIN egg e USING (id) CROSS JOIN LATERAL lines(2)
  WHERE c.id = ANY (ARRAY[1, 2]) AND EXISTS (SELECT FROM tree);
CREATE VIEW grouped_by_key AS SELECT s.id, s.owner, count(*) FROM secured s JOIN triggered t ON true GROUP BY s.id;
CREATE VIEW on_grouped AS SELECT * FROM grouped_by_key;
CREATE VIEW casts AS SELECT 'a'::text = 'sad' AS x, '5'::base = '5'::base AS y, ROW(1, 'a')::pair::text AS z;
CREATE TRIGGER instead INSTEAD OF INSERT OR UPDATE OR DELETE ON joined FOR EACH ROW EXECUTE FUNCTION trap();
CREATE RULE view_rule AS ON INSERT TO simple DO INSTEAD INSERT INTO wide (id, kind, payload, raw)
  VALUES (NEW.id, 1, '', '') RETURNING id, kind;
GRANT SELECT ON simple TO torture_reader;
COMMENT ON VIEW simple IS 'a view';
COMMENT ON COLUMN simple.id IS 'its column';
CREATE VIEW round_trip AS SELECT 1 AS a, 'x'::text AS b;
CREATE FUNCTION round_rows() RETURNS SETOF round_trip LANGUAGE plpgsql AS $$ BEGIN RETURN; END $$;
CREATE OR REPLACE VIEW round_trip AS SELECT a, b FROM round_rows();
CREATE VIEW ping AS SELECT 1 AS a;
CREATE VIEW pong AS SELECT a FROM ping;
CREATE OR REPLACE VIEW ping AS SELECT a FROM pong;
CREATE MATERIALIZED VIEW mat AS SELECT kind, count(*) AS n, min(payload) AS "First one" FROM wide GROUP BY kind;
CREATE UNIQUE INDEX mat_kind ON mat (kind);
CREATE MATERIALIZED VIEW mat_on_mat WITH (fillfactor = 60) AS SELECT sum(n) AS total FROM mat;
CREATE MATERIALIZED VIEW mat_on_key AS SELECT * FROM on_grouped;
CREATE MATERIALIZED VIEW mat_empty AS SELECT * FROM mat WITH NO DATA;
CREATE MATERIALIZED VIEW mat_on_empty AS SELECT * FROM mat_empty WITH NO DATA;
CREATE VIEW on_mat AS SELECT * FROM mat_on_mat;
ALTER MATERIALIZED VIEW mat_on_mat OWNER TO torture_owner;
GRANT SELECT ON mat TO torture_owner;
ALTER MATERIALIZED VIEW mat ALTER COLUMN n SET STATISTICS 55;
COMMENT ON MATERIALIZED VIEW mat_on_mat IS 'on another one';
CREATE FUNCTION needs_key() RETURNS bigint STABLE BEGIN ATOMIC
  SELECT count(*) FROM (SELECT id, owner, level FROM secured GROUP BY id) x; END;
CREATE FUNCTION needs_view(v simple) RETURNS int STABLE RETURN (SELECT max(id) FROM simple WHERE id = (v).id);

-- foreign data -----------------------------------------------------------------------------------------------------

CREATE FUNCTION fdw_options(text[], oid) RETURNS void LANGUAGE plpgsql AS $$ BEGIN END $$;
CREATE FOREIGN DATA WRAPPER torture_fdw VALIDATOR fdw_options OPTIONS (debug 'true', "Odd ""name""" 'it''s');
CREATE SERVER torture_server TYPE 'none' VERSION '1.0' FOREIGN DATA WRAPPER torture_fdw OPTIONS (host 'h', note E'a\nb');
CREATE USER MAPPING FOR torture_owner SERVER torture_server OPTIONS ("user" 'u', password 'secret');
CREATE USER MAPPING FOR PUBLIC SERVER torture_server;
CREATE FOREIGN TABLE foreign_table (id int OPTIONS (column_name 'ID') NOT NULL, t text COLLATE "C" DEFAULT 'x',
  CONSTRAINT positive_id CHECK (id > 0)) SERVER torture_server OPTIONS (table_name 'it''s');
CREATE FOREIGN TABLE foreign_child () INHERITS (father) SERVER torture_server;
CREATE TABLE mixed (a int) PARTITION BY LIST (a);
CREATE TABLE mixed_1 PARTITION OF mixed FOR VALUES IN (1);
CREATE FOREIGN TABLE mixed_2 PARTITION OF mixed FOR VALUES IN (2) SERVER torture_server;
INSERT INTO mixed VALUES (1);
GRANT USAGE ON FOREIGN DATA WRAPPER torture_fdw TO torture_owner WITH GRANT OPTION;
GRANT USAGE ON FOREIGN SERVER torture_server TO torture_owner;
ALTER SERVER torture_server OWNER TO torture_owner;
COMMENT ON FOREIGN DATA WRAPPER torture_fdw IS 'no handler';
COMMENT ON SERVER torture_server IS 'nowhere';
COMMENT ON FOREIGN TABLE foreign_table IS 'never read';
CREATE SERVER loopback FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '1', dbname 'none');
CREATE USER MAPPING FOR torture_reader SERVER loopback OPTIONS (user 'nobody', password 'none');
CREATE FOREIGN TABLE unreachable (a int, b text) SERVER loopback OPTIONS (schema_name 'x', table_name 'y');
CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
CREATE FOREIGN TABLE a_file (line text) SERVER files OPTIONS (filename '/nowhere', format 'text');

-- publications, subscriptions --------------------------------------------------------------------------------------

CREATE PUBLICATION torture_all FOR ALL TABLES WITH (publish = 'insert, truncate', publish_via_partition_root = true);
CREATE PUBLICATION torture_some FOR TABLE wide (id, kind) WHERE (kind > 3 AND payload IS NOT NULL), ONLY mother, parted
  WITH (publish = 'insert');  -- published updates would need a replica identity: tests change rows
CREATE PUBLICATION torture_schemas FOR TABLES IN SCHEMA hidden, "select", TABLE constrained WITH (publish = 'insert');
CREATE PUBLICATION torture_none;
ALTER PUBLICATION torture_some OWNER TO "torture_Odd ""Röle"" \ 1";
COMMENT ON PUBLICATION torture_some IS 'columns and rows';
SELECT format('CREATE SUBSCRIPTION %I CONNECTION %L PUBLICATION "Pub ""x""", other WITH (connect = false, slot_name = %s)',
  'torture "sub"', 'host=127.0.0.1 port=1 dbname=none password=secret', 'torture_slot') \gexec
COMMENT ON SUBSCRIPTION "torture ""sub""" IS 'to nowhere';

-- large objects ----------------------------------------------------------------------------------------------------

\o /dev/null
SELECT lo_from_bytea(700001, decode(string_agg(lpad(to_hex(i % 256), 2, '0'), '' ORDER BY i), 'hex'))
  FROM generate_series(1, 10000) i;
SELECT lo_from_bytea(700002, '');
SELECT lo_from_bytea(700003, convert_to(repeat('large object ', 20000), 'UTF8'));
SELECT lo_create(700004), lo_put(700004, 5000, '\x00ff');
SELECT lo_from_bytea(700005 + i, decode(md5(i::text), 'hex')) FROM generate_series(0, 20) i;
\o
ALTER LARGE OBJECT 700001 OWNER TO torture_owner;
GRANT SELECT ON LARGE OBJECT 700001 TO torture_reader;
GRANT SELECT, UPDATE ON LARGE OBJECT 700002 TO torture_writer WITH GRANT OPTION;
COMMENT ON LARGE OBJECT 700003 IS E'large\nobject';
CREATE TABLE refers_to_objects (id int, content oid);
INSERT INTO refers_to_objects VALUES (1, 700001), (2, 700003);

-- comments with everything, settings of the database ---------------------------------------------------------------

COMMENT ON TABLE wide IS E'several lines\n-- not a comment\n\\connect postgres\n\\.\n\t''quoted'' $$ ; äöü 🐘';
COMMENT ON COLUMN wide.payload IS E'\\';
COMMENT ON SCHEMA public IS 'ours, too';

COMMENT ON DATABASE :"db" IS 'torture';
ALTER DATABASE :"db" SET "torture.setting" = 'a "b", c';
ALTER DATABASE :"db" SET timezone = 'Asia/Kathmandu';
ALTER DATABASE :"db" CONNECTION LIMIT 77;
ALTER ROLE torture_reader IN DATABASE :"db" SET search_path = torture, "We.ird, schema";
GRANT CONNECT, TEMPORARY ON DATABASE :"db" TO torture_reader;
