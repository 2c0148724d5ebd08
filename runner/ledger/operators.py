"""What operators do to one another's acts, as entries: what waits for a second person, is withdrawn, is released, and
what was to come into force and did not."""

from __future__ import annotations

from runner.ledger.part import Entry, Int, Operator


class Pending(Entry, frozen=True, kw_only=True, tag="pending"):
    """An operator asked for an act that takes another's confirmation until `expires` (epoch seconds).

    `subject` is the digest that the confirmation is bound to; `before` and `after` are catalogues, where it is one;
    `target` and `value` what is to be released, where it is that."""

    id: str
    act: str
    subject: str
    before: str = ""
    after: str = ""
    target: str = ""
    value: str = ""
    changes: tuple[str, ...] = ()
    why: str = ""
    by: Int
    operator: Operator
    expires: Int


class Withdraw(Entry, frozen=True, kw_only=True, tag="withdraw"):
    """What waited as `id` waits no more: nobody confirms it. Nothing that is in force was changed."""

    id: str
    act: str
    why: str
    by: Int
    operator: Operator


class Reopen(Entry, frozen=True, kw_only=True, tag="reopen"):
    """What a revocation had closed until its release is open: tokens announced from here on stand. What was announced
    before stays revoked. Where that takes two, `confirmed` is the second and `pending` names what waited."""

    target: str
    value: str
    why: str
    by: Int
    operator: Operator
    confirmed: Operator | None = None
    pending: str = ""


class RefusedReload(Entry, frozen=True, kw_only=True, tag="refused_reload"):
    """A reload that changed nothing: by a signal (`by` is -1), or by an operator, `confirmed` where it was a second
    one. `offered` is the catalogue's digest, "" where the files could not even be read whole; `code`, `field` and
    `reason` are the first thing wrong with it."""

    offered: str = ""
    code: str
    field: str = ""
    reason: str
    by: Int = -1
    operator: Operator | None = None
    confirmed: Operator | None = None
    pending: str = ""
    why: str = ""
