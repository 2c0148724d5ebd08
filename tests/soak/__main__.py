"""`scripts/soak`: the command. Cases are in cases.py."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from soak.cases import CASES, Options


def main() -> int:
    """Run one case, or all of them. Exit status 0 when every verdict is good."""
    parser = argparse.ArgumentParser(
        prog="scripts/soak",
        description="Long runs of a real daemon of their own, on real containers; no other daemon is touched. "
        "Progress goes to stderr, the report to stdout.",
        epilog="cases:\n" + "\n".join(f"  {case.name:12} {case.says}" for case in CASES.values())
        + "\n\nexamples:\n  scripts/soak kill-matrix --only engine\n  scripts/soak calls --count 100000 --json\n"
        "  scripts/soak frames --seconds 3600 --seed 7\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("case", choices=[*CASES, "all"], metavar="CASE", help="a case below, or `all`")
    parser.add_argument("--count", type=int, default=0, help="how many (calls, frames, rounds); each case has its own")
    parser.add_argument("--seconds", type=float, default=0, help="or for how long, where a case can be bounded so")
    parser.add_argument("--only", default="", help="a part of the case: a victim, a step, or victim:step")
    parser.add_argument(
        "--seed", type=int, default=0, help="of everything random; printed, so that a run can be repeated"
    )
    docker = "kill-matrix: also a Docker engine of its own, on a bridge of its own, that is stopped and killed"
    parser.add_argument("--dockerd", action="store_true", help=f"{docker} (the shared one never is)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    given = parser.parse_args()
    seed = given.seed or int(time.time())
    good = True
    for name in CASES if given.case == "all" else (given.case,):
        began = time.monotonic()
        options = Options(given.count, given.seconds, given.only, seed, given.dockerd)
        report = CASES[name].run(options)
        report |= {"case": name, "seed": seed, "seconds": round(time.monotonic() - began, 1)}
        good = good and report["good"]
        if given.json:
            print(json.dumps(report, indent=2))
        else:
            for line in report.pop("table", ()):
                print(line)
            print("\n".join(f"{key}: {value}" for key, value in report.items()))
            print("verdict:", "good" if report["good"] else "NOT GOOD")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
