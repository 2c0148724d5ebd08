"""Who is an operator, how it is known, what it may do: read from a configuration, and never guessed."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.admin.roster import NEEDS, ROLES, Roster, operation, roster
from runner.config import Config, Operator, Peers, Users, decode_toml
from runner.errors import RunnerError
from runner.ledger import entry as entries
from runner.token.keys import SigningKey
from runner.token.operator import sign_operator
from runner.wire import admin

KEY, OTHER = SigningKey(b"k" * 32), SigningKey(b"o" * 32)
GROUP = Users(operators_group="ops")


def x(key: SigningKey) -> str:
    return key.public.jwk()["x"]


def named(*operators: Operator, **more: Any) -> Roster:
    return roster(Config(operators=operators, **more))


ANN = Operator(name="ann", uid=0, roles=("containment", "approver"))
BOB = Operator(name="bob", uid=1000, key=x(KEY), roles=("forensics",))


def test_without_names_root_alone_has_every_role() -> None:
    found = roster(Config())
    asker = found.asker(0, "")
    assert asker is not None
    assert (asker.operator.name, asker.operator.roles) == ("root", set(ROLES))
    assert [found.asker(uid, "") for uid in (1, 1000, -1)] == [None, None, None]
    assert not found.keyed
    for kind in NEEDS:
        assert asker.may(NEEDS[kind])


def test_a_uid_of_peers_stands_in_for_a_name() -> None:
    asker = roster(Config(peers=Peers(operators=(0, 1234)))).asker(1234, "")
    assert asker is not None
    assert asker.operator.name == "uid-1234"


def test_named_operators_are_all_there_are() -> None:
    found = named(BOB, users=GROUP)
    assert found.asker(0, "") is None
    asker = found.asker(1000, "")
    assert asker is not None
    assert asker.entry == entries.Operator(name="bob", uid=1000)
    by_key = found.asker(7, KEY.public.thumbprint)
    assert by_key is not None
    assert by_key.entry == entries.Operator(name="bob", uid=7, key=KEY.public.thumbprint)


def test_a_key_wins_over_the_uid() -> None:
    asker = named(ANN, BOB, users=GROUP).asker(0, KEY.public.thumbprint)
    assert asker is not None
    assert asker.operator.name == "bob"
    assert named(ANN).asker(0, KEY.public.thumbprint) is None  # a key that is gone is not forgiven for the uid's sake


def test_every_operation_has_a_row() -> None:
    asked = set(get_args(admin.FromOperator)) - {admin.Hello, admin.Prove}
    assert asked == set(NEEDS)
    assert set().union(*NEEDS.values()) <= set(ROLES)


def test_a_refusal_says_who_you_are_what_is_missing_and_who_has_it() -> None:
    found = named(ANN, BOB, users=GROUP)
    asker = found.asker(1000, "")
    assert asker is not None
    found.check(asker, admin.ReadWorkspace(task="t"))
    with pytest.raises(RunnerError) as refused:
        found.check(asker, admin.EndTask(task="t"))
    told = refused.value.refused
    assert told.code == "denied"
    assert told.reason == "you are operator bob (known by uid 1000), who may not `end_task`"
    assert (told.rule, told.allowed) == ("role containment", "to ann")
    assert "end_task" not in found.may(asker)
    assert "read_workspace" in found.may(asker)


def test_an_operation_without_a_row_is_nobodys() -> None:
    found = roster(Config())
    asker = found.asker(0, "")
    assert asker is not None
    unknown: Any = admin.Hello()
    with pytest.raises(RunnerError) as refused:
        found.check(asker, unknown)
    assert refused.value.refused.code == "denied"
    assert operation(admin.EndTask) == "end_task"


WRONG: dict[str, tuple[tuple[Operator, ...], dict[str, Any], str]] = {
    "neither uid nor key": ((Operator(name="a", roles=("auditor",)),), {}, "operators.a"),
    "no name": ((Operator(name="a b", uid=0, roles=("auditor",)),), {}, "operators.a b"),
    "a name twice": ((ANN, Operator(name="ann", key=x(KEY), roles=("auditor",))), {}, "operators.ann"),
    "a uid twice": ((ANN, Operator(name="b", uid="root", roles=("auditor",))), {}, "operators.b"),
    "a key twice": ((BOB, Operator(name="b", key=x(KEY), roles=("auditor",))), {"users": GROUP}, "operators.b"),
    "no such user": ((Operator(name="a", uid="no-such-user", roles=("auditor",)),), {}, "operators.a.uid"),
    "a negative uid": ((Operator(name="a", uid=-1, roles=("auditor",)),), {"users": GROUP}, "operators.a.uid"),
    "a socket closed to it": ((BOB,), {}, "operators.bob.uid"),
    "no key": ((Operator(name="a", key="AAAA", roles=("auditor",)),), {}, "operators.a.key"),
    "a key that fits everything": ((Operator(name="a", key="A" * 43, roles=("auditor",)),), {}, "operators.a.key"),
    "two lists": ((ANN,), {"peers": Peers(operators=(0, 5))}, "peers.operators"),
}


@pytest.mark.parametrize("name", sorted(WRONG))
def test_a_wrong_configuration_is_refused_by_field(name: str) -> None:
    operators, more, field = WRONG[name]
    with pytest.raises(RunnerError) as refused:
        named(*operators, **more)
    assert refused.value.refused.code == "config"
    assert refused.value.refused.field == field


@pytest.mark.parametrize("text", ['roles = ["king"]', "roles = []", 'roles = ["auditor"]\nking = true', ""])
def test_what_is_no_operator_does_not_parse(text: str) -> None:
    good = b'[[operators]]\nname = "a"\nuid = 0\nroles = ["auditor"]\n'
    assert decode_toml(good, Config, "c", "config").operators == (Operator(name="a", uid=0, roles=("auditor",)),)
    with pytest.raises(RunnerError):
        decode_toml(f'[[operators]]\nname = "a"\nuid = 0\n{text}\n'.encode(), Config, "c", "config")


# --- proofs ----------------------------------------------------------------------------------------------


FOUND = named(BOB, users=GROUP)
PROOF = sign_operator(KEY, audience="runner:r1", nonce="n1")


def proves(proof: str, *, key: str = KEY.public.thumbprint, audience: str = "runner:r1", nonce: str = "n1") -> str:
    """ "" when it is accepted, else the detail for the ledger."""
    try:
        FOUND.prove(admin.Prove(key=key, proof=proof), audience=audience, nonce=nonce)
    except RunnerError as error:
        return f"{error.refused.code}: {error.refused.reason}: {error.detail}"
    return ""


GENERIC = "unauthenticated: the operator's proof was not accepted: step "


def jws(claims: dict[str, Any], typ: str = "runner-operator+jwt") -> str:
    return KEY.jws(claims, typ)


CLAIMS = {"aud": "runner:r1", "nonce": "n1", "sub": KEY.public.thumbprint}


def test_a_proof_is_for_one_key_one_connection_one_daemon() -> None:
    assert proves(PROOF) == ""
    assert proves(jws(CLAIMS)) == ""
    assert "operator 3" in proves(PROOF, nonce="n2")
    assert "operator 3" in proves(PROOF, audience="runner:r2")
    assert "operator 3" in proves(sign_operator(KEY, audience="runner:r1", nonce=""), nonce="")
    assert "operator 0" in proves(PROOF, key=OTHER.public.thumbprint)
    assert "operator 2" in proves(sign_operator(OTHER, audience="runner:r1", nonce="n1"))
    assert "operator 3" in proves(jws({**CLAIMS, "more": 1}))
    assert "operator 3" in proves(jws({**CLAIMS, "sub": OTHER.public.thumbprint}))
    assert "operator 1" in proves(jws(CLAIMS, "runner-hello+jwt"))  # an agent's hello is no operator's proof
    assert "operator 1" in proves(PROOF + "A" * 1024)


@given(st.text(max_size=400))
def test_no_text_is_a_proof(text: str) -> None:
    assert proves(text).startswith(GENERIC)


@given(st.integers(0, len(PROOF) - 1), st.characters(codec="ascii"))
def test_no_changed_proof_is_one(place: int, char: str) -> None:
    changed = PROOF[:place] + char + PROOF[place + 1 :]
    assert (proves(changed) == "") == (changed == PROOF)


@given(st.binary(max_size=200))
def test_no_bytes_are_an_operators_message_by_chance(data: bytes) -> None:
    """Decoding either refuses or gives a message that encodes to something; it never raises anything else."""
    try:
        message = msgspec.msgpack.decode(data, type=admin.FromOperator)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    assert isinstance(message, get_args(admin.FromOperator))
