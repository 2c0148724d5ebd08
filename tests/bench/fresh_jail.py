"""Warm jailed call, isolation = call

The same `echo` as `warm_call.py`, but every call behind a jail of its own that is thrown away after it.
"""

from __future__ import annotations

import jails
from common import options

if __name__ == "__main__":
    jails.run(
        "warm jailed call, isolation = call",
        "call",
        {"median_ms": "<= 2.2", "over_bwrap": "<= 0.5"},
        {"median_ms": "<= 3.5"},
        quick=options(__doc__ or "").quick,
    )
