"""T10, T12, T5: an orchestrating agent hands three levels of narrower tokens to sub-agents.

Each works within its part, every way to exceed it fails, revoking the middle one stops its descendants in the middle of
their calls, and the record shows the whole tree to somebody who has only the public key.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from house import Daemon, programs

from runner.client import CallError, Credentials, attenuate, connect, connect_async, descriptor
from runner.errors import EXIT_UNVERIFIED
from runner.ledger import entry as entries
from runner.token import credentials as handed
from runner.token.issue import own_claims
from runner.token.keys import SigningKey, generate
from runner.token.strict import TOKEN_TYPE, compact, parse_json

pytestmark = pytest.mark.docker

WAITS = {"argv": ["sh", "-c", "echo go; exec sleep 300"]}
ANY = {"constraint_type": "wildcard"}
EXACTLY = {"constraint_type": "subset", "allowed": WAITS["argv"]}
ONE_SENTENCE = "the token chain was not accepted"


def within(root: str) -> dict[str, Any]:
    return {"path": {"constraint_type": "path_containment", "root": f"/workspace/{root}"}}


@dataclass
class Cast:
    """Everybody's credentials: the orchestrator, and three levels below it."""

    boss: Credentials
    lead: Credentials
    editor: Credentials
    reader: Credentials


def cast(daemon: Daemon, task: str) -> Cast:
    granted = {"fs_read": {}, "fs_write": {}, "fs_list": {}, "shell_run": {}}
    root = handed.parse(daemon.credentials(task=task, agent="boss", owner="ann", tools=granted, depth=3))
    lead = attenuate(
        {"fs_read": within("src"), "fs_write": {**within("src"), "content": ANY}, "shell_run": {}},
        agent="lead", ttl_s=500, depth=2, credentials=root,
    )  # fmt: skip
    editor = attenuate(
        {"fs_read": within("src/a"), "shell_run": {}}, agent="editor", ttl_s=400, depth=1, credentials=lead
    )
    reader = attenuate(
        {"fs_read": within("src/a/b"), "shell_run": {"argv": EXACTLY}}, agent="reader", ttl_s=300, credentials=editor
    )
    return Cast(root, lead, editor, reader)


def read(credentials: Credentials, path: str) -> str:
    with connect(credentials=credentials) as runner:
        value = runner.call("fs_read", {"path": path}, check=True).value
        return str(value["content"])


def refusal(act: Callable[[], Any]) -> CallError:
    with pytest.raises(CallError) as caught:
        act()
    return caught.value


# --- what a sub-agent that was taken over may try ------------------------------------------------------------

Claims = dict[str, Any]


def forged(
    parent: Credentials, change: Callable[[Claims], Any], *, key: SigningKey | None = None, cut: int | None = None
) -> Credentials:
    """What the editor could sign below its own token: fit in every way but `change`. No code of ours checks it."""
    form = compact(parent.leaf, TOKEN_TYPE, 1 << 16, "forge")
    above = parse_json(form.payload, 128)
    holder = SigningKey(generate())
    claims: Claims = {
        "jti": f"forged-{os.urandom(4).hex()}", "iss": parent.signing_key().public.uri, "iat": int(time.time()),
        "exp": above["exp"], "cnf": {"jwk": holder.public.jwk()}, "del_depth": above["del_depth"] + 1,
        "del_max_depth": above["del_max_depth"], "par_hash": form.hash, "runner": {"agent": "reader"},
        "authorization_details": [
            {"type": "attenuating_agent_token", "tools": {"fs_read": within("src/a/b"), "shell_run": {}}}
        ],
    }  # fmt: skip
    change(claims)
    token = (key or parent.signing_key()).jws(claims, TOKEN_TYPE)
    return handed.credentials((*parent.chain[:cut], token), holder, parent.socket)


def tools(claims: Claims) -> dict[str, Any]:
    found: dict[str, Any] = claims["authorization_details"][0]["tools"]
    return found


HOUR = 3600
WAYS: dict[str, Callable[[Claims], Any]] = {
    "a tool more": lambda claims: tools(claims).update(fs_write={}),
    "a tool of the root's": lambda claims: tools(claims).update(fs_list={}),
    "a wider constraint": lambda claims: tools(claims).update(fs_read=within("src")),
    "another folder": lambda claims: tools(claims).update(fs_read=within("src/ab")),
    "no constraint": lambda claims: tools(claims).update(fs_read={}),
    "another argument": lambda claims: tools(claims)["fs_read"].update(limit=ANY),
    "every argument": lambda claims: tools(claims)["fs_read"].update({"*": ANY}),
    "a requirement less": lambda claims: tools(claims)["fs_read"]["path"].update(optional=True),
    "a constraint of no known type": lambda claims: tools(claims)["fs_read"].update(path={"constraint_type": "glob"}),
    "a later end": lambda claims: claims.update(exp=claims["exp"] + 1),
    "no end": lambda claims: claims.pop("exp"),
    "an end that was": lambda claims: claims.update(iat=claims["iat"] - 9, exp=claims["iat"] - 1),
    "an earlier issue": lambda claims: claims.update(iat=claims["iat"] - HOUR),
    "a future issue": lambda claims: claims.update(iat=claims["iat"] + HOUR, exp=claims["exp"] + HOUR),
    "a deeper chain": lambda claims: claims.update(del_max_depth=claims["del_max_depth"] + 1),
    "a depth that is its parent's": lambda claims: claims.update(del_depth=claims["del_depth"] - 1),
    "a root's depth": lambda claims: claims.update(del_depth=0),
    "a level left out": lambda claims: claims.update(del_depth=claims["del_depth"] + 1),
    "another parent": lambda claims: claims.update(par_hash=claims["par_hash"][::-1]),
    "another issuer": lambda claims: claims.update(iss="https://issuer.test"),
    "another task": lambda claims: claims["runner"].update(task="t-other"),
    "another owner": lambda claims: claims["runner"].update(owner="somebody"),
    "another session": lambda claims: claims["runner"].update(session="s-other"),
    "a name that is none": lambda claims: claims["runner"].update(agent="../boss"),
    "another daemon": lambda claims: claims.update(aud="runner:elsewhere"),
    "no id": lambda claims: claims.update(jti=""),
    "no key": lambda claims: claims.pop("cnf"),
}


def test_every_way_to_exceed_a_token_fails(daemon: Daemon) -> None:
    """By whoever holds the editor's key and writes tokens with tools of its own."""
    people = cast(daemon, "t-story-forged")
    with connect(credentials=people.boss) as boss:
        boss.call("shell_run", {"argv": ["mkdir", "-p", "src/a/b"]}, check=True)
        boss.call("fs_write", {"path": "src/a/b/x.txt", "content": "x"}, check=True)
        assert read(forged(people.editor, lambda claims: None), "src/a/b/x.txt") == "x"  # the control
        for way, change in WAYS.items():
            made = forged(people.editor, change)
            error = refusal(lambda made=made: connect(credentials=made))  # type: ignore[misc]  # bound at once
            assert (way, error.code, error.reason) == (way, "unauthenticated", ONE_SENTENCE)
        # The right token, and not the right to it.
        stranger, editor, reader = SigningKey(generate()), people.editor, people.reader
        mine = reader.signing_key()
        cases = {
            "somebody else's signature": forged(editor, lambda claims: None, key=stranger),
            "a level below the last": forged(reader, lambda claims: tools(claims).pop("shell_run")),
            "a derived token as a root": forged(editor, lambda claims: None, cut=0),
        }
        for way, chain in {
            "a chain without its middle": (*reader.chain[:2], reader.leaf),
            "a chain without its root": reader.chain[1:],
            "a chain turned round": reader.chain[::-1],
            "a token twice": (*reader.chain, reader.leaf),
            "the parent's token": editor.chain,
            "the root token": people.boss.chain,
        }.items():
            cases[way] = handed.credentials(chain, mine, reader.socket)
        for way, made in cases.items():
            error = refusal(lambda made=made: connect(credentials=made))  # type: ignore[misc]  # bound at once
            assert (way, error.code, error.reason) == (way, "unauthenticated", ONE_SENTENCE)
        # A name is what a parent says; who asks is what the root says.
        impostor = forged(editor, lambda claims: claims["runner"].update(agent="boss"))
        with connect(credentials=impostor) as posing:
            call = posing.call("fs_read", {"path": "src/a/b/x.txt"}).call
        who = daemon.call(call).who
        assert (who.agent, who.owner, who.task, who.asserted[-1]) == ("boss", "ann", "t-story-forged", "boss")
        assert len(daemon.call(call).chain) == 4


def test_a_connection_hands_on_its_own_authority_by_the_daemons_clock(daemon: Daemon, monkeypatch: Any) -> None:
    """Also where the agent's own clock is wrong: a token from the future would be refused."""
    handed_on = daemon.credentials(task="t-story-own", agent="boss", depth=2)

    async def asynchronously() -> Credentials:
        async with connect_async(credentials=handed_on) as boss:
            return boss.attenuate(["shell_run"], agent="sub", ttl_s=60)

    with connect(credentials=handed_on) as boss:
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + 86_400)
        made = [boss.attenuate(["shell_run"], agent="sub", ttl_s=60), asyncio.run(asynchronously())]
        with pytest.raises(CallError, match="expired"):
            attenuate(["shell_run"], credentials=handed_on)  # the control: by the wrong clock
        monkeypatch.undo()
        for credentials in made:
            with connect(credentials=credentials) as sub:
                assert sub.call("shell_run", {"argv": ["true"]}).ok
                assert refusal(lambda sub=sub: sub.attenuate(["shell_run"])).refused.field == "depth"  # type: ignore[misc]  # bound at once
        boss.end_task()
    for credentials in made:  # tokens die with their task
        assert refusal(lambda credentials=credentials: connect(credentials=credentials)).code == "task_ended"  # type: ignore[misc]  # bound at once


# --- the story ----------------------------------------------------------------------------------------------

READER = """
import json, sys
from runner.client import connect
with connect() as runner, runner.stream("shell_run", json.loads(sys.argv[1])) as running:
    next(iter(running))
    print(running.call, flush=True)
    print(running.result().outcome.kind, flush=True)
"""


def test_three_levels_of_narrower_tokens(
    make_daemon: Callable[..., Daemon], runner: Any, open_folder: Path, tmp_path: Path
) -> None:
    daemon = make_daemon()
    admin = ("--socket", daemon.place / "run" / "admin.sock")
    state = ("--state", daemon.state)
    people = cast(daemon, "t-story")

    # Each works within its part ...
    with connect(credentials=people.boss) as boss:
        boss.call("shell_run", {"argv": ["mkdir", "-p", "src/a/b"]}, check=True)
        for path in ("top.txt", "src/s.txt", "src/a/e.txt", "src/a/b/r.txt"):
            boss.call("fs_write", {"path": path, "content": path}, check=True)
    with connect(credentials=people.lead) as lead:
        lead.call("fs_write", {"path": "src/lead.txt", "content": "l"}, check=True)
    parts = {"top.txt": people.boss, "src/s.txt": people.lead, "src/a/e.txt": people.editor}
    assert [read(who, path) for path, who in parts.items()] == list(parts)
    assert read(people.reader, "src/a/b/r.txt") == "src/a/b/r.txt"

    # ... and no further: each is told its bound, and a denial is a decision in the record.
    for who, path in ((people.lead, "top.txt"), (people.editor, "src/s.txt"), (people.reader, "src/a/e.txt")):
        for written in (path, f"/workspace/{path}", f"src/a/b/../../../{path}"):
            error = refusal(lambda who=who, written=written: read(who, written))  # type: ignore[misc]  # bound at once
            assert (error.code, error.field) == ("constraint", "path")
            assert daemon.call(error.call).decision.effect == "deny"
    with connect(credentials=people.reader) as reader:
        for tool, arguments, code in (
            ("fs_write", {"path": "src/a/b/r.txt", "content": "!"}, "not_granted"),
            ("fs_list", {"path": "src/a/b"}, "not_granted"),
            ("shell_run", {"argv": ["cat", "/workspace/top.txt"]}, "constraint"),
            ("shell_run", {**WAITS, "cwd": "/"}, "constraint"),
            ("fs_read", {"path": "src/a/b/r.txt", "limit": 1}, "constraint"),
        ):
            assert refusal(lambda t=tool, a=arguments: reader.call(t, a)).code == code  # type: ignore[misc]  # bound at once

    # The reader is a process of its own, with a token of its own that the shell derives from the editor's.
    mine = descriptor(people.editor)
    try:
        narrow = json.dumps({"argv": EXACTLY})
        words = ["token", "attenuate", "--agent", "reader", "--tool", f"shell_run:{narrow}"]
        process = subprocess.Popen(
            [sys.executable, "-m", "runner", *words, "--", sys.executable, "-c", READER, json.dumps(WAITS)],
            env={**os.environ, "RUNNER_CREDENTIALS_FD": str(mine)}, pass_fds=[mine], stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
    finally:
        os.close(mine)
    assert process.stdout
    calls = {"reader": process.stdout.readline().strip()}

    # Everybody has a call that runs when the middle one is revoked.
    with (
        connect(credentials=people.lead) as lead,
        connect(credentials=people.editor) as editor,
        lead.stream("shell_run", WAITS) as leads,
        editor.stream("shell_run", WAITS) as editors,
    ):
        for name, stream in (("lead", leads), ("editor", editors)):
            next(iter(stream))
            calls[name] = stream.call
        (pid,) = daemon.sandbox_pids()
        assert len(programs(pid)) == 3
        chain = json.loads(runner("trace", "show", calls["editor"], *state, "--json").stdout)["call"]["chain"]
        middle = own_claims(people.editor.leaf).jti
        assert chain[-1] == middle
        done = runner("token", "revoke", "--token", middle, "--why", "the editor was taken over", *admin, "--json")
        assert json.loads(done.stdout)["stopped"] == 2
        (left,) = programs(pid)  # the lead's: above the middle, nothing happened
        assert process.stdout.readline().strip() == "killed"
        assert process.wait(30) == 0
        assert daemon.outcome(calls["reader"]).outcome == "killed"
        assert daemon.outcome(calls["editor"]).outcome == "killed"
        assert left.is_running()
        assert lead.call("fs_read", {"path": "src/s.txt"}).ok
        leads.cancel()
        assert leads.result().outcome.kind == "cancelled"
    process.stdout.close()

    # The editor and all below are out for good; the lead gives the work to somebody else.
    later = attenuate(["fs_read"], agent="reader", credentials=people.editor)
    for who in (people.editor, people.reader, later):
        assert refusal(lambda who=who: connect(credentials=who)).code == "revoked"  # type: ignore[misc]  # bound at once
    second = attenuate({"fs_read": within("src/a")}, agent="second-editor", credentials=people.lead)
    assert read(second, "src/a/e.txt") == "src/a/e.txt"

    # The record shows the whole tree: who acted by whose word, how often, and what was taken back.
    def drawn(*words: Any) -> dict[str, Any]:
        (root,) = json.loads(runner("trace", "tree", "t-story", "--json", "--calls", 50, *words).stdout)
        return dict(root)

    root = drawn(*state)
    (lead_token,) = root["below"]
    first, other = lead_token["below"]
    readers = first["below"]
    names = [each["name"] for each in (root, lead_token, first, other, *readers)]
    assert names == ["boss", "lead", "editor", "second-editor", "reader", "reader"]
    known = [own_claims(who.leaf).jti for who in (people.boss, people.lead, people.editor, second, people.reader)]
    assert [each["token"] for each in (root, lead_token, first, other, readers[0])] == known
    # Calls hang at the token they came with: what it was let do, and what it was refused.
    counted = [(each["calls"], each["refused"]) for each in (root, lead_token, first, other, *readers)]
    assert counted == [(6, 0), (7, 3), (5, 3), (1, 0), (9, 8), (1, 0)]
    ends = {made["call"]: made["outcome"] for token in (lead_token, first, readers[1]) for made in token["made"]}
    assert [ends[calls[name]].split()[0] for name in ("lead", "editor", "reader")] == ["cancelled", "killed", "killed"]
    # What each may do is less than its parent may.
    assert (root["announced"] >= 0, lead_token["announced"]) == (True, -1)
    assert lead_token["grants"]["fs_read"] == within("src")
    assert lead_token["dropped"] == ["fs_list"]
    assert lead_token["narrowed"] == ["fs_read", "fs_write"]
    assert (first["dropped"], first["narrowed"]) == (["fs_write"], ["fs_read"])
    assert readers[0]["narrowed"] == ["fs_read", "shell_run"]
    # One token was revoked, by whom and why; nobody else's.
    (taken,) = first["revoked"]
    assert (taken["by"], taken["target"], taken["value"], taken["why"]) == (
        "root", "token", middle, "the editor was taken over",
    )  # fmt: skip
    assert [each["revoked"] for each in (root, lead_token, other, *readers)] == [[]] * 5
    text = runner("trace", "tree", "t-story", *state).stdout
    assert f"editor  {middle}  5 calls, 3 refused  REVOKED" in text
    assert f"reader  {known[-1]}  9 calls, 8 refused  below a revoked token" in text
    assert "task t-story: 6 tokens, 29 calls, 14 of them refused" in text
    shown = runner("trace", "show", calls["reader"], *state).stdout.partition("\ndelegation\n")[2]
    places = [shown.index(jti) for jti in (*known[:3], readers[1]["token"])]
    assert places == sorted(places)  # from the root down, and nobody who had no part in it
    assert known[3] not in shown
    (revoked,) = daemon.entries(entries.Revoke)
    assert (revoked.target, revoked.value, revoked.why) == ("token", middle, "the editor was taken over")

    # On another machine: a folder and the public key, nothing else of the daemon's.
    key = (daemon.state / "ledger" / "key.pub").read_bytes()
    assert daemon.stop() == 0
    runner("trace", "export", tmp_path / "evidence", *state)
    shutil.copytree(tmp_path / "evidence", open_folder / "evidence")
    (open_folder / "public.key").write_bytes(key)
    shutil.rmtree(daemon.state)
    check = ("trace", "verify", "--ledger", "evidence", "--key", "public.key", "--no-content")
    assert "verified" in runner(*check, cwd=open_folder).stdout
    here = ("--ledger", open_folder / "evidence", "--key", open_folder / "public.key")
    far = drawn(*here)

    def bare(token: dict[str, Any]) -> dict[str, Any]:
        return token | {"grants": None, "dropped": [], "narrowed": [], "below": [*map(bare, token["below"])]}

    assert far == bare(root)  # all of it, but for what tokens grant: that is content, which stayed behind
    largest = max(
        (path for path in (open_folder / "evidence").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
    )
    data = bytearray(largest.read_bytes())
    data[data.index(middle.encode())] ^= 1
    largest.write_bytes(data)
    runner(*check, cwd=open_folder, status=EXIT_UNVERIFIED)
