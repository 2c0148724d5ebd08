"""Every code has its exception, and every exception carries the whole refusal."""

from __future__ import annotations

import pytest

from runner.client.errors import FAMILIES, CallError, raised, refused
from runner.errors import CODES, Refusal, RunnerError, refusal


def test_every_code_maps_and_no_other() -> None:
    assert FAMILIES.keys() == CODES.keys()


@pytest.mark.parametrize("code", CODES)
def test_an_exception_carries_the_refusal(code: str) -> None:
    told = refusal(
        code, "why", rule="policy:a", next_step="do", retry_after_ms=5, field="path", allowed="under /workspace"
    )
    error = raised(told, "call-1")
    assert type(error) is FAMILIES[code] is not CallError
    assert isinstance(error, RunnerError)
    assert (error.code, error.reason, error.rule, error.next_step) == (code, "why", "policy:a", "do")
    assert (error.retryable, error.retry_after_ms) == (CODES[code].retryable, 5)
    assert (error.field, error.allowed, error.call) == ("path", "under /workspace", "call-1")
    assert "why" in str(error)
    assert "policy:a" in str(error)


def test_a_code_of_a_newer_daemon_is_still_a_call_error() -> None:
    error = raised(Refusal(code="from_the_future", reason="new"))
    assert type(error) is CallError
    assert error.code == "from_the_future"


def test_what_the_client_refuses_has_the_rows_next_step() -> None:
    assert refused("unavailable", "gone").next_step == CODES["unavailable"].next_step
