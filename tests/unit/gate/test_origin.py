"""Provenance: what the network gave, and what may hold a copy of it."""

from __future__ import annotations

from runner.gate.context import Context
from runner.gate.origin import MAX_SOURCES, Origin


def test_what_reached_nobody_has_no_sources() -> None:
    origin = Origin(Context(), "write", network=True, outside=True)
    assert origin.untrusted  # perhaps
    assert origin.sources(()) == ()
    assert not Origin(Context(), "write", network=False, outside=True).untrusted


def test_what_a_call_could_write_carries_its_hosts_into_every_later_call_that_could_read_it() -> None:
    context = Context()
    assert Origin(context, "write", network=True, outside=True).sources(("a.example",)) == ("a.example",)
    later = Origin(context, "read", network=False, outside=True)
    assert later.untrusted
    assert later.sources(()) == ("a.example",)
    assert Origin(context, "read", network=True, outside=True).sources(("b.example",)) == ("b.example", "a.example")
    assert not Origin(context, "none", network=False, outside=True).untrusted


def test_what_could_write_nothing_leaves_nothing() -> None:
    context = Context()
    Origin(context, "read", network=True, outside=True).sources(("a.example",))
    Origin(context, "none", network=True, outside=True).sources(("a.example",))
    assert not Origin(context, "read", network=False, outside=True).untrusted


def test_what_a_task_did_before_a_restart_is_not_vouched_for_where_it_had_a_way_out() -> None:
    resumed = Context(resumed=True)
    assert Origin(resumed, "read", network=False, outside=True).sources(()) == ("workspace",)
    assert not Origin(resumed, "read", network=False, outside=False).untrusted
    assert not Origin(resumed, "none", network=False, outside=True).untrusted


def test_a_label_says_it_too() -> None:
    assert Origin(Context(), "read", network=False, outside=False, labels={"untrusted"}).sources(()) == ("workspace",)


def test_sources_are_bounded() -> None:
    context = Context()
    for number in range(100):
        Origin(context, "write", network=True, outside=True).sources((f"h{number}.example",))
    assert len(context.brought) == MAX_SOURCES
    assert len(Origin(context, "read", network=True, outside=True).sources(("x.example",))) == MAX_SOURCES
