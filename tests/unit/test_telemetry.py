"""Spans in OTLP's own JSON, with names and outcomes and nothing of what was said."""

from __future__ import annotations

import base64
import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from runner.errors import refuse
from runner.telemetry import Span, Telemetry, otlp

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_span_is_a_child_of_the_clients_and_holds_no_arguments(tmp_path: Path) -> None:
    telemetry = Telemetry("file", tmp_path / "spans", instance="i", version="v")
    who = SimpleNamespace(agent="a", task="t")
    authenticated: Any = SimpleNamespace(tool="shell_run", principal=who, arguments={"argv": ["canary"]})
    decision: Any = SimpleNamespace(effect="allow", rules=("r",), reason="canary")
    with telemetry.span(PARENT) as span:
        span.authenticated(authenticated)
        span.named("c1")
        span.decided(decision)
        span.sealed("exited", 7)
    with pytest.raises(Exception, match="secret"), telemetry.span("") as span:
        raise refuse("denied", "secret")
    telemetry.close()
    assert (tmp_path / "spans").stat().st_mode & 0o777 == 0o600
    text = (tmp_path / "spans").read_text()
    assert "canary" not in text
    assert "secret" not in text
    found = [
        span
        for line in text.splitlines()
        for resource in json.loads(line)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]
    assert found[0]["name"] == "execute_tool shell_run"
    assert found[0]["traceId"] == PARENT.split("-")[1]
    assert found[0]["parentSpanId"] == PARENT.split("-")[2]
    assert found[1]["status"]["code"] == 2


@given(
    st.dictionaries(
        st.text(min_size=1),
        st.text() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False),
        max_size=4,
    ),
    st.sampled_from([PARENT, ""]),
    st.lists(st.tuples(st.text(min_size=1), st.lists(st.text(), max_size=3)), max_size=3),
    st.booleans(),
)
def test_spans_are_written_as_opentelemetrys_own_encoder_writes_them(
    attributes: dict[str, Any], parent: str, events: list[tuple[str, list[str]]], failed: bool
) -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": "s", "service.version": "v"}))
    provider.add_span_processor(SimpleSpanProcessor(spans))
    for _ in range(2):
        span = Span(provider.get_tracer("runner", "1"), parent)
        with contextlib.suppress(ValueError), span:
            assert span._span is not None
            span._span.set_attributes(attributes)
            for name, values in events:
                span._span.add_event(name, {"values": values} if values else {})
            if failed:
                raise ValueError
    found = spans.get_finished_spans()
    message = MessageToDict(encode_spans(found), use_integers_for_enums=True)
    for span in message["resourceSpans"][0]["scopeSpans"][0]["spans"]:
        for name in {"traceId", "spanId", "parentSpanId"} & span.keys():
            span[name] = base64.b64decode(span[name]).hex()  # OTLP's JSON differs from protobuf's
    assert json.loads(msgspec.json.encode(otlp(found))) == message


def test_without_export_nothing_is_written(tmp_path: Path) -> None:
    telemetry = Telemetry("none", tmp_path / "spans", instance="i", version="v")
    with telemetry.span(PARENT) as span:
        span.named("c")
        span.sealed("exited", 1)
    telemetry.close()
    assert not (tmp_path / "spans").exists()
