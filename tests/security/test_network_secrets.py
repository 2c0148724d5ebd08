"""SECURITY-CASES K11–K13, K15 and the issue's own: where a brokered credential goes, and that it is nowhere else.

The real value is looked for in everything that agent, operator or auditor can read, and in every process of the daemon
but those that have to hold it while the call lives.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from house import first_line, readable
from networked import HOST, KEY, OPAQUE, OTHER, PLAIN, TCP, Networked
from wishes import fetch, python, talk, told

from runner.client.errors import CallError, Unavailable
from runner.ledger import entry as entries
from runner.wire import admin

pytestmark = pytest.mark.docker
BEARER = {"Authorization": "Bearer $SERVICE_KEY"}
FORMS = (  # of the value, as somebody could have written it down
    KEY.encode(),
    base64.b64encode(KEY.encode()).rstrip(b"="),
    KEY.encode().hex().encode(),
    KEY.encode()[::-1],
)


def holds(data: bytes) -> bool:
    """Whether the credential stands in it, in any of these forms."""
    return any(form in data for form in FORMS)


def headers(seen: dict[str, Any]) -> dict[str, str]:
    return dict(seen["headers"])


# --- where it goes ------------------------------------------------------------------------------------------


def test_a_credential_stands_in_each_place_that_the_manifest_names(networked: Networked) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    wishes = [
        {"url": networked.url("/v1/x"), "headers": {"X-Api-Key": "$SERVICE_KEY"}},
        {"url": networked.url("/v1/x?a=b&key=$SERVICE_KEY")},
        {"url": networked.url("/v1/x"), "basic": "me:$SERVICE_KEY"},
        {"url": networked.url("/v1/x"), "body": "secret=$SERVICE_KEY", "headers": form},
        {"url": networked.url("/v1/x"), "body": "secret=$SERVICE_KEY", "chunked": True, "method": "POST"},
        {"url": networked.url("/x", PLAIN), "headers": {"X-Api-Key": "$SERVICE_KEY"}},  # K15: plain http, where bound
    ]
    with networked.connect() as runner:
        done = runner.call("places_run", fetch(*wishes))
        assert [each["status"] for each in told(done)] == [200] * 6, done.text
    first, second, third, fourth, fifth = networked.web.seen
    assert headers(first)["x-api-key"] == KEY
    assert second["target"] == f"/v1/x?a=b&key={KEY}"
    assert headers(third)["authorization"] == "Basic " + base64.b64encode(f"me:{KEY}".encode()).decode()
    assert fourth["body"] == f"secret={KEY}"
    assert headers(fourth)["content-length"] == str(len(fourth["body"]))
    assert fifth["body"] == f"secret={KEY}"
    assert headers(networked.plain.seen[0])["x-api-key"] == KEY
    assert [each.secrets for each in networked.ends(done.call)] == [("service-key",)] * 6
    (used,) = networked.outcome(done.call).secrets
    assert (used.name, used.delivery, used.used) == ("service-key", "inject", 6)
    assert not networked.alerts(done.call)


def test_a_placeholder_anywhere_else_is_refused_and_is_an_alarm(networked: Networked) -> None:
    """Another host, path, place, an opaque tunnel, another rule's path, a placeholder in what is refused anyway."""
    port, tcp = networked.web.port, networked.tcp.port
    before = bytes(networked.services.received)
    elsewhere = [
        {"url": networked.url("/v1/$SERVICE_KEY")},
        {"url": networked.url("/v1/x?other=$SERVICE_KEY")},
        {"url": networked.url("/v1/x?$SERVICE_KEY=x")},
        {"url": networked.url("/v1/x"), "headers": {"Cookie": "$SERVICE_KEY"}},
        {"url": networked.url("/v1/x"), "headers": {"$SERVICE_KEY": "x"}},
        {"url": networked.url("/shown"), "headers": {"X-Api-Key": "$SERVICE_KEY"}},  # a rule that it is not bound to
        {"url": networked.url("/", OTHER), "headers": {"X-Api-Key": "$SERVICE_KEY"}},
    ]
    tunnel = f"CONNECT {TCP}:{tcp} HTTP/1.1\r\nHost: {TCP}:{tcp}\r\n"
    raw = [
        {"send": f"{tunnel}\r\n", "then": "hello $SERVICE_KEY", "half": True},
        {"send": f"{tunnel}Proxy-Authorization: Bearer $SERVICE_KEY\r\n\r\n"},
        {"send": f"CONNECT {OPAQUE}:{port} HTTP/1.1\r\nHost: {OPAQUE}:{port}\r\nX: $SERVICE_KEY\r\n\r\n"},
    ]
    with networked.connect() as runner:
        done = runner.call("places_run", fetch(*elsewhere))
        assert [each["status"] for each in told(done)] == [*[403] * 6, 0], done.text
        assert all("placeholder stands where it may not" in each["body"] for each in told(done)[:6])
        tunnels = runner.call("places_run", talk(*raw))
        said = told(tunnels)
        assert "hello" not in said[0]
        assert " 403 " in said[1]
        assert " 403 " in said[2]
        body = runner.call("key_run", fetch({"url": networked.url("/v1/x"), "method": "POST", "body": "$SERVICE_KEY"}))
        assert told(body)[0]["status"] == 403
        twin = runner.call(
            "places_run", fetch({"url": networked.url("/v1/x"), "headers": {"X-Api-Key": "$SERVICE_KEY"}})
        )
        assert told(twin)[0]["status"] == 200
    assert [each["target"] for each in networked.web.seen] == ["/v1/x"] * len(networked.web.seen)
    assert not any(b"rnr-" in json.dumps(each).encode() for each in networked.web.seen)
    assert networked.services.received == before
    for call, count in ((done.call, 6), (tunnels.call, 3), (body.call, 1)):
        found = networked.alerts(call)
        assert [(each.severity, each.what) for each in found] == [("critical", "credential service-key")] * count, found
        assert not networked.outcome(call).secrets[0].used
    assert not networked.alerts(twin.call)
    refused = [each.part for each in networked.requests(done.call)]
    assert refused[:6] == ["injection"] * 6


def test_a_canary_sent_anywhere_is_an_alarm(networked: Networked) -> None:
    with networked.connect() as runner:
        done = runner.call(
            "net_run",
            fetch(
                {"url": networked.url("/v1/x"), "headers": {"Authorization": "Bearer $RUNNER_CANARY_TOKEN"}},
                {"url": networked.url("/v1/x"), "body": "a=$RUNNER_CANARY_TOKEN", "chunked": True, "method": "POST"},
                {"url": networked.url("/v1/x"), "body": "nothing", "method": "POST"},
            ),
        )
        assert [each["status"] for each in told(done)] == [403, 403, 200], done.text
    found = networked.alerts(done.call)
    assert [(each.severity, each.what, each.where) for each in found] == [
        ("critical", "credential canary", "header authorization"),
        ("critical", "credential canary", "body"),
    ]
    assert len([each for each in networked.web.seen if each["body"] == "nothing"]) == 1
    assert not any("rnr-" in each["body"] or "authorization" in headers(each) for each in networked.web.seen)


def test_a_service_that_repeats_the_credential_is_cut_before_it(networked: Networked) -> None:
    with networked.connect() as runner:
        done = runner.call("key_run", fetch({"url": networked.url("/shown"), "headers": BEARER}))
        assert not holds(done.stdout + done.stderr)
        assert told(done)[0]["status"] != 200 or "after" not in told(done)[0]["body"]
        twin = runner.call("key_run", fetch({"url": networked.url("/shown"), "headers": {"Authorization": "mine"}}))
        assert told(twin)[0]["body"] == "before mine after"
    assert headers(networked.web.seen[0])["authorization"] == f"Bearer {KEY}"
    assert [each.where for each in networked.alerts(done.call)] == ["response"]


def test_a_compressed_body_that_needs_a_credential_is_refused(networked: Networked) -> None:
    gzip = {"Content-Encoding": "gzip"}
    with networked.connect() as runner:
        done = runner.call(
            "places_run",
            fetch({"url": networked.url("/v1/x"), "body": "x", "method": "POST", "headers": gzip}),
        )
        assert told(done)[0]["status"] == 403
        assert "compressed" in told(done)[0]["body"]
        twin = runner.call(
            "net_run", fetch({"url": networked.url("/v1/x"), "body": "x", "method": "POST", "headers": gzip})
        )
        assert told(twin)[0]["status"] == 200
    assert len(networked.web.seen) == 1


# --- the receipt --------------------------------------------------------------------------------------------


def test_a_receipt_tells_which_credential_went_where_and_never_what_it_is(networked: Networked) -> None:
    wish = fetch({"url": networked.url("/v1/x"), "headers": BEARER})
    with networked.connect() as runner:
        calls = [runner.call("key_run", wish).call for _ in range(2)]
    (first,), (second,) = (networked.outcome(call).secrets for call in calls)
    assert first.fingerprint == second.fingerprint != ""
    assert first.lease != second.lease
    assert first.accessor != second.accessor
    assert not holds(json.dumps([first.fingerprint, first.accessor, first.lease]).encode())
    assert first.accessor in networked.daemon.said(), "an operator cannot find the lease in the broker's log"


# --- what cannot be had -------------------------------------------------------------------------------------


def test_a_secret_that_nobody_has_is_a_refusal_before_the_process_exists(networked: Networked) -> None:
    with networked.connect() as runner:
        with pytest.raises(Unavailable) as refused:
            runner.call("ghost_run", python("open('/workspace/ran', 'w')"))
        assert "no secret `nobody-has-it` is stored" in str(refused.value)
        assert runner.call("shell_run", {"argv": ["ls", "/workspace"]}).text == ""
        outcome = networked.outcome(refused.value.call)
        assert (outcome.outcome, outcome.exit_code) == ("unavailable", None)
        twin = runner.call("key_run", python("print('ran')"))
        assert twin.text == "ran\n"


def test_without_a_key_of_the_store_no_call_gets_a_credential(make_networked: Callable[..., Networked]) -> None:
    house = make_networked()
    (house.daemon.state / "broker/master.key").rename(house.daemon.place / "elsewhere")
    house.daemon.stop()
    house.daemon.start()
    with house.connect() as runner:
        with pytest.raises(Unavailable) as refused:
            runner.call("key_run", python("print('ran')"))
        assert "store is not open" in str(refused.value)
        assert house.outcome(refused.value.call).outcome == "unavailable"
        assert told(runner.call("net_run", fetch(house.url("/v1/x"))))[0]["status"] == 200, "tools without one go on"
    (house.daemon.place / "elsewhere").rename(house.daemon.state / "broker/master.key")
    house.daemon.stop()
    house.daemon.start()
    with house.connect() as runner:
        assert runner.call("key_run", python("print('ran')")).text == "ran\n"


def test_a_lease_that_expires_ends_its_call_and_nothing_goes_out_after(
    make_networked: Callable[..., Networked],
) -> None:
    """Not renewable by its provider: the call is over, and says of what."""
    house = make_networked(sections="[secrets]\nttl_s = 2.0\nmax_ttl_s = 3.0\n")
    again = """
import os, sys, time, urllib.request
print("first", flush=True)
while True:
    request = urllib.request.Request(sys.argv[1], headers={"Authorization": "Bearer " + os.environ["SERVICE_KEY"]})
    urllib.request.urlopen(request, timeout=30).read()
    time.sleep(0.05)
"""
    with house.connect() as runner:
        done = runner.call("key_run", python(again, house.url("/v1/x")))
        assert done.outcome.kind == "killed"
        assert "service-key expired" in done.outcome.reason
        sent = len(house.web.seen)
        (used,) = house.outcome(done.call).secrets
        assert used.used == sent > 0
        assert runner.call("key_run", python("print('a fresh lease')")).text == "a fresh lease\n"
    assert len(house.web.seen) == sent


# --- handed over: file and env ------------------------------------------------------------------------------


def test_a_file_and_a_variable_where_the_profile_lets_them_be(networked: Networked) -> None:
    look = python("""
import hashlib, os, stat
path = os.environ["SERVICE_KEY"]
found = os.stat(path)
held = hashlib.sha256(open(path, "rb").read()).hexdigest()
print(held, oct(stat.S_IMODE(found.st_mode)), found.st_uid == os.getuid(), path)
try:
    open(path, "w")
except OSError as error:
    print(type(error).__name__)
""")
    with networked.connect(profile="handed") as runner:
        done = runner.call("file_run", look)
        digest = hashlib.sha256(KEY.encode()).hexdigest()
        assert done.text == f"{digest} 0o400 True /run/tools/secrets/3128/SERVICE_KEY\nPermissionError\n", done.text
        (first,) = networked.daemon.sandbox_pids()
        assert not Path(f"/proc/{first}/root/run/tools/secrets/3128/SERVICE_KEY").exists(), "it outlived its call"
        variable = runner.call("env_run", python("import os; print(os.environ['SERVICE_KEY'][::3])"))
        assert variable.text == KEY[::3] + "\n"
        for call, delivery in ((done.call, "file"), (variable.call, "env")):
            (used,) = networked.outcome(call).secrets
            assert (used.delivery, used.used, used.name) == (delivery, 0, "service-key")
        other = runner.call("shell_run", {"argv": ["sh", "-c", "ls -R /run/tools/secrets; env | grep -c SERVICE_KEY"]})
        assert KEY not in other.text
        assert "SERVICE_KEY\n" not in other.text


def test_a_file_is_no_other_calls_to_read(networked: Networked) -> None:
    hold = python("import os, sys; print(os.environ['SERVICE_KEY'], flush=True); sys.stdin.read()")
    with networked.connect(profile="handed") as runner, runner.stream("file_run", hold, stdin=True) as running:
        path = first_line(running).decode().strip()
        (first,) = networked.daemon.sandbox_pids()
        assert Path(f"/proc/{first}/root{path}").read_bytes() == KEY.encode(), "the twin: it is there"
        for tool in ("file_run", "net_run", "shell_run"):
            done = runner.call(tool, {"argv": ["sh", "-c", f"cat {path} /proc/*/environ | tr '\\0' '\\n'"]})
            assert KEY not in done.text, tool
        running.close_stdin()
        assert running.result().ok
    assert not Path(f"/proc/{first}/root{path}").exists()


def test_after_a_crash_a_file_is_nowhere(make_networked: Callable[..., Networked]) -> None:
    """K13: gate is killed while a call has the value in a file; the container is gone with it, and no disk has it."""
    house = make_networked()
    hold = python("import os, sys; print(os.environ['SERVICE_KEY'], flush=True); sys.stdin.read()")
    with house.connect(profile="handed") as runner, runner.stream("file_run", hold, stdin=True) as running:
        path = first_line(running).decode().strip()
        (first,) = house.daemon.sandbox_pids()
        assert Path(f"/proc/{first}/root{path}").read_bytes() == KEY.encode(), "the twin: it is there"
        house.daemon.child("gate").kill()
        with pytest.raises(CallError):
            running.result()
    house.daemon.ended()
    house.daemon.wait(lambda: not house.daemon.containers(), 30)
    assert not Path(f"/proc/{first}/root{path}").exists()
    assert not [each for each in house.daemon.place.rglob("*") if each.is_file() and holds(each.read_bytes())]
    house.daemon.start()
    assert house.outcome(running.call).outcome == "interrupted"


# --- K11, K12, K13: nowhere else ------------------------------------------------------------------------------


def test_the_value_is_in_no_process_no_file_and_no_word_but_where_it_must_be(
    make_networked: Callable[..., Networked],
) -> None:
    house = make_networked('[telemetry]\nexport = "file"\n')
    look = """
import os, subprocess, sys, urllib.request
url = sys.argv[1]
request = urllib.request.Request(url, headers={"Authorization": "Bearer " + os.environ["SERVICE_KEY"]})
print(urllib.request.urlopen(request, timeout=30).status, flush=True)
subprocess.run("env; cat /proc/*/environ /proc/*/cmdline; grep -r sk-live /workspace /tmp /run /etc", shell=True)
sys.stdout.flush()
sys.stdin.read()
"""
    with house.connect() as runner, runner.stream("key_run", python(look, house.url("/v1/x")), stdin=True) as running:
        chunks = iter(running)
        said = next(chunks).data
        assert said.startswith(b"200\n")
        for _ in range(3):  # while the call lives
            processes = [*house.family(), *(p for pid in house.daemon.sandbox_pids() for p in _below(pid))]
            for process in processes:
                for name in ("environ", "cmdline"):
                    assert not holds(readable(process.pid, name)), (process.cmdline(), name)
            for process in (p for pid in house.daemon.sandbox_pids() for p in _below(pid)):
                assert not holds(_memory(process.pid)), f"the sandbox's {process} holds it"
        api = house.daemon.docker()
        inspected = [api.inspect_container(each["Id"]) for each in house.daemon.containers()]
        api.close()
        assert not holds(json.dumps(inspected).encode())
        assert {each["HostConfig"]["LogConfig"]["Type"] for each in inspected} == {"none"}, "the engine keeps a log"
        running.close_stdin()
        done = running.result()
        rest = b"".join(chunk.data for chunk in chunks)
        assert not holds(said + rest + done.stderr + done.stdout)
        assert not holds(repr(done).encode())
    assert headers(house.web.seen[0])["authorization"] == f"Bearer {KEY}", "the twin: it went where it should"
    house.daemon.stop()
    assert not holds(house.daemon.log.read_bytes())
    files = [path for path in house.daemon.place.rglob("*") if path.is_file()]
    names = {path.relative_to(house.daemon.place).parts[0] for path in files}
    assert {"state", "log"} <= names
    assert any(path.name == "spans.jsonl" and path.stat().st_size for path in files), "there is no trace to look into"
    found = [path for path in files if holds(path.read_bytes())]
    assert not found, found


def _below(pid: int) -> list[Any]:
    first = psutil.Process(pid)
    return [first, *first.children(recursive=True)]


def _memory(pid: int) -> bytes:
    """Every readable page of a process, as root sees it."""
    found = bytearray()
    try:
        maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
        with Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
            for line in maps:
                span, rights = line.split()[:2]
                if "r" not in rights or line.endswith(("[vvar]", "[vsyscall]", "[vvar_vclock]")):
                    continue
                start, end = (int(text, 16) for text in span.split("-"))
                if end - start > 64 << 20:
                    continue
                try:
                    memory.seek(start)
                    found += memory.read(end - start)
                except OSError:
                    continue
    except OSError:
        return b""
    return bytes(found)


def test_after_a_call_nothing_answers_and_nobody_holds_its_credential(networked: Networked) -> None:
    """K13: root itself, inside the sandbox's network namespace, finds no listener; egress and gate have wiped it."""
    hold = python("import os, sys; print(os.environ['SERVICE_KEY'], flush=True); sys.stdin.read()")
    with networked.connect() as runner:
        with runner.stream("key_run", hold, stdin=True) as running:
            placeholder = first_line(running).decode().strip()
            (first,) = networked.daemon.sandbox_pids()
            assert _knock(first, 3128, networked.web.port) == "200 ", "the twin: it serves while the call lives"
            running.close_stdin()
            assert running.result().ok
        assert _knock(first, 3128, networked.web.port) == "ConnectionRefusedError"
        again = runner.call(
            "key_run", fetch({"url": networked.url("/v1/x"), "headers": {"Authorization": f"Bearer {placeholder}"}})
        )
        assert told(again)[0]["status"] == 200
    assert headers(networked.web.seen[-1])["authorization"] == f"Bearer {placeholder}", "worth nothing in another call"


def _knock(pid: int, port: int, service: int) -> str:
    """What the proxy says to root inside a sandbox's network: to a CONNECT, then nothing more."""
    program = f"""
import socket
try:
    sock = socket.create_connection(("127.0.0.1", {port}), timeout=20)
    sock.sendall(b"CONNECT {HOST}:{service} HTTP/1.1\\r\\nHost: {HOST}:{service}\\r\\n\\r\\n")
    print(sock.recv(13).decode()[9:], end="")
except OSError as error:
    print(type(error).__name__, end="")
"""
    done = subprocess.run(
        ["nsenter", "-t", str(pid), "-n", sys.executable, "-c", program],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return done.stdout


def test_a_secret_that_is_changed_or_taken_away_is_so_for_the_next_call(networked: Networked) -> None:
    sent = fetch({"url": networked.url("/v1/x"), "basic": "me:$GHOST"})

    def fingerprint(runner: Any) -> str:
        done = runner.call("ghost_run", sent)
        assert told(done)[0]["status"] == 200
        (used,) = networked.outcome(done.call).secrets
        return str(used.fingerprint)

    networked.daemon.ask(admin.SetSecret(name="nobody-has-it", value=b"now-somebody-has-it"))
    with networked.connect() as runner:
        before = fingerprint(runner)
        networked.daemon.ask(admin.SetSecret(name="nobody-has-it", value=b"and-now-another-one", rotate=True))
        assert fingerprint(runner) != before
        networked.daemon.ask(admin.RemoveSecret(name="nobody-has-it"))
        with pytest.raises(Unavailable):
            runner.call("ghost_run", sent)
    used = [base64.b64decode(headers(seen)["authorization"].split(" ")[1]) for seen in networked.web.seen]
    assert used == [b"me:now-somebody-has-it", b"me:and-now-another-one"]
    changed = networked.daemon.entries(entries.Secret)
    assert [each.name for each in changed][-3:] == ["nobody-has-it"] * 3
