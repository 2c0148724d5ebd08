"""One statement on a SQLite file of the workspace or on a PostgreSQL server, within bounds."""

import json

import lite
import postgres

from runner.guest.beneath import ToolError

LONGEST = 10_000  # characters of one value
MOST_BYTES = 150_000  # of rows as JSON


def run(call):
    """The rows, in the shape that both engines share."""
    given = call.arguments
    if "path" in given and "server" in given:
        raise ToolError("name either `path`, a SQLite file, or `server`, a PostgreSQL one", "arguments")
    asked = {
        "sql": given["sql"],
        "params": given.get("params", []),
        "write": given.get("mode") == "write",
        "limit": given.get("limit", 200),
        "timeout": given.get("timeout", 15),
    }
    if "path" in given:
        return result("sqlite", *lite.query(call.place("path"), **asked))
    return result("postgresql", *postgres.query(given.get("server", ""), **asked))


def result(engine, columns, rows, more, changed):
    """What fits. `more` says that the engine had further rows."""
    kept, cut, room = [], 0, MOST_BYTES
    for row in rows:
        values = []
        for value in row:
            shown = plain(value)
            if isinstance(shown, str) and len(shown) > LONGEST:
                shown, cut = shown[:LONGEST], cut + 1
            values.append(shown)
        room -= len(json.dumps(values, ensure_ascii=False).encode())
        if room < 0:
            more = True
            break
        kept.append(values)
    found = {"engine": engine, "columns": columns, "rows": kept, "truncated": more, "cut": cut, "untrusted": True}
    return found if changed is None else {**found, "changed": changed}


def plain(value):
    """A value as JSON has it: bytes in hexadecimal, what JSON cannot hold as text."""
    if isinstance(value, bytes | bytearray | memoryview):
        return f"\\x{bytes(value[: LONGEST + 1]).hex()}"
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**53:
        return str(value)  # a reader's numbers may be doubles
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value)
