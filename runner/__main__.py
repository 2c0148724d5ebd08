"""`runner` and `python -m runner`."""

from __future__ import annotations

import sys

from runner.errors import EXIT_UNAVAILABLE, RunnerError, exit_status


def main() -> None:
    """Run a command; print a refusal as one line on stderr and exit with its documented status."""
    try:
        from runner.cli.commands import command
    except ImportError as error:
        # The small client distribution has no daemon in it: say so instead of a traceback.
        print(  # noqa: T201 - this is the command line
            f"runner: a part of the daemon is missing ({error.name}) · next: install toolrunner[daemon]",
            file=sys.stderr,
        )
        sys.exit(EXIT_UNAVAILABLE)
    try:
        command()(prog_name="runner")
    except RunnerError as error:
        print(f"runner: {error.refused.line()}", file=sys.stderr)  # noqa: T201 - this is the command line
        sys.exit(exit_status(error.refused))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)  # whoever reads our output has seen enough


if __name__ == "__main__":
    main()
