"""Whether a database has exactly the tables that this program makes.

A trigger, a view in place of a table, a rule or another default changes what a statement does
without changing one row, so no audit of rows finds it.  What should be there is told by making it
in a database in memory; what is there, by the catalog: neither reads a row of the ledger, so that
the time does not depend on how many there are.
"""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from x402_mask._ledger.schema import make_tables
from x402_mask._ledger.sqlite_busy import Connection
from x402_mask.errors import LedgerError

if TYPE_CHECKING:
    from x402_mask._ledger.records import Db

_THEIRS: Final = ("sqlite_", "_litestream_")
"""Tables that SQLite itself (``ANALYZE``), or a well-known backup of it, keeps in a database.

Tables and their indexes only: whoever names a trigger so is neither of them.
"""

_TOKEN: Final = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"|\w+|\S")

Shape = dict[tuple[str, str], object]
"""Kind and name of each thing in a schema, and all that matters of it."""


# --- SQLite ---------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def _made(tables: str) -> Shape:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as raw:
        memory = Connection(raw)
        make_tables(memory, tables, memory.columns)
        return _sqlite_shape(memory)


def _sqlite_shape(db: Db) -> Shape:
    found = db.all("SELECT type, name, tbl_name, sql FROM sqlite_master")
    return {
        (str(kind), str(name)): (table, _parts(str(sql)))
        for kind, name, table, sql in found
        if kind not in ("table", "index") or not str(table).startswith(_THEIRS)
    }


@lru_cache(maxsize=256)
def _parts(sql: str) -> tuple[str, ...]:
    """A definition in parts that may stand in any order: a column added later stands last."""
    parts, depth = [""], 0
    for word in _TOKEN.findall(sql):
        depth += (word == "(") - (word == ")")
        if (word == "," and depth == 1) or (word == "(" and depth == 1):
            parts.append("")
        elif word == ")" and depth == 0:
            parts.append("after ")
        else:
            parts[-1] += (word if word[0] in "'\"" else word.lower()) + " "
    return tuple(sorted(parts))


def insist_on_sqlite(db: Db, tables: str, name: str, *, whole: bool) -> None:
    """Refuse a database whose schema is not that of *tables*.

    *whole*: everything should be there.  Else it is what an older program made, which lacks some of
    it, or an empty one; but a trigger or a view is never there.

    Raises:
        LedgerError: what is not as it should be, by name.
    """
    found = _sqlite_shape(db)
    _compare(found, _made(tables) if whole else _plain(found), name)


def _plain(found: Shape) -> Shape:
    return {key: value for key, value in found.items() if key[0] in ("table", "index", "sequence")}


def _compare(found: Shape, should: Shape, name: str) -> None:
    """Say the first thing that differs."""
    for key in sorted(found.keys() | should.keys(), key=lambda k: (k[0] == "index", k)):
        if found.get(key) == should.get(key):
            continue
        what = "is missing" if key not in found else "is not as x402_mask made it"
        raise LedgerError(
            f"the schema of {name} was changed: the {key[0]} {key[1]} {what}. Nothing is paid from"
            " it; undo the change, or restore a backup"
        )


# --- PostgreSQL -----------------------------------------------------------------------------------

_DATABASE: Final = "the ledger's database"
_TYPES: Final = {
    "BIGSERIAL": "int8",
    "BIGINT": "int8",
    "INTEGER": "int4",
    "TEXT": "text",
    "BYTEA": "bytea",
    "TIMESTAMPTZ": "timestamptz",
}

_CATALOG: Final = """
SELECT CASE c.relkind WHEN 'r' THEN 'table' WHEN 'i' THEN 'index' WHEN 'v' THEN 'view'
         WHEN 'S' THEN 'sequence' ELSE 'relation' END,
       c.relname,
       c.relkind IN ('r', 'i', 'S') AND c.relpersistence = 'p' AND NOT c.relrowsecurity
         AND NOT c.relispartition AND NOT c.relhassubclass,
       (SELECT string_agg(a.attname || ' ' || t.typname || CASE WHEN a.attnotnull THEN ' !' ELSE ''
               END || COALESCE(' ' || regexp_replace(pg_get_expr(d.adbin, d.adrelid),
                 '::[a-z]+|[(].*', '', 'g'), '') || a.attgenerated::text || a.attidentity::text,
               ', ' ORDER BY a.attname)
          FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
          LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND c.relkind = 'r'),
       (SELECT o.relname || CASE WHEN i.indisunique THEN ' unique ' ELSE ' ' END
               || CASE WHEN i.indisvalid THEN '' ELSE 'invalid ' END
               || (SELECT string_agg(COALESCE(a.attname, '?'), ' ' ORDER BY k.n)
                     FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(num, n)
                     LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.num)
               || COALESCE(' where ' || regexp_replace(pg_get_expr(i.indpred, i.indrelid),
                    '::[a-z]+|[() ]', '', 'g'), '')
          FROM pg_index i JOIN pg_class o ON o.oid = i.indrelid WHERE i.indexrelid = c.oid)
  FROM pg_class c WHERE c.relnamespace = to_regnamespace('x402_mask') AND c.relkind <> 't'
UNION ALL
SELECT 'trigger', t.tgname, false, NULL, NULL FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
 WHERE c.relnamespace = to_regnamespace('x402_mask') AND NOT t.tgisinternal
UNION ALL
SELECT 'rule', r.rulename, false, NULL, NULL FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class
 WHERE c.relnamespace = to_regnamespace('x402_mask') AND r.rulename <> '_RETURN'
UNION ALL
SELECT 'constraint', n.conname, false, NULL, NULL FROM pg_constraint n
 WHERE n.connamespace = to_regnamespace('x402_mask') AND n.contype NOT IN ('p', 'u', 'n')
UNION ALL
SELECT 'grant to everybody on', c.relname, false, NULL, NULL FROM pg_class c, aclexplode(c.relacl) g
 WHERE c.relnamespace = to_regnamespace('x402_mask') AND g.grantee = 0
UNION ALL
SELECT 'grant to everybody on', n.nspname, false, NULL, NULL
  FROM pg_namespace n, aclexplode(n.nspacl) g
 WHERE n.nspname = 'x402_mask' AND g.grantee = 0 AND g.privilege_type = 'CREATE'
UNION ALL
SELECT 'function', p.proname, false, NULL, NULL FROM pg_proc p
 WHERE p.pronamespace = to_regnamespace('x402_mask')
"""
"""Everything in the schema ``x402_mask`` that changes what a statement does, in one question.

Functions as well: with the schema on the search path one could stand for one of PostgreSQL's own.
"""


def catalog(db: Db) -> Shape:
    """What there is in the schema ``x402_mask``; nothing in it was made to work by others.

    Raises:
        LedgerError: something was: a trigger, a view, a rule.
    """
    found: Shape = {(str(a), str(b)): tuple(rest) for a, b, *rest in db.all(_CATALOG)}
    _compare(found, _plain(found), _DATABASE)
    return found


def insist_on_postgres(db: Db, tables: str, found: Shape) -> None:
    """The same as :func:`insist_on_sqlite`, for what :func:`catalog` *found* a moment ago.

    Raises:
        LedgerError: what is not as it should be, by name.
    """
    if found != _expected(tables):  # another process may have brought it up to date meanwhile
        _compare(catalog(db), _expected(tables), _DATABASE)


@lru_cache(maxsize=2)
def _expected(tables: str) -> Shape:
    """What :data:`_CATALOG` finds where *tables* were made."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as raw:
        memory = Connection(raw)
        make_tables(memory, tables, memory.columns)
        found: Shape = {}
        for (table,) in memory.all("SELECT name FROM sqlite_master WHERE type='table'"):
            columns = memory.all("SELECT * FROM pragma_table_info(?)", table)
            described = sorted(_column(*column[1:]) for column in columns)
            found["table", table] = (True, ", ".join(described), None)
            for _, name, kind, *_ in columns:
                if kind == "BIGSERIAL":
                    found["sequence", f"{table}_{name}_seq"] = (True, None, None)
            found |= _indexes(memory, table)
        return found


def _column(name: str, kind: str, required: int, default: str | None, key: int) -> str:
    default = "nextval" if kind == "BIGSERIAL" else default
    said = f"{name} {_TYPES[kind]}{' !' if required or key else ''}"
    return said if default is None else f"{said} {default}"


def _indexes(memory: Connection, table: str) -> Shape:
    found: Shape = {}
    for _, name, unique, origin, _ in memory.all("SELECT * FROM pragma_index_list(?)", table):
        columns = [c for _, _, c in memory.all("SELECT * FROM pragma_index_info(?)", name)]
        called = {"pk": f"{table}_pkey", "u": f"{table}_{'_'.join(columns)}_key"}.get(origin, name)
        ((sql,),) = memory.all("SELECT sql FROM sqlite_master WHERE name=?", name)
        where = "" if sql is None else re.sub(r"[() ]", "", str(sql).partition(" WHERE ")[2])
        said = f"{table} {'unique ' if unique else ''}{' '.join(columns)}"
        found["index", str(called)] = (True, None, f"{said} where {where}" if where else said)
    return found
