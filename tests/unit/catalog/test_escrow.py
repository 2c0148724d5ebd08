"""What a profile says of raw output: a word for all consequences or one each, and never without a recipient."""

from __future__ import annotations

from typing import Any

import pytest

from runner.catalog import check_escrow, compile_bundle, keeps_raw, read_folders
from runner.cli.escrow_checks import escrow_findings, recipients
from runner.config import Config, Escrow, parse_config
from runner.errors import RunnerError
from runner.gate.serving import Serving
from runner.ledger.escrow import fingerprint, new_identity

BASE = "profiles/base.toml"
RECIPIENT = new_identity()[1]
WRONG = RECIPIENT[:-1] + ("q" if RECIPIENT[-1] != "q" else "p")


def with_raw(folders: Any, text: str) -> Any:
    folders.edit(BASE, 'kind = "task"', f'kind = "task"\n{text}')
    return folders


def bundle(folders: Any, config: str) -> Any:
    places = (folders.root / name for name in ("profiles", "tools", "policies"))
    return read_folders(*places, config_bytes=config.encode())


def put_into_force(offered: Any) -> None:
    check_escrow(compile_bundle(offered), offered.profiles)


def test_one_word_is_for_every_consequence_and_none_is_never(folders: Any) -> None:
    assert folders.compile().task_profiles["base"].raw == {"low": "never", "medium": "never", "high": "never"}
    found = with_raw(folders, 'raw = "filtered"').compile()
    assert found.task_profiles["base"].raw == {"low": "filtered", "medium": "filtered", "high": "filtered"}
    assert keeps_raw(found.task_profiles["base"], found.tools) == ("count", "sh")


def test_a_consequence_may_have_its_own(folders: Any) -> None:
    found = with_raw(folders, 'raw = { high = "always", medium = "held" }').compile()
    assert found.task_profiles["base"].raw == {"high": "always", "medium": "held"}
    assert keeps_raw(found.task_profiles["base"], found.tools) == ("sh",)  # `count` has consequence low


@pytest.mark.parametrize(
    "text", ['raw = "sometimes"', 'raw = { grave = "always" }', 'raw = { high = "on" }', "raw = 1"]
)
def test_other_words_are_refused_with_their_line(folders: Any, text: str) -> None:
    refused = with_raw(folders, text).refusal()
    assert (refused.code, refused.field.partition(":")[0]) == ("profile", BASE)


def test_a_profile_that_keeps_raw_output_for_nobody_is_refused(folders: Any) -> None:
    with_raw(folders, 'raw = { high = "held" }')
    folders.compile()  # by itself it is whole
    with pytest.raises(RunnerError) as caught:
        put_into_force(bundle(folders, ""))
    refused = caught.value.refused
    assert (refused.code, refused.field) == ("profile", f"{BASE}:3")
    assert "it would be kept of sh, and [escrow] in the configuration has no recipient" in refused.reason
    assert "runner escrow init" in refused.next_step
    put_into_force(bundle(folders, f'[escrow]\nrecipients = ["{RECIPIENT}"]\n'))
    folders.edit(BASE, '"held"', '"never"')
    put_into_force(bundle(folders, ""))


def test_a_recipient_is_looked_at_before_it_is_in_force(folders: Any) -> None:
    def serving(*texts: str) -> Serving:
        listed = ", ".join(f'"{text}"' for text in texts)
        return Serving.compile(compile_bundle(bundle(folders, f"[escrow]\nrecipients = [{listed}]\n")))

    made = serving(RECIPIENT).recipients
    assert made is not None
    assert made.fingerprints == (fingerprint(RECIPIENT),)
    assert serving().recipients is None
    for texts in ((WRONG,), (RECIPIENT, RECIPIENT)):
        with pytest.raises(RunnerError) as caught:
            serving(*texts)
        assert (caught.value.refused.code, caught.value.refused.field) == ("config", "escrow.recipients")
    for text in ("age1x", RECIPIENT.upper(), "ssh-ed25519 AAAA", new_identity()[0]):
        with pytest.raises(RunnerError) as caught:
            parse_config(f'[escrow]\nrecipients = ["{text}"]\n'.encode(), folders.root / "runner.toml")
        assert caught.value.refused.code == "config"
        assert text not in caught.value.refused.line()


def test_doctor_says_who_could_open_it(folders: Any) -> None:
    found = folders.compile()
    assert escrow_findings(Config(), found)[0].status == escrow_findings(Config(), None)[0].status == "ok"
    asking = with_raw(folders, 'raw = { high = "always" }').compile()
    (finding,) = escrow_findings(Config(), asking)
    assert (finding.status, "profile base has raw output kept" in finding.found) == ("fail", True)
    (finding,) = escrow_findings(Config(escrow=Escrow(recipients=(RECIPIENT,))), asking)
    assert (finding.status, fingerprint(RECIPIENT) in finding.found) == ("ok", True)
    assert recipients((WRONG,), ["base"]).status == "fail"
