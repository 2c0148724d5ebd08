"""`runner escrow init`, and `runner trace raw` as far as it asks nobody: files are private, and never overwritten."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

from runner.errors import EXIT_INVALID, EXIT_REFUSED, EXIT_UNAVAILABLE, EXIT_USAGE
from runner.ledger.escrow import Identities, Recipients, fingerprint


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "runner", *map(str, words)], capture_output=True, text=True)


def test_a_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    key = tmp_path / "escrow.key"
    said = run("escrow", "init", "--out", key)
    assert said.returncode == 0, said.stderr
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    (recipient,) = [line.split('"')[1] for line in said.stdout.splitlines() if line.startswith("recipients")]
    assert Recipients((recipient,)).fingerprints == Identities(key.read_text()).fingerprints
    assert fingerprint(recipient) in said.stdout
    private = key.read_text().splitlines()[-1]
    assert private not in said.stdout + said.stderr
    again = run("escrow", "init", "--out", key)
    assert (again.returncode, "never overwritten" in again.stderr) == (EXIT_INVALID, True)
    assert key.read_text().splitlines()[-1] == private
    other = run("escrow", "init", "--out", tmp_path / "other.key", "--json")
    assert json.loads(other.stdout)["recipient"] != recipient


def test_nothing_is_asked_with_a_wrong_key_or_place(tmp_path: Path) -> None:
    """A daemon that could be asked does not exist: whoever gets as far as asking is told that."""
    key, socket = tmp_path / "escrow.key", tmp_path / "admin.sock"
    assert run("escrow", "init", "--out", key).returncode == 0
    words = ("trace", "raw", "c1", "--why", "x", "--socket", socket)
    assert run(*words, "--identity", key).returncode == EXIT_UNAVAILABLE
    assert run(*words, "--identity", tmp_path / "none").returncode == EXIT_INVALID
    (tmp_path / "open").write_text(key.read_text())
    (tmp_path / "open").chmod(0o644)
    assert run(*words, "--identity", tmp_path / "open").returncode == EXIT_INVALID
    (tmp_path / "no").write_text("hello\n")
    (tmp_path / "no").chmod(0o600)
    assert "not an identity file" in run(*words, "--identity", tmp_path / "no").stderr
    assert run(*words, "--identity", key, "--out", key).returncode == EXIT_REFUSED
    assert key.read_text().startswith("# created")
    assert run(*words, "--identity", key, "--ledger", tmp_path).returncode == EXIT_USAGE
    assert run(*words, "--identity", key, "--out", tmp_path / "raw").returncode == EXIT_UNAVAILABLE
    assert not (tmp_path / "raw").exists()
