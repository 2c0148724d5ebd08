"""Warm jailed call, isolation = launcher

A jailed `echo` in a warm sandbox, client to client, beside the other isolation, posix_spawn, bwrap and docker exec.
"""

from __future__ import annotations

import jails
from common import options

if __name__ == "__main__":
    jails.run(
        "warm jailed call, isolation = launcher",
        "launcher",
        {"median_ms": "<= 1.0", "over_bwrap": "<= 0.25", "faster_than_docker_exec": ">= 40"},
        {"median_ms": "<= 1.5"},
        quick=options(__doc__ or "").quick,
    )
