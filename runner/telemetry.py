"""One span per call, by OpenTelemetry's GenAI conventions. The only importer of opentelemetry.

Spans are telemetry, not evidence: they hold names, outcomes and times, never arguments, outputs or tokens. With
`export = "none"` no span is made at all.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from runner.model import Authenticated, Decision


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
            self._span.add_event("authenticated")

    def named(self, call: str) -> None:
        """The call has an id."""
        self._set({"gen_ai.tool.call.id": call})

    def decided(self, decision: Decision) -> None:
        """Steps 2 and 3 are done."""
        if self._span is not None:
            self._span.add_event("decided", {"runner.effect": decision.effect, "runner.rules": list(decision.rules)})

    def sealed(self, outcome: str, position: int) -> None:
        """The call's outcome is in the ledger."""
        self._set({"runner.outcome": outcome, "runner.position": position})

    def refused(self, code: str) -> None:
        """The call was refused."""
        self._set({"error.type": code})

    def _set(self, attributes: dict[str, Any]) -> None:
        if self._span is not None:
            self._span.set_attributes(attributes)


class OtlpFile(SpanExporter):
    """Appends each batch as one line of OTLP JSON (OpenTelemetry Protocol File Exporter), as collectors read it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        path.chmod(0o600)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write one batch."""
        message = MessageToDict(encode_spans(spans))
        for resource in message.get("resourceSpans", ()):
            for scope in resource.get("scopeSpans", ()):
                for span in scope.get("spans", ()):
                    # OTLP's JSON differs from protobuf's: ids are hex, not base64.
                    for name in ("traceId", "spanId", "parentSpanId"):
                        if name in span:
                            span[name] = base64.b64decode(span[name]).hex()
        self._file.write(json.dumps(message, separators=(",", ":")) + "\n")
        self._file.flush()
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Close the file."""
        self._file.close()


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
