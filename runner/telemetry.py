"""One span per call, by OpenTelemetry's GenAI conventions. The only importer of opentelemetry.

Spans are telemetry, not evidence: they hold names, outcomes and times, never arguments, outputs or tokens. With
`export = "none"` no span is made at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from runner.model import Authenticated, Decision

# Numbers of OTLP, which writes enums as integers.
_INTERNAL, _ERROR = 1, 2
_KNOWN_ORIGIN, _REMOTE = 0x100, 0x200


class Span:
    """The span of one call; steps are events on it. Without a tracer it does nothing."""

    def __init__(self, tracer: trace.Tracer | None, traceparent: str) -> None:
        self._span: trace.Span | None = None
        if tracer is not None:
            parent = TraceContextTextMapPropagator().extract({"traceparent": traceparent}) if traceparent else None
            self._span = tracer.start_span("execute_tool", context=parent, kind=SpanKind.INTERNAL)

    def __enter__(self) -> Span:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace_: TracebackType | None
    ) -> None:
        if self._span is not None:
            if error is not None:
                self._span.set_status(Status(StatusCode.ERROR))
            self._span.end()

    def authenticated(self, authenticated: Authenticated) -> None:
        """Step 1 is done."""
        if self._span is not None:
            self._span.update_name(f"execute_tool {authenticated.tool}")
            self._set({"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": authenticated.tool})
            self._set({"gen_ai.agent.name": authenticated.principal.agent, "runner.task": authenticated.principal.task})
            self._event("authenticated")

    def named(self, call: str) -> None:
        """The call has an id."""
        self._set({"gen_ai.tool.call.id": call})

    def decided(self, decision: Decision) -> None:
        """Steps 2 and 3 are done."""
        if self._span is not None:
            self._span.add_event("decided", {"runner.effect": decision.effect, "runner.rules": list(decision.rules)})

    def recorded(self) -> None:
        """Step 4 is done: the call, its decision and its plan are in the ledger."""
        self._event("recorded")

    def ended(self) -> None:
        """Steps 5 and 6 are done: the sandbox has said the last of this call."""
        self._event("ended")

    def sealed(self, outcome: str, position: int) -> None:
        """Step 7 is done: the call's outcome is in the ledger."""
        self._set({"runner.outcome": outcome, "runner.position": position})
        self._event("sealed")

    def refused(self, code: str) -> None:
        """The call was refused."""
        self._set({"error.type": code})

    def _event(self, name: str) -> None:
        if self._span is not None:
            self._span.add_event(name)

    def _set(self, attributes: dict[str, Any]) -> None:
        if self._span is not None:
            self._span.set_attributes(attributes)


class OtlpFile(SpanExporter):
    """Appends each batch as one line of OTLP JSON (OpenTelemetry Protocol File Exporter), as collectors read it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")
        path.chmod(0o600)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write one batch."""
        if spans:
            self._file.write(msgspec.json.encode(otlp(spans)) + b"\n")
            self._file.flush()
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Close the file."""
        self._file.close()


def otlp(spans: Sequence[ReadableSpan]) -> dict[str, Any]:
    """Spans of one provider and tracer, as OTLP's JSON. By hand, because the way over protobuf takes ten times as long
    (110 µs a span), in the process that every call waits for; a test holds it to what that way writes."""
    scope = spans[0].instrumentation_scope
    named = {"name": scope.name, "version": scope.version} if scope is not None else {}
    resource = {"attributes": _attributes(spans[0].resource.attributes)}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": named, "spans": [*map(_span, spans)]}]}]}


def _span(span: ReadableSpan) -> dict[str, Any]:
    context, parent = span.get_span_context(), span.parent
    assert context is not None
    found: dict[str, Any] = {
        "traceId": f"{context.trace_id:032x}",
        "spanId": f"{context.span_id:016x}",
        "name": span.name,
        "kind": _INTERNAL,
        "startTimeUnixNano": str(span.start_time),
        "endTimeUnixNano": str(span.end_time),
        "status": {"code": _ERROR} if span.status.status_code is StatusCode.ERROR else {},
        "flags": _KNOWN_ORIGIN | (_REMOTE if parent is not None and parent.is_remote else 0),
    }
    if parent is not None:
        found["parentSpanId"] = f"{parent.span_id:016x}"
    if span.attributes:
        found["attributes"] = _attributes(span.attributes)
    if span.events:
        found["events"] = [
            {"timeUnixNano": str(event.timestamp), "name": event.name}
            | ({"attributes": _attributes(event.attributes)} if event.attributes else {})
            for event in span.events
        ]
    return found


def _attributes(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in attributes.items()]


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}  # 64 bits: a string, as in protobuf's JSON
    if isinstance(value, float):
        return {"doubleValue": value}
    return {"arrayValue": {"values": [_value(each) for each in value]} if value else {}}


class Telemetry:
    """Where spans go: nowhere, or a file in the state directory that a collector follows."""

    def __init__(self, export: str, path: Path, *, instance: str, version: str) -> None:
        self._provider: TracerProvider | None = None
        self._tracer: trace.Tracer | None = None
        if export == "file":
            resource = Resource.create(
                {"service.name": "toolrunner", "service.instance.id": instance, "service.version": version}
            )
            self._provider = TracerProvider(resource=resource)
            self._provider.add_span_processor(BatchSpanProcessor(OtlpFile(path)))
            self._tracer = self._provider.get_tracer("runner", version)

    def span(self, traceparent: str) -> Span:
        """The span of a call, a child of the client's when it sent a traceparent."""
        return Span(self._tracer, traceparent)

    def close(self) -> None:
        """Write what is left."""
        if self._provider is not None:
            self._provider.shutdown()
