"""`runner keys` and `runner token`: files 0600, none overwritten, no token text shown, nothing without a record."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from runner.cli import commands, credentials, keys, token
from runner.client import descriptor
from runner.config import Limits
from runner.errors import Refusal, RunnerError
from runner.token import credentials as handed
from runner.token.claims import verify_chain
from runner.token.keys import SigningKey, read_private, read_public
from runner.wire import admin, frame

RUN = CliRunner()
CONSTRAINTS = '{"path":{"constraint_type":"path_containment","root":"/workspace/src"}}'


class Operator:
    """The daemon's end of admin.sock: remembers what it was asked, answers as told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[admin.FromOperator] = []
        self.answer: admin.ToOperator | bytes = admin.Done(position=7, affected=2)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        decoder: frame.Decoder[admin.FromOperator] = frame.Decoder(admin.FromOperator, elements=4096, depth=8)
        while True:
            connection, _ = self._listener.accept()
            with connection:
                reader = frame.FrameReader(1 << 20)
                while data := connection.recv(65_536):
                    for body in reader.feed(data):
                        self.asked.append(decoder.decode(body))
                        answer = self.answer if isinstance(self.answer, bytes) else frame.encode(self.answer)
                        connection.sendall(answer)
                    if self.asked:
                        break
                else:
                    return  # a connection without a word: the test is over

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(str(self.path))
        self._thread.join(10)
        self._listener.close()


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Operator]:
    made = Operator(tmp_path / "admin.sock")
    yield made
    made.close()


@pytest.fixture
def issuer(tmp_path: Path) -> Path:
    assert RUN.invoke(keys.app, ["init", "--dir", str(tmp_path), "--issuer", "https://i.example"]).exit_code == 0
    return tmp_path / "issuer.key"


def mint(issuer: Path, operator_path: Path, *more: str) -> Result:
    who = ["--agent", "reader", "--owner", "ann", "--task", "t-1", "--ttl", "10m", "--depth", "1"]
    what = ["--tool", "shell_run", "--tool", f"fs_read:{CONSTRAINTS}"]
    where = ["--key", str(issuer), "--socket", str(operator_path)]
    return RUN.invoke(token.app, ["mint", *who, *what, *where, *more])


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


# --- keys ------------------------------------------------------------------------------------------------


def test_init_makes_a_pair_and_never_overwrites(tmp_path: Path, issuer: Path) -> None:
    key, uri = read_private(issuer.read_bytes(), "k")
    assert (uri, mode(issuer), mode(tmp_path / "issuer.pub")) == ("https://i.example", 0o600, 0o644)
    assert read_public((tmp_path / "issuer.pub").read_bytes(), "p") == (key.public, uri)
    before = issuer.read_bytes()
    again = RUN.invoke(keys.app, ["init", "--dir", str(tmp_path)])
    assert isinstance(again.exception, RunnerError)
    assert "never overwritten" in str(again.exception)
    assert issuer.read_bytes() == before


def test_init_leaves_no_half_pair(tmp_path: Path) -> None:
    (tmp_path / "issuer.pub").write_text("mine")
    assert isinstance(RUN.invoke(keys.app, ["init", "--dir", str(tmp_path)]).exception, RunnerError)
    assert [path.name for path in tmp_path.iterdir()] == ["issuer.pub"]


def test_init_shows_the_configuration_and_no_secret(tmp_path: Path) -> None:
    shown = RUN.invoke(keys.app, ["init", "--dir", str(tmp_path)])
    assert "[[issuers]]" in shown.output
    assert "urn:uuid:" in shown.output
    assert json.loads((tmp_path / "issuer.key").read_text())["d"] not in shown.output
    facts = json.loads(RUN.invoke(keys.app, ["show", str(tmp_path / "issuer.pub"), "--json"]).output)
    assert facts["thumbprint"] in shown.output


def test_bad_issuer(tmp_path: Path) -> None:
    assert RUN.invoke(keys.app, ["init", "--dir", str(tmp_path), "--issuer", "no uri"]).exit_code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o660, 0o666])
def test_an_open_key_file_is_refused(issuer: Path, bits: int) -> None:
    assert keys.load_issuer(issuer)
    issuer.chmod(bits)
    with pytest.raises(RunnerError, match="others may read") as caught:
        keys.load_issuer(issuer)
    assert "chmod 600" in caught.value.refused.next_step


@pytest.mark.root
def test_a_key_file_of_another_user_is_refused(issuer: Path) -> None:
    os.chown(issuer, 12_345, -1)
    with pytest.raises(RunnerError, match="belongs to uid 12345"):
        keys.load_issuer(issuer)
    os.chown(issuer, os.geteuid(), -1)
    keys.load_issuer(issuer)


def test_a_systemd_credential(issuer: Path, operator: Operator, tmp_path: Path, monkeypatch: Any) -> None:
    """Readable for the group that its access list makes it; found without being named. Elsewhere it is too open."""
    folder = tmp_path / "credentials"
    folder.mkdir()
    issuer.chmod(0o440)
    with pytest.raises(RunnerError, match="others may read it"):
        keys.load_issuer(issuer)
    issuer.rename(folder / "issuer.key")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    assert keys.usual_key() == folder / "issuer.key"
    who = ["--agent", "reader", "--owner", "ann", "--task", "t-1", "--tool", "shell_run"]
    where = ["--holder-key", str(tmp_path / "h"), "--out", str(tmp_path / "t"), "--socket", str(operator.path)]
    assert RUN.invoke(token.app, ["mint", *who, *where]).exit_code == 0
    (folder / "issuer.key").chmod(0o444)
    with pytest.raises(RunnerError, match="others may read it"):
        keys.load_issuer(keys.usual_key())
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    assert keys.usual_key() == Path("issuer.key")


# --- rotate, list, retire ------------------------------------------------------------------------------------


def key_command(*words: str) -> Any:
    done = RUN.invoke(keys.app, [*words, "--json"])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_rotate_keeps_the_old_key_in_force_until_it_is_retired(tmp_path: Path, issuer: Path) -> None:
    where = ("--dir", str(tmp_path))
    first = keys.load_issuer(issuer)[0].public
    assert key_command("list", *where) == [
        {"thumbprint": first.thumbprint, "signs": True, "issuer": "https://i.example"}
    ]
    said = key_command("rotate", *where)
    second = keys.load_issuer(issuer)[0].public
    assert (said["before"], said["thumbprint"]) == (first.thumbprint, second.thumbprint)
    assert keys.load_anchors(tmp_path / "issuer.pub") == ((first, second), "https://i.example")
    assert [row["signs"] for row in key_command("list", *where)] == [False, True]
    assert (mode(issuer), mode(tmp_path / "issuer.pub")) == (0o600, 0o644)
    assert {path.name for path in tmp_path.iterdir()} == {"issuer.key", "issuer.pub"}
    assert key_command("retire", first.thumbprint[:8], *where)["retired"] == first.thumbprint
    assert keys.load_public(tmp_path / "issuer.pub") == (second, "https://i.example")
    for wrong, words in ((second.thumbprint, "only one"), ("", "none"), ("no-such", "none")):
        with pytest.raises(RunnerError, match=words):
            key_command("retire", wrong, *where)


def test_the_key_that_signs_is_not_retired_and_a_full_set_takes_no_more(tmp_path: Path, issuer: Path) -> None:
    where = ("--dir", str(tmp_path))
    for _ in range(15):
        key_command("rotate", *where)
    signing = keys.load_issuer(issuer)[0].public
    with pytest.raises(RunnerError, match="signs new tokens"):
        key_command("retire", signing.thumbprint, *where)
    with pytest.raises(RunnerError, match="full"):
        key_command("rotate", *where)
    assert len(keys.load_anchors(tmp_path / "issuer.pub")[0]) == 16


def test_two_rotations_at_once_are_one(tmp_path: Path, issuer: Path) -> None:
    """The other one's unfinished file is in the way: nothing is lost, and what to do is said."""
    before = issuer.read_bytes(), (tmp_path / "issuer.pub").read_bytes()
    (tmp_path / "issuer.pub.new").touch()
    with pytest.raises(RunnerError, match="exists"):
        key_command("rotate", "--dir", str(tmp_path))
    assert (issuer.read_bytes(), (tmp_path / "issuer.pub").read_bytes()) == before


def test_a_key_that_is_not_of_the_set_does_not_rotate(tmp_path: Path, issuer: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    assert RUN.invoke(keys.app, ["init", "--dir", str(other), "--issuer", "https://i.example"]).exit_code == 0
    (other / "issuer.key").rename(issuer)
    with pytest.raises(RunnerError, match="not one of its keys"):
        key_command("rotate", "--dir", str(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.update(keys=[]),
        lambda found: found.update(keys=found["keys"] * 2),
        lambda found: found.update(keys={}),
        lambda found: found["keys"].append("x"),
        lambda found: found["keys"][0].update(d="x"),
        lambda found: found["keys"][0].update(kty="RSA"),
        lambda found: found.update(issuer="no uri"),
        lambda found: found.update(keys=found["keys"] * 9),
    ],
)
def test_sets_that_are_wrong(tmp_path: Path, issuer: Path, change: Any) -> None:
    key_command("rotate", "--dir", str(tmp_path))
    public = tmp_path / "issuer.pub"
    found = json.loads(public.read_bytes())
    change(found)
    public.write_text(json.dumps(found))
    with pytest.raises(RunnerError) as refused:
        keys.load_anchors(public)
    assert refused.value.refused.code == "key"


def test_what_is_no_key_file(tmp_path: Path, issuer: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(issuer)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    for path in (link, pipe, tmp_path, tmp_path / "missing"):
        with pytest.raises(RunnerError) as caught:
            keys.load_issuer(path)
        assert caught.value.refused.code == "key"
        assert caught.value.refused.field == str(path)


# --- mint ------------------------------------------------------------------------------------------------


def test_mint(tmp_path: Path, issuer: Path, operator: Operator) -> None:
    out, holder = tmp_path / "t", tmp_path / "h"
    made = mint(issuer, operator.path, "--holder-key", str(holder), "--out", str(out), "--json")
    assert made.exit_code == 0, made.output
    facts = json.loads(made.output)
    text = out.read_text().strip()
    assert text not in made.output
    assert mode(out) == mode(holder) == 0o600
    public, uri = read_public((tmp_path / "issuer.pub").read_bytes(), "p")
    chain = verify_chain([text], {uri: (public,)}, time.time(), "any", Limits())
    assert chain.leaf_key == read_private(holder.read_bytes(), "h")[0].public
    assert set(chain.tools) == {"fs_read", "shell_run"}
    (message,) = operator.asked
    assert isinstance(message, admin.Announce)
    assert (message.jti, message.digest) == (chain.root_jti, chain.root_digest) == (facts["jti"], facts["digest"])
    assert (message.agent, message.owner, message.task, message.profile) == ("reader", "ann", "t-1", "default")
    assert (message.tools, message.expires) == (("fs_read", "shell_run"), chain.expires)
    assert facts["position"] == 7


def test_mint_to_a_pipe_for_a_given_holder(tmp_path: Path, issuer: Path, operator: Operator) -> None:
    holder = SigningKey(b"\5" * 32)
    public = tmp_path / "holder.pub"
    public.write_text(json.dumps(holder.public.jwk()))
    made = mint(issuer, operator.path, "--holder", str(public))
    assert made.exit_code == 0, made.output
    assert made.stdout.count(".") == 2
    assert made.stdout.count("\n") == 1
    assert made.stdout.strip() not in made.stderr
    assert holder.public.thumbprint in made.stderr


def test_a_token_that_is_not_recorded_is_left_nowhere(tmp_path: Path, issuer: Path, operator: Operator) -> None:
    operator.answer = admin.Refused(refusal=Refusal(code="task_ended", reason="the task is over"))
    out, holder = tmp_path / "t", tmp_path / "h"
    for path in (operator.path, tmp_path / "nobody.sock"):
        made = mint(issuer, path, "--holder-key", str(holder), "--out", str(out))
        assert isinstance(made.exception, RunnerError)
        assert not out.exists()
        assert not holder.exists()
    made = mint(issuer, tmp_path / "nobody.sock", "--holder-key", str(holder))
    assert made.stdout == ""


def test_mint_overwrites_nothing(tmp_path: Path, issuer: Path, operator: Operator) -> None:
    out, holder = tmp_path / "t", tmp_path / "h"
    out.write_text("mine")
    made = mint(issuer, operator.path, "--holder-key", str(holder), "--out", str(out))
    assert isinstance(made.exception, RunnerError)
    assert out.read_text() == "mine"
    assert not holder.exists()
    assert not operator.asked


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--holder-key", "a", "--holder", "b"],
        ["--holder-key", "a", "--json"],
        ["--holder-key", "a", "--tool", "x:{"],
        ["--holder-key", "a", "--tool", "x:[]"],
        ["--holder-key", "a", "--tool", 'x:{"a":1,"a":2}'],
        ["--holder-key", "a", "--ttl", "soon"],
        ["--holder-key", "a", "--ttl", "0s"],
        ["--holder-key", "a", "--tool", "fs_read"],  # which would take the constraints away that it has
        ["--holder-key", "a", "--depth", "-1"],
    ],
)
def test_usage(issuer: Path, tmp_path: Path, more: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert mint(issuer, tmp_path / "nobody.sock", *more).exit_code == 2
    assert not (tmp_path / "a").exists()


# --- inspect ---------------------------------------------------------------------------------------------


@pytest.fixture
def minted(tmp_path: Path, issuer: Path, operator: Operator) -> Path:
    assert mint(issuer, operator.path, "--holder-key", str(tmp_path / "h"), "--out", str(tmp_path / "t")).exit_code == 0
    return tmp_path / "t"


def test_inspect(tmp_path: Path, minted: Path) -> None:
    text = minted.read_text().strip()
    seen = RUN.invoke(token.app, ["inspect", str(minted)])
    assert seen.exit_code == 0
    assert text.rpartition(".")[2] not in seen.output
    assert "path: a path within /workspace/src" in seen.output
    assert seen.output.endswith("not verified\n")
    proven = RUN.invoke(token.app, ["inspect", "-", "--public-key", str(tmp_path / "issuer.pub")], input=text)
    assert proven.output.endswith("\nverified\n")
    facts = json.loads(RUN.invoke(token.app, ["inspect", str(minted), "--json"]).output)
    assert facts["tokens"][0]["claims"]["runner"]["owner"] == "ann"
    assert not facts["verified"]


def test_inspect_says_what_is_wrong(tmp_path: Path, minted: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    RUN.invoke(keys.app, ["init", "--dir", str(other)])
    seen = RUN.invoke(token.app, ["inspect", str(minted), "--public-key", str(other / "issuer.pub")])
    assert isinstance(seen.exception, RunnerError)
    assert seen.exception.refused.code == "token"
    assert "step 3b" in seen.output
    for data in ("", "a.b.c", "x" * 600_000, "\xff"):
        seen = RUN.invoke(token.app, ["inspect", "-"], input=data)
        assert isinstance(seen.exception, RunnerError)
    (tmp_path / "chain").write_text(minted.read_text() + "x.y\n")
    seen = RUN.invoke(token.app, ["inspect", str(tmp_path / "chain")])
    assert isinstance(seen.exception, RunnerError)
    assert seen.exception.refused.field == f"{tmp_path}/chain, token 1"


def test_inspect_prints_no_control_characters(forge: Any, tmp_path: Path) -> None:
    claims = forge.changed(forge.root_claims(), forge.put("runner", "agent", "\x1b[2J\u202e"), forge.put("iat", "\x07"))
    seen = RUN.invoke(token.app, ["inspect", "-"], input=forge.jws(claims, "issuer"))
    assert seen.exit_code == 0
    assert not set("\x1b\x07\u202e") & set(seen.output)


# --- revoke, ask -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["token", "task", "agent", "owner"])
def test_revoke(operator: Operator, kind: str) -> None:
    done = RUN.invoke(token.app, ["revoke", f"--{kind}", "x-1", "--why", "done", "--socket", str(operator.path)])
    assert done.exit_code == 0, done.output
    assert operator.asked == [admin.Revoke(kind=kind, value="x-1", why="done")]  # type: ignore[arg-type]  # parametrized
    assert "stopped      2" in done.output


def test_revoke_everything_and_what_stood_on_nothing(operator: Operator) -> None:
    operator.answer = admin.Done(position=7)
    done = RUN.invoke(token.app, ["revoke", "--everything", "--why", "x", "--socket", str(operator.path), "--json"])
    assert operator.asked == [admin.Revoke(kind="everything", why="x")]
    assert json.loads(done.stdout) == {"revoked": "everything", "tokens": 0, "stopped": 0, "position": 7}
    assert "no token is in force" in done.stderr


@pytest.mark.parametrize("given", [[], ["--task", "a", "--agent", "b"], ["--task", "a", "--everything"]])
def test_revoke_one_thing(given: list[str], tmp_path: Path) -> None:
    assert RUN.invoke(token.app, ["revoke", "--why", "x", *given, "--socket", str(tmp_path / "s")]).exit_code == 2


def test_ask_without_a_daemon(tmp_path: Path) -> None:
    with pytest.raises(RunnerError) as caught:
        credentials.ask(tmp_path / "nobody.sock", admin.Status())
    assert caught.value.refused.code == "unavailable"
    assert "runner serve" in caught.value.refused.next_step


def test_why_nobody_can_be_asked_is_told_apart(tmp_path: Path) -> None:
    def told(path: Path) -> str:
        with pytest.raises(RunnerError) as caught:
            credentials.ask(path, admin.Status())
        assert caught.value.refused.code == "unavailable"
        assert "--socket" in caught.value.refused.next_step
        return caught.value.refused.reason

    assert "there is no" in told(tmp_path / "nobody.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead.sock"))  # as a daemon leaves it that was killed
        assert "nobody listens" in told(tmp_path / "dead.sock")
    (tmp_path / "file").write_text("")
    assert "no socket" in told(tmp_path / "file")
    assert "there is no" in told(tmp_path / "file/admin.sock")
    assert "no daemon answers" in told(tmp_path / ("x" * 200))  # longer than a socket's path can be


def test_an_answer_that_does_not_come_leaves_the_act_open(operator: Operator) -> None:
    operator.answer = b""  # it hangs up once it was asked
    with pytest.raises(RunnerError) as caught:
        credentials.ask(operator.path, admin.Revoke(kind="everything"))
    assert caught.value.refused.code == "interrupted"
    assert "may have been carried out" in caught.value.refused.next_step
    assert operator.asked == [admin.Revoke(kind="everything")]


def test_every_command_takes_the_socket_alike() -> None:
    found: dict[str, Any] = {}

    def walk(command: Any, name: str) -> None:
        for each, below in getattr(command, "commands", {}).items():
            walk(below, f"{name} {each}")
        for option in command.params:
            if "--socket" in option.opts:
                found[name] = option.help, option.envvar

    walk(get_command(commands.app), "runner")
    assert {f"runner {name}" for name in ("status", "task end", "task diff", "token mint", "trace prune")} <= set(found)
    assert set(found.values()) == {("The daemon's admin.sock.", "RUNNER_ADMIN_SOCKET")}


def test_ask_a_daemon_that_answers_otherwise(operator: Operator) -> None:
    operator.answer = admin.Refused(refusal=Refusal(code="denied", reason="no"))
    with pytest.raises(RunnerError, match="denied: no"):
        credentials.ask(operator.path, admin.Status())
    operator.answer = b"\0\0\0\1\xc1"
    with pytest.raises(RunnerError) as caught:
        credentials.ask(operator.path, admin.Status())
    assert caught.value.refused.code == "protocol"
    assert "not its agent.sock" in caught.value.refused.next_step


# --- what exec hands over -------------------------------------------------------------------------------------


def test_sealed_credentials() -> None:
    given = handed.credentials(("token",), SigningKey(b"\6" * 32), "/run/agent.sock")
    number = descriptor(given)
    try:
        assert os.get_inheritable(number)
        assert handed.parse(os.read(number, handed.MAX_CREDENTIALS)) == given
        with pytest.raises(OSError, match="not permitted"):
            os.pwrite(number, b"x", 0)
        with pytest.raises(OSError, match="not permitted"):
            os.ftruncate(number, 0)
    finally:
        os.close(number)


def test_fresh_ids_are_uuidv7_and_ordered() -> None:
    import uuid

    first = credentials.fresh_id()
    time.sleep(0.002)
    second = credentials.fresh_id()
    assert uuid.UUID(first).version == 7
    assert first < second
    assert first == first.lower()
