"""What operators did: each act of theirs with who, when, what, before and after, told from the ledger alone."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

import msgspec

from runner.evidence.content import ContentReader
from runner.evidence.read import Ledger
from runner.ledger import entry as entries

KINDS = (
    *("start", "stop", "reload", "refused_reload", "pending", "withdraw", "token", "revoke", "reopen", "task_end"),
    *("hold", "release", "prune", "prune_image", "raw_open", "secret", "refusals"),
)
_NEEDLES = tuple(f'"kind":"{kind}"'.encode() for kind in KINDS)  # a quote inside a JSON string is escaped
_REFUSED = "admin.sock: "  # how refusals on that socket begin, and no others (`runner/admin/socket.py`)
_BY_HOLDER = "ended by its holder"  # an agent's own end of its task, which is no operator's act
HOST = "host"  # whoever starts, stops and signals the daemon's process: root, by whatever name


class Act(msgspec.Struct, frozen=True, kw_only=True):
    """One act. `operator` is a name, HOST, or `uid N` in entries older than names; `key` a thumbprint, "" by uid.

    `changed` names the files of a catalogue that differ, where the content store still has both."""

    position: int
    time: str
    kind: str
    operator: str
    known: str
    what: str
    before: str = ""
    after: str = ""
    why: str = ""
    changed: tuple[str, ...] = ()
    catalogues: tuple[str, str] = ("", "")


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which acts to show; an empty field lets all pass. `since` is an RFC 3339 time."""

    operator: str = ""
    kind: str = ""
    since: str = ""

    def passes(self, act: Act) -> bool:
        """Whether this act is one of them."""
        return self.operator in ("", act.operator) and self.kind in ("", act.kind) and act.time >= self.since


def acts(ledger: Ledger, wanted: Wanted) -> Iterator[Act]:
    """Acts that `wanted` lets pass, oldest first. The whole ledger is looked through, since what was before an act is
    told by the acts before it; bundles that hold none are passed over unparsed."""
    telling = _Telling()
    for position, data in _relevant(ledger):
        act = telling.of(position, entries.decode(data))
        if act is not None and wanted.passes(act):
            yield act


def _relevant(ledger: Ledger) -> Iterator[tuple[int, bytes]]:
    runs = ledger.backwards(lambda holds: any(map(holds, _NEEDLES)))
    found = [
        (start + place, data)
        for start, run in runs
        for place, data in reversed(list(enumerate(run)))
        if any(needle in data for needle in _NEEDLES)
    ]
    return reversed(found)


class _Telling:
    """What is in force, as far as the acts seen so far say."""

    def __init__(self) -> None:
        self._catalogue = ""
        self._policy = ""
        self._anchors: tuple[str, ...] = ()
        self._over: dict[str, int] = {}  # policies that were replaced, and where
        self._revoked: dict[tuple[str, str], str] = {}
        self._closed: dict[tuple[str, str], int] = {}

    def of(self, position: int, entry: entries.AnyEntry) -> Act | None:
        """The act that this entry is, None when it is none of an operator's."""
        match entry:
            case entries.Start():
                return self._started(position, entry)
            case entries.Stop():
                return _act(
                    position, entry, what=f"instance {entry.instance}", why=entry.reason,
                    before="serving", after="stopped" if entry.clean else "stopped, with calls cut off",
                )  # fmt: skip
            case entries.Reload() | entries.RefusedReload() | entries.Pending() | entries.Withdraw():
                return self._changing(position, entry)
            case entries.Token():
                who = f"{entry.who.agent} for {entry.who.owner}, task {entry.who.task}"
                what = f"token {entry.jti}: {who}, profile {entry.profile}, tools {' '.join(entry.tools)}"
                return _act(position, entry, what=what, before="unknown", after=f"good until {moment(entry.expires)}")
            case entries.Revoke():
                return self._taken_back(position, entry)
            case entries.Reopen():
                return self._released(position, entry)
            case entries.TaskEnd() if entry.operator or (entry.by >= 0 and entry.reason != _BY_HOLDER):
                return _act(position, entry, what=f"task {entry.task}", before="live", after="ended", why=entry.reason)
            case entries.Refusals() if entry.detail.startswith(_REFUSED):
                times = f"{entry.count} times" if entry.count > 1 else "once"
                return Act(
                    position=position, time=entry.time, kind="refusals", operator=f"uid {entry.uid}",
                    known=f"uid {entry.uid}", what=f"{entry.code}, {times}", why=entry.detail.removeprefix(_REFUSED),
                )  # fmt: skip
        return _kept(position, entry)

    def _changing(
        self, position: int, entry: entries.Reload | entries.RefusedReload | entries.Pending | entries.Withdraw
    ) -> Act:
        match entry:
            case entries.Reload():
                return self._reloaded(position, entry)
            case entries.RefusedReload():
                return self._refused(position, entry)
            case entries.Pending():
                return _act(
                    position, entry, what=f"{entry.act} waits as {entry.id} for another: {_list(entry.changes)}",
                    before="closed" if entry.target else _in_force(entry.before, self._policy),
                    after=f"the same, until {moment(entry.expires)}",
                    why=entry.why, catalogues=(entry.before, entry.after),
                )  # fmt: skip
            case entries.Withdraw():
                return _act(
                    position, entry, what=f"{entry.act} that waited as {entry.id}",
                    before="waits", after="withdrawn", why=entry.why,
                )  # fmt: skip

    def _taken_back(self, position: int, entry: entries.Revoke) -> Act:
        key = (entry.target, entry.value)
        before = f"closed at {self._closed[key]}" if key in self._closed else self._revoked.get(key, "not revoked")
        self._revoked.setdefault(key, f"revoked at {position}")
        if entry.until_released:
            self._closed[key] = position
        closed = key in self._closed
        after = "revoked, and closed until its release" if closed else "revoked"
        what = f"{entry.target} {entry.value}".strip()
        return _act(position, entry, what=what, before=before, after=after, why=entry.why)

    def _released(self, position: int, entry: entries.Reopen) -> Act:
        key = (entry.target, entry.value)
        at = self._closed.pop(key, None)
        self._revoked[key] = f"released at {position}"
        return _act(
            position, entry, what=f"{entry.target} {entry.value}".strip() + _confirmed(entry),
            before="open" if at is None else f"closed at {at}", why=entry.why,
            after="open for new tokens; what was announced before stays revoked",
        )  # fmt: skip

    def _refused(self, position: int, entry: entries.RefusedReload) -> Act:
        place = f"{entry.field}: " if entry.field else ""
        offered = f"catalogue {entry.offered[:16]}" if entry.offered else "files that could not be read whole"
        return _act(
            position, entry, what=f"{offered} refused, {entry.code}: {place}{entry.reason}{_confirmed(entry)}",
            before=_in_force(self._catalogue, self._policy), after="the same", why=entry.why,
        )  # fmt: skip

    def _started(self, position: int, entry: entries.Start) -> Act:
        catalogue, policy = self._catalogue, self._policy
        self._catalogue, self._policy, self._anchors = entry.catalogue, entry.policy, entry.anchors
        back = self._put_back(position, policy, entry.policy)
        return _act(
            position, entry, what=f"instance {entry.instance}, the run before ended {entry.previous}{back}",
            before=_in_force(catalogue, policy), after=_in_force(entry.catalogue, entry.policy),
            catalogues=(catalogue, entry.catalogue),
        )  # fmt: skip

    def _put_back(self, position: int, before: str, after: str) -> str:
        """What to say of a policy that was in force once and was replaced: a signature does not tell old from new."""
        if before == after:
            return ""
        self._over[before] = position
        return f", a policy put back that entry {self._over[after]} replaced" if after in self._over else ""

    def _reloaded(self, position: int, entry: entries.Reload) -> Act:
        policy, self._policy, self._catalogue = self._policy, entry.policy, entry.after
        what = "catalogue" if policy == entry.policy else "catalogue with its policy"
        what = "the same catalogue" if entry.before == entry.after else what
        what += self._put_back(position, policy, entry.policy)
        anchors, self._anchors = self._anchors, entry.anchors
        for word, changed in (("retires", {*anchors} - {*entry.anchors}), ("adds", {*entry.anchors} - {*anchors})):
            what += f", {word} issuer's key {' '.join(sorted(changed))}" if changed else ""
        return _act(
            position, entry, what=what + _confirmed(entry), before=_in_force(entry.before, policy), why=entry.why,
            after=_in_force(entry.after, entry.policy), catalogues=(entry.before, entry.after),
        )  # fmt: skip


def _kept(position: int, entry: entries.AnyEntry) -> Act | None:
    """An act on content or secrets, which what is in force has no part in."""
    match entry:
        case entries.Hold():
            what = f"content of {_criteria(entry.of)}, as {entry.name}"
            return _act(position, entry, what=what, before="may be pruned", after="held", why=entry.why)
        case entries.Release():
            what = f"holds named {entry.name}"
            return _act(position, entry, what=what, before="held", after="may be pruned", why=entry.why)
        case entries.Prune():
            what = f"{entry.pieces} pieces, {entry.size} bytes, of {_criteria(entry.of)}; {entry.held} held back"
            return _act(position, entry, what=what, before="kept", after="removed", why=entry.why)
        case entries.PruneImage():
            what = f"archive {entry.archive.digest[:16]}, {entry.archive.size} bytes, of {entry.image or 'no image'}"
            return _act(position, entry, what=what, before="kept", after="removed", why=entry.why)
        case entries.RawOpen():
            what = f"raw output of call {entry.call}, {entry.raw[:16]}, still encrypted"
            return _act(position, entry, what=what, before="kept", after="handed over", why=entry.why)
        case entries.Secret():
            what = f"secret {entry.name}, {entry.act}"
            why = f"not carried out: {entry.problem}" if entry.problem else entry.why
            return _act(position, entry, what=what, before=_secret(entry.before), after=_secret(entry.after), why=why)
    return None


def _secret(version: int) -> str:
    return f"version {version}" if version else "not stored"


def _criteria(of: entries.Criteria) -> str:
    said = [f"before {of.before}"] if of.before else []
    said += [f"larger than {of.larger} bytes"] if of.larger else []
    said += ["raw output alone"] if of.raw else []
    named = (("task", of.tasks), ("agent", of.agents), ("tool", of.tools))
    return ", ".join([*said, *(f"{label} {' or '.join(names)}" for label, names in named if names)]) or "every call"


def _act(
    position: int,
    entry: entries.AnyEntry,
    *,
    what: str,
    before: str,
    after: str,
    why: str = "",
    catalogues: tuple[str, str] = ("", ""),
) -> Act:
    name, known = operator_of(entry)
    return Act(
        position=position, time=entry.time, kind=str(entry.__struct_config__.tag), operator=name, known=known,
        what=what, before=before, after=after, why=why, catalogues=catalogues,
    )  # fmt: skip


def operator_of(entry: entries.AnyEntry) -> tuple[str, str]:
    """Whose act an entry is, and how that one was known."""
    operator: entries.Operator | None = getattr(entry, "operator", None)
    uid = getattr(entry, "by", -1)
    if operator is not None:
        return operator.name, _known(operator)
    return (f"uid {uid}", f"uid {uid}") if uid >= 0 else (HOST, "its process")


def _known(operator: entries.Operator) -> str:
    return f"key {operator.key}" if operator.key else f"uid {operator.uid}"


def _confirmed(entry: entries.Reload | entries.Reopen | entries.RefusedReload) -> str:
    """Who the second person was, where there was one."""
    if entry.confirmed is None:
        return ""
    return f", {entry.pending} confirmed by {entry.confirmed.name} ({_known(entry.confirmed)})"


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "no file named"


def _in_force(catalogue: str, policy: str) -> str:
    return f"catalogue {catalogue[:16]} policy {policy[:16]}" if catalogue else "nothing"


def moment(seconds: int) -> str:
    """Epoch seconds as a time that people read, UTC."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{seconds} s"


# --- what differs between two catalogues -----------------------------------------------------------------


class Differences:
    """Compares catalogues by the archives that the content store keeps of them."""

    def __init__(self, content: ContentReader) -> None:
        self._content = content

    def of(self, act: Act) -> Act:
        """The same act with the names of the files that it changed."""
        files = self._both(act)
        return act if files is None else msgspec.structs.replace(act, changed=tuple(_changed(*files)))

    def text(self, act: Act) -> Iterator[str]:
        """A unified diff, line by line, as hostile as the files are; nothing when a catalogue is not kept any more."""
        before, after = self._both(act) or ({}, {})
        for path in _changed(before, after):
            old, new = (_lines(files.get(path, b"")) for files in (before, after))
            yield from difflib.unified_diff(old, new, f"before/{path}", f"after/{path}", lineterm="")

    def _both(self, act: Act) -> tuple[dict[str, bytes], dict[str, bytes]] | None:
        if not all(act.catalogues):
            return None
        found = []
        for digest in act.catalogues:
            data = self._content.get(digest)
            if data is None:
                return None
            try:
                found.append(split_archive(data))
            except ValueError:
                return None
        return found[0], found[1]


def _changed(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> list[str]:
    return [path for path in sorted({*before, *after}) if before.get(path) != after.get(path)]


def _lines(data: bytes) -> list[str]:
    return data.decode("utf-8", "backslashreplace").splitlines()


def split_archive(data: bytes) -> dict[str, bytes]:
    """The files of a catalogue's archive (`runner/catalog/files.py` writes it): each path and content behind its
    length, paths in order. Raises ValueError when `data` is anything else."""
    files: dict[str, bytes] = {}
    place, last = 0, ""
    while place < len(data):
        name, place = _piece(data, place, 4)
        content, place = _piece(data, place, 8)
        path = name.decode("utf-8")
        if files and path <= last:
            raise ValueError("paths are out of order")
        files[path], last = content, path
    return files


def _piece(data: bytes, place: int, width: int) -> tuple[bytes, int]:
    start = place + width
    end = start + int.from_bytes(data[place:start], "big")
    if end > len(data) or start > len(data):
        raise ValueError("it ends in the middle of a file")
    return data[start:end], end
