"""Forms and bounds of what a client says about itself and its calls."""

from __future__ import annotations

import re

from runner.errors import refuse

# Each ends up in the ledger, so each is short.
CALL_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
IDEMPOTENCY_KEY = re.compile(r"[A-Za-z0-9._:-]{1,128}")
TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
MAX_BECAUSE = 64
MAX_DEADLINE_MS = 86_400_000  # a day; the tool's own ceiling is lower
MAX_REQUEST = 4 << 10  # bytes of the original request: JSON may need six for one, and an entry is under 64 KiB
MAX_FACT = 128


def check_text(field: str, value: str, most: int, code: str) -> None:
    if len(value) > most or (not value.isascii() and len(value.encode()) > most):
        raise refuse(code, "the text is too long", field=field, allowed=f"{most} bytes")


def check_form(field: str, value: str, form: re.Pattern[str], allowed: str) -> None:
    if value and not form.fullmatch(value):
        raise refuse("arguments", "not of the form it must have", field=field, allowed=allowed)
