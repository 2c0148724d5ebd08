"""Signed bundles: every byte of every file counts, and so does who signed."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from runner.catalog import SIGNATURE, compile_bundle, read_folders, shared
from runner.cli import doctor, policy
from runner.config import Config, Policy, parse_config
from runner.errors import RunnerError
from runner.gate.signature import MAX_SIGNATURE, check, sign, verify
from runner.token.jcs import canonical
from runner.token.keys import SigningKey, generate, private_file, public_file
from runner.token.strict import b64
from runner.wire.guest import code_digest

FILES = {"a.cedar": b'@id("all") permit (principal, action, resource);', "bundle.toml": b'version = "1.2"\n'}
KEY, OTHER = SigningKey(generate()), SigningKey(generate())


def wrong(files: dict[str, bytes], signature: bytes) -> str:
    with pytest.raises(RunnerError) as caught:
        verify(files, signature, [KEY.public])
    assert (caught.value.refused.code, caught.value.refused.field) == ("policy", f"policies/{SIGNATURE}")
    return caught.value.refused.reason


def test_a_signature_is_of_every_file() -> None:
    made = sign(FILES, KEY)
    assert len(made) < MAX_SIGNATURE
    assert verify(FILES, made, [OTHER.public, KEY.public]) == KEY.public.thumbprint
    for other in (
        {**FILES, "a.cedar": FILES["a.cedar"] + b"\n"},
        {**FILES, "bundle.toml": b'version = "1.3"\n'},
        {**FILES, "b.cedar": b""},
        {"b.cedar": FILES["a.cedar"], "bundle.toml": FILES["bundle.toml"]},
        {"a.cedar": FILES["a.cedar"]},
        {},
    ):
        assert "not of these files" in wrong(other, made)
        assert verify(other, sign(other, KEY), [KEY.public])


def test_a_signature_is_of_a_trusted_key() -> None:
    assert "not by a key" in wrong(FILES, sign(FILES, OTHER))
    with pytest.raises(RunnerError):
        verify(FILES, sign(FILES, KEY), [])


def test_no_byte_of_a_signature_can_change() -> None:
    made = sign(FILES, KEY)
    assert verify(FILES, made, [KEY.public])
    for at in range(len(made) - 1):
        for byte in (made[at] ^ 1, ord("="), ord("."), 0, 0xFF):
            if byte != made[at]:
                wrong(FILES, made[:at] + bytes([byte]) + made[at + 1 :])
    for other in (b"", made[:-2], made + b"\n", b" " + made, made + made, made.replace(b".", b"..", 1), b"\xff" * 5000):
        wrong(FILES, other)


def test_nothing_else_that_the_key_signed_is_a_signature() -> None:
    """A token, a proof, or the same words under another type."""
    said = {"digest": code_digest(dict(FILES))}
    wrong(FILES, KEY.jws(said, "aat+jwt").encode())
    header = b64(canonical({"alg": "none", "typ": "toolrunner-policy-bundle+jws"}))
    wrong(FILES, f"{header}.{b64(canonical(said))}.".encode())


def _catalog(folder: Path) -> Any:
    return compile_bundle(read_folders(shared("profiles"), shared("tools"), folder))


@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("signed", ["no", "yes", "other"])
def test_what_the_configuration_asks_for(tmp_path: Path, required: bool, trusted: bool, signed: str) -> None:
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    if signed != "no":
        (tmp_path / SIGNATURE).write_bytes(sign(FILES, KEY if signed == "yes" else OTHER))
    catalog = _catalog(tmp_path)
    assert catalog.policy_version == "1.2"
    rules = Policy(require_signature=required, public_keys=("/k",) if trusted else ())
    files = {"/k": public_file(KEY.public)}
    fine = (signed == "yes" and trusted) or (not required and (not trusted or signed == "no"))
    if fine:
        assert check(catalog, rules, files) == (KEY.public.thumbprint if trusted and signed == "yes" else "")
    else:
        with pytest.raises(RunnerError) as caught:
            check(catalog, rules, files)
        assert caught.value.refused.code == ("config" if required and not trusted else "policy")


@pytest.mark.parametrize("text", ["", "version = 1\n", 'version = ""\n', 'version = "a b"\n', 'verzion = "1"\n', "x"])
def test_a_version_that_is_none_is_refused_with_its_place(tmp_path: Path, text: str) -> None:
    (tmp_path / "bundle.toml").write_text('version = "2026-11-21.3"\n')
    assert _catalog(tmp_path).policy_version == "2026-11-21.3"
    (tmp_path / "bundle.toml").write_text(text)
    with pytest.raises(RunnerError) as caught:
        _catalog(tmp_path)
    assert caught.value.refused.field.startswith("policies/bundle.toml")


def test_keys_are_found_from_the_configurations_folder(tmp_path: Path) -> None:
    config = parse_config(b'[policy]\npublic_keys = ["k.pub", "/x.pub"]\n', tmp_path / "runner.toml")
    assert config.policy.public_keys == (str(tmp_path / "k.pub"), "/x.pub")


def test_doctor_tells_of_a_bundle_that_the_daemon_would_refuse(tmp_path: Path) -> None:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies/a.cedar").write_bytes(FILES["a.cedar"])
    (tmp_path / "k.pub").write_bytes(public_file(KEY.public))
    rules = Policy(require_signature=True, public_keys=(str(tmp_path / "k.pub"),))
    config = Config(policies=str(tmp_path / "policies"), policy=rules)
    with pytest.raises(RunnerError, match="not signed"):
        doctor._compiled(config)
    (tmp_path / "policies" / SIGNATURE).write_bytes(sign({"a.cedar": FILES["a.cedar"]}, KEY))
    assert doctor._compiled(config)
    (tmp_path / "k.pub").unlink()
    with pytest.raises(RunnerError, match="cannot read it"):
        doctor._compiled(config)


app = typer.Typer()
app.add_typer(policy.app, name="policy")


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["policy", *map(str, arguments)])


def test_sign_and_check_on_the_command_line(tmp_path: Path) -> None:
    made = tmp_path / "policies"
    made.mkdir()
    (made / "a.cedar").write_bytes(FILES["a.cedar"])
    (tmp_path / "k").write_bytes(private_file(KEY))
    (tmp_path / "k").chmod(0o600)
    (tmp_path / "k.pub").write_bytes(public_file(KEY.public))
    (tmp_path / "o.pub").write_bytes(public_file(OTHER.public))
    unsigned = call("check", "--policies", made, "--public-key", tmp_path / "k.pub")
    assert isinstance(unsigned.exception, RunnerError)
    assert "is not signed" in unsigned.exception.refused.reason
    facts = json.loads(call("sign", "--policies", made, "--key", tmp_path / "k", "--json").output)
    assert facts["thumbprint"] == KEY.public.thumbprint
    assert [path.name for path in made.iterdir() if path.name.startswith(".")] == []
    assert call("check", "--policies", made, "--public-key", tmp_path / "k.pub").exit_code == 0
    assert isinstance(call("check", "--policies", made, "--public-key", tmp_path / "o.pub").exception, RunnerError)
    before = facts["policy"]
    assert json.loads(call("check", "--policies", made, "--json").output)["policy"] == before  # not of the signature
    (made / "a.cedar").write_text("permit")
    broken = call("sign", "--policies", made, "--key", tmp_path / "k")
    assert isinstance(broken.exception, RunnerError)
    assert broken.exception.refused.field == "policies/a.cedar:1:7"
    (made / "a.cedar").write_bytes(FILES["a.cedar"] + b"\n")
    (made / "cases").mkdir()
    case = '[[case]]\nname = "x"\ntool = "fs_list"\nexpect = { decision = "deny", reason = "" }\n'
    (made / "cases" / "c.toml").write_text(case)
    signed = (made / SIGNATURE).read_bytes()
    failing = call("sign", "--policies", made, "--key", tmp_path / "k")
    assert isinstance(failing.exception, RunnerError)
    assert failing.exception.refused.field == "policies/cases/c.toml:1"
    assert (made / SIGNATURE).read_bytes() == signed
    (made / "cases" / "c.toml").write_text(case.replace('"deny"', '"allow", rule = "all"'))
    assert call("sign", "--policies", made, "--key", tmp_path / "k").exit_code == 0
    assert (made / SIGNATURE).read_bytes() != signed
    (tmp_path / "k").chmod(stat.S_IRUSR | stat.S_IRGRP)
    (made / "a.cedar").write_bytes(FILES["a.cedar"])
    assert isinstance(call("sign", "--policies", made, "--key", tmp_path / "k").exception, RunnerError)
