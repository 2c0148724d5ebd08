"""What becomes of what was found: nine actions, chosen by label, the stricter of all who have a say."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import get_args

from runner.model import Action
from runner.stream.checks import issuer
from runner.stream.found import Found
from runner.stream.through import seen

ORDER: tuple[Action, ...] = get_args(Action)  # from the mildest to the strictest
DEFAULTS: Mapping[str, Action] = {"credential": "redact", "pii": "mask", "injected": "mark", "*": "allow"}
_STARS = b"***"
_STARRED_DIGITS = bytes.maketrans(b"0123456789", b"*" * 10)
# A letter or digit as a star; what is between them stays.
_STARRED, _STARRED_IBAN = (
    bytes(byte if byte in kept else 42 for byte in range(256)) for kept in (b" -._:/@+()", b" -")
)
_HASH = 12  # hex digits: 48 bits, enough to tell a task's values apart


class Actions:
    """Label → what becomes of it, for one call. `key` is the task's: equal values have equal hashes in it, and in no
    other."""

    def __init__(self, table: Mapping[str, Action], key: bytes) -> None:
        self._table = dict(table)
        self._key = key
        self._known: dict[str, Action] = {}  # of labels that were asked for, which rules name

    def of(self, label: str) -> Action:
        """The most specific entry: `pii.email`, then `pii`, then `*`; without any, `allow`."""
        if (known := self._known.get(label)) is None:
            known = self._known[label] = self._found(label)
        return known

    def _found(self, label: str) -> Action:
        while label:
            if label in self._table:
                return self._table[label]
            label = label.rpartition(".")[0]
        return self._table.get("*", "allow")

    def replace(self, found: Found, data: bytes) -> bytes:
        """What stands for `data[found.start:found.end]`. What blocks or holds an output is redacted in it."""
        value = data[found.start : found.end]
        action = self.of(found.label)
        if action in ("allow", "mark"):
            return value
        if b"\x1b" in value or not value.isascii():
            value = seen(value, whole=True).text
        if action == "mask":
            return mask(found.label, value)
        if action == "hash":
            digest = hmac.new(self._key, found.label.encode() + b"\0" + value, hashlib.sha256).hexdigest()
            return f"[{_kind(found.label)}:{digest[:_HASH]}]".encode()
        if action == "generalise":
            return generalise(found.label, value)
        if action == "strip":
            return f"[removed: {_kind(found.label)}]".encode()
        return b"[REDACTED:" + found.rule.encode() + b"]"


def chosen(labels: Mapping[str, Action]) -> dict[str, Action]:
    """The shipped defaults, with what a task profile's [labels] says in their place."""
    return {**DEFAULTS, **labels}


def combined(*tables: Mapping[str, Action]) -> dict[str, Action]:
    """One table in which every label has the strictest action that any of `tables` gives it, by name or by a wider
    entry."""
    each = [Actions(table, b"") for table in tables if table]
    labels = {label for table in tables for label in table}
    return {label: max((one.of(label) for one in each), key=ORDER.index) for label in sorted(labels)}


def mask(label: str, value: bytes) -> bytes:
    """`value` with its shape and without its content: `j***@e***.com`, the last four of a card."""
    kind = _kind(label)
    if kind == "email":
        name, _, host = value.rpartition(b"@")
        first, dot, rest = host.rpartition(b".")
        return name[:1] + _STARS + b"@" + first[:1] + _STARS + dot + rest
    if kind in ("card", "phone"):
        return _digits_masked(value, 4 if kind == "card" else 2)
    if kind == "iban":
        kept = len(value) - len(value.rstrip(b" "))
        last = value[-4 - kept :]
        return value[:2] + value[2 : -len(last)].translate(_STARRED_IBAN) + last
    return value.translate(_STARRED)


def _digits_masked(value: bytes, keep: int) -> bytes:
    """`value` with all digits as stars, but for the last `keep`."""
    at = len(value)
    while at and keep:
        at -= 1
        keep -= 48 <= value[at] <= 57
    return value[:at].translate(_STARRED_DIGITS) + value[at:]


def generalise(label: str, value: bytes) -> bytes:
    """What kind of thing it is, with the part that many share."""
    kind = _kind(label)
    if kind == "email":
        return b"[e-mail at " + value.rpartition(b"@")[2].lower() + b"]"
    digits = "".join(chr(byte) for byte in value if 48 <= byte <= 57)
    if kind == "card":
        return f"[card of {issuer(digits) or 'an unknown issuer'}]".encode()
    if kind == "iban":
        return b"[account in " + value[:2].upper() + b"]"
    if kind == "phone":
        return f"[phone number in +{_country(digits)}]".encode() if value[:1] == b"+" else b"[phone number]"
    return f"[{label}]".encode()


# Country codes of one and of two digits (ITU-T E.164); all others have three.
_ONE = frozenset("17")
_TWO = (
    " 20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 49 51 52 53 54 55 56 57 58 60 61 62 63 64 65 66 81 82 84 86 90"
    " 91 92 93 94 95 98 "
)


def _country(digits: str) -> str:
    return digits[:1] if digits[:1] in _ONE else digits[:2] if f" {digits[:2]} " in _TWO else digits[:3]


def _kind(label: str) -> str:
    return label.rpartition(".")[2]
