"""What gate writes to the ledger: each step's value as an entry, and the one way to append it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from runner.errors import RunnerError, refuse
from runner.gate.authorize import SessionView
from runner.ledger import entry as entries
from runner.model import Authenticated, CallPlan, Decision, Marked, Measured, Outcome, Principal, Receipt
from runner.wire.agent import SessionFacts
from runner.wire.recorder import WITH_ENTRY, Appended, RecorderCaller

_canonical = msgspec.json.Encoder(order="sorted")


_FIGURES = ("cpu_system_us", "cpu_user_us", "leftover", "max_rss_kib", "wall_us")


class Caller(Protocol):
    """Who calls, beyond its name: `runner.gate.provenance.Provenance`, once it is ready."""

    peer: entries.PeerProcess
    profile: str
    delegation: tuple[entries.Delegated, ...]
    authority: entries.Content | None


class Filter(Protocol):
    """What texts and values pass before they are recorded: `runner.stream.texts.Texts`."""

    counts: Counter[str]
    labels: set[str]

    def text(self, text: str) -> str:
        """A text as it may be recorded."""

    def value(self, value: Any) -> Any:
        """A value as it may be recorded; the same object when nothing was found in it."""

    def again(self, value: Any) -> Any:
        """As `value`, for what was counted already in another shape."""


class Follower(Protocol):
    """State, which follows the ledger."""

    def apply(self, position: int, entry: entries.AnyEntry, *, arguments: str = "", value: bytes | None = None) -> None:
        """Apply one entry just written."""


class Journal:
    """Append, then let state follow. A ledger that does not take an entry is fatal: `on_fatal` stops the daemon."""

    def __init__(
        self,
        recorder: RecorderCaller,
        state: Follower,
        stamp: Callable[[], str],
        salt: Callable[[], bytes],
        on_fatal: Callable[[RunnerError], None],
    ) -> None:
        self.recorder = recorder
        self._state = state
        self.stamp = stamp
        self.salt = salt  # 16 random bytes
        self._on_fatal = on_fatal
        self.cautious = False  # wait for every fsync: on a full disk, recorder finds room before state needs it

    async def write(
        self,
        entry: entries.AnyEntry,
        *,
        sync: bool = False,
        arguments: str = "",
        value: bytes | None = None,
        contents: tuple[bytes, ...] = (),
    ) -> Appended:
        """Append one entry, with the `contents` it names. Raises `RunnerError`: (arguments) for an entry too large to
        be one, with nothing written; any other after it has stopped the daemon."""
        data = _encoded(entry)
        try:
            sync = sync or self.cautious
            written = await self.recorder.append(data, sync=sync, contents=await self._ahead(contents))
            self._state.apply(written.position, entry, arguments=arguments, value=value)
        except RunnerError as error:
            self._on_fatal(error)
            raise
        return written

    async def seal(
        self,
        outcome: entries.Outcome,
        *,
        sync: bool,
        value: bytes | None = None,
        contents: tuple[bytes, ...] = (),
    ) -> Receipt:
        """Append a call's outcome, with the `contents` it names; its receipt. Raises `RunnerError` after it has stopped
        the daemon."""
        try:
            data, sync = entries.encode(outcome), sync or self.cautious
            receipt = await self.recorder.seal(outcome.call, data, sync=sync, contents=await self._ahead(contents))
            self._state.apply(receipt.position, outcome, value=value)
        except RunnerError as error:
            self._on_fatal(error)
            raise
        return receipt

    async def keep(self, data: bytes, salt: bytes = b"") -> entries.Content:
        """Put content into the store ahead of the entry that names it."""
        kept, named = content(data, salt)
        await self.recorder.store(kept)
        return named

    async def _ahead(self, contents: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """What travels with the entry; larger content goes ahead of it."""
        for each in contents:
            if len(each) > WITH_ENTRY:
                await self.recorder.store(each)
        return tuple([each for each in contents if len(each) <= WITH_ENTRY])


def content(data: bytes, salt: bytes = b"") -> tuple[bytes, entries.Content]:
    """What is kept for `data`, and how an entry names it."""
    kept = salt + data
    return kept, entries.Content(digest=hashlib.sha256(kept).hexdigest(), size=len(data))


def _encoded(entry: entries.AnyEntry) -> bytes:
    """What somebody else's words made too large is that one's fault: refused, and no reason to stop."""
    try:
        return entries.encode(entry)
    except RunnerError as error:
        raise refuse(
            "arguments",
            "what the call says of itself does not fit into an entry of the ledger",
            next_step="shorten intent, because, and the session's original request",
            detail=error.refused.reason,
        ) from None


def canonical(value: Any) -> bytes:
    """Arguments and plans as they are kept: JSON with sorted keys."""
    return _canonical.encode(value)


def call_digest(tool: str, arguments: dict[str, Any]) -> str:
    """The plain digest that binds an idempotency key to what it was first used for. Never leaves gate."""
    return hashlib.sha256(tool.encode() + b"\n" + canonical(arguments)).hexdigest()


def who(principal: Principal) -> entries.Who:
    """Identity as entries hold it."""
    return entries.Who(
        agent=principal.agent,
        owner=principal.owner,
        task=principal.task,
        session=principal.session,
        asserted=principal.asserted,
    )


def call_entry(
    authenticated: Authenticated,
    decision: Decision,
    *,
    call: str,
    time: str,
    arguments: entries.Content,
    tool_digest: str,
    facts: SessionFacts,
    provenance: Caller,
    context: SessionView,
    untrusted: tuple[str, ...],
    plan: entries.Planned | None,
    filter_: Filter,
    carries: tuple[str, ...] = (),
    copies: tuple[str, ...] = (),
) -> entries.Call:
    """The entry of a decided call. What its agent says goes through the filter that its arguments went through."""
    asked, text = authenticated.call, filter_.text
    intent, because = text(asked.intent), tuple([text(each) for each in asked.because])
    return entries.Call(
        time=time,
        call=call,
        who=who(authenticated.principal),
        peer=provenance.peer,
        chain=authenticated.chain,
        leaf=authenticated.leaf_digest,
        proof=authenticated.proof_id,
        profile=provenance.profile,
        authority=provenance.authority,
        delegation=provenance.delegation,
        context=entries.Context(
            calls=context.calls,
            denied=context.denied,
            untrusted=context.untrusted,
            depth=context.depth,
            tools=context.tools,
            labels=context.labels,
            forgotten=context.forgotten,
        ),
        tool=authenticated.tool,
        tool_digest=tool_digest,
        arguments=arguments,
        decision=entries.Decided(
            effect=decision.effect,
            reason=decision.reason[:1000],
            rules=decision.rules,
            missing=decision.missing,
            code=decision.code,
            field=decision.field[:200],
            policy=decision.policy,
            obligations=decision.obligations,
        ),
        plan=plan,
        intent=intent,
        because=because,
        carries=carries,
        copies=copies,
        untrusted=untrusted,
        retry_of=text(asked.retry_of),
        idempotency_key=asked.idempotency_key,
        traceparent=text(asked.traceparent),
        detach=asked.detach,
        request=text(facts.original_request)[:1000],
        model=text(f"{facts.model} {facts.model_version}".strip())[:200],
        client=text(facts.client)[:200],
        filtered=dict(sorted(filter_.counts.items())),
        labels=tuple(sorted(filter_.labels)),
    )


def planned(plan: CallPlan, profile: str, kept: entries.Content) -> entries.Planned:
    """The plan as its call's entry names it."""
    return entries.Planned(
        sandbox=plan.sandbox,
        isolation=plan.isolation,
        profile=profile,
        plan=kept,
        wall_ms=plan.wall_ms,
        output=plan.output,
    )


def outcome_entry(
    outcome: Outcome,
    *,
    call: str,
    task: str,
    time: str,
    stdout: entries.Stream | None,
    stderr: entries.Stream | None,
    result: entries.Content | None,
    walls: tuple[str, ...],
    workspace: entries.Workspace | None = None,
    network: entries.Network | None = None,
    secrets: tuple[entries.SecretUse, ...] = (),
    filtered: dict[str, int] | None = None,
    labels: tuple[str, ...] = (),
    raw: entries.Raw | None = None,
    sources: tuple[str, ...] = (),
    marked: tuple[Marked, ...] = (),
) -> entries.Outcome:
    """The entry of a call's end."""
    used = outcome.usage
    return entries.Outcome(
        time=time,
        call=call,
        task=task,
        outcome=outcome.kind,
        exit_code=outcome.exit_code,
        signal=outcome.signal,
        reason=outcome.reason,
        used=entries.Used(
            wall_us=used.wall_us,
            cpu_user_us=used.cpu_user_us,
            cpu_system_us=used.cpu_system_us,
            max_rss_kib=used.max_rss_kib,
            leftover=used.leftover,
            source=used.source,
            sources={name: used.source for name in _FIGURES if getattr(used, name)},
        ),
        stdout=stdout,
        stderr=stderr,
        result=result,
        walls=walls,
        workspace=workspace,
        network=network,
        secrets=secrets,
        filtered=filtered or {},
        labels=labels,
        raw=raw,
        sources=sources,
        marked=tuple(entries.Marked(stream=each.stream, start=each.start, end=each.end) for each in marked),
    )


def isolation(measured: Measured) -> entries.Isolation:
    """What engine measured, as the sandbox's entry holds it."""
    return entries.Isolation(
        image=measured.image,
        runtime=measured.runtime,
        uid=measured.uid,
        seccomp=measured.seccomp,
        seccomp_filters=measured.seccomp_filters,
        no_new_privs=measured.no_new_privs,
        capabilities=measured.capabilities,
        namespaces=tuple(sorted(kind for kind, differs in measured.namespaces.items() if differs)),
        interfaces=measured.interfaces,
        read_only_root=measured.read_only_root,
        memory_limit=measured.memory_limit,
        swap_limit=measured.swap_limit,
        pids_limit=measured.pids_limit,
        cpu_quota_milli=measured.cpu_quota_milli,
        cgroup_version=measured.cgroup_version,
        accepted=measured.accepted,
        workspace=measured.workspace,
        workspace_size=measured.workspace_size,
        workspace_inodes=measured.workspace_inodes,
    )
