"""What a call's output passes before anyone sees it: issued secrets → patterns → hygiene → inspection → cap.

Pure: bytes in, bytes out, bounded memory. Redaction comes before the cap, so that no cut can split what would have been
found; the cap counts what is delivered. Whatever a stage raises ends the call: nothing leaves unfiltered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import msgspec

from runner.model import Action, Marked
from runner.stream.actions import Actions
from runner.stream.consult import UNINSPECTED, Consultation
from runner.stream.escrow import Escrow, Place
from runner.stream.exact import ExactStage
from runner.stream.found import Found
from runner.stream.hygiene import Clean, HygieneStage
from runner.stream.patterns import Patterns, PatternStage
from runner.stream.result import structured
from runner.stream.secrets import Secrets, Values, needles
from runner.stream.stage import Name, Out, Stage
from runner.stream.texts import Memo, Texts
from runner.stream.windows import UNTRUSTED, Inspection


class Listener(Protocol):
    """Learns what goes to the agent: that its words are known again where they go out."""

    def heard(self, place: Place, data: bytes, labels: Collection[str]) -> None:
        """This piece of clean text is delivered next; `labels` are those found in the call's output so far."""


class Cap:
    """Cuts the output of one call, both streams together, at a number of bytes."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self.hit = False

    def take(self, data: bytes, encoding: str = "") -> bytes:
        """What of `data` still fits; of base64, what it stands for counts. `hit` is set once anything did not."""
        size = len(data) // 4 * 3 if encoding else len(data)
        if size <= self._left and not self.hit:
            self._left -= size
            return data
        kept = data[: self._left // 3 * 4 if encoding else self._left]
        self._left, self.hit = 0, True
        return kept


class _Fitted(Actions):
    """Replaces what is found by as many bytes: in data, what comes after it must stay where it is."""

    def __init__(self, actions: Actions) -> None:
        self._whole = actions

    def of(self, label: str) -> Action:
        """As the actions that it makes fit."""
        return self._whole.of(label)

    def replace(self, found: Found, data: bytes) -> bytes:
        """Theirs, cut or filled up."""
        size = found.end - found.start
        return self._whole.replace(found, data)[:size].ljust(size, b"*")


class CallFilter(Texts):
    """The filter of one call: its streams, and by `text` and `value` everything else that comes of it.

    `secrets` may grow while the call runs: a neighbour in the same task is given one. What came before cannot hold it,
    so a stage for it goes in front, and what waits in the others waits on: perhaps it is the beginning of theirs.
    With `data`, stdout is no text."""

    def __init__(
        self,
        secrets: Secrets,
        patterns: Patterns,
        actions: Actions,
        *,
        limit: int,
        data: bool = False,
        inspection: Callable[[Actions], Inspection] | None = None,
        consultation: Callable[[Actions], Consultation] | None = None,
        listeners: Sequence[Listener] = (),
        raw: Escrow | None = None,
        memo: Memo | None = None,
    ) -> None:
        super().__init__(lambda: secrets.needles, (patterns,), actions, memo)
        self._secrets = secrets
        self._data = data
        self._following = secrets.needles
        self._exact: list[tuple[ExactStage, Values]] = []  # each with what it finds; the newest first
        if self._following:
            self._exact.append((ExactStage(self._following, data=data), secrets.values()))
        streamed = _Fitted(actions) if data else actions
        self._others: list[Stage] = [PatternStage(patterns, streamed)]
        self.inspection = inspection(streamed) if inspection is not None else None  # where nobody vouches for it
        self._consultation = consultation(streamed) if consultation is not None else None
        self._stages: list[Stage] = [*(stage for stage, _ in self._exact), *self._others]
        self._hygiene = HygieneStage(data=data)
        self._cap = Cap(limit)
        self._listeners = tuple(listeners)
        self.raw = raw  # takes output as it comes, before any filter

    @property
    def capped(self) -> bool:
        """Whether output was cut, or more came than is kept of it as it came; the call is to be killed."""
        return self._cap.hit or (self.raw is not None and self.raw.full)

    @property
    def waits_ms(self) -> int:
        """How long a quiet lets something go; 0 when nothing waits."""
        waits = [each.waits_ms for each in self._stages]
        waits.append(self._hygiene.waits_ms)
        return min((each for each in waits if each), default=0)

    def take(self, stream: Name, data: bytes) -> list[Clean]:
        """A raw piece: what may go on now."""
        if self.raw is not None:
            if self.raw.full:
                self.raw.lose(len(data))
                return []
            self.raw.take(stream, data)
        before = [] if self._secrets.needles is self._following else self._follow()
        out: Out = [(stream, data)]
        for stage in self._stages:
            out = [piece for name, part in out for piece in stage.take(name, part)]
        return self._shown([clean for name, part in before + out for clean in self._hygiene.take(name, part)])

    def pause(self, quiet_ms: int) -> list[Clean]:
        """Nothing came for so long: what need not wait longer."""
        out: Out = []
        for stage in self._stages:
            out = [piece for name, part in out for piece in stage.take(name, part)] + stage.pause(quiet_ms)
        shown = [clean for name, part in out for clean in self._hygiene.take(name, part)]
        return self._shown(shown + self._hygiene.pause(quiet_ms))

    def close(self) -> list[Clean]:
        """The call is over: everything that waited."""
        out: Out = []
        for stage in self._stages:
            out = [piece for name, part in out for piece in stage.take(name, part)] + stage.close()
        shown = [clean for name, part in out for clean in self._hygiene.take(name, part)]
        return self._shown(shown + self._hygiene.close(), over=True)

    async def consult(self) -> list[Clean]:
        """Everything has come, and is filtered: what waited for inspectors outside the daemon. Once, after `close`."""
        if self._consultation is None:
            return []
        found = await self._consultation.close()
        self._verdict(self._consultation)
        return self._passed(found)

    async def consult_value(self, value: Any, kept: bytes | None) -> tuple[Any, bytes | None]:
        """A structured result that has been filtered, as `result` gives it, once those have been asked about it."""
        if self._consultation is None or kept is None:
            return value, kept
        await self._consultation.value(value)
        self._verdict(self._consultation)
        return (None if self.blocked or self.held else value), (None if self.blocked else kept)

    @property
    def uninspected(self) -> str:
        """Why an inspector has not seen the output, where that keeps it back."""
        problem = self._consultation.problem if self._consultation is not None else ""
        return problem if UNINSPECTED in (self.blocked, self.held) else ""

    def result(self, raw: bytes | None, limit: int) -> tuple[Any, bytes | None, str]:
        """A python tool's structured result: as it may be told, as it may be kept, and what is wrong with it. Nothing
        of one that is blocked; one that is held back is kept, and not told."""
        if raw is not None and self.raw is not None:
            self.raw.take("value", raw)
        value, problem = structured(raw, limit)
        if raw is None or problem:
            return None, None, problem
        clean = self.value(value)
        if self.inspection is not None:
            clean = self.inspection.value(clean)
            self._verdict(self.inspection)
        kept = raw if clean is value else msgspec.json.encode(clean)
        self._judge()
        if self.blocked or self.held:
            return None, None if self.blocked else kept, ""
        for listener in self._listeners:
            listener.heard("value", kept, self.all_labels)
        return clean, kept, ""

    def found(self) -> dict[str, int]:
        """How often each rule found something in streams, texts and values together."""
        total = Counter(self.counts)
        for stage in self._stages:
            total.update(stage.counts)
        total.update(self._hygiene.counts)
        for part in (self.inspection, self._consultation):
            if part is not None:
                total.update(part.counts)
        return {rule: total[rule] for rule in sorted(total)}

    def came_from(self, reached: Sequence[str]) -> tuple[tuple[str, ...], tuple[Marked, ...]]:
        """The call has reached these hosts: who has a part in its output that nobody vouches for, and which parts of
        it speak to a model. With the former it is labelled `untrusted`."""
        if self.inspection is None:
            return (), ()
        if sources := self.inspection.origin.sources(reached):
            self.labels.add(UNTRUSTED)
        others = self._consultation.marked if self._consultation is not None else []
        return sources, tuple(self.inspection.marked + others)

    @property
    def all_labels(self) -> frozenset[str]:
        """The labels of all of it."""
        inspected = [part.labels for part in (self.inspection, self._consultation) if part is not None]
        return frozenset(self.labels).union(*inspected, *(stage.labels for stage in self._stages))

    def _follow(self) -> Out:
        """The task was given more secrets. What waits in a stage waits on, unless all that it finds is forgotten."""
        self._following, known = self._secrets.needles, self._secrets.values()
        out: Out = []
        for number, (stage, values) in enumerate(self._exact):
            if not values & known:
                rest = stage.close()
                for later in self._stages[number + 1 :]:
                    rest = [piece for name, part in rest for piece in later.take(name, part)]
                out += rest
                self.counts.update(stage.counts)
                self.labels |= stage.labels
        self._exact = [each for each in self._exact if each[1] & known]
        if new := known.difference(*(values for _, values in self._exact)):
            self._exact.insert(0, (ExactStage(needles(new), data=self._data), new))
        self._stages = [*(stage for stage, _ in self._exact), *self._others]
        return out

    def _verdict(self, part: object) -> None:
        self.blocked = self.blocked or getattr(part, "blocked", "")
        self.held = self.held or getattr(part, "held", "")

    def _judge(self) -> None:
        """What is held back for somebody to look at must be kept for somebody: else it is withheld for good."""
        if self.held and self.raw is None:
            self.blocked = self.blocked or self.held

    def _shown(self, cleans: list[Clean], *, over: bool = False) -> list[Clean]:
        if self.inspection is not None:
            cleans = self.inspection.take(cleans) + (self.inspection.close() if over else [])
            self._verdict(self.inspection)
        if self._consultation is not None:
            cleans = self._consultation.take(cleans)
            self._verdict(self._consultation)
        return self._passed(cleans)

    def _passed(self, cleans: list[Clean]) -> list[Clean]:
        for stage in self._stages:
            self._verdict(stage)
        self._judge()
        if self.blocked:
            return []
        listeners = () if self.held else self._listeners
        found = []
        for clean in cleans:
            data = self._cap.take(clean.data, clean.encoding)
            if data:
                found.append(clean if data is clean.data else clean._replace(data=data))
                for listener in listeners:
                    listener.heard(clean.stream, data, self.all_labels)
        return found
