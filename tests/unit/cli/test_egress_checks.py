"""What doctor says of egress and secrets: on hosts that are well, and on hosts that are not."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

import msgspec
import pytest
import trustme

from runner.catalog import compile_bundle, read_folders, shared
from runner.cli import egress_checks
from runner.cli.checks import Finding
from runner.cli.egress_checks import broker_findings, key, port_wall, private, resolver, trust, used
from runner.config import Config, Users
from runner.model import EgressRule, SecretRef

FILE, FOLDER = stat.S_IFREG, stat.S_IFDIR
KEY = Path("/state/broker/master.key")


@pytest.mark.parametrize(
    ("finding", "status"),
    [
        (port_wall(7, ("net_run",)), "ok"),
        (port_wall(4, ("net_run",)), "ok"),
        (port_wall(3, ("net_run",)), "fail"),
        (port_wall(3, ()), "warn"),
        (port_wall(0, ()), "warn"),
        (resolver((), "search x\nnameserver 198.51.100.9\n"), "ok"),
        (resolver(("198.51.100.2",), ""), "ok"),
        (resolver((), "# nameserver 198.51.100.9\n"), "warn"),
        (private("folder", KEY, FOLDER | 0o700, 7, 7, 0o700), "ok"),
        (private("folder", KEY, FOLDER | 0o750, 7, 7, 0o700), "fail"),
        (private("folder", KEY, FOLDER | 0o700, 0, 7, 0o700), "fail"),
        (private("folder", KEY, stat.S_IFLNK | 0o700, 7, 7, 0o700), "fail"),
        (key(KEY, (FILE | 0o600, 7), 7, ("key_run",)), "ok"),
        (key(KEY, (FILE | 0o400, 7), 7, ("key_run",)), "ok"),
        (key(KEY, (FILE | 0o640, 7), 7, ("key_run",)), "fail"),
        (key(KEY, (FILE | 0o600, 0), 7, ("key_run",)), "fail"),
        (key(KEY, None, 7, ("key_run",)), "warn"),
        (key(KEY, None, 7, ()), "ok"),
    ],
)
def test_each_judgement_and_its_remedy(finding: Finding, status: str) -> None:
    assert finding.status == status
    assert bool(finding.remedy) == (status != "ok")


def test_trust_is_certificates_that_can_be_read() -> None:
    assert trust("", None) == []
    whole = trustme.CA().cert_pem.bytes()
    for data, status in ((whole, "ok"), (whole + whole, "ok"), (b"noise", "fail"), (None, "fail"), (b"", "fail")):
        (finding,) = trust("/ca.pem", data)
        assert finding.status == status, data


def test_the_broker_s_folder_as_it_is(tmp_path: Path) -> None:
    user = "nobody"
    uid = pwd.getpwnam(user).pw_uid
    assert broker_findings(tmp_path, "no-such-user", ()) == []
    folder = tmp_path / "broker"
    assert [each.status for each in broker_findings(folder, user, ())] == ["ok", "ok"]
    folder.mkdir(mode=0o700)
    os.chown(folder, uid, -1)
    assert [each.status for each in broker_findings(folder, user, ("t",))] == ["ok", "warn"]
    (folder / "master.key").write_bytes(b"")
    (folder / "master.key").chmod(0o600)
    assert [each.status for each in broker_findings(folder, user, ("t",))] == ["ok", "fail"]  # it is root's
    os.chown(folder / "master.key", uid, -1)
    assert [each.status for each in broker_findings(folder, user, ("t",))] == ["ok", "ok"]


def test_what_the_catalogue_needs_is_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    catalog = compile_bundle(read_folders(shared("profiles"), shared("tools"), shared("policies")))
    tool = msgspec.structs.replace(
        catalog.tools["shell_run"],
        egress=(EgressRule(name="api", host="api.example.com", ports=(443,)),),
        secrets=(SecretRef(name="k", variable="K", destinations=("api",), places=("body",)),),
    )
    own = msgspec.structs.replace(catalog, tools={**catalog.tools, "shell_run": tool, "unused": tool})
    network, secret = used(own)
    assert "shell_run" in network
    assert "shell_run" in secret
    assert "unused" not in network
    monkeypatch.setattr(egress_checks, "landlock_abi", lambda: 3)
    config = Config(state=str(tmp_path), users=Users(broker="nobody"))
    (wall,) = [each for each in egress_checks.egress_findings(config, own) if each.name == "port of a call"]
    assert wall.status == "fail"
    assert "shell_run" in wall.remedy
    assert {each.status for each in egress_checks.egress_findings(config, None)} <= {"ok", "warn"}
