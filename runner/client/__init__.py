"""What an agent imports: calls, streams, files and tools of the daemon, async and sync.

Process: the agent's own.
Input: frames of the daemon; tool output inside them; a model's tool calls.
Trusts: the daemon at the socket it was given.
Does not trust: tool output and trees from a workspace, text a model wrote, sizes of either.
Privilege: the agent's token and key, read from an inherited descriptor; no daemon dependency.
"""

from runner.client.aio import AsyncRunner, connect_async
from runner.client.calls import CallResult
from runner.client.credentials import attenuate, descriptor
from runner.client.errors import (
    CallError,
    Conflict,
    ConstraintViolated,
    DaemonFault,
    Denied,
    Interrupted,
    InvalidArguments,
    Misconfigured,
    NotGranted,
    ProtocolError,
    TaskEnded,
    ToolFailed,
    Unauthenticated,
    Unavailable,
    UnknownCall,
)
from runner.client.files import Extracted
from runner.client.streams import Stream
from runner.client.sync import Runner, SyncStream, connect
from runner.client.tools import AsyncToolSet, ToolSet
from runner.model import Chunk, Outcome
from runner.token.credentials import Credentials
from runner.wire.agent import SessionFacts

__all__ = [
    "AsyncRunner",
    "AsyncToolSet",
    "CallError",
    "CallResult",
    "Chunk",
    "Conflict",
    "ConstraintViolated",
    "Credentials",
    "DaemonFault",
    "Denied",
    "Extracted",
    "Interrupted",
    "InvalidArguments",
    "Misconfigured",
    "NotGranted",
    "Outcome",
    "ProtocolError",
    "Runner",
    "SessionFacts",
    "Stream",
    "SyncStream",
    "TaskEnded",
    "ToolFailed",
    "ToolSet",
    "Unauthenticated",
    "Unavailable",
    "UnknownCall",
    "attenuate",
    "connect",
    "connect_async",
    "descriptor",
]
