"""Case P07: calls of several agents in a race, some of them forbidden. What was decided is what runs, or nothing."""

from __future__ import annotations

import dataclasses
import json
import threading
from typing import TYPE_CHECKING

from runner.client.errors import CallError
from runner.evidence.content import SALT, ContentReader
from runner.evidence.read import Ledger, load_verifier
from runner.ledger import entry as entries
from runner.review.recorded import recorded

if TYPE_CHECKING:
    from house import Daemon

AGENTS = 5


@dataclasses.dataclass
class Told:
    """What the agents saw: call id and the word that it printed, how many were refused, and what was not as asked."""

    ran: dict[str, str] = dataclasses.field(default_factory=dict)
    refused: int = 0
    wrong: list[str] = dataclasses.field(default_factory=list)


def run(daemon: Daemon, each: int) -> Told:
    """`each` calls by each of five agents at a time, every third one forbidden by policy."""
    told, lock = Told(), threading.Lock()

    def agent(number: int) -> None:
        with daemon.connect() as runner:
            for count in range(each):
                forbidden = count % 3 == 0
                word = f"w{number}-{count}" + (" curl http://x" if forbidden else "")
                try:
                    done = runner.call("shell_run", {"argv": ["printf", "%s", word]})
                    with lock:
                        told.ran[done.call] = word
                        if done.stdout != word.encode() or forbidden:
                            told.wrong.append(word)
                except CallError as error:
                    with lock:
                        told.refused += 1
                        if not forbidden or error.rule != "no-downloads":
                            told.wrong.append(f"{word}: {error}")

    threads = [threading.Thread(target=agent, args=(number,)) for number in range(AGENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


def compared(daemon: Daemon, told: Told) -> tuple[int, list[str]]:
    """How many calls that ran were found recorded, and those whose question or plan was not the word that ran."""
    daemon.wait(lambda: told.ran.keys() <= {call.call for call in daemon.entries(entries.Call)}, 10)
    content = ContentReader(daemon.state / "content")
    ledger = Ledger(daemon.state / "ledger", load_verifier("", daemon.state / "ledger"))
    checked, wrong = 0, []
    try:
        for each in recorded(ledger, content):
            if each.call.call not in told.ran:
                continue
            checked += 1
            words = ["printf", "%s", told.ran[each.call.call]]
            plan = content.get(each.call.plan.plan.digest, each.position) if each.call.plan is not None else None
            asked = each.point.question.arguments if each.point is not None else None
            if asked != {"argv": words} or plan is None or json.loads(plan[SALT:])["argv"] != words:
                wrong.append(f"{each.call.call}: {asked}")
    finally:
        content.close()
    return checked, wrong
