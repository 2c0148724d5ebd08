"""First call of a new task, pool not empty

A pool of containers made and measured ahead is full; a task begins and makes its first call.
"""

from __future__ import annotations

import statistics

from common import emit, options, serving, spread, tool_image
from first_calls import Tasks, against_docker

POOL = 2


def main(*, quick: bool) -> None:
    """Measure in turns with `docker run`, print once."""
    image = tool_image()
    with serving(config=f"pool = {POOL}\n") as daemon:
        tasks = Tasks(daemon)
        found = against_docker(daemon, image, tasks.pooled(POOL, image), 2 if quick else 15)
    middle = {name: statistics.median(times) for name, times in found.items()}
    emit(
        "first call of a new task, pool not empty",
        figures={
            **spread(found["first"]),
            "connect_median_ms": statistics.median(tasks.connecting),
            "second_call_median_ms": statistics.median(tasks.second),
        },
        baseline={"docker_run_ms": middle["docker_run"], "docker_run_walled_ms": middle["docker_run_walled"]},
        ratios={"over_docker_run": middle["first"] / middle["docker_run"]},
        goal={"median_ms": "<= 3"},
        floor={"median_ms": "<= 15"},
        guarantee=(
            "a container that no task has used, measured by engine before it was pooled, and a launcher that built and "
            "proved its walls there. docker run: a container made for the command, plain, or walled with "
            "what its options can say of the default profile"
        ),
        measured=(
            f"from the call to its result on an open connection; {len(found['first'])} tasks, the pool full before each"
        ),
        quick=quick,
    )


if __name__ == "__main__":
    main(quick=options(__doc__ or "").quick)
