"""What is left of the demo's service and its key: where the key was found, and the entries of each attempt."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from runner.cli.demo_search import INSIDE, SPOKEN, Search, Searched, files, one_file, rows
from runner.cli.demo_service import Service
from runner.evidence.read import Ledger, load_verifier
from runner.evidence.view import visible
from runner.ledger import entry as entries

_MUST = ("memory of egress", "memory of gate")  # who puts the key in, and who looks for it in what a tool writes
_MAY = ("memory of broker",)  # who gave it to them
_TOLD = "everything that the agent was told"
_ROWS = "every value in the databases of the state folder"
_SHOWN = 17  # characters of the header that the service saw
_WIDE = 150


def searched(place: Path, service: Service, living: Sequence[Searched]) -> int:
    """Tell where the key was looked for and found. Returns how many things are not as they must be."""
    told = _heard(place)
    held = next((word for each in told for word in each["answer"].split() if word.startswith("rnr-")), "")
    shown = {header for _, header in service.seen if service.opens(header)}
    print(f"   the tool held    {held}")
    for header in shown:
        print(f"   the service saw  {header[:_SHOWN]}… ({len(header)} characters: the key that was set)")
    print("   while the service answered:")
    search = Search(service.key)
    failures = sum(map(_row, living)) + len({*_MUST, *_MAY, SPOKEN, INSIDE} - {each.what for each in living})
    print("   when the daemon had stopped, that key and the one that a tool printed:")
    search = Search(service.key, service.badge)
    after = (
        search.look(_TOLD, one_file(place / "heard")),
        search.look("the daemon's log", one_file(place / "log")),
        search.look("the state folder: ledger, content, spans, gate's state, sealed store", files(place / "state")),
        search.look(_ROWS, rows(place / "state")),
        search.look("every other file of the demo", files(place, leave=("state", "heard", "log"))),
    )
    failures += sum(map(_row, after))
    seen = {each.what for each in (*living, *after) if each.placeholders}
    others = len(seen) - 2
    print(f"   The same eyes found the tool's placeholder in its environment, its memory and {others} other places.")
    for what in sorted({SPOKEN, INSIDE, _TOLD, _ROWS} - seen):
        print(f" ✗ UNEXPECTED: no placeholder in {what}: nothing else would have been found there")
        failures += 1
    return failures + (not held or not shown)


def _row(each: Searched) -> int:
    """One place on a line. Returns whether it is not as it must be."""
    if each.what in _MUST:
        good, words = each.keys > 0, f"{each.keys} ×, as it must be while the call lives"
    elif each.what in _MAY:
        good, words = True, f"{each.keys} ×: it keeps it"
    else:
        good, words = each.keys == 0, f"{each.keys} ×"
    good = good and each.size > 0
    print(f" {'  ' if good else '✗ UNEXPECTED:'} {each.what} ({_size(each.size)}): {words}")
    return not good


def _size(count: int) -> str:
    return f"{count / (1 << 20):,.0f} MiB" if count >= 1 << 20 else f"{count / 1024:,.0f} KiB"


def attempts(place: Path) -> int:
    """Tell what the trace holds of each thing that the agent tried. Returns how many it holds nothing of."""
    ledger = Ledger(place / "state" / "ledger", load_verifier("", place / "state" / "ledger"))
    of: dict[str, list[str]] = {}
    for position, data in ledger.entries():
        entry = entries.decode(data)
        words = _words(entry)
        if words:
            of.setdefault(str(getattr(entry, "call", "")), []).append(f"{position:>7} {words}")
        if isinstance(entry, entries.Egress) and entry.missing:
            rule = " ".join(line for line in entry.missing.splitlines() if not line.startswith("#"))
            of[entry.call].append(f"{'':>7} lacks       {rule}")
    failures = 0
    for each in _heard(place):
        if "call" not in each:
            continue
        found = of.get(each["call"], [])
        failures += not found
        print(f"   {each['what']}" + ("" if found else "   ✗ UNEXPECTED: nothing in the trace"))
        for line in found:
            text = visible(line)
            print(text if len(text) <= _WIDE else text[: _WIDE - 1] + "…")
    return failures


def _words(entry: entries.AnyEntry) -> str:
    """An entry of a call with a network in words; "" for one of another kind."""
    match entry:
        case entries.Egress():
            what = " ".join(part for part in (entry.method, f"{entry.protocol}://{entry.host}:{entry.port}") if part)
            decided = entry.decision
            why = f"  {decided.reason}" if decided.effect != "allow" else ""
            return f"egress      {decided.effect:<5} {what}{entry.path}{why}"
        case entries.EgressEnd():
            credentials = f"  with {', '.join(entry.secrets)}" if entry.secrets else ""
            return f"egress_end  {entry.status or entry.code} from {entry.address or 'nobody'}{credentials}"
        case entries.Alert():
            return f"alert       {entry.severity}: {entry.what} in {entry.where}"
        case entries.Outcome(network=entries.Network() as network):
            kept = entry.stdout.size if entry.stdout else 0
            sums = f"{network.requests} out, {network.refused} refused; {kept} bytes of output kept"
            walls = "" if network.requests or network.refused else "; no request reached egress: the walls held"
            return f"outcome     {entry.outcome}: {sums}{walls}{_filtered(entry)}"
        case entries.Outcome(secrets=secrets) if secrets:
            return f"outcome     {entry.outcome}: no network{_filtered(entry)}"
        case _:
            return ""


def _filtered(entry: entries.Outcome) -> str:
    found = ", ".join(f"{rule} {count} ×" for rule, count in entry.filtered.items())
    return f"; filtered: {found}" if found else ""


def _heard(place: Path) -> list[dict[str, str]]:
    return list(_lines((place / "heard").read_text(encoding="utf-8")))


def _lines(text: str) -> Iterator[dict[str, str]]:
    for line in text.splitlines():
        yield json.loads(line)
