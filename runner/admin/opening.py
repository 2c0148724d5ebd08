"""Opening of raw output: each an entry, on disk, before a byte of it is handed over. It stays encrypted: no process of
the daemon has a key that opens it."""

from __future__ import annotations

from collections import OrderedDict

from runner import config
from runner.admin.roster import Asker
from runner.errors import refuse
from runner.gate.entries import Journal
from runner.ledger import entry as entries
from runner.wire import admin

_SALT = 16
_REMEMBERED = 64  # openings; whoever asks for one that is forgotten opens it again
_LATEST = (1 << 53) - 1


class Opening:
    """The two operations."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._opened: OrderedDict[tuple[str, str], None] = OrderedDict()  # operator's name, digest

    async def carry_out(self, message: admin.OpenRaw | admin.ReadRaw, asker: Asker) -> admin.ToOperator:
        """Carry out one of them. Raises `RunnerError`; nothing is half done then."""
        if isinstance(message, admin.OpenRaw):
            return await self._open(message, asker)
        if (asker.operator.name, message.digest) not in self._opened or not 0 <= message.offset <= _LATEST:
            raise refuse("arguments", "you have not opened this", field="digest", next_step="open it again")
        return admin.RawPiece(data=await self._journal.recorder.read_raw(message.digest, message.offset))

    async def _open(self, message: admin.OpenRaw, asker: Asker) -> admin.RawOpened:
        if not config.NAME.match(message.call):
            raise refuse("arguments", "not the id of a call", field="call")
        if not 0 < len(message.why) <= 500:
            raise refuse("arguments", "say why, in at most 500 characters: it is recorded with the act", field="why")
        recorder = self._journal.recorder
        found = await recorder.find_raw(message.call)
        if found.position < 0:
            raise refuse(
                "unknown_call", "no call of this id has ended", field=message.call, next_step="see `runner trace list`"
            )
        outcome = entries.decode(found.outcome)
        assert isinstance(outcome, entries.Outcome)
        raw = outcome.raw
        if raw is None:
            raise refuse(
                "unknown_call",
                "no raw output is kept of this call: its profile did not ask for it, or nothing in it was filtered",
                field=message.call,
                next_step="see `raw` in the profile",
            )
        if await recorder.pruned((raw.content.digest,)):
            raise refuse(
                "unknown_call",
                "its raw output was pruned",
                field=message.call,
                next_step="`runner trace show` names the entry that says so",
            )
        opened = await self._journal.write(
            entries.RawOpen(
                time=self._journal.stamp(),
                call=message.call,
                raw=raw.content.digest,
                why=message.why,
                by=asker.uid,
                operator=asker.entry,
            ),
            sync=True,
        )
        # From here on it is on record: what is handed over after this is accounted for, whether or not it arrives.
        self._opened[asker.operator.name, raw.content.digest] = None
        if len(self._opened) > _REMEMBERED:
            self._opened.popitem(last=False)
        return admin.RawOpened(
            position=opened.position,
            outcome=found.position,
            digest=raw.content.digest,
            size=raw.content.size + _SALT,
            recipients=raw.recipients,
            stdout=raw.stdout,
            stderr=raw.stderr,
            result=raw.result,
            lost=raw.lost,
        )
