"""The statements that empty a PostgreSQL database of all that its role owns, for psql's ``\\gexec``."""

from __future__ import annotations

import json

from holdfast.sources.postgres._connection import Session, sql
from holdfast.sources.postgres._moment import Rows

BEGIN = """
BEGIN READ WRITE;
SET LOCAL lock_timeout = {timeout};
SET LOCAL statement_timeout = 0;
SET LOCAL idle_in_transaction_session_timeout = 0;
SET LOCAL search_path = pg_catalog;
"""

_OURS = "n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%'"
"""Schemas that the server did not make for itself."""

LOCK_ALL = f"""
SELECT format('LOCK TABLE ONLY %I.%I IN EXCLUSIVE MODE', n.nspname, c.relname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND {_OURS} AND pg_has_role(c.relowner, 'USAGE')
ORDER BY c.oid
"""  # noqa: S608  nothing in it comes from elsewhere
"""Readers go on; writers wait, and find the new state."""

DROP_ALL = f"""
WITH object (rank, class, id, owner, space) AS (
    SELECT 1, 'pg_class'::regclass, oid, relowner, relnamespace
        FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'f')
    UNION ALL SELECT 2, 'pg_class'::regclass, oid, relowner, relnamespace FROM pg_class WHERE relkind = 'S'
    UNION ALL SELECT 3, 'pg_proc'::regclass, oid, proowner, pronamespace FROM pg_proc
    UNION ALL SELECT 4, 'pg_opclass'::regclass, oid, opcowner, opcnamespace FROM pg_opclass
    UNION ALL SELECT 5, 'pg_opfamily'::regclass, oid, opfowner, opfnamespace FROM pg_opfamily
    UNION ALL SELECT 6, 'pg_operator'::regclass, oid, oprowner, oprnamespace FROM pg_operator
    UNION ALL SELECT 7, 'pg_type'::regclass, t.oid, typowner, typnamespace
        FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid
        WHERE typtype IN ('d', 'e', 'r', 'b') AND typcategory <> 'A' OR typtype = 'c' AND c.relkind = 'c'
    UNION ALL SELECT 8, 'pg_ts_config'::regclass, oid, cfgowner, cfgnamespace FROM pg_ts_config
    UNION ALL SELECT 9, 'pg_ts_dict'::regclass, oid, dictowner, dictnamespace FROM pg_ts_dict
    UNION ALL SELECT 10, 'pg_collation'::regclass, oid, collowner, collnamespace FROM pg_collation
    UNION ALL SELECT 11, 'pg_conversion'::regclass, oid, conowner, connamespace FROM pg_conversion
    UNION ALL SELECT 12, 'pg_statistic_ext'::regclass, oid, stxowner, stxnamespace FROM pg_statistic_ext
),
statement (rank, text) AS (
    SELECT 0, format('DROP PUBLICATION IF EXISTS %I CASCADE', pubname)
    FROM pg_publication WHERE pg_has_role(pubowner, 'USAGE')
    UNION ALL
    SELECT 0, format('DROP EVENT TRIGGER IF EXISTS %I CASCADE', evtname)
    FROM pg_event_trigger WHERE pg_has_role(evtowner, 'USAGE')
    UNION ALL
    SELECT 0, format('DROP SCHEMA IF EXISTS %I CASCADE', n.nspname)
    FROM pg_namespace n WHERE {_OURS} AND n.nspname <> 'public' AND pg_has_role(n.nspowner, 'USAGE')
      AND NOT EXISTS (SELECT FROM pg_depend d
                      WHERE d.classid = 'pg_namespace'::regclass AND d.objid = n.oid AND d.deptype = 'e')
    UNION ALL
    SELECT o.rank, format('DROP %s IF EXISTS %s CASCADE', replace(i.type, ' object', ''), i.identity)
    FROM object o JOIN pg_namespace n ON n.oid = o.space, LATERAL pg_identify_object(o.class, o.id, 0) i
    WHERE {_OURS} AND pg_has_role(o.owner, 'USAGE')
      AND (n.nspname = 'public' OR NOT pg_has_role(n.nspowner, 'USAGE'))
      AND NOT EXISTS (SELECT FROM pg_depend d
                      WHERE d.classid = o.class AND d.objid = o.id AND d.deptype IN ('e', 'i')
                        AND (d.refclassid, d.refobjid) <> (o.class, o.id))
    UNION ALL
    SELECT 20, format('DROP SERVER IF EXISTS %I CASCADE', srvname)
    FROM pg_foreign_server WHERE pg_has_role(srvowner, 'USAGE')
    UNION ALL
    SELECT 21, format('DROP EXTENSION IF EXISTS %I CASCADE', extname)
    FROM pg_extension WHERE pg_has_role(extowner, 'USAGE')
    UNION ALL
    SELECT 22, format('SELECT pg_catalog.lo_unlink(%s)', oid)
    FROM pg_largeobject_metadata WHERE pg_has_role(lomowner, 'USAGE')
)
SELECT text FROM statement ORDER BY rank, text
"""  # noqa: S608  nothing in it comes from elsewhere


def left_alone(session: Session) -> tuple[set[str], set[str]]:
    """The schemas and the extensions that `DROP_ALL` does not drop."""
    schemas = session.run(
        "SELECT nspname FROM pg_namespace WHERE nspname = 'public' OR NOT pg_has_role(nspowner, 'USAGE')"
    )
    extensions = session.run("SELECT extname FROM pg_extension WHERE NOT pg_has_role(extowner, 'USAGE')")
    return {str(name) for (name,) in schemas}, {str(name) for (name,) in extensions}


_CHECK = """
DECLARE
    wanted jsonb := {rows};
    counts jsonb := '{{}}';
    wrong record;
    item record;
    number bigint;
    root text;
BEGIN
    FOR item IN SELECT s.key AS space, t.key AS name, t.value::bigint AS rows
                FROM jsonb_each(wanted) s, jsonb_each_text(s.value) t LOOP
        EXECUTE format('SELECT count(*) FROM ONLY %I.%I', item.space, item.name) INTO number;
        EXECUTE {root} INTO root USING format('%I.%I', item.space, item.name)::regclass;
        counts := jsonb_set(counts, ARRAY[root], to_jsonb(coalesce((counts->>root)::bigint, 0) + number - item.rows));
    END LOOP;
    SELECT key, value INTO wrong FROM jsonb_each_text(counts) WHERE value <> '0' LIMIT 1;
    IF FOUND THEN
        RAISE 'the restored database has % rows more in % than it had', wrong.value, wrong.key;
    END IF;
END
"""


def check_statement(rows: Rows, major: int) -> bytes:
    """A statement that fails where the database does not hold these rows, partitions of one table taken together."""
    root = "SELECT coalesce(pg_partition_root($1), $1)::regclass::text" if major >= 12 else "SELECT $1::text"
    body = sql.SQL(_CHECK).format(rows=sql.Literal(json.dumps(rows)), root=sql.Literal(root)).as_string()
    return sql.SQL("\nDO LANGUAGE plpgsql {};\n").format(sql.Literal(body)).as_string().encode()
