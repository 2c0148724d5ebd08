"""First call of a new task, pool empty

No container is ready: the first call of a task makes one, measures it, and runs in it.
"""

from __future__ import annotations

import statistics

from common import emit, options, serving, spread, tool_image
from first_calls import Tasks, against_docker


def main(*, quick: bool) -> None:
    """Measure in turns with `docker run`, print once."""
    with serving() as daemon:
        tasks = Tasks(daemon)
        found = against_docker(daemon, tool_image(), tasks.cold, 2 if quick else 15)
    middle = {name: statistics.median(times) for name, times in found.items()}
    emit(
        "first call of a new task, pool empty",
        figures={**spread(found["first"]), "connect_median_ms": statistics.median(tasks.connecting)},
        baseline={"docker_run_ms": middle["docker_run"], "docker_run_walled_ms": middle["docker_run_walled"]},
        ratios={
            "over_docker_run": middle["first"] / middle["docker_run"],
            "over_docker_run_walled": middle["first"] / middle["docker_run_walled"],
        },
        goal={"over_docker_run": "<= 1.0", "over_docker_run_walled": "<= 1.0"},
        floor={"over_docker_run": "<= 1.2", "over_docker_run_walled": "<= 1.2"},
        guarantee=(
            "a fresh container, measured by engine, with a supervisor and a proven jail in it, kept for the task's "
            "next calls. docker run: a container for one command, without a jail inside; plain, or walled with what "
            "its options can say of the default profile"
        ),
        measured=(
            f"from the call to its result on an open connection; {len(found['first'])} tasks; docker run by its "
            "command line, same image and command, without removing the container"
        ),
        quick=quick,
    )


if __name__ == "__main__":
    main(quick=options(__doc__ or "").quick)
