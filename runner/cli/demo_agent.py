"""The demo's agent: plain Python and no model, a scripted loop over `dispatch` as a model's loop would be.

Started by `runner exec`, as its own user, with a token on an inherited descriptor and nothing else. Imports only
the client.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

from runner.cli import demo_filters, demo_network
from runner.client import ToolFailed, connect
from runner.errors import RunnerError
from runner.wire.agent import SessionFacts

REQUEST = "Tell me how this source tree is built and who changed it; leave a report in reports/."

TABLE = """
import collections, pathlib, re
sizes = collections.Counter()
for path in pathlib.Path("source").rglob("*.py"):
    parts = path.relative_to("source").parts
    sizes["/".join(parts[:2]) if len(parts) > 2 else parts[0]] += len(path.read_text(errors="replace").splitlines())
print(f"{'part':<28} {'lines of Python':>15}")
for part, lines in sizes.most_common(8):
    print(f"{part:<28} {lines:>15,}")
print(f"{'all':<28} {sum(sizes.values()):>15,}")
history = pathlib.Path("HISTORY.txt")
if history.exists():
    text = history.read_text(errors="replace")
    months = collections.Counter(re.findall(r"^\\w+ (\\d{4}-\\d\\d)-\\d\\d ", text, re.M))
    print(f"\\n{'month':<28} {'commits':>15}")
    for month, count in sorted(months.items())[-6:]:
        print(f"{month:<28} {count:>15,}")
"""


def scene(title: str) -> None:
    """A heading."""
    print(f"\n\033[1m── {title}\033[0m" if sys.stdout.isatty() else f"\n── {title}", flush=True)


def say(text: str, mark: str = "   ") -> None:
    """Some lines, indented; one that is too long for the terminal goes on below, for a while."""
    room = (shutil.get_terminal_size((154, 24)).columns if sys.stdout.isatty() else 154) - len(mark) - 1
    for line in text.rstrip().splitlines()[:14]:
        wrapped = textwrap.wrap(line, room, max_lines=3, placeholder=" …", drop_whitespace=False) or [""]
        for part in wrapped:
            print(f"{mark} {part.rstrip()}", flush=True)
            mark = " " * len(mark)


class Agent:
    """What a model's loop does: a tool call out, a tool result back, as text."""

    def __init__(self) -> None:
        self.runner = connect(session=SessionFacts(original_request=REQUEST, model="scripted", client="runner demo"))
        self.tools = self.runner.tools()
        self.failures = 0
        self._heard = Path(os.environ["RUNNER_DEMO_HEARD"]).open("a", encoding="utf-8")  # noqa: SIM115 - as long as we

    def heard(self, **what: str) -> None:
        """Keep what was heard, for whoever looks through all of it."""
        self._heard.write(json.dumps(what) + "\n")
        self._heard.flush()

    def run(self, what: str, code: str, *expect: str, tool: str = demo_network.TOOL) -> Any:
        """Run a program, and give what came of it; its answer must hold all of `expect`."""
        result = self.runner.call(tool, {"code": code})
        answer = result.text + result.stderr.decode("utf-8", "replace")
        self.heard(what=what, call=result.call, answer=answer)
        self.told(what, answer, *expect)
        return result

    def told(self, what: str, answer: str, *expect: str) -> None:
        """Say what was heard; it must hold all of `expect`."""
        say(what, " →")
        say(answer, " ←")
        if not all(word in answer for word in expect):
            self.failures += 1
            say(f"UNEXPECTED: the demo counted on {' and '.join(map(repr, expect))} here", " ✗")

    def use(self, tool: str, expect: str = "", show: bool = True, **arguments: Any) -> str:
        """Dispatch one call as a model would ask for it. `expect` is a word that the answer must hold."""
        shown = json.dumps(arguments)
        say(f"{tool} {shown if len(shown) < 110 else shown[:80] + '…'}", " →")
        call = {"type": "tool_use", "id": "toolu_demo", "name": tool, "input": arguments}
        answer = self.tools.dispatch(call)
        text = str(answer["content"])
        self.heard(what=tool, answer=text)
        if show or answer["is_error"]:
            say(text, " ←")
        if expect not in text or bool(answer["is_error"]) != bool(expect):
            self.failures += 1
            say(f"UNEXPECTED: the demo counted on {expect!r} here", " ✗")
        return text


def work(agent: Agent, source: Path) -> None:
    """Real work on real input."""
    scene("2. Work: a source tree goes into the sandbox, is searched, measured and reported on")
    put = agent.runner.put("source", source / "tree", omit_links=True)
    say(f"workspace_put source/: {put.value['files']} files, {put.value['bytes']:,} bytes, as a tar stream", " →")
    if (source / "HISTORY.txt").exists():
        agent.runner.put("HISTORY.txt", source / "HISTORY.txt")
        say("workspace_put HISTORY.txt", " →")
    agent.use("fs_list", path="source")
    found = json.loads(agent.use("fs_search", show=False, pattern=r"^class \w+", path="source", glob="*.py", limit=200))
    say(
        f"{len(found['matches'])} classes in {found['files']} files; the first: {found['matches'][0]['text'].strip()}",
        " ←",
    )
    table = agent.use("python_run", code=TABLE)
    report = f"# Report\n\n{REQUEST}\n\n```\n{table}\n```\n"
    agent.use("fs_write", path="reports/report.md", content=report, create_parents=True)
    agent.use("fs_read", path="reports/report.md", limit=90)


def stream(agent: Agent) -> None:
    """Output arrives while the tool still runs."""
    scene("3. A long run, streamed while it happens")
    script = "for i in 1 2 3 4 5; do echo step $i of 5; sleep 0.3; done"
    say(f"shell_run {script}", " →")
    with agent.runner.stream("shell_run", {"argv": ["sh", "-c", script]}) as running:
        for chunk in running:
            say(chunk.data.decode(), " ←")
        result = running.result()
    say(
        f"{result.outcome.kind}, exit code {result.outcome.exit_code}; "
        f"receipt {result.receipt[:16]}… at position {result.position}"
    )


def refusals(agent: Agent) -> None:
    """Three ways to be told no, each with what would be allowed."""
    scene("4. Refusals: outside the token, outside a constraint, against the policy")
    agent.use("workspace_get", expect="not_granted", path="source", kind="tree")
    agent.use("fs_write", expect="constraint", path="source/setup.py", content="import os")
    agent.use("shell_run", expect="no-downloads", argv=["curl", "https://example.com/install.sh"])


def runaways(agent: Agent) -> None:
    """Tools that would not stop by themselves."""
    scene("5. Runaways: a deadline, a memory ceiling, and what they leave behind")
    say("python_run: a loop without end, and a deadline of one second", " →")
    late = agent.runner.call("python_run", {"code": "while True: pass"}, deadline=1.0)
    say(f"{late.outcome.kind}: {late.outcome.reason} ({late.outcome.usage.wall_us / 1e6:.2f} s)", " ←")
    say("python_run: takes memory until there is none", " →")
    hungry = agent.runner.call("python_run", {"code": "hoard = []\nwhile True: hoard.append(bytearray(1 << 24))"})
    say(f"{hungry.outcome.kind}: {hungry.outcome.reason or 'the memory ceiling of the sandbox'}", " ←")
    say("shell_run: leaves a process in the background", " →")
    left = agent.runner.call("shell_run", {"argv": ["sh", "-c", "sleep 600 & echo started; setsid sleep 600 &"]})
    say(f"{left.outcome.kind}; {left.outcome.usage.leftover} processes it left were killed with it", " ←")
    for outcome, kind in ((late.outcome, "timed_out"), (hungry.outcome, "oom"), (left.outcome, "exited")):
        if outcome.kind != kind:
            agent.failures += 1
            say(f"UNEXPECTED: {outcome.kind} where the demo counted on {kind}", " ✗")


def main() -> int:
    """Play every scene; the exit status is the number of things that went otherwise than told."""
    agent = Agent()
    scene("1. What this agent may do")
    say(f"agent {agent.runner.agent}, task {agent.runner.task}, uid {os.getuid()}; the token came on a descriptor")
    granted = ", ".join(tool.name for tool in agent.tools)
    say(f"its token grants: {granted}")
    say(f"fs_write only where its path {_narrowed(agent)}")
    try:
        work(agent, Path(os.environ["RUNNER_DEMO_SOURCE"]))
        stream(agent)
        refusals(agent)
        runaways(agent)
        scene("6. A service that needs a key: the tool uses it, and nobody here holds it")
        demo_network.service(agent, say)
        scene("7. What must not pass: a key that a tool prints, a customer's record, a page that gives orders")
        demo_filters.filters(agent, say)
        agent.runner.end_task()
    except (RunnerError, ToolFailed) as error:
        agent.failures += 1
        say(f"UNEXPECTED, and the agent cannot go on: {error}", " ✗")
    return agent.failures


def _narrowed(agent: Agent) -> str:
    """What the token's constraint adds to the description of the argument, as a model reads it."""
    described = str(agent.tools["fs_write"].parameters["properties"]["path"]["description"])
    return described.rpartition("(")[2].rstrip(")")


if __name__ == "__main__":
    sys.exit(main())
