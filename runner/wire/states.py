"""The agent protocol as four tables: what may arrive, what may be sent, and what follows.

Rule 1: everything that decides whether a message is valid *now* is here where a table can say it, and in
`session.py` where it cannot. Rule 2: nothing here knows sockets, clocks, tokens or tools.

Two machines run side by side. The connection has a state; every number that the client ever used has a phase of
its own. A message must be valid in both. What is missing from a table is a protocol error, which ends the
connection; what a race can explain is in a table.
"""

from __future__ import annotations

from enum import Enum

from runner.wire.agent import (
    Accepted,
    Attach,
    Bye,
    Call,
    Cancel,
    Closing,
    Credit,
    Durable,
    EndTask,
    GetResult,
    Hello,
    ListTools,
    Output,
    Ping,
    Pong,
    Refused,
    Result,
    Stdin,
    StdinCredit,
    TaskEnded,
    Tools,
    ToolsChanged,
    Welcome,
)


class State(Enum):
    """The connection."""

    __hash__ = object.__hash__  # Enum's own is Python code, and every message is looked up several times

    CHALLENGED = "challenged"  # the daemon spoke; only Hello may come
    PROVING = "proving"  # Hello is being verified; the client waits for Welcome
    OPEN = "open"
    DRAINING = "draining"  # the daemon said bye: running calls end, new requests are refused one by one
    LEAVING = "leaving"  # the client said bye: running calls end, a new request is an error
    CLOSED = "closed"


class Phase(Enum):
    """One number of the client's."""

    __hash__ = object.__hash__

    FRESH = "fresh"  # never used
    ASKED = "asked"  # a question that one message answers
    DECIDING = "deciding"  # a call or attach that is not accepted yet
    RUNNING = "running"
    FINISHED = "finished"  # answered for good; never used again


class EndOfStream:
    """The peer closed its side. Stands in the tables as if it were a message, as h11's ConnectionClosed does."""


_S, _P = State, Phase
REQUESTS = (Call, Attach, ListTools, GetResult, EndTask)
CONTROLS = (Stdin, Credit, Cancel)


def _same(state: State, *kinds: type) -> dict[type, State]:
    return dict.fromkeys(kinds, state)


# 1. What the client may send, by the connection's state.
RECEIVES: dict[State, dict[type, State]] = {
    _S.CHALLENGED: {Hello: _S.PROVING, Bye: _S.CLOSED, EndOfStream: _S.CLOSED},
    _S.PROVING: {Bye: _S.CLOSED, EndOfStream: _S.CLOSED},
    _S.OPEN: {
        **_same(_S.OPEN, *REQUESTS, *CONTROLS, Ping, Pong),
        Bye: _S.LEAVING,
        EndOfStream: _S.CLOSED,
    },
    _S.DRAINING: {
        **_same(_S.DRAINING, *REQUESTS, *CONTROLS, Ping, Pong, Bye),
        EndOfStream: _S.CLOSED,
    },
    _S.LEAVING: {**_same(_S.LEAVING, *CONTROLS, Ping, Pong), EndOfStream: _S.CLOSED},
    _S.CLOSED: {EndOfStream: _S.CLOSED},
}

# 2. What the daemon may send, by the connection's state.
_ANSWERS = (Accepted, Output, StdinCredit, Result, Refused, Tools, ToolsChanged, Durable, Ping, Pong)
SENDS: dict[State, dict[type, State]] = {
    _S.CHALLENGED: {Closing: _S.CLOSED},
    _S.PROVING: {Welcome: _S.OPEN, Closing: _S.CLOSED},
    _S.OPEN: {**_same(_S.OPEN, *_ANSWERS), Bye: _S.DRAINING, TaskEnded: _S.CLOSED, Closing: _S.CLOSED},
    _S.DRAINING: {**_same(_S.DRAINING, *_ANSWERS), TaskEnded: _S.CLOSED, Closing: _S.CLOSED},
    _S.LEAVING: {**_same(_S.LEAVING, *_ANSWERS), Bye: _S.CLOSED, TaskEnded: _S.CLOSED, Closing: _S.CLOSED},
    _S.CLOSED: {},
}

# 3. What the client may send about one number, by that number's phase.
NUMBER_RECEIVES: dict[Phase, dict[type, Phase]] = {
    _P.FRESH: {
        Call: _P.DECIDING,
        Attach: _P.DECIDING,
        ListTools: _P.ASKED,
        GetResult: _P.ASKED,
        EndTask: _P.ASKED,
    },
    _P.ASKED: {Cancel: _P.ASKED},
    _P.DECIDING: {Stdin: _P.DECIDING, Credit: _P.DECIDING, Cancel: _P.DECIDING},
    _P.RUNNING: {Stdin: _P.RUNNING, Credit: _P.RUNNING, Cancel: _P.RUNNING},
    _P.FINISHED: {Stdin: _P.FINISHED, Credit: _P.FINISHED, Cancel: _P.FINISHED},  # they crossed the last answer
}

# 4. What the daemon may send about one number, by that number's phase.
NUMBER_SENDS: dict[Phase, dict[type, Phase]] = {
    _P.FRESH: {},
    _P.ASKED: {Tools: _P.FINISHED, Result: _P.FINISHED, Refused: _P.FINISHED, TaskEnded: _P.FINISHED},
    _P.DECIDING: {Accepted: _P.RUNNING, Refused: _P.FINISHED},
    _P.RUNNING: {
        Output: _P.RUNNING,
        StdinCredit: _P.RUNNING,
        Result: _P.FINISHED,
        Refused: _P.FINISHED,
    },
    _P.FINISHED: {},
}
