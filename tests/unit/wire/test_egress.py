"""What egress tells gate becomes entries: whatever it counts has an entry's bounds, or its message is none."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest
from msgspec import inspect

from runner.errors import RunnerError
from runner.serve.inbox import Inbox
from runner.wire import broker, egress
from runner.wire.frame import encode

_MOST = (1 << 53) - 2


def _numbers(kind: type) -> dict[str, inspect.IntType]:
    """The whole numbers of a message, those inside it too, but for what pairs a question with its answer."""
    found: dict[str, inspect.IntType] = {}
    for field in msgspec.structs.fields(kind):
        of = inspect.type_info(field.type)
        if isinstance(of, inspect.StructType):
            found |= {f"{field.name}.{name}": its for name, its in _numbers(of.cls).items()}
        elif isinstance(of, inspect.IntType) and field.name != "number":
            found[field.name] = of
    return found


def test_every_number_has_the_bounds_of_an_entry() -> None:
    kinds = set(get_args(egress.FromEgress)) - {egress.Failed}  # a refusal's words alone are recorded
    bounds = {f"{kind.__name__}.{name}": of for kind in kinds for name, of in _numbers(kind).items()}
    bounds["SecretView.version"] = _numbers(broker.SecretView)["version"]
    assert {"Ended.up", "Closed.down", "Ask.request.id", "Refused.request.port", "Keep.id"} <= bounds.keys()
    assert {name for name, of in bounds.items() if (of.ge, of.lt) != (0, _MOST + 1)} == set()


@pytest.mark.parametrize("more", [{"up": _MOST + 1}, {"down": (1 << 64) - 1}, {"duration_us": -1}, {"id": _MOST + 1}])
def test_a_number_beyond_them_is_no_message(more: dict[str, int]) -> None:
    for fits in (True, False):
        data = encode(egress.Ended(**{"call": "c", "id": 1, "up": _MOST} | ({} if fits else more)))
        box = Inbox(egress.FromEgress)
        box.room[: len(data)] = data
        if fits:
            assert [each.up for each in box.take(len(data))] == [_MOST]
        else:
            with pytest.raises(RunnerError) as refused:
                list(box.take(len(data)))
            assert refused.value.refused.code == "protocol"
