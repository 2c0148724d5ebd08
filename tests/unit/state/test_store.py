"""State is a view of the ledger: whatever order answers come in, and wherever a crash falls, it says what was."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runner.errors import RunnerError
from runner.ledger import entry as entries
from runner.model import Principal
from runner.state.authority import Authority
from runner.state.store import Store

WHO = entries.Who(agent="a", owner="o", task="t", session="s")
TIME = "2026-01-01T00:00:00.000000Z"


def token(jti: str = "root") -> entries.Token:
    return entries.Token(
        time=TIME, jti=jti, digest="d" * 64, issuer="i", who=WHO, profile="p", tools=(), issued=1, expires=99, by=0
    )


def revoke(value: str) -> entries.Revoke:
    return entries.Revoke(time=TIME, target="task", value=value, by=0)


def call(name: str, key: str = "", *, detach: bool = False) -> entries.Call:
    kept = entries.Content(digest="d", size=1)
    return entries.Call(
        time=TIME, call=name, who=WHO, peer=entries.PeerProcess(uid=0, pid=1), chain=("root",), leaf="l", proof="p",
        tool="shell_run", decision=entries.Decided(effect="allow", reason="r"), idempotency_key=key, detach=detach,
        plan=entries.Planned(sandbox="s", isolation="launcher", profile="p", plan=kept, wall_ms=1, output=1),
    )  # fmt: skip


def outcome(name: str, kind: str = "exited") -> entries.Outcome:
    return entries.Outcome(time=TIME, call=name, task="t", outcome=kind)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "state.db")
    yield made
    made.close()


def test_the_file_is_for_its_owner(tmp_path: Path, store: Store) -> None:
    assert (tmp_path / "state.db").stat().st_mode & 0o777 == 0o600


def test_a_late_answer_is_asked_for_again_after_a_crash(tmp_path: Path) -> None:
    """A `sync` append is answered after its fsync, when later entries have been answered and applied."""
    ledger = [token(), revoke("t"), call("c1", "k")]
    before = Store(tmp_path / "state.db")
    before.apply(0, ledger[0])
    before.apply(2, ledger[2], arguments="digest")
    assert before.position == 1
    before.close()  # the crash: the answer to 1 never came
    after = Store(tmp_path / "state.db")
    after.follow([(i, entries.encode(e)) for i, e in enumerate(ledger) if i >= after.position], 3)
    assert after.revocations == {("task", "t"): 1}
    assert after.position == 3
    kept = after.kept_by_key("t", "shell_run", "k")
    assert kept is not None
    assert kept.arguments == "digest"  # what the ledger does not hold is not lost by applying twice
    after.close()


def test_applying_an_outcome_twice_keeps_its_value(store: Store) -> None:
    store.apply(0, call("c1", "k"))
    store.apply(1, outcome("c1"), value=b'{"a":1}')
    store.follow([(1, entries.encode(outcome("c1")))], 2)
    kept = store.kept("t", "c1")
    assert kept is not None
    assert kept.value == {"a": 1}
    assert kept.position == 1


def test_copies_of_pruned_content_go_and_the_call_stays(tmp_path: Path, store: Store) -> None:
    arguments, result, said = (entries.Content(digest=letter * 64, size=9) for letter in "abc")
    stream = entries.Stream(digest=said.digest, size=9, delivered=9)
    for number, name in enumerate(("c1", "c2", "c3")):
        begun = msgspec.structs.replace(call(name, name), arguments=arguments if name == "c1" else None)
        ended = msgspec.structs.replace(outcome(name), result=result if name != "c3" else None, stdout=stream)
        store.apply(2 * number, begun, arguments="plain")
        store.apply(2 * number + 1, ended, value=b'"returned"' if name != "c3" else None)
    store.apply(6, call("c4", "c4"), arguments="plain")  # it runs
    assert store.copied() == {arguments.digest, result.digest, said.digest}
    assert store.let_go({"d" * 64}) == []
    assert store.let_go({arguments.digest}) == ["c1"]
    found = {name: store.kept_by_key("t", "shell_run", name) for name in ("c1", "c2", "c3", "c4")}
    assert [each.arguments for each in found.values() if each] == ["", "plain", "plain", "plain"]
    assert [each.lost for each in found.values() if each] == [False] * 4
    assert store.let_go({said.digest}) == ["c1", "c2", "c3"]  # memory may hold it
    assert store.let_go({result.digest}) == ["c1", "c2"]
    for name, lost in (("c1", True), ("c2", True), ("c3", False)):
        kept = store.kept_by_key("t", "shell_run", name)
        assert kept is not None
        assert (kept.value, kept.lost) == (None, lost)
        assert kept.outcome is not None
    for path in tmp_path.iterdir():
        assert b"returned" not in path.read_bytes()


def test_a_result_that_is_null_is_not_lost(store: Store) -> None:
    store.apply(0, call("c1", "k"))
    named = entries.Content(digest="a" * 64, size=4)
    store.apply(1, msgspec.structs.replace(outcome("c1"), result=named), value=b"null")
    kept = store.kept("t", "c1")
    assert kept is not None
    assert (kept.value, kept.lost) == (None, False)


def test_positions_that_arrive_out_of_order_are_reached_when_the_gap_is_filled(store: Store) -> None:
    for position in (2, 1):
        store.apply(position, revoke(str(position)))
        assert store.position == 0
    store.apply(0, revoke("0"))
    assert store.position == 3


def test_a_key_is_free_again_when_its_calls_process_never_existed(store: Store) -> None:
    store.apply(0, call("c1", "k"))
    store.apply(1, outcome("c1", "unavailable"))
    assert store.kept_by_key("t", "shell_run", "k") is None
    store.apply(2, call("c2", "k"))
    kept = store.kept_by_key("t", "shell_run", "k")
    assert kept is not None
    assert kept.call == "c2"


def test_a_state_that_knows_more_than_the_ledger_can_begin_anew(store: Store) -> None:
    store.apply(0, token())
    store.reset()
    assert store.position == 0
    assert store.announced("root") is None


def test_a_write_that_fails_leaves_nothing_and_does_not_block_the_next(tmp_path: Path, store: Store) -> None:
    other = sqlite3.connect(tmp_path / "state.db", isolation_level=None, timeout=0)
    store._db.execute("PRAGMA busy_timeout = 0")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(RunnerError) as refused:
        store.apply(0, token())
    assert refused.value.refused.code == "host"
    other.execute("ROLLBACK")
    other.close()
    store.apply(1, token("second"))
    assert store.announced("second") is not None


def test_a_file_that_is_no_database_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"not a database" * 100)
    with pytest.raises(RunnerError) as refused:
        Store(tmp_path / "state.db")
    assert "rebuilt" in refused.value.refused.next_step


def test_tasks_tokens_and_kept_calls_follow_their_entries(store: Store) -> None:
    sequence: list[Any] = [
        token(),
        entries.TaskBegin(time=TIME, who=WHO, token="root", profile="p"),
        call("c1", detach=True),
        outcome("c1"),
        entries.TaskEnd(time=TIME, task="t", reason="over"),
        entries.TaskEnd(time=TIME, task="t", reason="again"),
    ]
    for position, entry in enumerate(sequence):
        store.apply(position, entry)
    row = store.task("t")
    assert row is not None
    assert (row.token, row.calls, row.reason) == ("root", 1, "over")
    assert store.tasks(ended=False) == []
    assert len(store.tasks(ended=True)) == 1
    assert store.token_expires("root") == 99
    assert store.kept("other", "c1") is None
    assert store.kept("t", "c1") is not None
    store.forget("2027", 0)
    assert store.kept("t", "c1") is None
    assert store.announced("root") is not None
    store.forget("2027", 1 << 40)
    assert store.announced("root") is None


def test_an_idempotency_key_is_remembered_until_its_task_is_over(store: Store) -> None:
    sequence: list[Any] = [
        token(),
        entries.TaskBegin(time=TIME, who=WHO, token="root", profile="p"),
        call("c1", "k"),
        outcome("c1"),
    ]
    for position, entry in enumerate(sequence):
        store.apply(position, entry)
    store.forget("2027", 0)
    kept = store.kept_by_key("t", "shell_run", "k")
    assert kept is not None
    assert kept.call == "c1"
    store.apply(4, entries.TaskEnd(time=TIME, task="t", reason="over"))
    store.forget("2027", 0)
    assert store.kept_by_key("t", "shell_run", "k") is None


class Chain:
    """What authority reads of a verified chain."""

    jtis = ("root", "leaf")
    principal = Principal(agent="a", owner="o", task="t", session="s", asserted=("mid", "low"))


def taken(target: str, value: str) -> entries.Revoke:
    return entries.Revoke(time=TIME, target=target, value=value, by=0)


PARTS = [
    ("token", "leaf"), ("token", "root"), ("task", "t"), ("owner", "o"), ("agent", "a"), ("agent", "mid"),
    ("agent", "low"), ("everything", ""),
]  # fmt: skip


@pytest.mark.parametrize(("target", "value"), PARTS)
def test_revoking_any_part_of_a_chain_revokes_it(target: str, value: str, store: Store) -> None:
    authority = Authority(store)
    chain: Any = Chain()
    store.apply(0, token())
    store.apply(1, taken("owner" if target != "owner" else "agent", "somebody else"))
    assert authority.revoked(chain) == ""
    store.apply(2, taken(target, value))
    assert target in authority.revoked(chain)


@pytest.mark.parametrize(("target", "value"), PARTS)
def test_names_are_revoked_as_of_then_ids_for_ever(target: str, value: str, store: Store) -> None:
    store.apply(0, taken(target, value))
    store.apply(1, token())
    chain: Any = Chain()
    for_ever = target in ("token", "task")
    assert Authority(store).for_ever(target, value) is for_ever
    assert bool(Authority(store).revoked(chain)) is for_ever
    store.apply(2, taken(target, value))
    store.apply(3, token())  # announced again: no younger for it
    assert target in Authority(store).revoked(chain)


@pytest.mark.parametrize(("target", "value"), PARTS)
def test_nothing_begins_on_what_is_being_revoked(target: str, value: str, store: Store) -> None:
    authority = Authority(store)
    chain: Any = Chain()
    store.apply(0, token())
    with authority.revoking(target, value), authority.revoking(target, value):
        assert target in authority.revoked(chain)
    assert authority.revoked(chain) == ""  # no entry came of it


def test_revocations_outlive_the_process_and_are_taken_up_from_the_ledger(tmp_path: Path) -> None:
    chain: Any = Chain()
    ledger = [token(), taken("owner", "o"), taken("everything", "")]
    before = Store(tmp_path / "state.db")
    before.apply(0, ledger[0])
    before.apply(1, ledger[1])
    before.close()
    after = Store(tmp_path / "state.db")
    assert after.revocations == {("owner", "o"): 1}
    assert Authority(after).revoked(chain) == "the owner was revoked"
    after.follow([(2, entries.encode(ledger[2]))], 3)
    assert after.revocations == {("owner", "o"): 1, ("everything", ""): 2}
    after.reset()
    assert after.revocations == {}
    assert Authority(after).revoked(chain) == ""
    after.close()


def test_announcements_that_come_late_are_not_younger_than_a_revocation_before_them(store: Store) -> None:
    authority = Authority(store)
    chain: Any = Chain()
    store.apply(1, taken("owner", "o"))
    store.apply(0, token())
    assert authority.revoked(chain) == "the owner was revoked"


def test_how_many_tokens_a_revocation_names(store: Store) -> None:
    store.apply(0, token("r1"))
    store.apply(1, token("r2"))
    for target, value, count in (
        ("token", "r1", 1), ("task", "t", 2), ("agent", "a", 2), ("owner", "o", 2), ("owner", "x", 0),
        ("everything", "", 2),
    ):  # fmt: skip
        assert store.tokens_of(target, value, 98) == count
        assert store.tokens_of(target, value, 99) == 0  # expired


def test_a_file_of_another_layout_is_filled_again_from_the_ledger(tmp_path: Path) -> None:
    old = sqlite3.connect(tmp_path / "state.db")
    old.executescript(
        "CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL);"
        "CREATE TABLE revoked (target TEXT NOT NULL, value TEXT NOT NULL);"
        "INSERT INTO meta VALUES ('position', 7); INSERT INTO revoked VALUES ('task', 't');"
    )
    old.close()
    store = Store(tmp_path / "state.db")
    assert store.position == 0
    store.follow([(0, entries.encode(token())), (1, entries.encode(revoke("t")))], 2)
    store.close()
    again = Store(tmp_path / "state.db")
    assert again.position == 2
    assert again.revocations == {("task", "t"): 1}
    again.close()


def reopen(value: str) -> entries.Reopen:
    ann = entries.Operator(name="ann", uid=0)
    return entries.Reopen(time=TIME, target="agent", value=value, why="w", by=0, operator=ann)


def close(value: str) -> entries.Revoke:
    return entries.Revoke(time=TIME, target="agent", value=value, until_released=True, by=0)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_what_is_closed_is_told_by_positions_whatever_order_answers_come_in(
    tmp_path: Path, order: tuple[int, ...]
) -> None:
    """Closed, released, closed again; and a revocation as of now, which neither closes nor opens."""
    story = [close("a"), reopen("a"), close("a"), entries.Revoke(time=TIME, target="agent", value="a", by=0)]
    for length, closed in ((1, {("agent", "a"): 0}), (2, {}), (3, {("agent", "a"): 2}), (4, {("agent", "a"): 2})):
        place = tmp_path / f"{length}.db"
        store = Store(place)
        for position in (each for each in order if each < length):
            store.apply(position, story[position])
        assert store.closed == closed
        assert store.revocations == {("agent", "a"): length - 1}
        store.close()
        store = Store(place)
        assert store.closed == closed
        store.follow([(i, entries.encode(each)) for i, each in enumerate(story[:length])], length)  # once more
        assert store.closed == closed
        store.reset()
        assert store.closed == {}
        store.close()


def test_what_was_announced_before_a_release_stays_revoked(store: Store) -> None:
    authority = Authority(store)
    who = Principal(agent="a", owner="o", task="t", session="s")
    below = Principal(agent="boss", owner="o", task="t", session="s", asserted=("a",))
    store.apply(0, token("before"))
    store.apply(1, close("a"))
    store.apply(2, token("during"))
    assert [authority.taken(who, (jti,)) for jti in ("before", "during")] == [
        "the agent was revoked, until an operator releases it"
    ] * 2
    assert authority.closed_at("agent", "a") == 1
    store.apply(3, reopen("a"))
    assert authority.closed_at("agent", "a") == -1
    store.apply(4, token("after"))
    for principal in (who, below):
        assert [authority.taken(principal, (jti, "leaf")) for jti in ("before", "during")] == [
            "the agent was revoked"
        ] * 2
        assert authority.taken(principal, ("after", "leaf")) == ""


def image(name: str, digest: str, problem: str = "") -> entries.Image:
    archive = entries.Content(digest=digest, size=1) if digest else None
    return entries.Image(time=TIME, image=name, archive=archive, problem=problem)


def pruned(name: str, digest: str) -> entries.PruneImage:
    return entries.PruneImage(time=TIME, image=name, archive=entries.Content(digest=digest, size=1), why="old", by=0)


def test_archives_are_known_until_their_tombstone_and_gone_when_that_is_carried_out(tmp_path: Path) -> None:
    told: list[entries.AnyEntry] = [image("A", "1"), image("B", "2"), image("C", "", "no room"), pruned("A", "1")]
    lived, rebuilt = Store(tmp_path / "lived"), Store(tmp_path / "rebuilt")
    for position, entry in enumerate(told):
        lived.apply(position, entry)
    rebuilt.follow([(position, entries.encode(entry)) for position, entry in enumerate(told)], len(told))
    for store in (lived, rebuilt):
        assert [store.archived(name) for name in "ABCD"] == [None, ("2", ""), ("", "no room"), None]
        assert (store.image_of("2"), store.image_of("1")) == ("B", "")
        assert store.pruned_archives() == ["1"]
        store.apply(4, image("A", "1"))  # made anew, of the same bytes: it must not go at the next start
        assert store.pruned_archives() == []
        store.apply(5, pruned("A", "1"))
        store.archive_gone("1")
        assert (store.pruned_archives(), store.archived("A")) == ([], None)
        store.reset()
        assert (store.archived("B"), store.pruned_archives()) == (None, [])
        store.close()
