"""What a pattern cannot say: check digits, entropy, whether a header is one. Each is asked about what would go."""

from __future__ import annotations

import base64
import binascii
import functools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping

from ahocorasick_rs import AhoCorasick

from runner.model import Check

# Lengths of an account number with its country, by the SWIFT IBAN registry (release 99).
IBAN_LENGTHS = {
    "AD": 24,
    "AE": 23,
    "AL": 28,
    "AT": 20,
    "AZ": 28,
    "BA": 20,
    "BE": 16,
    "BG": 22,
    "BH": 22,
    "BI": 27,
    "BR": 29,
    "BY": 28,
    "CH": 21,
    "CR": 22,
    "CY": 28,
    "CZ": 24,
    "DE": 22,
    "DJ": 27,
    "DK": 18,
    "DO": 28,
    "EE": 20,
    "EG": 29,
    "ES": 24,
    "FI": 18,
    "FK": 18,
    "FO": 18,
    "FR": 27,
    "GB": 22,
    "GE": 22,
    "GI": 23,
    "GL": 18,
    "GR": 27,
    "GT": 28,
    "HN": 28,
    "HR": 21,
    "HU": 28,
    "IE": 22,
    "IL": 23,
    "IQ": 23,
    "IS": 26,
    "IT": 27,
    "JO": 30,
    "KW": 30,
    "KZ": 20,
    "LB": 28,
    "LC": 32,
    "LI": 21,
    "LT": 20,
    "LU": 20,
    "LV": 21,
    "LY": 25,
    "MC": 27,
    "MD": 24,
    "ME": 22,
    "MK": 19,
    "MN": 20,
    "MR": 27,
    "MT": 31,
    "MU": 30,
    "NI": 28,
    "NL": 18,
    "NO": 15,
    "OM": 23,
    "PK": 24,
    "PL": 28,
    "PS": 29,
    "PT": 25,
    "QA": 29,
    "RO": 24,
    "RS": 22,
    "RU": 33,
    "SA": 24,
    "SC": 31,
    "SD": 18,
    "SE": 24,
    "SI": 19,
    "SK": 24,
    "SM": 27,
    "SO": 23,
    "ST": 25,
    "SV": 28,
    "TL": 23,
    "TN": 24,
    "TR": 26,
    "UA": 29,
    "VA": 22,
    "VG": 24,
    "XK": 20,
    "YE": 30,
}
# Issuers of payment cards by their first digits (ISO/IEC 7812), with the lengths they use.
_ISSUERS = (
    ("American Express", ((34, 34), (37, 37)), (15,)),
    ("Visa", ((4, 4),), (13, 16, 19)),
    ("Mastercard", ((51, 55), (2221, 2720)), (16,)),
    ("Discover", ((6011, 6011), (644, 649), (65, 65)), (16, 17, 18, 19)),
    ("Diners Club", ((300, 305), (3095, 3095), (36, 36), (38, 39)), (14, 16, 19)),
    ("JCB", ((3528, 3589),), (16, 17, 18, 19)),
    ("UnionPay", ((62, 62), (81, 81)), (16, 17, 18, 19)),
    ("Maestro", ((5018, 5018), (5020, 5020), (5038, 5038), (5893, 5893), (6304, 6304), (6759, 6763)), (16, 18, 19)),
)
_STAND_INS = (
    *("example", "changeme", "change_me", "change-me", "placeholder", "your_", "your-", "yourpass", "yourtoken"),
    *("yourkey", "yourapi", "insert", "dummy", "redacted", "xxxx", "****", "....", "foobar", "replace_", "replace-"),
    *("undefined", "process.env", "os.environ", "getenv", "12345678", "abcdefgh", "qwerty", "notreal", "not-real"),
    *("00000000", "fake"),
)
_NO_DIGITS = bytes(set(range(256)) - set(b"0123456789"))
_DOUBLED = str.maketrans("0123456789", "0246813579")  # each twice, and the digits of that added up
_IN_DIGITS = {ord(char): str(int(char, 36)) for char in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
_stand_ins = AhoCorasick(_STAND_INS)
_DIGIT, _LETTER, _OTHER = re.compile(rb"[0-9]"), re.compile(rb"[A-Za-z]"), re.compile(rb"[^0-9]")
_OURS = re.compile(rb"rnr-[A-Za-z0-9_-]{32}")  # what a tool holds in a credential's place: worth nothing elsewhere
_NO_SECRETS = (
    " password passwd secret token none null true false todo sample here test localhost string bearer basic required "
)


@functools.cache
def _bits(count: int) -> float:
    return count * math.log2(count)


def entropy(value: bytes) -> int:
    """Shannon's, in thousandths of a bit a byte."""
    size = len(value)
    return round(1000 * (math.log2(size) - sum(map(_bits, Counter(value).values())) / size)) if size else 0


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    ones, twos = digits.encode()[-1::-2], digits.translate(_DOUBLED).encode()[-2::-2]
    return (sum(ones) + sum(twos) - 48 * len(digits)) % 10 == 0


@functools.cache
def _issuers(size: int) -> re.Pattern[str]:
    """What card numbers of so many digits begin with; each issuer is a group."""
    ways = []
    for _, ranges, lengths in _ISSUERS:
        begins = [str(each) for low, high in ranges for each in range(low, high + 1)] if size in lengths else ["(?!)"]
        ways.append(f"({'|'.join(begins)})")
    return re.compile("|".join(ways))


def issuer(digits: str) -> str:
    """Who issues cards with these first digits and this length; "" for nobody."""
    found = _issuers(len(digits)).match(digits)
    return _ISSUERS[found.lastindex - 1][0] if found and found.lastindex else ""


def _card(value: bytes) -> bool:
    digits = _digits(value)
    return luhn(digits) and bool(issuer(digits)) and digits.count(digits[0]) < len(digits)


def _luhn(value: bytes) -> bool:
    return luhn(_digits(value))


def _digits(value: bytes) -> str:
    return value.translate(None, _NO_DIGITS).decode()


def _iban(value: bytes) -> bool:
    text = value.translate(None, b" -").decode("ascii", "replace").upper()
    if IBAN_LENGTHS.get(text[:2]) != len(text) or not text.isalnum():
        return False
    return int((text[4:] + text[:4]).translate(_IN_DIGITS)) % 97 == 1  # ISO 13616, mod 97-10


def _jwt(value: bytes) -> bool:
    """Whether the first part is the header of a signed or encrypted token (RFC 7515, RFC 7516)."""
    head = value.split(b".", 1)[0]
    try:
        found = json.loads(base64.urlsafe_b64decode(head + b"=" * (-len(head) % 4)))
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and isinstance(found.get("alg"), str)


def _basic(value: bytes) -> bool:
    """Whether it is a name, a colon and a password in base64 (RFC 7617)."""
    try:
        decoded = base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except (ValueError, binascii.Error):
        return False
    name, colon, password = decoded.partition(b":")
    return bool(colon) and len(password) > 0 and all(byte >= 32 for byte in name + password)


def _ssn(value: bytes) -> bool:
    """Whether such a number can have been given out (SSA: no 000, 666 or 9xx, no 00, no 0000)."""
    digits = _digits(value)
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    return area not in ("000", "666") and area[:1] != "9" and group != "00" and serial != "0000" and len(digits) == 9


def _phone(value: bytes) -> bool:
    """Whether it has as many digits as a number of the world's plan (E.164), and not one digit over and over."""
    digits = _digits(value)
    return 7 <= len(digits) <= 15 and len(set(digits)) > 2


def _mixed(value: bytes) -> bool:
    """Whether it looks made by a machine: not a word, name, call or placeholder."""
    return _DIGIT.search(value) is not None and _LETTER.search(value) is not None and not stand_in(value)


def _password(value: bytes) -> bool:
    """Whether somebody could have chosen it: no placeholder, not a name or call in a program, and not random bytes."""
    if _DIGIT.search(value) is None or _OTHER.search(value) is None:
        return False
    if len(value.decode(errors="ignore").encode()) * 4 < len(value) * 3:  # other encodings of text are mostly ASCII
        return False
    return not stand_in(value) and not value.endswith((b"(", b"()", b");", b")", b"],"))


def stand_in(value: bytes) -> bool:
    """Whether it stands where a value would: `changeme`, `${VAR}`, `<your-key>`, `xxxx`, `%s`."""
    lower = value.lower().decode("latin-1")
    if lower[:1] in "$<%{[(" or lower[:2] in ("@{", "!{", "&{", "\\$") or "${" in lower or "{{" in lower:
        return True
    if _OURS.fullmatch(value):
        return True
    return f" {lower} " in _NO_SECRETS or bool(_stand_ins.find_matches_as_indexes(lower)) or len(set(lower)) <= 3


CHECKS: Mapping[Check, Callable[[bytes], bool]] = {
    "card": _card,
    "luhn": _luhn,
    "iban": _iban,
    "jwt": _jwt,
    "basic": _basic,
    "ssn": _ssn,
    "phone": _phone,
    "mixed": _mixed,
    "password": _password,
    "real": lambda value: not stand_in(value),
}
DIGITS = frozenset({"mixed", "password"})  # checks that nothing without a digit passes, whatever its rule lets in
