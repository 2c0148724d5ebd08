"""Tokens announced, authority revoked, tasks, idempotency keys and detached calls: a view of the ledger.

Every row comes from `apply(position, entry)`, while gate runs and when it starts again, so the two cannot
disagree. Only the plain digest of an idempotent call's arguments is not in the ledger (content digests there are
salted); after a crash that lost it, the key answers `interrupted`, which is what is known.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from runner.errors import refuse
from runner.ledger import entry as entries

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tokens (
  jti TEXT PRIMARY KEY, digest TEXT NOT NULL, agent TEXT NOT NULL, owner TEXT NOT NULL, task TEXT NOT NULL,
  expires INTEGER NOT NULL, position INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS revoked (
  target TEXT NOT NULL, value TEXT NOT NULL, position INTEGER NOT NULL, closed INTEGER NOT NULL,
  opened INTEGER NOT NULL, PRIMARY KEY (target, value)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tasks (
  task TEXT PRIMARY KEY, token TEXT NOT NULL, agent TEXT NOT NULL, owner TEXT NOT NULL, session TEXT NOT NULL,
  profile TEXT NOT NULL, began TEXT NOT NULL, ended TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '',
  calls INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS kept (
  call TEXT PRIMARY KEY, task TEXT NOT NULL, tool TEXT NOT NULL, key TEXT NOT NULL, arguments TEXT NOT NULL,
  content TEXT NOT NULL, began TEXT NOT NULL, outcome BLOB, position INTEGER, digest TEXT NOT NULL DEFAULT '',
  value BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pending (
  id TEXT PRIMARY KEY, expires INTEGER NOT NULL, entry BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS archives (
  image TEXT PRIMARY KEY, digest TEXT NOT NULL, problem TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pruned (digest TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS kept_key ON kept (task, tool, key) WHERE key != '';
"""

_TABLES = ("meta", "tokens", "revoked", "tasks", "kept", "pending", "archives", "pruned")
_LAYOUT = zlib.crc32(_SCHEMA.encode()) >> 1  # a file of another layout is emptied, and filled again from the ledger


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
    lost: bool = False  # it returned a value, which is not here any more


class Store:
    """The one writer. Calls are synchronous: a few tens of microseconds each, no fsync (the ledger has it)."""

    def __init__(self, path: Path) -> None:
        """Open or create the file. Raises `RunnerError` (host) when it is not a usable database."""
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            path.chmod(0o600)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("PRAGMA secure_delete=ON")  # a result that was pruned is not left in a free page
            if self._db.execute("PRAGMA user_version").fetchone()[0] != _LAYOUT:
                dropped = "".join(f"DROP TABLE IF EXISTS {table};" for table in _TABLES)
                self._db.executescript(f"BEGIN;{dropped}{_SCHEMA}PRAGMA user_version = {_LAYOUT};COMMIT;")
        except (sqlite3.Error, OSError) as error:
            raise refuse(
                "host",
                f"the state file is not usable: {error}",
                field=str(path),
                next_step="move it away: it is rebuilt from the ledger at the next start",
            ) from error
        row = self._db.execute("SELECT value FROM meta WHERE name = 'position'").fetchone()
        self._position = int(row[0]) if row else 0
        # Most calls are no rows: they are only counted, and written with the next entry that changes more.
        self._counts: Counter[str] = Counter()
        self._open = {str(row[0]) for row in self._db.execute("SELECT call FROM kept WHERE outcome IS NULL")}
        self._revoked: dict[tuple[str, str], int] = {}
        self._closed: dict[tuple[str, str], int] = {}
        for target, value, *marks in self._db.execute("SELECT target, value, position, closed, opened FROM revoked"):
            self._remember((str(target), str(value)), *marks)
        self._ahead: set[int] = set()  # applied before an earlier entry was: answers of fsyncs come late

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # --- following the ledger ---------------------------------------------------------------------------

    @property
    def position(self) -> int:
        """The ledger position up to which (exclusive) this file is current."""
        return self._position

    def reset(self) -> None:
        """Forget everything: after a power loss this file may know entries that the ledger does not have."""
        with self._transaction():
            for table in _TABLES:
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608 - fixed names
        self._position = 0
        self._counts.clear()
        self._open.clear()
        self._revoked.clear()
        self._closed.clear()

    def flush(self) -> None:
        """Write what was only counted."""
        with self._transaction():
            self._moved(self._position)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing. Raises `RunnerError` (host) when the file does not take it."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except BaseException as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise refuse(
                    "host",
                    f"the state file cannot be written: {error}",
                    next_step="free or repair the disk, then start the daemon again; the file follows the ledger",
                ) from error
            raise

    def follow(self, found: list[tuple[int, bytes]], size: int) -> None:
        """Apply entries that the ledger has and this file has not, in one transaction."""
        with self._transaction():
            for position, data in found:
                entry = entries.decode(data)
                self._changes(entry)  # counts
                self._apply(position, entry)
            self._moved(size)

    def apply(self, position: int, entry: entries.AnyEntry, *, arguments: str = "", value: bytes | None = None) -> None:
        """Apply one entry just written at `position`. `arguments` and `value` are what the ledger does not hold.

        Entries may come a little out of order. The file's own position never passes one that is missing: after a
        crash it is asked for again, and so are those behind it, for which applying twice is applying once."""
        self._ahead.add(position)
        reached = self._position
        while reached in self._ahead:
            self._ahead.discard(reached)
            reached += 1
        if not self._changes(entry):
            self._position = reached  # written with the next entry that changes something
            return
        with self._transaction():
            self._apply(position, entry, arguments=arguments, value=value)
            self._moved(reached)

    def _changes(self, entry: entries.AnyEntry) -> bool:
        """Whether an entry changes a row at once."""
        match entry:
            case entries.Call():
                self._counts[entry.who.task] += 1
                return bool(entry.plan is not None and (entry.idempotency_key or entry.detach))
            case entries.Outcome():
                return entry.call in self._open
            case entries.Reload():
                return bool(entry.pending)
            case entries.Token() | entries.Revoke() | entries.Reopen() | entries.TaskBegin() | entries.TaskEnd():
                return True
        return isinstance(entry, entries.Pending | entries.Withdraw | entries.Image | entries.PruneImage)

    def _moved(self, position: int) -> None:
        for task, count in self._counts.items():
            self._db.execute("UPDATE tasks SET calls = calls + ? WHERE task = ?", (count, task))
        self._counts.clear()
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('position', ?)", (position,))
        self._position = position

    def _apply(
        self, position: int, entry: entries.AnyEntry, *, arguments: str = "", value: bytes | None = None
    ) -> None:
        run = self._db.execute
        match entry:
            case entries.Token() | entries.Revoke() | entries.Reopen():
                self._apply_authority(position, entry)
            case entries.Pending():
                run("INSERT OR IGNORE INTO pending VALUES (?, ?, ?)", (entry.id, entry.expires, entries.encode(entry)))
            case entries.Image() | entries.PruneImage():
                self._apply_image(entry)
            case entries.Reload():
                self._settled(entry.pending)
            case entries.Withdraw():
                self._settled(entry.id)
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
                if entry.plan is not None and (entry.idempotency_key or entry.detach):
                    run(
                        "INSERT OR IGNORE INTO kept (call, task, tool, key, arguments, content, began)"
                        " VALUES (?, ?, ?, ?, ?, ?, ?)",
                        (
                            entry.call,
                            entry.who.task,
                            entry.tool,
                            entry.idempotency_key,
                            arguments,
                            entry.arguments.digest if entry.arguments else "",
                            entry.time,
                        ),
                    )
                    self._open.add(entry.call)
            case entries.Outcome():
                self._open.discard(entry.call)
                run(
                    "UPDATE kept SET outcome = ?, position = ?, digest = ?, value = coalesce(?, value) WHERE call = ?",
                    (entries.encode(entry), position, entries.digest(entries.encode(entry)), value, entry.call),
                )
                if entry.outcome == "unavailable":  # its process never existed: the key is free for a retry
                    run("UPDATE kept SET key = '' WHERE call = ?", (entry.call,))
            case _:
                pass

    def _apply_authority(self, position: int, entry: entries.Token | entries.Revoke | entries.Reopen) -> None:
        if isinstance(entry, entries.Token):
            who = entry.who
            # Announced twice, it is as old as its first announcement: what was revoked since stays so.
            self._db.execute(
                "INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET position = min(position, excluded.position)",
                (entry.jti, entry.digest, who.agent, who.owner, who.task, entry.expires, position),
            )
        elif isinstance(entry, entries.Revoke):
            self._mark((entry.target, entry.value), position, closed=position if entry.until_released else -1)
        else:
            self._mark((entry.target, entry.value), position, opened=position)
            self._settled(entry.pending)

    def _settled(self, pending: str) -> None:
        """What waited under this id waits no more."""
        self._db.execute("DELETE FROM pending WHERE id = ?", (pending,))

    def _mark(self, named: tuple[str, str], position: int, *, closed: int = -1, opened: int = -1) -> None:
        """What was taken back, by the latest of each: entries may come out of order, and twice."""
        row = self._db.execute(
            "INSERT INTO revoked VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " position = max(position, excluded.position), closed = max(closed, excluded.closed),"
            " opened = max(opened, excluded.opened) RETURNING position, closed, opened",
            (*named, position, closed, opened),
        ).fetchone()
        self._remember(named, *row)

    def _remember(self, named: tuple[str, str], position: int, closed: int, opened: int) -> None:
        self._revoked[named] = position
        if closed > opened:
            self._closed[named] = closed
        else:
            self._closed.pop(named, None)

    def _apply_image(self, entry: entries.Image | entries.PruneImage) -> None:
        digest = entry.archive.digest if entry.archive else ""
        if isinstance(entry, entries.Image):
            self._db.execute("INSERT OR REPLACE INTO archives VALUES (?, ?, ?)", (entry.image, digest, entry.problem))
            self._db.execute("DELETE FROM pruned WHERE digest = ?", (digest,))
        else:
            self._db.execute("DELETE FROM archives WHERE digest = ?", (digest,))
            self._db.execute("INSERT OR IGNORE INTO pruned VALUES (?)", (digest,))

    # --- what gate asks ------------------------------------------------------------------------------------

    def announced(self, jti: str) -> str | None:
        """The digest under which a root token was announced, or None."""
        row = self._db.execute("SELECT digest FROM tokens WHERE jti = ?", (jti,)).fetchone()
        return None if row is None else str(row[0])

    def token_expires(self, jti: str) -> int:
        """When an announced root token expires, in epoch seconds; 0 for one that was not announced."""
        row = self._db.execute("SELECT expires FROM tokens WHERE jti = ?", (jti,)).fetchone()
        return 0 if row is None else int(row[0])

    @property
    def revocations(self) -> Mapping[tuple[str, str], int]:
        """What was revoked, as (target, value), and where in the ledger that is said last. A release says it once more:
        what it opens is open for what is announced after it. Follows the ledger."""
        return self._revoked

    @property
    def closed(self) -> Mapping[tuple[str, str], int]:
        """Of those, what is closed until its release, and where in the ledger that is said last. Follows the ledger."""
        return self._closed

    def announced_at(self, jti: str) -> int:
        """Where in the ledger a root token was announced first; -1 for one that was not."""
        row = self._db.execute("SELECT position FROM tokens WHERE jti = ?", (jti,)).fetchone()
        return -1 if row is None else int(row[0])

    def tokens_of(self, target: str, value: str, now: int) -> int:
        """How many announced root tokens that have not expired by `now` (epoch seconds) a revocation would name."""
        column = {"token": "jti", "task": "task", "agent": "agent", "owner": "owner"}.get(target, "")
        where, values = (f"AND {column} = ?", (now, value)) if column else ("", (now,))
        row = self._db.execute(f"SELECT count(*) FROM tokens WHERE expires > ? {where}", values)  # noqa: S608 - four fixed names
        return int(row.fetchone()[0])

    def pending(self) -> list[entries.Pending]:
        """Acts that wait for a second person, or waited and expired a little while ago; oldest first."""
        found = [entries.decode(row[0]) for row in self._db.execute("SELECT entry FROM pending")]
        return sorted((each for each in found if isinstance(each, entries.Pending)), key=lambda each: each.time)

    def archived(self, image: str) -> tuple[str, str] | None:
        """What the newest `image` entry says of an image, as long as its archive was not pruned: (digest, problem)."""
        row = self._db.execute("SELECT digest, problem FROM archives WHERE image = ?", (image,)).fetchone()
        return None if row is None else (str(row[0]), str(row[1]))

    def image_of(self, digest: str) -> str:
        """The image that the ledger says this archive is of; "" when it says nothing of it."""
        row = self._db.execute("SELECT image FROM archives WHERE digest = ?", (digest,)).fetchone()
        return "" if row is None else str(row[0])

    def pruned_archives(self) -> list[str]:
        """Archives that a tombstone says are removed, and that `archive_gone` was not told of."""
        return [str(row[0]) for row in self._db.execute("SELECT digest FROM pruned ORDER BY digest")]

    def archive_gone(self, digest: str) -> None:
        """It is not on the disk any more: nothing is left to be done for its tombstone."""
        with self._transaction():
            self._db.execute("DELETE FROM pruned WHERE digest = ?", (digest,))

    def task(self, task: str) -> TaskRow | None:
        """One task, or None."""
        self._written()
        row = self._db.execute("SELECT * FROM tasks WHERE task = ?", (task,)).fetchone()
        return None if row is None else TaskRow(*row)

    def tasks(self, *, ended: bool) -> list[TaskRow]:
        """Tasks by begin; live ones only, unless `ended`."""
        self._written()
        where = "" if ended else "WHERE ended = ''"
        return [TaskRow(*row) for row in self._db.execute(f"SELECT * FROM tasks {where} ORDER BY began")]  # noqa: S608 - two fixed texts

    def _written(self) -> None:
        if self._counts:
            self.flush()

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
            lost=row[8] is None and outcome is not None and outcome.result is not None,
        )

    def copied(self) -> set[str]:
        """The digests of content that rows of ended calls hold a copy of, or that memory may."""
        return {digest for _, digests in self._ended() for digest in digests if digest}

    def let_go(self, gone: Container[str]) -> list[str]:
        """Forget, for good, what is copied here of content that is `gone`; the calls that had any of it. That they ran,
        and how they ended, stays: a key never runs its call again."""
        calls: list[str] = []
        with self._transaction():
            for call, (arguments, result, *others) in self._ended():
                if arguments in gone:
                    self._db.execute("UPDATE kept SET arguments = '' WHERE call = ?", (call,))
                if result in gone:
                    self._db.execute("UPDATE kept SET value = NULL WHERE call = ?", (call,))
                if any(digest in gone for digest in (arguments, result, *others)):
                    calls.append(call)
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return calls

    def _ended(self) -> list[tuple[str, list[str]]]:
        """Remembered calls that ended, with the digests of their arguments ("" for none), result, and the rest."""
        found: list[tuple[str, list[str]]] = []
        for row in self._db.execute("SELECT call, content, outcome FROM kept WHERE outcome IS NOT NULL"):
            outcome = entries.decode(row[2])
            assert isinstance(outcome, entries.Outcome)
            result = outcome.result.digest if outcome.result else ""
            found.append((row[0], [row[1], result, *(each.digest for each in entries.own_content(outcome))]))
        return found

    def forget(self, before: str, expired: int) -> None:
        """Drop calls that ended and began before `before`, and tokens that expired before `expired` (epoch seconds).

        A call with an idempotency key stays until its task is over: the key must not run it again."""
        self._db.execute(
            "DELETE FROM kept WHERE outcome IS NOT NULL AND began < ?"
            " AND (key = '' OR task IN (SELECT task FROM tasks WHERE ended != ''))",
            (before,),
        )
        self._db.execute("DELETE FROM tokens WHERE expires < ?", (expired,))
        self._db.execute("DELETE FROM pending WHERE expires < ?", (expired,))
