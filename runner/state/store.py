"""Tokens announced, authority revoked, tasks, idempotency keys and detached calls: a view of the ledger.

Every row comes from `apply(position, entry)`, while gate runs and when it starts again, so the two cannot
disagree. Only the plain digest of an idempotent call's arguments is not in the ledger (content digests there are
salted); after a crash that lost it, the key answers `interrupted`, which is what is known.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import msgspec

from runner.errors import refuse
from runner.ledger import entry as entries

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tokens (
  jti TEXT PRIMARY KEY, digest TEXT NOT NULL, task TEXT NOT NULL, expires INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS revoked (
  target TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (target, value)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tasks (
  task TEXT PRIMARY KEY, token TEXT NOT NULL, agent TEXT NOT NULL, owner TEXT NOT NULL, session TEXT NOT NULL,
  profile TEXT NOT NULL, began TEXT NOT NULL, ended TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '',
  calls INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS kept (
  call TEXT PRIMARY KEY, task TEXT NOT NULL, tool TEXT NOT NULL, key TEXT NOT NULL, arguments TEXT NOT NULL,
  began TEXT NOT NULL, outcome BLOB, position INTEGER, digest TEXT NOT NULL DEFAULT '', value BLOB) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS kept_key ON kept (task, tool, key) WHERE key != '';
"""


class TaskRow(msgspec.Struct, frozen=True):
    """One remembered task."""

    task: str
    token: str
    agent: str
    owner: str
    session: str
    profile: str
    began: str
    ended: str
    reason: str
    calls: int


class KeptCall(msgspec.Struct, frozen=True):
    """A call that outlives its connection: by an idempotency key, or detached. `outcome` is None while it runs."""

    call: str
    task: str
    tool: str
    key: str
    arguments: str  # plain digest of tool and arguments; "" when a crash lost it
    outcome: entries.Outcome | None
    position: int
    digest: str
    value: Any = None


class Store:
    """The one writer. Calls are synchronous: a few tens of microseconds each, no fsync (the ledger has it)."""

    def __init__(self, path: Path) -> None:
        """Open or create the file. Raises `RunnerError` (host) when it is not a usable database."""
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            path.chmod(0o600)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise refuse(
                "host",
                f"the state file is not usable: {error}",
                field=str(path),
                next_step="move it away: it is rebuilt from the ledger at the next start",
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # --- following the ledger ---------------------------------------------------------------------------

    @property
    def position(self) -> int:
        """The ledger position up to which (exclusive) this file is current."""
        row = self._db.execute("SELECT value FROM meta WHERE name = 'position'").fetchone()
        return int(row[0]) if row else 0

    def follow(self, found: list[tuple[int, bytes]], size: int) -> None:
        """Apply entries that the ledger has and this file has not, in one transaction."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for position, data in found:
                self._apply(position, entries.decode(data))
            self._moved(size)
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def apply(self, position: int, entry: entries.AnyEntry, *, arguments: str = "", value: bytes | None = None) -> None:
        """Apply one entry just written at `position`. `arguments` and `value` are what the ledger does not hold."""
        self._db.execute("BEGIN IMMEDIATE")
        self._apply(position, entry, arguments=arguments, value=value)
        self._moved(position + 1)
        self._db.execute("COMMIT")

    def _moved(self, position: int) -> None:
        self._db.execute(
            "INSERT INTO meta VALUES ('position', ?)"
            " ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)",
            (position,),
        )

    def _apply(
        self, position: int, entry: entries.AnyEntry, *, arguments: str = "", value: bytes | None = None
    ) -> None:
        run = self._db.execute
        match entry:
            case entries.Token():
                run(
                    "INSERT OR IGNORE INTO tokens VALUES (?, ?, ?, ?)",
                    (entry.jti, entry.digest, entry.who.task, entry.expires),
                )
            case entries.Revoke():
                run("INSERT OR IGNORE INTO revoked VALUES (?, ?)", (entry.target, entry.value))
            case entries.TaskBegin():
                who = entry.who
                run(
                    "INSERT OR IGNORE INTO tasks (task, token, agent, owner, session, profile, began)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (who.task, entry.token, who.agent, who.owner, who.session, entry.profile, entry.time),
                )
            case entries.TaskEnd():
                run(
                    "UPDATE tasks SET ended = ?, reason = ? WHERE task = ? AND ended = ''",
                    (entry.time, entry.reason, entry.task),
                )
            case entries.Call():
                run("UPDATE tasks SET calls = calls + 1 WHERE task = ?", (entry.who.task,))
                if entry.plan is not None and (entry.idempotency_key or entry.detach):
                    run(
                        "INSERT OR IGNORE INTO kept (call, task, tool, key, arguments, began)"
                        " VALUES (?, ?, ?, ?, ?, ?)",
                        (entry.call, entry.who.task, entry.tool, entry.idempotency_key, arguments, entry.time),
                    )
            case entries.Outcome():
                run(
                    "UPDATE kept SET outcome = ?, position = ?, digest = ?, value = ? WHERE call = ?",
                    (entries.encode(entry), position, entries.digest(entries.encode(entry)), value, entry.call),
                )
            case _:
                pass

    # --- what gate asks ------------------------------------------------------------------------------------

    def announced(self, jti: str) -> str | None:
        """The digest under which a root token was announced, or None."""
        row = self._db.execute("SELECT digest FROM tokens WHERE jti = ?", (jti,)).fetchone()
        return None if row is None else str(row[0])

    def token_expires(self, jti: str) -> int:
        """When an announced root token expires, in epoch seconds; 0 for one that was not announced."""
        row = self._db.execute("SELECT expires FROM tokens WHERE jti = ?", (jti,)).fetchone()
        return 0 if row is None else int(row[0])

    def revocations(self) -> set[tuple[str, str]]:
        """Everything revoked, as (target, value)."""
        return {(str(target), str(value)) for target, value in self._db.execute("SELECT target, value FROM revoked")}

    def task(self, task: str) -> TaskRow | None:
        """One task, or None."""
        row = self._db.execute("SELECT * FROM tasks WHERE task = ?", (task,)).fetchone()
        return None if row is None else TaskRow(*row)

    def tasks(self, *, ended: bool) -> list[TaskRow]:
        """Tasks by begin; live ones only, unless `ended`."""
        where = "" if ended else "WHERE ended = ''"
        return [TaskRow(*row) for row in self._db.execute(f"SELECT * FROM tasks {where} ORDER BY began")]  # noqa: S608 - two fixed texts

    def kept_by_key(self, task: str, tool: str, key: str) -> KeptCall | None:
        """The call that first used an idempotency key of this task and tool."""
        return self._kept("task = ? AND tool = ? AND key = ?", (task, tool, key))

    def kept(self, task: str, call: str) -> KeptCall | None:
        """A kept call of this task."""
        return self._kept("task = ? AND call = ?", (task, call))

    def _kept(self, where: str, values: tuple[str, ...]) -> KeptCall | None:
        row = self._db.execute(
            f"SELECT call, task, tool, key, arguments, outcome, position, digest, value FROM kept WHERE {where}",  # noqa: S608 - two fixed texts
            values,
        ).fetchone()
        if row is None:
            return None
        outcome = None if row[5] is None else entries.decode(row[5])
        assert outcome is None or isinstance(outcome, entries.Outcome)
        return KeptCall(
            call=row[0],
            task=row[1],
            tool=row[2],
            key=row[3],
            arguments=row[4],
            outcome=outcome,
            position=row[6] or 0,
            digest=row[7],
            value=None if row[8] is None else msgspec.json.decode(row[8]),
        )

    def forget(self, before: str) -> None:
        """Drop kept calls that ended and began before this time, and expired facts of no further use."""
        self._db.execute("DELETE FROM kept WHERE outcome IS NOT NULL AND began < ?", (before,))
