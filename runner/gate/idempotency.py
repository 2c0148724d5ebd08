"""Same key, same arguments: the same call. Same key, other arguments: a conflict. Never a second run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from runner.errors import Refusal, RunnerError, refuse
from runner.gate.calls import Calls, Finished, Reply, Running
from runner.gate.entries import call_digest
from runner.ledger import entry as entries
from runner.model import Authenticated, Marked, Outcome, Receipt, Usage


class KeptCall(Protocol):
    """A call that state remembers."""

    @property
    def call(self) -> str:
        """Its id."""

    @property
    def arguments(self) -> str:
        """The plain digest of what it was called with; "" when a crash lost it."""

    @property
    def outcome(self) -> entries.Outcome | None:
        """Its sealed end, None while it has none."""

    @property
    def position(self) -> int:
        """Where in the ledger its outcome lies."""

    @property
    def digest(self) -> str:
        """The receipt's digest."""

    @property
    def value(self) -> Any:
        """A python tool's result."""

    @property
    def lost(self) -> bool:
        """Whether it returned one that is not here any more."""


class Remembered(Protocol):
    """State, as far as this module needs it."""

    def kept_by_key(self, task: str, tool: str, key: str) -> KeptCall | None:
        """The call that first used a key."""

    def kept(self, task: str, call: str) -> KeptCall | None:
        """A kept call of a task."""


Earlier = Running | KeptCall


def earlier(authenticated: Authenticated, calls: Calls, state: Remembered) -> Earlier | None:
    """The call that this one repeats, or None. Raises `RunnerError` (conflict, interrupted)."""
    key, task, tool = authenticated.call.idempotency_key, authenticated.principal.task, authenticated.tool
    if not key:
        return None
    found: Earlier | None = calls.by_key(task, tool, key)
    if found is None:
        kept = state.kept_by_key(task, tool, key)
        if kept is None:
            return None
        found = calls.find(task, kept.call) or kept
    if found.arguments and found.arguments != call_digest(tool, authenticated.arguments):
        raise refuse(
            "conflict", f"key `{key}` was used with other arguments by call {found.call}", field="idempotency_key"
        )
    return found


def finished(kept: KeptCall) -> Finished:
    """What is known of a remembered call. Raises `RunnerError`: interrupted when a crash ended it, unavailable when
    its process never existed, unknown_call when the result that it had is gone."""
    outcome = kept.outcome
    if outcome is None or outcome.outcome == "interrupted":
        raise refuse("interrupted", f"call {kept.call} had begun when a part of the daemon died")
    if kept.lost:
        raise refuse(
            "unknown_call",
            f"call {kept.call} ended as {outcome.outcome}; its result is not kept any more: it was pruned, or a crash "
            "lost it",
            next_step="a new idempotency key runs it again",
        )
    if outcome.outcome == "unavailable":
        raise refuse("unavailable", outcome.reason or f"the process of call {kept.call} never existed")
    return Finished(
        outcome=Outcome(
            kind=outcome.outcome,  # type: ignore[arg-type] # an entry's kinds are the model's; the ledger keeps them as text
            exit_code=outcome.exit_code,
            signal=outcome.signal,
            reason=outcome.reason,
            usage=Usage() if outcome.used is None else msgspec.convert(outcome.used, Usage, from_attributes=True),
        ),
        receipt=Receipt(call=kept.call, digest=kept.digest, position=kept.position, durable=True),
        value=kept.value,
        stdout=outcome.stdout.size if outcome.stdout is not None else 0,
        stderr=outcome.stderr.size if outcome.stderr is not None else 0,
        filtered=outcome.filtered,
        labels=outcome.labels,
        sources=outcome.sources,
        marked=tuple(msgspec.convert(each, Marked, from_attributes=True) for each in outcome.marked),
    )


Delivered = Callable[[str], None]  # told the id of a call whose output reached the agent


async def replay(found: Earlier, reply: Reply, delivered: Delivered) -> None:
    """Answer with the call that this one repeats: its stored result, or its result when it comes."""
    if isinstance(found, Running):
        reply.follows(found)
    await reply.accepted(found.call, replayed=True)
    if isinstance(found, Running):
        await follow(found, reply, delivered, stdout=0, stderr=0)
    else:
        await stored(found, reply, delivered)


async def stored(kept: KeptCall, reply: Reply, delivered: Delivered) -> None:
    """Answer with what state remembers. Raises as `finished` does."""
    await _result(kept.call, finished(kept), reply, delivered)


async def follow(running: Running, reply: Reply, delivered: Delivered, *, stdout: int, stderr: int) -> None:
    """Send a detached call's kept output from these offsets on, then its result. Direct calls have no kept output."""
    place, starts = (0, 0), {"stdout": stdout, "stderr": stderr}
    while not reply.gone:
        chunk, place = running.kept.read(place)
        if chunk is not None:
            skip = max(0, starts[chunk.stream] - chunk.offset)
            if skip < len(chunk.data):
                rest = msgspec.structs.replace(chunk, offset=chunk.offset + skip, data=chunk.data[skip:])
                if await reply.output(rest):
                    delivered(running.call)
        elif running.finished.done():
            await answer(running, reply, delivered)
            return
        else:
            await running.next_news()


async def answer(running: Running, reply: Reply, delivered: Delivered) -> None:
    """Wait for the end of a call, or of the client, and answer with it. Raises the refusal that the call ended in."""
    while not running.finished.done():
        if reply.gone:
            return
        await running.next_news()
    known = running.finished.result()
    if isinstance(known, Refusal):
        raise RunnerError(known)
    await _result(running.call, known, reply, delivered)


async def _result(call: str, known: Finished, reply: Reply, delivered: Delivered) -> None:
    if known.value is not None:
        delivered(call)
    await reply.result(call, known)
