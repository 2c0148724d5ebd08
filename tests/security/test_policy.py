"""Promises of policies/README.md and cases P01 to P10, on the real tools and policies, each beside a control."""

from __future__ import annotations

import functools
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from house import Daemon
from hypothesis import example, given, settings
from hypothesis import strategies as st
from soak import race

from runner.catalog import compile_bundle, read_folders, shared
from runner.cli.init import lay_out
from runner.cli.policy import compiled
from runner.client.errors import CallError
from runner.errors import EXIT_INVALID, RunnerError
from runner.gate.authorize import Question, SessionView, decide
from runner.gate.schema import normal
from runner.gate.serving import Serving
from runner.gate.signature import sign
from runner.guest.beneath import ToolError, inside
from runner.ledger import entry as entries
from runner.model import Decision, Principal
from runner.review.cases import read_cases, run_case
from runner.review.values import plain
from runner.token.keys import SigningKey, generate, public_file
from runner.token.paths import normal_path
from runner.wire import admin
from runner.wire.guest import code_digest

SERVED = compiled(None, None, None)
CASES = read_cases(shared("policies"))
WHO = Principal(agent="a", owner="o", task="t", session="s")


def ask(tool: str, arguments: dict[str, Any], served: Serving = SERVED, profile: str = "default") -> Decision:
    question = Question(principal=WHO, tool=tool, arguments=arguments, profile=profile, peer_uid=1000)
    return decide(question, SessionView(), served, served.policies)


def write(path: str) -> Decision:
    return ask("fs_write", {"path": path, "content": "x"})


# --- the shipped policies say what their cases say ----------------------------------------------------------


@pytest.mark.parametrize(("place", "case"), CASES, ids=lambda each: each if isinstance(each, str) else "")
def test_a_shipped_case(place: str, case: Any) -> None:
    assert run_case(case, SERVED)[1] == "", place


def test_every_shipped_rule_has_a_case_and_a_reason() -> None:
    expected = {case.expect.rule for _, case in CASES}
    assert SERVED.policies.all_rules
    for rule in SERVED.policies.all_rules:
        assert rule.id in expected
        assert rule.reason


def test_every_tool_can_be_called_in_some_way() -> None:
    allowed = {case.tool for _, case in CASES if case.expect.decision == "allow"}
    assert allowed == set(SERVED.tools)


# --- P01: missing, broken or half-written policies allow nothing --------------------------------------------

TEXT = (shared("policies") / "base.cedar").read_bytes()
FILTERS = {f"filters/{path.name}": path.read_bytes() for path in (shared("policies") / "filters").glob("*.toml")}


def _serve(folder: Path) -> Serving:
    return Serving.compile(compile_bundle(read_folders(shared("profiles"), shared("tools"), folder)))


CUTS = sorted({*range(0, len(TEXT), 97), *(at + 1 for at, byte in enumerate(TEXT) if byte in b";\n")})


@pytest.mark.parametrize("cut", CUTS)
def test_a_half_written_file_is_refused_or_permits_less(tmp_path: Path, cut: int) -> None:
    (tmp_path / "base.cedar").write_bytes(TEXT[:cut])
    try:
        served = _serve(tmp_path)
    except RunnerError as error:
        served, place = None, error.refused.field
        assert place.startswith("policies/base.cedar:")
    for _, case in CASES if served else ():
        if run_case(case, served)[0].effect == "allow":
            assert case.expect.decision == "allow", case.name


def test_the_whole_file_permits(tmp_path: Path) -> None:
    """The twin of every cut."""
    (tmp_path / "base.cedar").write_bytes(TEXT)
    assert ask("fs_read", {"path": "x"}, _serve(tmp_path)).effect == "allow"


def test_no_file_and_an_empty_file_allow_nothing(tmp_path: Path) -> None:
    for text in (None, b"", b"// nothing\n"):
        if text is not None:
            (tmp_path / "base.cedar").write_bytes(text)
        served = _serve(tmp_path)
        for _, case in CASES:
            assert ask(case.tool, case.arguments, served).effect == "deny"


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match="cannot read the folder"):
        _serve(tmp_path / "nowhere")


@pytest.mark.docker
def test_a_file_that_is_gone_or_half_there_allows_nothing_more_and_says_so(
    make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    lay_out(tmp_path / "catalogue")
    base = tmp_path / "catalogue/policies/base.cedar"
    daemon = make_daemon(catalogue=tmp_path / "catalogue")
    with daemon.connect() as agent:
        assert agent.call("fs_list").ok
        first = daemon.ask(admin.Status()).policy
        base.write_bytes(TEXT[: TEXT.index(b"forbid (") + 20])
        _reload(daemon, "the new catalogue is refused and the old one stays: policy: policies/base.cedar:")
        assert daemon.ask(admin.Status()).policy == first
        assert agent.call("fs_list").ok
        base.unlink()
        _reload(daemon, "there is no rule in it: every call is refused")
        daemon.wait(lambda: daemon.ask(admin.Status()).policy != first, 10)
        for tool, arguments in (("fs_list", {}), ("shell_run", {"argv": ["true"]}), ("fs_read", {"path": "x"})):
            with pytest.raises(CallError) as refused:
                agent.call(tool, arguments)
            assert refused.value.code == "denied"
        base.write_bytes(TEXT)
        _reload(daemon, " is in force")
        daemon.wait(lambda: daemon.ask(admin.Status()).policy == first, 10)
        assert agent.call("fs_list").ok
    assert daemon.verifies()


# --- P02, P06: nothing runs away ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("recurse(1)", "recurse"),  # Cedar has no functions of one's own: nothing can call itself
        ("principal.recurse()", "recurse"),
        ('"x".matches("(a+)+$")', "matches"),  # and no regular expressions
        ("(" * 20_000 + "true" + ")" * 20_000, "open brackets"),
        ("!" * 900 + "true", ""),
        (" && ".join(["true"] * 400), ""),
        ("if " * 300 + "true" + " then true else false" * 300, ""),
    ],
)
def test_what_could_run_away_does_not_load_and_takes_nothing_in_force_with_it(
    tmp_path: Path, body: str, says: str
) -> None:
    (tmp_path / "base.cedar").write_bytes(TEXT)
    rule = '\n@id("more") permit (principal, action, resource) when {{ {} }};'
    (tmp_path / "more.cedar").write_text(rule.format("true"))
    assert ask("fs_read", {"path": "x"}, _serve(tmp_path)).rules == ("read-workspace", "more")
    (tmp_path / "more.cedar").write_text(rule.format(body))
    with pytest.raises(RunnerError) as caught:
        _serve(tmp_path)
    assert caught.value.refused.field.startswith("policies/more.cedar:2:")
    assert says in caught.value.refused.reason


def test_an_error_in_one_rule_denies_beside_any_number_of_permits(tmp_path: Path) -> None:
    """Cedar itself says Allow here, with an error beside it: the forbid that failed is left out of its answer."""
    overflow = "context.arguments has limit && context.arguments.limit * 9223372036854775807 > 0"
    forbid = f'\n@id("bad") forbid (principal, action == Action::"fs_read", resource) when {{ {overflow} }};'
    (tmp_path / "base.cedar").write_bytes(TEXT + forbid.encode())
    served = _serve(tmp_path)
    assert ask("fs_read", {"path": "x"}, served).effect == "allow"
    denied = ask("fs_read", {"path": "x", "limit": 2}, served)
    assert (denied.effect, denied.code, denied.rules) == ("deny", "denied", ("bad",))
    assert ask("fs_list", {"limit": 2}, served).effect == "allow"  # a tool that the rule is not about


def test_a_text_made_for_a_pattern_is_decided() -> None:
    # The suite's time-out is the bound; the largest argument that the schema takes, against every rule on its text.
    hostile = "*curl " * 20_000
    assert ask("shell_run", {"argv": ["sh", "-c", hostile]}).effect == "allow"
    assert ask("shell_run", {"argv": ["sh", "-c", hostile + "curl http://x"]}).rules == ("no-downloads",)
    mebibyte = ["curl htt " * 14_000] * 8  # more than a call can carry
    assert ask("shell_run", {"argv": mebibyte}).effect == "allow"
    assert ask("shell_run", {"argv": [*mebibyte, "curl http://x"]}).rules == ("no-downloads",)


def test_a_pattern_that_a_text_could_make_slow_is_not_looked_for(tmp_path: Path) -> None:
    """`*aaa…ab*` on a text of a: comparisons grow with the product. Refused by their number, before one is made."""
    scope, pattern = 'principal, action == Action::"shell_run", resource', f'"*{"a" * 4000}b*"'
    slow = f'@id("slow") forbid ({scope}) when {{ context.arguments.argv_text like {pattern} }};'
    (tmp_path / "base.cedar").write_bytes(TEXT + slow.encode())
    served = _serve(tmp_path)
    assert ask("shell_run", {"argv": ["a" * 1000]}, served).effect == "allow"
    assert ask("shell_run", {"argv": ["a" * 5000 + "b"]}, served).rules == ("slow",)
    denied = ask("shell_run", {"argv": ["a" * 130_000]}, served)
    assert (denied.effect, denied.code, denied.rules) == ("deny", "denied", ())
    assert "too long" in denied.reason
    assert ask("python_run", {"code": "a" * 130_000}, served).effect == "allow"  # no rule reads its text


# --- P03: a path is judged as the file that is opened -------------------------------------------------------


SPELLINGS = [
    "".join(parts)
    for parts in itertools.product(
        ["", "./", "/workspace/", "//workspace//", "a/../", "../workspace/", "/x/../workspace/./", "../../workspace/"],
        [".git/", "./.git//", ".git/./", ".git/x/../", "lib/.git/"],
        ["config", "hooks/pre-commit", "a/../config", "./config", "..config"],
    )
]


@pytest.mark.parametrize("path", SPELLINGS)
def test_every_spelling_of_a_forbidden_path_is_forbidden(path: str) -> None:
    assert write(path).rules == ("git-internals",)
    assert write(path.replace(".git/", ".got/")).effect == "allow"


KEPT = [
    *(
        f"{way}protected/data"
        for way in ("", "./", "/workspace/", "a/../", "a//..//", "//workspace/./", "../workspace/")
    ),
    *("Protected/data", "protected\u200b/data", "prote\u0301cted/data", "protected /data", "protected\\data"),
    *("/proc/self/root/workspace/protected/data", "/proc/self/cwd/protected/data", "/dev/fd/3/protected/data"),
    *(
        "~/protected/data",
        "%2e%2e/workspace/protected/data",
        "file:///workspace/protected/data",
        "protected/../protected/data",
    ),
    *("/../workspace/protected/data", "/workspace/../../workspace/protected/data", "..//workspace//protected//data"),
]


@pytest.mark.parametrize("path", KEPT)
def test_no_way_to_a_kept_file_passes_both_policy_and_guest(path: str) -> None:
    """Judged on the path that is used: who is allowed opens another file, or none."""
    if write(path).effect == "allow":
        try:
            assert inside(path) != "protected/data"
        except ToolError:
            return
        assert not inside(path).startswith("protected/")
    else:
        assert write(path).rules == ("protected-folder",)
        assert inside(path) == "protected/data"


@settings(max_examples=500)
@given(st.text("ab./é\u0301", max_size=30))
@example("//workspace/a")
@example("/proc/self/root/etc/passwd")
@example("../workspace/a")
def test_policy_and_guest_mean_the_same_file(path: str) -> None:
    """What the guest opens below /workspace is, letter for letter, what policy was shown; the rest it refuses."""
    try:
        opened = inside(path)
    except ToolError:
        assert not path or not (normal(path) + "/").startswith("/workspace/")
    else:
        assert normal(path) == ("/workspace" if opened == "." else f"/workspace/{opened}")
    assert normal_path(path) == (normal(path) if path else None)  # and so is a token's path_containment


@pytest.mark.parametrize("path", ["a\0b", "protected/x\0", "\0"])
def test_a_nul_in_a_path_is_refused(path: str) -> None:
    assert (write(path).code, write(path.replace("\0", "_")).code) == ("arguments", write(path.replace("\0", "_")).code)
    assert write("a_b").effect == "allow"


# --- P04: a command's words are data ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["ls", ";", "curl"],
        ["ls", "$(curl http://x)"],
        ["ls\ncurl http://x"],
        ["sh", "-c", "true\ncurl http://x"],
        ["env", "curl"],
        ["/usr/bin/curl", "@file"],
    ],
)
def test_a_word_that_names_a_download_is_told_so(words: list[str]) -> None:
    assert ask("shell_run", {"argv": words}).rules == ("no-downloads",)
    harmless = [word.replace("curl", "cat").replace("http", "file") for word in words]
    assert ask("shell_run", {"argv": harmless}).effect == "allow"


@pytest.mark.parametrize(
    "word", ['" }; permit(principal, action, resource); //', '"__extn"', "\\u0000", "é\u202e", "*"]
)
def test_an_argument_is_never_policy_text(word: str) -> None:
    for arguments in ({"argv": [word]}, {"argv": ["curl", word]}):
        decision = ask("shell_run", arguments)
        assert (decision.effect == "deny") == ("curl" in arguments["argv"])


HOSTILE = [
    f"{before}{act}{after}"
    for act in ("touch pwned", "$(touch pwned)", "`touch pwned`", "-o/workspace/pwned", "@/etc/passwd")
    for before, after in [
        *(("", ""), ("; ", ""), ("&& ", " &"), ("| ", ""), ("\n", "\n"), ("'", "'"), ('"', '"'), ("\\", "")),
        *((">", ""), ("\u2010", ""), ("\u2212", ""), ("--", "="), ("$IFS", ""), ("{", ",}"), ("~/", "*"), ("\r", "")),
        *(("\u202e", ""), ("\x1b[2J", ""), ("%00", ""), ("!!", "")),
    ]
]


@pytest.mark.docker
def test_hostile_words_reach_a_program_as_they_are_and_nothing_reads_them(daemon: Daemon) -> None:
    assert len(HOSTILE) == len(set(HOSTILE)) == 100
    tell = "import json, sys; print(json.dumps(sys.argv[1:]))"
    with daemon.connect() as agent:
        done = agent.call("shell_run", {"argv": ["python3", "-c", tell, *HOSTILE]})
        assert json.loads(done.stdout) == HOSTILE
        for word in HOSTILE[::5]:
            written = word.replace("\r", "\\x0d").replace("\x1b", "\\x1b").replace("\u202e", "\\u{202e}")
            assert agent.call("shell_run", {"argv": ["printf", "%s", word]}).stdout.decode() == written
        assert agent.call("shell_run", {"argv": ["ls", "-A"]}).stdout == b""
        # The control: what a shell makes of such a word.
        assert agent.call("shell_run", {"argv": ["sh", "-c", HOSTILE[0]]}).ok
        assert agent.call("shell_run", {"argv": ["ls", "-A"]}).stdout == b"pwned\n"


# --- P07: what was decided is what runs ---------------------------------------------------------------------


@pytest.mark.docker
def test_what_was_decided_is_what_runs(daemon: Daemon) -> None:
    """Calls of several agents in a race, one in three forbidden: each runs its own arguments, or nothing.
    A fifth of the thousand that `scripts/soak races` runs."""
    told = race.run(daemon, 60)
    assert told.wrong == []
    assert (len(told.ran), told.refused) == (200, 100)
    assert race.compared(daemon, told) == (200, [])


# --- P08: each call is judged by one whole bundle -----------------------------------------------------------


def _paired(name: str) -> dict[str, str]:
    """A bundle of three files whose rules name it: a decision that mixes two bundles would name both."""
    locked = (
        'forbid (principal, action == Action::"fs_write", resource) when { context.arguments.path like "*/locked/*" };'
    )
    return {
        "base.cedar": TEXT.decode().replace('@id("run-programs")', f'@id("run-programs-{name}")'),
        "one.cedar": f'@id("first-{name}") {locked}',
        "two.cedar": f'@id("second-{name}") {locked}',
    }


def _put(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / f".{name}").write_text(text)
        (folder / f".{name}").replace(folder / name)


def _reload(daemon: Daemon, says: str) -> None:
    before = len(daemon.said())
    os.kill(daemon.pid, signal.SIGHUP)
    daemon.wait(lambda: says in daemon.said()[before:])


_EACH_S = 0.02  # four connections, a call each: 200 calls a second, or as many as the machine can


@pytest.mark.docker
def test_a_reload_under_load_never_mixes_two_bundles(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    lay_out(tmp_path / "catalogue")
    folder = tmp_path / "catalogue/policies"
    bundles = {name: _paired(name) for name in "ab"}
    digests = {
        code_digest({path: text.encode() for path, text in files.items()} | FILTERS): name
        for name, files in bundles.items()
    }
    assert len(digests) == 2
    _put(folder, bundles["a"])
    daemon = make_daemon(catalogue=tmp_path / "catalogue")
    stop, told, wrong = threading.Event(), [], []

    def refused_calls() -> None:
        with daemon.connect() as agent:
            due = time.monotonic()
            while not stop.is_set():
                try:
                    agent.call("fs_write", {"path": "locked/x", "content": "x"})
                    wrong.append("allowed")
                except CallError as error:
                    told.append(error.rule)
                due = max(due + _EACH_S, time.monotonic())
                time.sleep(max(0.0, due - time.monotonic()))

    def allowed_calls() -> None:
        with daemon.connect() as agent:
            while not stop.is_set():
                try:
                    agent.call("shell_run", {"argv": ["true"]})
                except CallError as error:
                    wrong.append(str(error))

    threads = [threading.Thread(target=work) for work in (*[refused_calls] * 4, allowed_calls)]
    for thread in threads:
        thread.start()
    try:
        for number in range(12):
            enough = len(told) + 40
            daemon.wait(lambda enough=enough: len(told) >= enough or wrong)  # type: ignore[misc] # mypy infers no lambda default
            _put(folder, bundles["ba"[number % 2]])
            _reload(daemon, " is in force")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert set(told) == {f"first-{name}, second-{name}" for name in "ab"}
    calls: list[entries.Call] = []

    def all_written() -> bool:
        calls[:] = daemon.entries(entries.Call)
        return len([call for call in calls if call.tool == "fs_write"]) == len(told)

    daemon.wait(all_written, 10)
    for call in calls:
        name = digests[call.decision.policy]  # the version that decided, in each entry
        rules = (f"run-programs-{name}",) if call.tool == "shell_run" else (f"first-{name}", f"second-{name}")
        assert call.decision.rules == rules
    assert len(daemon.entries(entries.Reload)) == 12
    assert {call.decision.policy for call in calls if call.plan} == set(digests)
    assert daemon.verifies()


@pytest.mark.docker
def test_only_a_signed_bundle_comes_into_force(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    lay_out(tmp_path / "catalogue")
    folder = tmp_path / "catalogue/policies"
    key, other = SigningKey(generate()), SigningKey(generate())
    policy = "[policy]\nrequire_signature = true\npublic_keys = ['policy.pub']\n"
    daemon = make_daemon(catalogue=tmp_path / "catalogue", config=policy, start=False)
    (daemon.place / "policy.pub").write_bytes(public_file(key.public))

    def signed(by: SigningKey) -> None:
        files = {path.name: path.read_bytes() for path in folder.glob("*.cedar")} | FILTERS
        (folder / "bundle.sig").write_bytes(sign(files, by))

    for prepare, says in ((None, "the bundle is not signed"), (other, "not by a key that")):
        if prepare:
            signed(prepare)
        with pytest.raises(AssertionError, match=says):
            daemon.start()
        assert daemon.ended() == EXIT_INVALID
    signed(key)
    daemon.start()
    first = daemon.ask(admin.Status()).policy
    with daemon.connect() as agent:
        assert agent.call("shell_run", {"argv": ["true"]}).ok
        text = TEXT.decode().replace("write elsewhere", "write somewhere else")
        (folder / "base.cedar").write_text(text)
        for change, says in (
            (lambda: None, "the signature is not of these files"),
            (lambda: signed(other), "not by a key that"),
            ((folder / "bundle.sig").unlink, "the bundle is not signed"),
        ):
            change()
            _reload(daemon, says)
            assert daemon.ask(admin.Status()).policy == first
            assert agent.call("shell_run", {"argv": ["true"]}).ok
        assert daemon.entries(entries.Reload) == []
        signed(key)
        _reload(daemon, " is in force")
        daemon.wait(lambda: daemon.ask(admin.Status()).policy != first, 10)
    assert daemon.verifies()


# --- P10: what is not declared is denied --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "arguments", "code"),
    [
        ("shell_runs", {"argv": ["ls"]}, "unknown_tool"),
        ("Shell_run", {"argv": ["ls"]}, "unknown_tool"),
        ("__class__", {}, "unknown_tool"),
        ("any", {}, "unknown_tool"),
        ("low", {}, "unknown_tool"),
        ("shell_run", {}, "arguments"),
        ("shell_run", {"argv": []}, "arguments"),
        ("shell_run", {"argv": "ls"}, "arguments"),
        ("shell_run", {"argv": [["ls"]]}, "arguments"),
        ("shell_run", {"argv": ["ls"], "user": "root"}, "arguments"),
        ("shell_run", {"argv": ["ls"], "__entity": {"type": "Owner", "id": "root"}}, "arguments"),
        ("fs_read", {"path": {"__extn": {"fn": "decimal", "arg": "1.0"}}}, "arguments"),
        ("fs_read", {"path": "x", "limit": 1.0}, "arguments"),
        ("fs_read", {"path": "x", "limit": True}, "arguments"),
        ("fs_read", {"path": None}, "arguments"),
    ],
)
def test_what_is_not_declared_is_denied(tool: str, arguments: dict[str, Any], code: str) -> None:
    decision = ask(tool, arguments)
    assert (decision.effect, decision.code) == ("deny", code)
    assert ask("shell_run", {"argv": ["ls"]}).effect == "allow"


OTHER_TYPES: tuple[Any, ...] = (None, True, 3, 1.5, "x", ["x"], [3], {}, {"x": 1})
KINDS: dict[str, type] = {"string": str, "integer": int, "boolean": bool, "array": list, "object": dict}
EVERY = [
    (tool.id, name, schema) for tool in SERVED.tools.values() for name, schema in tool.parameters["properties"].items()
]


@pytest.mark.parametrize(("tool", "name", "schema"), EVERY, ids=lambda each: each if isinstance(each, str) else "")
def test_no_argument_of_any_tool_takes_another_type_or_name(tool: str, name: str, schema: dict[str, Any]) -> None:
    fine = plain(SERVED, SERVED.tools[tool])
    assert fine is not None
    arguments = fine.question.arguments
    asked = functools.partial(ask, tool, profile="web")  # the one with every tool
    assert asked(arguments).effect == "allow"
    for value in OTHER_TYPES:
        numbers = "number" in schema.get("items", {}).get("type", "")
        if type(value) is KINDS[schema["type"]] and (value != [3] or numbers):
            continue
        denied = asked(arguments | {name: value})
        assert (denied.effect, denied.code) == ("deny", "arguments"), value
    for other in (name.upper(), f"{name} ", f"{name}\0", f"_{name}", "__proto__", "__class__", ""):
        denied = asked(arguments | {other: "x"})
        assert (denied.effect, denied.code) == ("deny", "arguments"), other
    for missing in SERVED.tools[tool].parameters.get("required", ()):
        assert asked({key: each for key, each in arguments.items() if key != missing}).code == "arguments"
