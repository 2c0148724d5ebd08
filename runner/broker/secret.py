"""A secret in memory: bytearrays, which can be wiped; never shown by repr. Copies that a library makes cannot be."""

from __future__ import annotations

from collections.abc import Mapping

from runner.wire.broker import main_field

_LENGTH = 4


class Secret:
    """A value and, of a secret with several, its named fields. `value` is then the field that is the secret."""

    __slots__ = ("fields", "value", "version")

    def __init__(self, value: bytearray, fields: dict[str, bytearray] | None = None, version: str = "") -> None:
        self.value = value
        self.fields = fields or {}
        self.version = version

    def __repr__(self) -> str:
        return "Secret(…)"

    def wipe(self) -> None:
        """Overwrite every byte that this object holds."""
        for held in (self.value, *self.fields.values()):
            held[:] = bytes(len(held))

    @staticmethod
    def pack(value: bytes, fields: Mapping[str, bytes]) -> bytearray:
        """Values, each behind its length; the names of fields are kept beside. The caller wipes it."""
        parts = [*fields.values()] if fields else [value]
        packed = bytearray(sum(_LENGTH + len(part) for part in parts))
        place = 0
        for part in parts:
            packed[place : place + _LENGTH] = len(part).to_bytes(_LENGTH, "big")
            place += _LENGTH
            packed[place : place + len(part)] = part
            place += len(part)
        return packed

    @classmethod
    def unpack(cls, packed: bytearray, names: tuple[str, ...], version: str) -> Secret:
        """What `pack` made. Raises ValueError for anything else."""
        found: list[bytearray] = []
        place = 0
        while place < len(packed):
            start = place + _LENGTH
            place = start + int.from_bytes(packed[place:start], "big")
            if start > len(packed) or place > len(packed):
                raise ValueError("a value is cut")
            found.append(packed[start:place])
        if len(found) != max(1, len(names)):
            raise ValueError("another number of values than of names")
        if not names:
            return cls(found[0], {}, version)
        fields = dict(zip(names, found, strict=True))
        return cls(fields[main_field(dict.fromkeys(names, b""))], fields, version)
