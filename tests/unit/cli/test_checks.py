"""The judgements of `runner doctor`, on facts of hosts that are well and hosts that are not."""

from __future__ import annotations

import json
import stat
import tempfile
from pathlib import Path

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from runner.admin import roster
from runner.cli import checks, doctor, operator_checks
from runner.config import Config, Operator, Sandboxes, Users
from runner.engine.cgroup import CgroupTree
from runner.engine.docker import INPUTS_LABEL, HostFacts, Image
from runner.engine.image import WEB
from runner.model import Ceilings, TaskProfile

FACTS = HostFacts(
    docker="24.0.1",
    runc="1.1.12",
    api="1.43",
    kernel="6.12",
    cgroup_version=2,
    runtimes=("runc",),
    default_runtime="runc",
    security=("name=seccomp",),
    memory_limit=True,
    swap_limit=True,
    pids_limit=True,
    cpu_quota=True,
    landlock=7,
    freezer=True,
)
PROFILE = TaskProfile(
    name="p", description="", digest="d", image="", seccomp="default", ceilings=Ceilings(), tools=("t",)
)
IMAGE = Image(id="sha256:abc", labels={INPUTS_LABEL: "in"})
SOCKET, FOLDER = stat.S_IFSOCK, stat.S_IFDIR


def tree(folder: Path, *controllers: str) -> CgroupTree:
    for name in controllers:
        (folder / name).mkdir(parents=True)
    return CgroupTree(folder)


@pytest.mark.parametrize(
    ("finding", "status"),
    [
        (checks.root(0), "ok"),
        (checks.root(1000), "warn"),
        (checks.kernel("6.12.1-x", "x86_64"), "ok"),
        (checks.kernel("5.10.0", "x86_64"), "fail"),
        (checks.kernel("6.12.1", "aarch64"), "fail"),
        (checks.landlock(7), "ok"),
        (checks.landlock(6), "ok"),
        (checks.landlock(5), "warn"),
        (checks.landlock(0), "fail"),
        (checks.seccomp("kill_process errno allow"), "ok"),
        (checks.seccomp(""), "fail"),
        (checks.user("runner-gate", True), "ok"),
        (checks.user("runner-gate", False), "fail"),
        (checks.group("runner-agents", True), "ok"),
        (checks.group("runner-agents", False), "fail"),
        (checks.interpreter("runner-gate", ""), "ok"),
        (checks.interpreter("runner-gate", "/root"), "fail"),
        (checks.docker_version(FACTS), "ok"),
        (checks.docker_version(msgspec.structs.replace(FACTS, api="1.40")), "fail"),
        (checks.runc("1.1.12"), "ok"),
        (checks.runc("1.2.0-rc.1"), "ok"),
        (checks.runc("1.1.5+ds1"), "warn"),
        (checks.runc(""), "warn"),
        (checks.limits(FACTS), "ok"),
        (checks.limits(msgspec.structs.replace(FACTS, pids_limit=False)), "fail"),
        (checks.limits(msgspec.structs.replace(FACTS, swap_limit=False)), "warn"),
        (checks.limits(msgspec.structs.replace(FACTS, freezer=False)), "warn"),
        (checks.kept(PROFILE, FACTS), "ok"),
        (checks.kept(PROFILE, msgspec.structs.replace(FACTS, memory_limit=False)), "fail"),
        (checks.kept(PROFILE, msgspec.structs.replace(FACTS, swap_limit=False)), "fail"),
        (checks.kept(msgspec.structs.replace(PROFILE, runtime="runsc"), FACTS), "fail"),
        (checks.kept(msgspec.structs.replace(PROFILE, accept=("swap",)), FACTS), "ok"),
        (
            checks.kept(
                msgspec.structs.replace(PROFILE, accept=("swap",)), msgspec.structs.replace(FACTS, swap_limit=False)
            ),
            "warn",
        ),
        (checks.tool_image(IMAGE, "t:1", "in"), "ok"),
        (checks.tool_image(IMAGE, "t:1", "other"), "warn"),
        (checks.tool_image(None, "t:1", "in"), "fail"),
        (checks.web_image(IMAGE, WEB, ["web"]), "ok"),
        (checks.web_image(None, WEB, ["web"]), "warn"),
        (checks.folder("state", Path("/s"), (FOLDER | 0o700, 0)), "ok"),
        (checks.folder("state", Path("/s"), None), "ok"),
        (checks.folder("state", Path("/s"), (FOLDER | 0o777, 0)), "fail"),
        (checks.folder("state", Path("/s"), (FOLDER | 0o700, 1000)), "fail"),
        (checks.socket_file("agent.sock", (SOCKET | 0o660, 0), 0o660), "ok"),
        (checks.socket_file("agent.sock", (SOCKET | 0o666, 0), 0o660), "fail"),
        (checks.socket_file("admin.sock", (stat.S_IFREG | 0o600, 0), 0o600), "fail"),
        (checks.disk("/s", 1 << 40), "ok"),
        (checks.disk("/s", 1 << 20), "warn"),
        (checks.disk("/s", 1 << 40, writable=False), "fail"),
        (checks.disk_workspaces(""), "ok"),
        (checks.disk_workspaces("ext4 in its kernel"), "warn"),
    ],
)
def test_each_judgement_and_its_remedy(finding, status):
    assert finding.status == status
    assert finding.found or status == "ok"
    assert bool(finding.remedy) == (status != "ok")


def test_cgroups_without_a_controller_fail_and_name_it(tmp_path):
    assert checks.cgroups(tree(tmp_path / "whole", "memory", "pids", "cpu,cpuacct")).status == "ok"
    found = checks.cgroups(tree(tmp_path / "part", "memory", "cpu"))
    assert (found.status, found.found) == ("fail", "no controller pids")
    unified = tmp_path / "unified"
    unified.mkdir()
    (unified / "cgroup.controllers").write_text("cpu memory pids\n")
    assert "fixture trees" in checks.cgroups(CgroupTree(unified)).found
    (unified / "cgroup.controllers").write_text("cpu pids\n")
    assert checks.cgroups(CgroupTree(unified)).status == "fail"


def test_a_profile_that_accepts_less_says_what_that_costs_and_one_that_does_not_names_the_word():
    poor = msgspec.structs.replace(FACTS, swap_limit=False, landlock=5)
    refused = checks.kept(PROFILE, poor)
    assert 'accept = ["swap", "scope"]' in refused.remedy
    accepting = msgspec.structs.replace(PROFILE, accept=("scope", "swap"))
    for cost in ("host's swap beyond its ceiling", "one call at a time"):
        assert cost in checks.kept(accepting, poor).found


def test_the_note_about_runc_names_the_flaw():
    assert "CVE-2024-21626" in checks.runc("1.1.5").found


def test_a_private_folder_above_the_interpreter_is_named():
    stranger = (4_000_000, 4_000_000)
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path: that lies under a private folder itself
        home = Path(folder)
        home.chmod(0o755)
        (home / "env").mkdir(mode=0o755)
        program = home / "env/python"
        program.write_text("")
        program.chmod(0o755)
        assert checks.closed_to(stranger, program) == ""
        home.chmod(0o700)
        assert checks.closed_to(stranger, program) == str(home)
        assert checks.closed_to((home.stat().st_uid, 0), program) == ""


def test_the_status_is_4_exactly_when_something_fails():
    well, unwell = checks.root(1000), checks.landlock(0)
    assert doctor.status([well]) == 0
    assert doctor.status([well, unwell]) == 4


def command() -> typer.Typer:
    app = typer.Typer()
    app.command()(doctor.doctor)
    return app


def test_a_missing_engine_is_one_finding_and_json_says_the_same(tmp_path):
    config = tmp_path / "runner.toml"
    config.write_text(f'state = "s"\nrun = "r"\n[sandboxes]\ndocker_host = "unix://{tmp_path}/none.sock"\n')
    result = CliRunner().invoke(command(), ["--config", str(config), "--json"])
    assert result.exit_code == 4
    found = {each["name"]: each for each in json.loads(result.stdout)}
    assert found["docker"]["status"] == "fail"
    assert "no Docker engine answers" in found["docker"]["found"]
    assert found["docker"]["remedy"]
    assert found["disk"]["status"] in ("ok", "warn")
    text = CliRunner().invoke(command(), ["--config", str(config)])
    assert text.exit_code == 4
    assert "checks, " in text.stdout


def test_a_user_that_does_not_exist_is_found():
    findings = checks.host_findings(Config(users=Users(gate="no-such-user-here", recorder="root")))
    statuses = {each.name: each.status for each in findings}
    assert statuses["user no-such-user-here"] == "fail"
    assert statuses["user root"] == "ok"
    assert "interpreter for no-such-user-here" not in statuses


# --- operators ------------------------------------------------------------------------------------------------

BOB = roster.Operator(name="bob", roles=frozenset(("auditor",)), uids=frozenset((1000,)))
KEYED = roster.Operator(name="carl", roles=frozenset(("auditor",)), keyed="thumb")
ROOT = roster.Operator(name="ann", roles=frozenset(("auditor",)), uids=frozenset((0,)))


def account(*groups: int) -> operator_checks.Account:
    return operator_checks.Account(name="robert", gid=1000, groups=frozenset((1000, *groups)))


@pytest.mark.parametrize(
    ("operator", "group", "who", "status", "words"),
    [
        (BOB, "ops", account(7), "ok", "uid 1000: auditor"),
        (BOB, "ops", account(), "fail", "robert is not in group ops"),
        (BOB, "ops", None, "fail", "uid 1000 is no user"),
        (KEYED, "ops", None, "ok", "key thumb"),
        (KEYED, "", None, "warn", "root alone"),
        (ROOT, "", None, "ok", "uid 0"),
        (ROOT, "ops", None, "ok", "uid 0"),
    ],
)
def test_an_operator_reaches_the_socket_or_is_told_why_not(
    operator: roster.Operator, group: str, who: operator_checks.Account | None, status: str, words: str
) -> None:
    found = operator_checks.reach(operator, group, 7, dict.fromkeys(operator.uids, who), Path("/nowhere"))
    assert found.status == status
    assert words in found.found
    assert bool(found.remedy) == (status != "ok")


def test_a_folder_that_is_closed_above_the_socket_is_named(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        place.chmod(0o700)
        (place / "run").mkdir(mode=0o711)
        stranger = roster.Operator(name="bob", roles=frozenset(("auditor",)), uids=frozenset((4_000_000,)))
        for mode, status in ((0o700, "fail"), (0o711, "ok")):
            place.chmod(mode)
            found = operator_checks.reach(stranger, "ops", 7, {4_000_000: account(7)}, place / "run")
            assert found.status == status
            assert (str(place) in found.found) == (status == "fail")


def test_a_socket_that_was_made_otherwise_needs_a_restart() -> None:
    assert operator_checks.opened("ops", 7, SOCKET | 0o660, 7).status == "ok"
    assert operator_checks.opened("", 0, SOCKET | 0o600, 0).status == "ok"
    for named, gid, mode, found in (("ops", 7, 0o600, 0), ("ops", 7, 0o660, 8), ("", 0, 0o660, 7)):
        told = operator_checks.opened(named, gid, SOCKET | mode, found)
        assert (told.status, "restart" in told.remedy) == ("fail", True)


def test_operators_of_a_configuration() -> None:
    def told(*operators: Operator, group: str = "") -> list[tuple[str, str]]:
        config = Config(operators=operators, users=Users(operators_group=group), run="/nowhere/run")
        return [(each.name, each.status) for each in operator_checks.operator_findings(config)]

    ann = Operator(name="ann", uid=0, roles=("auditor",))
    bob = Operator(name="bob", uid="nobody", roles=("auditor",))
    assert told() == []
    assert told(ann) == [("operator ann", "ok")]
    assert told(ann, bob) == [("operators", "fail")]  # the daemon would not start: its own words
    assert told(ann, bob, group="nogroup") == [("operator ann", "ok"), ("operator bob", "ok")]
    assert told(ann, bob, group="root") == [("operator ann", "ok"), ("operator bob", "fail")]
    assert told(ann, group="no-such-group") == [("group no-such-group", "fail")]


def test_archives_of_images_are_counted_against_their_bound() -> None:
    config = Config(state="/state", sandboxes=Sandboxes(archive_bytes=100 << 20))
    fits = checks.archives(90 << 20, 2, config)
    assert (fits.status, fits.found.partition(",")[0]) == ("ok", "2 of 90 MiB")
    assert "/state/engine/images" in fits.found
    full = checks.archives(91 << 20, 2, config)
    assert full.status == "warn"
    assert "runner trace prune" in full.remedy
    none = checks.archives(0, 0, Config(sandboxes=Sandboxes(archive=False)))
    assert none.found.endswith("none is made: archive = false")


@pytest.mark.parametrize(
    ("version", "status", "word"),
    [("5.4.2", "ok", "hyperscan 5.4.2"), ("5.4.12", "warn", "loses matches"), ("", "warn", "no engine")],
)
def test_doctor_says_what_filters_output(version: str, status: str, word: str) -> None:
    found = checks.filters(version)
    assert (found.status, word in found.found) == (status, True)
    assert ("hyperscan==0.6.0" in found.remedy) is (status == "warn")
