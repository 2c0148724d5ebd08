"""Spans in OTLP's own JSON, with names and outcomes and nothing of what was said."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runner.errors import refuse
from runner.telemetry import Telemetry

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
    assert found[1]["status"]["code"] == "STATUS_CODE_ERROR"


def test_without_export_nothing_is_written(tmp_path: Path) -> None:
    telemetry = Telemetry("none", tmp_path / "spans", instance="i", version="v")
    with telemetry.span(PARENT) as span:
        span.named("c")
        span.sealed("exited", 1)
    telemetry.close()
    assert not (tmp_path / "spans").exists()
