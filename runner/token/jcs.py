"""The JSON Canonicalization Scheme (RFC 8785), the one canonical form of tokens, proofs and constraint values.

msgspec does the writing; what it would write differently (doubles, keys beyond ASCII) is prepared for it. A value
is canonical only when it is admissible (the draft, §3.4): an integer whose double-precision value denotes another
number is refused here, never rounded.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

import msgspec

MAX_DEPTH = 128  # containers inside containers, for callers that set no tighter bound
EXACT = 2**53  # up to here every integer is its own double
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder()
_LONG = re.compile(rb"[0-9]{16}")  # below 16 digits every integer is its own double


def canonical(value: Any, depth: int = MAX_DEPTH) -> bytes:
    """The RFC 8785 bytes of a JSON value. Raises ValueError on anything else: a number that is not admissible, a
    lone surrogate, a key that is no string, containers nested deeper than `depth`."""
    try:
        return _encoder.encode(_prepared(value, depth))
    except UnicodeEncodeError:
        raise ValueError("a string holds half of a surrogate pair") from None


def canonical_object(data: bytes, depth: int = MAX_DEPTH) -> dict[str, Any]:
    """The JSON object whose RFC 8785 bytes are `data`. Raises ValueError when `data` is anything else."""
    try:
        value = _plain(data, depth) if data.isascii() and not _LONG.search(data) else None
        if value is None:
            value = _decoder.decode(data)
            if canonical(value, depth) != data:
                raise ValueError("not the canonical form")
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from None
    if type(value) is not dict:
        raise ValueError("not an object")
    return value


class _Double(Exception):
    """A number with a fraction or an exponent."""


def _plain(data: bytes, depth: int) -> Any:
    """The value, when the short way can tell that `data` is canonical; None when it cannot.

    Without doubles, large integers and keys beyond ASCII, sorting the members is all that RFC 8785 adds to msgspec."""
    if data.count(b"{") + data.count(b"[") > depth:
        return None
    try:
        value = _without_doubles.decode(data)
    except _Double:
        return None
    return value if _sorting.encode(value) == data else None


def _no_double(text: str) -> None:
    raise _Double


_without_doubles = msgspec.json.Decoder(float_hook=_no_double)
_sorting = msgspec.json.Encoder(order="sorted")


def number_text(value: float) -> str:
    """A double as ECMAScript writes it (RFC 8785 §3.2.2.3). Raises ValueError on NaN and infinities."""
    if not math.isfinite(value):
        raise ValueError("not a finite number")
    if value == 0:
        return "0"
    mantissa, _, exponent = repr(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    every = whole + fraction
    digits = every.lstrip("0")
    point = len(whole) + int(exponent or 0) - (len(every) - len(digits))
    digits = digits.rstrip("0")
    count = len(digits)
    sign = "-" if value < 0 else ""
    if count <= point <= 21:
        return f"{sign}{digits}{'0' * (point - count)}"
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    tail = f".{digits[1:]}" if count > 1 else ""
    return f"{sign}{digits[0]}{tail}e{point - 1:+d}"


def admissible(text: str, value: float) -> bool:
    """Whether the number written as `text`, read as the double `value`, is still the same number (§3.4)."""
    return math.isfinite(value) and Decimal(number_text(value)) == Decimal(text)


def _prepared(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return value
    if kind is int:
        return value if -EXACT <= value <= EXACT else _large(value)
    if kind is float:
        return msgspec.Raw(number_text(value).encode())
    if depth <= 0:
        raise ValueError("nested too deeply")
    if kind is dict:
        return {name: _prepared(value[name], depth - 1) for name in _sorted(value)}
    if kind is list or kind is tuple:
        return [_prepared(item, depth - 1) for item in value]
    raise ValueError(f"{kind.__name__} is not a JSON type")


def _large(value: int) -> msgspec.Raw:
    try:
        text = number_text(float(value))
    except OverflowError:
        raise ValueError("a number is too large") from None
    if Decimal(text) != value:
        raise ValueError("an integer above 2^53 does not survive as a double; send it as a string")
    return msgspec.Raw(text.encode())


def _sorted(value: dict[str, Any]) -> list[str]:
    """Member names in the order of their UTF-16 code units (§3.2.3)."""
    try:
        if "".join(value).isascii():
            return sorted(value)
    except TypeError:
        raise ValueError("a member name is not a string") from None
    return sorted(value, key=lambda name: name.encode("utf-16-be", "surrogatepass"))
