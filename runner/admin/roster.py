"""Who the operators are, how each is known, what each may do: one table names the role that every operation needs."""

from __future__ import annotations

import pwd
from typing import get_args

from runner.config import NAME, Config, Peers, Role
from runner.config import Operator as Named
from runner.errors import refuse
from runner.ledger import entry as entries
from runner.model import Value
from runner.token.keys import PublicKey
from runner.token.operator import verify_operator
from runner.token.strict import NotAccepted, unb64
from runner.wire import admin

ROLES: tuple[Role, ...] = get_args(Role)
ANY: tuple[Role, ...] = ()  # whoever is an operator at all

# The operation, and the roles of which one is enough. What is not here nobody may do.
NEEDS: dict[type, tuple[Role, ...]] = {
    admin.Whoami: ANY,
    admin.Status: ANY,
    admin.ListTasks: ("approver", "containment", "forensics", "auditor"),
    admin.ShowTask: ("approver", "containment", "forensics", "auditor"),
    admin.Announce: ("approver",),  # a root token: what an agent may do is granted here
    admin.Revoke: ("containment",),
    admin.Reopen: ("containment",),
    admin.EndTask: ("containment",),
    admin.ReadWorkspace: ("forensics",),
    admin.Prune: ("forensics",),
    admin.Hold: ("forensics",),
    admin.Release: ("forensics",),
    admin.OpenRaw: ("forensics",),
    admin.ReadRaw: ("forensics",),
    admin.Reload: ("policy-author",),
    admin.ListPending: ("policy-author", "containment", "auditor"),
    admin.SetSecret: ("secrets",),
    admin.RemoveSecret: ("secrets",),
    admin.ListSecrets: ("secrets", "auditor"),
    admin.ExplainEgress: ("policy-author", "approver", "containment", "forensics", "auditor"),
    admin.Confirm: ANY,  # the act that waits has a role of its own: runner/admin/second.py
    admin.Withdraw: ANY,  # the same
}


# What can need a second person (`two_person` in the configuration), and the role that both need.
ACTS: dict[str, Role] = {"activate-policy": "policy-author", "release": "containment"}


class Operator(Value, frozen=True):
    """One operator in force. `keyed` is its key's thumbprint, "" for one without."""

    name: str
    roles: frozenset[str]
    uids: frozenset[int] = frozenset()
    keyed: str = ""


class Asker(Value, frozen=True):
    """The operator on a connection: `key` is the thumbprint it proved, "" when its uid told who it is."""

    operator: Operator
    uid: int
    key: str = ""

    @property
    def entry(self) -> entries.Operator:
        """As entries name it."""
        return entries.Operator(name=self.operator.name, uid=self.uid, key=self.key)

    def may(self, needs: tuple[Role, ...]) -> bool:
        """Whether one of these roles is its own."""
        return not needs or not self.operator.roles.isdisjoint(needs)


class Roster:
    """The operators of one configuration. A name, a uid and a key each belong to one of them."""

    def __init__(self, operators: tuple[Operator, ...], keys: dict[str, PublicKey]) -> None:
        self.operators = operators
        self._keys = keys  # by thumbprint
        self._by_uid = {uid: operator for operator in operators for uid in operator.uids}
        self._by_key = {operator.keyed: operator for operator in operators if operator.keyed}

    @property
    def keyed(self) -> bool:
        """Whether anybody can prove a key here."""
        return bool(self._keys)

    def asker(self, uid: int, key: str) -> Asker | None:
        """Who a connection is by the key it proved, which wins, else by its uid; None for a stranger.

        Asked for each request: a reload may have taken an operator away."""
        found = self._by_key.get(key) if key else self._by_uid.get(uid)
        return None if found is None else Asker(operator=found, uid=uid, key=key)

    def prove(self, message: admin.Prove, *, audience: str, nonce: str) -> None:
        """Raises `RunnerError` (unauthenticated), the same words whatever failed, with what it was in `detail`."""
        try:
            key = self._keys.get(message.key)
            if key is None:
                raise NotAccepted("operator 0", "no operator has this key")
            verify_operator(message.proof, key, audience=audience, nonce=nonce)
        except NotAccepted as failed:
            raise refuse(
                "unauthenticated",
                "the operator's proof was not accepted",
                next_step="see that [[operators]] names this key, and ask anew",
                detail=str(failed),
            ) from None

    def check(self, asker: Asker, message: admin.FromOperator) -> None:
        """Raises `RunnerError` (denied), saying who is asking, which role is missing and who has it."""
        if type(message) not in NEEDS:
            raise refuse("denied", "no role allows this operation", next_step="it belongs to a newer version")
        self.demand(asker, NEEDS[type(message)], operation(type(message)))

    def demand(self, asker: Asker, needs: tuple[Role, ...], what: str) -> None:
        """`check`, for an act that is no message of its own."""
        if not asker.may(needs):
            who = ", ".join(self.holders(needs)) or "nobody"
            known = f"key {asker.key}" if asker.key else f"uid {asker.uid}"
            raise refuse(
                "denied",
                f"you are operator {asker.operator.name} (known by {known}), who may not `{what}`",
                rule=f"role {' or '.join(needs)}",
                allowed=f"to {who}",
                next_step="ask one of them, or have [[operators]] changed",
            )

    def holders(self, needs: tuple[Role, ...]) -> tuple[str, ...]:
        """The names of those who have one of these roles."""
        return tuple(sorted(each.name for each in self.operators if not needs or not each.roles.isdisjoint(needs)))

    def may(self, asker: Asker) -> tuple[str, ...]:
        """The operations that this operator may ask for."""
        return tuple(sorted(operation(kind) for kind, needs in NEEDS.items() if asker.may(needs)))


def operation(kind: type) -> str:
    """What an operation is called: its message's tag."""
    return str(kind.__struct_config__.tag)  # type: ignore[attr-defined] # every one is a Struct


def uids_of(names: tuple[int | str, ...], field: str) -> frozenset[int]:
    """The uids of users by name or number. Raises `RunnerError` (config) for a user that does not exist."""
    found = set()
    for name in names:
        try:
            found.add(name if isinstance(name, int) else pwd.getpwnam(name).pw_uid)
        except KeyError:
            raise refuse("config", f"there is no user `{name}`", field=field) from None
    return frozenset(found)


def roster(config: Config) -> Roster:
    """The operators that `config` names; with none named, each of `[peers] operators` (root) with every role.

    Raises `RunnerError` (config) naming the operator."""
    if not config.operators:
        if config.two_person:
            raise refuse("config", "a second person needs [[operators]] to be named", field="two_person")
        unnamed = [
            Operator(name=f"uid-{uid}" if uid else "root", roles=frozenset(ROLES), uids=frozenset((uid,)))
            for uid in sorted(uids_of(config.peers.operators, "peers.operators"))
        ]
        return Roster(tuple(unnamed), {})
    if config.peers.operators != Peers().operators:
        raise refuse("config", "[[operators]] says who they are: take this out", field="peers.operators")
    keys: dict[str, PublicKey] = {}
    made: list[Operator] = []
    taken: dict[int | str, str] = {}  # names, uids and thumbprints, each one operator's
    for each in config.operators:
        field = f"operators.{each.name[:64]}"
        operator = _named(each, field, keys, root_only=not config.users.operators_group)
        marks: tuple[int | str, ...] = (f"name {operator.name}", operator.keyed, *operator.uids)
        for mark in marks:
            if mark != "" and mark in taken:
                raise refuse("config", f"operator {taken[mark]} has the same name, uid or key", field=field)
            taken[mark] = each.name
        made.append(operator)
    found = Roster(tuple(made), keys)
    # Who the two are, and that it takes two, is changed by a reload: whatever takes two persons, that does too.
    for act in dict.fromkeys((*config.two_person, *(("activate-policy",) if config.two_person else ()))):
        if len(found.holders((ACTS[act],))) < 2:
            raise refuse(
                "config",
                f"{act} would wait for ever: fewer than two operators have the role {ACTS[act]}"
                + ("" if act in config.two_person else ", and who may do what is changed by two as well"),
                field="two_person",
            )
    return found


def _named(each: Named, field: str, keys: dict[str, PublicKey], *, root_only: bool) -> Operator:
    """One row of [[operators]]; its key goes into `keys`."""
    if not NAME.match(each.name):
        raise refuse("config", "not a name: letters, digits and ._:@/-, at most 128", field=field)
    uids = uids_of(() if each.uid is None else (each.uid,), f"{field}.uid")
    if any(uid < 0 for uid in uids):
        raise refuse("config", "a uid is not negative", field=f"{field}.uid")
    if uids - {0} and root_only:
        raise refuse(
            "config",
            "admin.sock is root's alone, so this uid could never connect",
            field=f"{field}.uid",
            next_step="name a group of your operators as operators_group in [users] (scripts/setup makes "
            "runner-operators), put this user into it, and restart",
        )
    if not uids and not each.key:
        raise refuse("config", "neither a uid nor a key: nobody could be this operator", field=field)
    thumbprint = ""
    if each.key:
        try:
            key = PublicKey(unb64(each.key))
        except ValueError as error:
            raise refuse(
                "config",
                f"not an Ed25519 public key in base64url: {error}",
                field=f"{field}.key",
                next_step="paste what `runner admin key` prints",
            ) from None
        thumbprint = key.thumbprint
        keys[thumbprint] = key
    return Operator(name=each.name, roles=frozenset(each.roles), uids=uids, keyed=thumbprint)
