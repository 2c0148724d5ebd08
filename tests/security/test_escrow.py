"""Raw output: what a tool wrote, before any filter, kept encrypted to whom only forensics is, and opened on record.

The words that must never be in clear reach the tool by standard input, which nobody keeps, and come back as its output.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from house import Daemon

from runner.catalog import shared
from runner.client import CallError, CallResult, Runner
from runner.errors import EXIT_INVALID, EXIT_REFUSED, EXIT_UNAVAILABLE, RunnerError
from runner.evidence.content import ContentReader
from runner.ledger import entry as entries
from runner.ledger.escrow import SEGMENT, Identities, new_identity
from runner.token.keys import SigningKey, private_file
from runner.wire import admin

pytestmark = [pytest.mark.docker, pytest.mark.root]

NAME = b"jane.canary"
MAIL = NAME + b"@example.org"  # masked by the shipped defaults
# What no filter lets through as it is: an address, a terminal sequence, a bidi override, then binary.
WORDS = b"write to " + MAIL + b"\n\x1b]52;c;eA==\x07 \xe2\x80\xae abc\n" + b"\0\xff\xfe" + bytes(range(256))
PROFILES = {
    "always": 'raw = "always"',
    "filtered": 'raw = { low = "always", high = "filtered" }',
    "holding": "",
    "never": "",
}
LABELS = {"holding": '[labels]\n"pii" = "hold"\n'}
FAR = "2099-01-01T00:00:00.000000Z"


class Place:
    """A daemon whose profiles keep raw output, and the key that opens it."""

    def __init__(self, make: Callable[..., Daemon], folder: Path, *, config: str = "", recipient: bool = True) -> None:
        self.folder = folder / "catalogue"
        for name in ("profiles", "tools", "policies"):
            shutil.copytree(shared(name), self.folder / name)
        base = (self.folder / "profiles/default.toml").read_text()
        for name, raw in PROFILES.items():
            if not recipient and raw:
                continue
            text = base.replace('name = "default"', f'name = "{name}"\n{raw}', 1) + LABELS.get(name, "")
            (self.folder / f"profiles/{name}.toml").write_text(text)
        private, public = new_identity()
        self.private = private
        self.identity = folder / "escrow.key"
        self.identity.write_text(private + "\n")
        self.identity.chmod(0o600)
        named = f'[escrow]\nrecipients = ["{public}"]\n' if recipient else ""
        self.daemon = make(start=False, config=named + config, catalogue=self.folder)

    def run(self, *words: str | Path, operator: Path | None = None) -> subprocess.CompletedProcess[bytes]:
        chosen = ["--operator-key", str(operator)] if operator else []
        socket = ["--socket", str(self.daemon.place / "run/admin.sock")]
        command = [sys.executable, "-m", "runner", *chosen, *map(str, words), *socket]
        return subprocess.run(command, capture_output=True)

    def open(self, call: str, *words: str | Path, **how: Any) -> subprocess.CompletedProcess[bytes]:
        return self.run("trace", "raw", call, "--identity", self.identity, "--why", "case 7", *words, **how)

    def trace(self, *words: str) -> subprocess.CompletedProcess[str]:
        state = ["--state", str(self.daemon.state)]
        return subprocess.run([sys.executable, "-m", "runner", "trace", *words, *state], capture_output=True, text=True)

    def opened(self) -> list[entries.RawOpen]:
        return self.daemon.entries(entries.RawOpen)

    def holding(self, text: bytes) -> list[str]:
        """Every file of the daemon that holds this: state, sockets' folder, its log."""
        files = [path for path in self.daemon.place.rglob("*") if path.is_file()]
        return [str(path) for path in files if text in path.read_bytes()]


def echo(runner: Runner, words: bytes, stream: str = "stdout", **more: Any) -> CallResult:
    command = "cat" if stream == "stdout" else "cat >&2"
    return runner.call("shell_run", {"argv": ["/bin/sh", "-c", command]}, stdin=words, **more)


@pytest.fixture
def place(make_daemon: Callable[..., Daemon], tmp_path: Path) -> Place:
    made = Place(make_daemon, tmp_path)
    made.daemon.start()
    return made


def test_what_is_opened_is_what_the_tool_wrote_and_it_is_nowhere_in_clear(place: Place) -> None:
    large = (WORDS[:40] + os.urandom(24)) * (5 * SEGMENT // 64)
    with place.daemon.connect(profile="always") as runner:
        small, big = echo(runner, WORDS), echo(runner, large)
        said = echo(runner, WORDS, "stderr")
        made = runner.call("shell_run", {"argv": ["/bin/sh", "-c", "cat > kept; cat kept"]}, stdin=b"x " + MAIL + b"\n")
        value = runner.call("fs_search", {"pattern": "x"})
    for result in (small, big, said, made):
        assert NAME not in result.stdout + result.stderr
    assert NAME.decode() not in json.dumps(value.value)
    for result, wrote in ((small, WORDS), (big, large), (said, WORDS), (made, b"x " + MAIL + b"\n")):
        out = place.folder / result.call
        done = place.open(result.call, "--out", out)
        assert done.returncode == 0, done.stderr
        assert out.read_bytes() == wrote
        assert out.stat().st_mode & 0o777 == 0o600
        raw = place.daemon.outcome(result.call).raw
        assert (raw.kept, raw.stdout + raw.stderr, raw.lost) == ("always", len(wrote), 0)
    assert place.daemon.outcome(big.call).raw.segments >= 5
    assert place.open(said.call, "--stream", "stdout").stdout == b""
    assert place.open(said.call, "--stream", "stderr").stdout == WORDS
    assert MAIL.decode() in json.dumps(json.loads(place.open(value.call, "--stream", "result").stdout))
    assert not place.holding(NAME)
    assert place.trace("verify").returncode == 0
    place.daemon.stop()
    assert not place.holding(NAME)
    # The twin of all that: what no filter stops is found by the same search.
    place.daemon.start()
    with place.daemon.connect(profile="always") as runner:
        echo(runner, b"words-that-may-pass\n")
    place.daemon.stop()
    assert place.holding(b"words-that-may-pass")


def test_an_opening_is_on_record_before_a_byte_is_handed_over(place: Place) -> None:
    daemon = place.daemon
    with daemon.connect(profile="always") as runner:
        call = echo(runner, WORDS).call
    raw = daemon.outcome(call).raw
    for message in (admin.ReadRaw(digest=raw.content.digest), admin.ReadRaw(digest="0" * 64)):
        with pytest.raises(RunnerError, match="you have not opened this"):
            daemon.ask(message)
    for wrong in (admin.OpenRaw(call=call, why=""), admin.OpenRaw(call="019a", why="x")):
        with pytest.raises(RunnerError):
            daemon.ask(wrong)
    assert place.opened() == []
    answer = daemon.ask(admin.OpenRaw(call=call, why="case 7"))
    (entry,) = place.opened()  # signed and on disk when the answer is here
    assert daemon.entries()[answer.position] == entry
    assert (entry.call, entry.raw, entry.why, entry.by) == (call, raw.content.digest, "case 7", 0)
    assert entry.operator == entries.Operator(name="root", uid=0)
    piece = daemon.ask(admin.ReadRaw(digest=raw.content.digest)).data
    assert len(piece) == answer.size == raw.content.size + 16
    assert NAME not in piece
    assert b"".join(data for _, data in Identities(place.private).open([piece[16:]], call)) == WORDS
    shown = json.loads(place.trace("show", call, "--json").stdout)
    assert [each["why"] for each in shown["raw_openings"]] == ["case 7"]
    assert "to root (uid 0): case 7" in place.trace("show", call).stdout
    log = subprocess.run(
        [sys.executable, "-m", "runner", "admin", "log", "--kind", "raw_open", "--state", str(daemon.state)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert f"raw output of call {call}" in log.stdout
    assert "kept -> handed over" in log.stdout


def denied(daemon: Daemon) -> list[entries.Refusals]:
    """Refusals of operators: one entry a second, with the detail of the first."""
    return [each for each in daemon.entries(entries.Refusals) if each.code == "denied"]


def test_whoever_is_not_forensics_is_refused_and_recorded(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    key = SigningKey(b"fay".ljust(32, b"."))
    operators = f"""
[[operators]]
name = "ann"
uid = 0
roles = ["approver", "containment", "auditor", "policy-author", "secrets"]
[[operators]]
name = "fay"
key = "{key.public.jwk()["x"]}"
roles = ["forensics"]
"""
    place = Place(make_daemon, tmp_path, config=operators)
    place.daemon.start()
    (tmp_path / "fay.key").write_bytes(private_file(key))
    (tmp_path / "fay.key").chmod(0o600)
    with place.daemon.connect(profile="always") as runner:
        call = echo(runner, WORDS).call
    digest = place.daemon.outcome(call).raw.content.digest
    refused = place.open(call)
    assert (refused.returncode, refused.stdout) == (EXIT_REFUSED, b"")
    assert b"role forensics" in refused.stderr
    with pytest.raises(RunnerError) as caught:
        place.daemon.ask(admin.ReadRaw(digest=digest))
    assert caught.value.refused.code == "denied"
    place.daemon.wait(lambda: sum(each.count for each in denied(place.daemon)) == 2)
    assert "may not `open_raw`" in denied(place.daemon)[0].detail
    assert place.opened() == []
    assert place.open(call, operator=tmp_path / "fay.key").stdout == WORDS
    (entry,) = place.opened()
    assert entry.operator == entries.Operator(name="fay", uid=0, key=key.public.thumbprint)
    # What fay opened is hers to read: the same digest, on another's connection, is refused still.
    with pytest.raises(RunnerError):
        place.daemon.ask(admin.ReadRaw(digest=digest))


def test_another_key_opens_nothing(place: Place) -> None:
    with place.daemon.connect(profile="always") as runner:
        call = echo(runner, WORDS).call
    other = place.folder / "other.key"
    other.write_text(new_identity()[0])
    other.chmod(0o600)
    out = place.folder / "out"
    done = place.run("trace", "raw", call, "--identity", other, "--why", "x", "--out", out)
    assert (done.returncode, out.exists()) == (EXIT_INVALID, False)
    assert b"not one that it was encrypted to" in done.stderr
    assert NAME not in done.stdout + done.stderr
    assert place.open(call).stdout == WORDS


def test_pruned_raw_output_is_gone_and_the_record_verifies(place: Place) -> None:
    daemon = place.daemon
    with daemon.connect(profile="always") as runner:
        calls = [echo(runner, words).call for words in (WORDS, WORDS * (3 * SEGMENT // len(WORDS)))]
    digests = [daemon.outcome(call).raw.content.digest for call in calls]

    def there() -> list[bool]:
        reader = ContentReader(daemon.state / "content")
        try:
            return [reader.get(digest, daemon.entries().index(daemon.outcome(call))) is not None
                    for call, digest in zip(calls, digests, strict=True)]  # fmt: skip
        finally:
            reader.close()

    assert there() == [True, True]
    assert daemon.ask(admin.OpenRaw(call=calls[0], why="before")).position
    daemon.ask(admin.Hold(name="case-1", why="counsel"))
    assert daemon.ask(admin.Prune(why="sooner", raw=True)).held == 2
    assert there() == [True, True]
    daemon.ask(admin.Release(name="case-1", why="settled"))
    done = place.run("trace", "prune", "--raw", "--yes", "--why", "sooner", "--json")
    assert json.loads(done.stdout)["pieces"] == 2, done.stderr
    assert there() == [False, False]
    for call in calls:
        refused = place.open(call)
        assert (refused.returncode, b"was pruned" in refused.stderr) == (EXIT_REFUSED, True)
        assert json.loads(place.trace("show", call, "--content", "--json").stdout)["content"]["stdout"]  # that stays
    with pytest.raises(RunnerError):
        daemon.ask(admin.ReadRaw(digest=digests[0]))  # also by whoever had opened it
    assert len(place.opened()) == 1
    verified = place.trace("verify")
    assert verified.returncode == 0, verified.stdout
    assert "2 pieces of content" in verified.stdout
    vectors = Path(__file__).parents[1] / "vectors/verify_ledger.py"
    other = [sys.executable, str(vectors), str(daemon.state / "ledger"), str(daemon.state / "ledger/key.pub")]
    assert subprocess.run(other).returncode == 0


def test_swapped_content_is_found_and_never_shown(place: Place) -> None:
    daemon = place.daemon
    with daemon.connect(profile="always") as runner:
        first, second = (echo(runner, words * (3 * SEGMENT // len(WORDS))).call for words in (WORDS, WORDS[::-1]))
    daemon.stop()
    offline = ["--unrecorded", "--state", daemon.state]
    whole = place.open(first, *offline)
    assert (whole.returncode, whole.stdout) == (0, WORDS * (3 * SEGMENT // len(WORDS)))
    assert b"recorded nowhere" in whole.stderr
    paths = []
    for call in (first, second):
        digest = daemon.outcome(call).raw.content.digest
        paths.append(daemon.state / "content/sha256" / digest[:2] / digest[2:])
    one, two = (path.read_bytes() for path in paths)
    paths[0].write_bytes(two)
    paths[1].write_bytes(one)
    for call in (first, second):
        refused = place.open(call, *offline)
        assert refused.returncode != 0
        assert refused.stdout == b""
    assert place.trace("verify").returncode != 0
    with pytest.raises(RunnerError, match=f"it is of call {second}"):  # nor by whoever rewrites the ledger as well
        list(Identities(place.private).open([two[16:]], first))
    daemon.start()
    refused = place.open(first)
    assert refused.returncode != 0
    assert refused.stdout == b""
    paths[0].write_bytes(one)
    paths[1].write_bytes(two)
    assert place.open(first).returncode == 0


def test_a_profile_that_keeps_raw_output_for_nobody_is_no_profile(
    make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    place = Place(make_daemon, tmp_path, recipient=False)
    profile = place.folder / "profiles/default.toml"
    text = profile.read_text()
    profile.write_text(text.replace('name = "default"', 'name = "default"\nraw = { high = "filtered" }', 1))
    config = place.daemon.place / "runner.toml"
    started = subprocess.run(
        [sys.executable, "-m", "runner", "serve", "--config", str(config)], capture_output=True, text=True, timeout=60
    )
    assert started.returncode == EXIT_INVALID, started.stderr
    assert "[escrow] in the configuration has no recipient" in started.stderr
    found = subprocess.run(
        [sys.executable, "-m", "runner", "doctor", "--config", str(config), "--json"], capture_output=True
    )
    (said,) = [each for each in json.loads(found.stdout) if each["name"] == "escrow"]
    assert (said["status"], "profile default" in said["found"]) == ("fail", True)
    # The twin: without the wish it serves, and a reload that brings the wish alone is refused; with a key it is not.
    profile.write_text(text)
    place.daemon.start()
    profile.write_text(text.replace('name = "default"', 'name = "default"\nraw = "always"', 1))
    with pytest.raises(RunnerError, match="no recipient"):
        place.daemon.ask(admin.Reload())
    with place.daemon.connect() as runner:
        before = echo(runner, WORDS).call
    config.write_text(config.read_text() + f'[escrow]\nrecipients = ["{new_identity()[1]}"]\n')
    place.daemon.ask(admin.Reload())
    with place.daemon.connect() as runner:
        after = echo(runner, WORDS).call
    assert place.daemon.outcome(before).raw is None
    assert place.daemon.outcome(after).raw.kept == "always"


def test_it_is_kept_when_something_was_found_and_only_then(place: Place) -> None:
    plain = b"nothing to see here, line after line\n"
    large = plain * (3 * SEGMENT // len(plain))
    with place.daemon.connect(profile="filtered") as runner:
        clean = [echo(runner, words).call for words in (plain, large)]
        found = [echo(runner, words + MAIL + b"\n").call for words in (plain, large)]
        low = runner.call("fs_list", {"path": "."}).call  # consequence low: always
    with place.daemon.connect(profile="never") as runner:
        never = echo(runner, WORDS).call
    assert [place.daemon.outcome(call).raw for call in (*clean, never)] == [None] * 3
    assert [place.daemon.outcome(call).raw.kept for call in found] == ["filtered"] * 2
    assert place.daemon.outcome(low).raw.kept == "always"
    assert place.open(found[1]).stdout == large + MAIL + b"\n"
    refused = place.open(clean[0])
    assert (refused.returncode, b"no raw output is kept" in refused.stderr) == (EXIT_REFUSED, True)
    assert list((place.daemon.state / "content/tmp").iterdir()) == []


def test_held_output_is_kept_for_whoever_may_look_and_the_agent_is_told_how(place: Place) -> None:
    with place.daemon.connect(profile="holding") as runner:
        held = echo(runner, WORDS)
        passed = echo(runner, b"nothing to see here\n")
    assert held.stdout == b""
    assert f"runner trace raw {held.call}" in held.outcome.reason
    assert place.daemon.outcome(held.call).raw.kept == "held"
    assert place.open(held.call).stdout == WORDS
    assert (passed.stdout, place.daemon.outcome(passed.call).raw) == (b"nothing to see here\n", None)
    assert not place.holding(NAME)


def test_where_nothing_can_be_kept_to_hold_is_to_block(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    place = Place(make_daemon, tmp_path, recipient=False)
    place.daemon.start()
    with place.daemon.connect(profile="holding") as runner:
        blocked = echo(runner, WORDS)
        passed = echo(runner, b"nothing to see here\n")
    assert (blocked.stdout, blocked.outcome.kind) == (b"", "filtered")
    assert (passed.stdout, passed.outcome.kind) == (b"nothing to see here\n", "exited")
    assert not place.holding(NAME)


def test_what_shrinks_when_it_is_filtered_cannot_fill_the_disk(place: Place) -> None:
    """An address is masked by less than it was: what is kept raw has the call's limit of output too."""
    long = b"a-rather-long-name-of-somebody@example.org\n"
    with place.daemon.connect(profile="always") as runner:
        flood = [
            "/usr/bin/python3",
            "-c",
            "import sys\nline = sys.stdin.buffer.read()\nwhile True: sys.stdout.buffer.write(line)",
        ]
        ended = runner.call("shell_run", {"argv": flood}, stdin=long * 100)
    raw = place.daemon.outcome(ended.call).raw
    assert ended.outcome.kind == "output_capped"
    limit = place.daemon.call(ended.call).plan.output
    assert limit <= raw.stdout <= limit + (64 << 10)
    assert place.daemon.outcome(ended.call).stdout.size < limit


def test_a_recorder_that_dies_meanwhile_takes_the_call_with_it(place: Place) -> None:
    daemon = place.daemon
    command = f"while true; do cat words; done | head -c {4 * SEGMENT}; sleep 300"
    with daemon.connect(profile="always") as runner:
        runner.call("shell_run", {"argv": ["/bin/sh", "-c", "cat > words"]}, stdin=WORDS)
        stream = runner.stream("shell_run", {"argv": ["/bin/sh", "-c", command]})
        with suppress(CallError), stream as running:
            seen = 0
            for chunk in running:
                seen += len(chunk.data)
                if seen > SEGMENT:
                    break
            daemon.wait(lambda: list((daemon.state / "content/tmp").iterdir()))
            daemon.child("recorder").send_signal(signal.SIGKILL)
            with pytest.raises(CallError):
                running.result()
    assert daemon.ended() == EXIT_UNAVAILABLE
    assert not place.holding(NAME)
    daemon.start()
    assert list((daemon.state / "content/tmp").iterdir()) == []
    (ended,) = [each for each in daemon.entries(entries.Outcome) if each.outcome == "interrupted"]
    assert ended.raw is None
    assert daemon.verifies()
    with daemon.connect(profile="always") as runner:
        assert place.open(echo(runner, WORDS).call).stdout == WORDS
