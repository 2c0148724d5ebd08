"""Writes tests/vectors/agent.json, and the generated parts of runner/wire/README.md.

    python tests/vectors/make_agent.py          # write both
    python tests/vectors/make_agent.py --check  # exit 1 when either is not what would be written

Every frame, proof and table is made from the code, so a client in another language is held to what runs.
"""

from __future__ import annotations

import json
import re
import sys
import typing
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import msgspec  # noqa: E402

from runner.config import Limits  # noqa: E402
from runner.errors import CODES, Refusal, refusal  # noqa: E402
from runner.model import Marked, Outcome, Usage  # noqa: E402
from runner.token.issue import mint_root  # noqa: E402
from runner.token.keys import SigningKey  # noqa: E402
from runner.token.proof import sign_call, sign_hello  # noqa: E402
from runner.token.strict import unb64  # noqa: E402
from runner.wire import agent, claims, states  # noqa: E402
from runner.wire.frame import encode  # noqa: E402
from runner.wire.numbers import MAX_NUMBER  # noqa: E402

VECTORS = ROOT / "tests" / "vectors" / "agent.json"
README = ROOT / "runner" / "wire" / "README.md"

ISSUER = SigningKey(bytes([1]) * 32)
HOLDER = SigningKey(bytes([2]) * 32)
NOW = 1_767_225_600  # 2026-01-01T00:00:00Z
NONCE = "bm9uY2Utb2YtdGhpcy1jb25uZWN0aW9u"
AUDIENCE = "urn:runner:0199c0de"
LEAF = mint_root(
    issuer="https://issuer.example",
    key=ISSUER,
    holder=HOLDER.public,
    agent="reader",
    owner="ann",
    task="t-42",
    session="s-1",
    profile="default",
    tools={"fs_read": {"path": {"constraint_type": "path_containment", "root": "/workspace"}}},
    now=NOW,
    expires=NOW + 3600,
    jti="root-1",
)
HELLO_PROOF = sign_hello(HOLDER, LEAF, audience=AUDIENCE, nonce=NONCE, now=NOW + 1, jti="hello-1")
CALL_PROOF = sign_call(
    HOLDER,
    LEAF,
    "fs_read",
    {"path": "/workspace/README.md"},
    audience=AUDIENCE,
    nonce=NONCE,
    now=NOW + 2,
    jti="call-1",
)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

MESSAGES: dict[str, agent.Message] = {
    "challenge": agent.Challenge(versions=(1,), nonce=NONCE, audience=AUDIENCE, time=NOW),
    "hello": agent.Hello(version=1, chain=(LEAF,), proof=HELLO_PROOF),
    "hello with facts": agent.Hello(
        version=1,
        chain=(LEAF,),
        proof=HELLO_PROOF,
        session=agent.SessionFacts(original_request="Summarise the README.", model="m-1", client="vectors/1"),
    ),
    "welcome": agent.Welcome(
        session="s-1",
        task="t-42",
        agent="reader",
        tools_digest="5e" * 32,
        max_frame=1_048_576,
        call_window=65_536,
        calls=32,
        heartbeat_ms=30_000,
    ),
    "call": agent.Call(number=1, proof=CALL_PROOF, window=65_536),
    "call with everything": agent.Call(
        number=2,
        proof=CALL_PROOF,
        stdin=True,
        window=4096,
        deadline_ms=10_000,
        traceparent=TRACE,
        intent="find the licence",
        because=("019a0000-0000-7000-8000-000000000001",),
        retry_of="019a0000-0000-7000-8000-000000000002",
        idempotency_key="licence-1",
        detach=True,
        sync=True,
    ),
    "accepted": agent.Accepted(number=1, call="019a0000-0000-7000-8000-000000000003"),
    "accepted, replayed": agent.Accepted(number=2, call="019a0000-0000-7000-8000-000000000003", replayed=True),
    "output": agent.Output(number=1, stream="stdout", offset=0, data=b"# runner\n"),
    "output that is not text": agent.Output(number=1, stream="stderr", offset=70_000, data=b"AP8K", encoding="base64"),
    "credit": agent.Credit(number=1, bytes=32_768),
    "stdin_credit": agent.StdinCredit(number=2, bytes=65_536),
    "stdin": agent.Stdin(number=2, data=b"one line\n"),
    "stdin, end": agent.Stdin(number=2, eof=True),
    "cancel": agent.Cancel(number=2),
    "result": agent.Result(
        number=1,
        call="019a0000-0000-7000-8000-000000000003",
        outcome=Outcome(kind="exited", exit_code=0, usage=Usage(wall_us=1500, cpu_user_us=900, max_rss_kib=4096)),
        receipt="ab" * 32,
        position=17,
        durable=False,
        stdout_bytes=9,
    ),
    "result with a value": agent.Result(
        number=2,
        call="019a0000-0000-7000-8000-000000000004",
        outcome=Outcome(kind="timed_out", signal=9, reason="deadline"),
        receipt="cd" * 32,
        position=300,
        durable=True,
        value={"rows": [1, 2.5, None, True, "é"]},
        filtered={"hygiene:control": 2, "secret:github": 1},
        labels=("injected", "secret", "untrusted"),
        sources=("shop.example",),
        marked=(Marked(stream="stdout", start=3, end=41),),
    ),
    "refused": agent.Refused(
        number=3,
        refusal=refusal(
            "constraint", "outside what the token allows", rule="token", field="path", allowed="below /workspace"
        ),
        call="019a0000-0000-7000-8000-000000000005",
    ),
    "durable": agent.Durable(position=17),
    "list_tools": agent.ListTools(number=4),
    "tools": agent.Tools(
        number=4,
        digest="5e" * 32,
        tools=(
            agent.ToolSpec(
                name="fs_read",
                description="Reads a file.",
                parameters={"type": "object", "required": ["path"], "properties": {"path": {"type": "string"}}},
                result={},
                consequence="low",
                digest="0d" * 32,
            ),
        ),
    ),
    "tools_changed": agent.ToolsChanged(digest="6f" * 32),
    "attach": agent.Attach(number=5, call="019a0000-0000-7000-8000-000000000004", stdout=4096, window=65_536),
    "get_result": agent.GetResult(number=6, call="019a0000-0000-7000-8000-000000000004"),
    "end_task": agent.EndTask(number=7),
    "task_ended": agent.TaskEnded(number=7, reason="ended by its holder"),
    "ping": agent.Ping(token=5),
    "pong": agent.Pong(token=5),
    "bye": agent.Bye(reason="done"),
    "closing": agent.Closing(refusal=refusal("protocol", "nested deeper than 16")),
    "the largest number": agent.Cancel(number=MAX_NUMBER),
}

# Bodies that are not messages, each refused with code `protocol`.
HOSTILE: dict[str, str] = {
    "empty map": "80",
    "not a map": "93010203",
    "nil": "c0",
    "unknown type": "81a474797065a46e6f7065",
    "type twice": "82a474797065a470696e67a474797065a3627965",
    "type as string and as binary": "82a474797065a470696e67c40474797065a3627965",
    "unknown field": "82a474797065a470696e67a56578747261c3",
    "number as text": "82a474797065a663616e63656ca66e756d626572a131",
    "number as float": "82a474797065a663616e63656ca66e756d626572cb3ff0000000000000",
    "missing field": "81a474797065a663616e63656c",
    "integer key": "8201a470696e67a474797065a470696e67",
    "extension type": "82a474797065a470696e67a5746f6b656ed40105",
    "text that is not UTF-8": "82a474797065a3627965a6726561736f6ea2c328",
    "cut": "82a474797065a470696e67a5746f6b65",
    "bytes after": "81a474797065a470696e6700",
    "deep": "82a474797065a470696e67a5746f6b656e" + "91" * 200 + "c0",
    "a count beyond the bytes": "dfffffffff",
    "a length beyond the bytes": "82a474797065dbffffffff",
    "the reserved byte": "c1",
}


def segments(jws: str) -> dict[str, str]:
    """A JWS taken apart."""
    head, body, signature = jws.split(".")
    return {
        "header": unb64(head).decode(),
        "payload": unb64(body).decode(),
        "signature": signature,
        "jws": jws,
    }


def vectors() -> dict[str, Any]:
    """The whole file."""
    return {
        "about": "Byte-exact frames of the agent protocol, version 1, by make_agent.py; see runner/wire/README.md. "
        "`message` is the map that the frame's msgpack body holds, binary fields in base64.",
        "keys": {"holder_seed_hex": HOLDER.seed().hex(), "holder_jwk": HOLDER.public.jwk()},
        "proofs": {"hello": segments(HELLO_PROOF), "call": segments(CALL_PROOF)},
        "frames": [
            {"name": name, "message": msgspec.to_builtins(message), "frame": encode(message).hex()}
            for name, message in MESSAGES.items()
        ],
        "hostile": [{"name": name, "body": body} for name, body in HOSTILE.items()],
    }


# --- the README's tables ---------------------------------------------------------------------------------

_NUMBER = "the client's number for the request"
_CALL = "the daemon's id for the call"
MEANINGS: dict[str, dict[str, str]] = {
    "challenge": {
        "versions": "protocol versions that the daemon speaks",
        "nonce": "every proof on this connection carries it",
        "audience": "this daemon: `aat_aud` of every proof",
        "time": "the daemon's clock, seconds since the epoch; count `iat` from it",
    },
    "hello": {
        "version": "the one the client chose",
        "chain": "token texts, root to leaf",
        "proof": "the hello proof, below",
        "session": "claims about the client, recorded as such",
    },
    "session": {
        "original_request": f"what the agent was asked to do, up to {claims.MAX_REQUEST} bytes",
        "model": f"up to {claims.MAX_FACT} bytes",
        "model_version": f"up to {claims.MAX_FACT} bytes",
        "client": f"name and version of the client, up to {claims.MAX_FACT} bytes",
    },
    "welcome": {
        "session": "the root token's session",
        "task": "the root token's task",
        "agent": "whom the daemon takes you for",
        "tools_digest": "changes when the list of tools does",
        "max_frame": "longest body that the daemon reads, in bytes",
        "call_window": "the largest `window` that has an effect",
        "calls": "requests that may be under way at once",
        "heartbeat_ms": "silence after which the daemon pings; after twice this it hangs up",
        "workspace_lost": "the task's earlier sandbox is gone; it goes on in an empty workspace",
    },
    "call": {
        "number": _NUMBER,
        "proof": "the call proof, below: it holds tool and arguments",
        "stdin": "the client will send standard input",
        "window": "output bytes the daemon may send before the first credit",
        "deadline_ms": f"kill the call after this long; 0: the tool's own ceiling; at most {claims.MAX_DEADLINE_MS}",
        "traceparent": "W3C trace context, version 00",
        "intent": f"why, in words, up to {Limits().intent_bytes} bytes; a claim",
        "because": f"up to {claims.MAX_BECAUSE} ids of calls whose output led to this one; a claim",
        "retry_of": "id of the call that this one repeats",
        "idempotency_key": f"`{claims.IDEMPOTENCY_KEY.pattern}`; see idempotency",
        "detach": "the call outlives the connection",
        "sync": "answer only when the record is on disk",
    },
    "stdin": {"number": _NUMBER, "data": "within the credit", "eof": "nothing follows"},
    "credit": {"number": _NUMBER, "bytes": "output bytes more that the client takes; above 0"},
    "cancel": {"number": _NUMBER},
    "list_tools": {"number": _NUMBER},
    "attach": {
        "number": _NUMBER,
        "call": "the id of a call of this task",
        "stdout": "follow from this byte of stdout on",
        "stderr": "follow from this byte of stderr on",
        "window": "as in `call`",
    },
    "get_result": {"number": _NUMBER, "call": "the id of a call of this task"},
    "end_task": {"number": _NUMBER},
    "ping": {"token": "any integer; the answer has the same"},
    "pong": {"token": "the ping's"},
    "bye": {"reason": "for a log"},
    "accepted": {
        "number": _NUMBER,
        "call": _CALL,
        "replayed": "an idempotency key matched: this is the earlier call",
    },
    "output": {
        "number": _NUMBER,
        "stream": "`stdout` or `stderr`",
        "offset": "bytes of that stream before these",
        "data": "filtered output; provisional until `result`",
        "encoding": "absent for text (UTF-8 without controls); `base64` from the place on where the stream is no text",
    },
    "stdin_credit": {"number": _NUMBER, "bytes": "stdin bytes more that the client may send"},
    "result": {
        "number": _NUMBER,
        "call": _CALL,
        "outcome": "how the tool ended, see below",
        "receipt": "SHA-256 of the sealed outcome entry, hex",
        "position": "that entry's position in the ledger",
        "durable": "it is on disk; if not, `durable` follows",
        "value": "a python tool's structured result",
        "stdout_bytes": "the size of all `output.data` of that stream, also of what was not sent",
        "stderr_bytes": "the same of that one",
        "filtered": "rule → how often it found something in output, result, reason; `secret:NAME` is an issued secret",
        "labels": "what was found, also where nothing was changed for it",
        "sources": "with `untrusted`: hosts that have a part in it, or `workspace`",
        "marked": "parts that speak to a model: `stream` (`stdout`, `stderr`, `value`), `start`, `end`",
    },
    "refused": {"number": _NUMBER, "refusal": "see below", "call": "set when an entry was written for it"},
    "tool": {
        "name": "tool id",
        "description": "for a model",
        "parameters": "JSON Schema 2020-12, narrowed by the token's constraints",
        "result": "JSON Schema of `value`; empty when there is none",
        "consequence": "`low`, `medium` or `high`",
        "digest": "of the manifest and its code",
        "stdin": "it reads standard input",
    },
    "tools": {"number": _NUMBER, "digest": "as `tools_digest`", "tools": "a list of `tool` maps"},
    "tools_changed": {"digest": "the new one"},
    "durable": {"position": "every entry up to and including it is on disk"},
    "task_ended": {"number": "the `end_task` that it answers, absent when unasked", "reason": "for a person"},
    "closing": {"refusal": "why the daemon closes"},
}
_OUTCOME = {
    "kind": "`exited`, `timed_out`, `oom`, `killed`, `cancelled`, `output_capped`, `filtered`, `interrupted`, "
    "`unavailable`",
    "exit_code": "for `exited` without a signal",
    "signal": "the signal that ended it",
    "reason": "more, for a person",
    "usage": "a map of integers (`wall_us`, `cpu_user_us`, `cpu_system_us`, `max_rss_kib`, `leftover`) and `source`",
}
_REFUSAL = {
    "code": "one of the table below",
    "reason": "why, for a person or a model",
    "rule": "the policy rule or token part that spoke",
    "next_step": "what to do now",
    "retryable": "the same request may pass later",
    "retry_after_ms": "not before this long",
    "field": "the argument that was wrong",
    "allowed": "what would have passed",
}


def type_name(kind: Any) -> str:
    """A field's type in words that every language has."""
    origin = typing.get_origin(kind)
    if origin is tuple:
        return f"list of {type_name(typing.get_args(kind)[0])}"
    if origin is dict:
        return "map"
    if origin is typing.Literal:
        return "str"
    named = {str: "str", int: "int", bool: "bool", bytes: "bin", typing.Any: "any", float: "float"}
    if kind in named:
        return named[kind]
    if typing.get_args(kind):  # X | None
        return type_name(next(part for part in typing.get_args(kind) if part is not type(None)))
    return f"`{kind.__name__.lower()}` map" if not issubclass(kind, agent.Message) else f"`{tag(kind)}` map"


def tag(kind: type) -> str:
    return str(kind.__struct_config__.tag)


def table(kind: type[msgspec.Struct], meanings: dict[str, str]) -> list[str]:
    """One message's fields. Raises KeyError when a field has no meaning here."""
    hints = typing.get_type_hints(kind)
    rows = ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    for field in msgspec.structs.fields(kind):
        if field.required:
            default = "required"
        else:
            value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
            default = (
                "absent" if value is None or isinstance(value, msgspec.Struct) else f"`{json.dumps(_plain(value))}`"
            )
        rows.append(f"| `{field.name}` | {type_name(hints[field.name])} | {default} | {meanings[field.name]} |")
    extra = meanings.keys() - {field.name for field in msgspec.structs.fields(kind)}
    assert not extra, (kind, extra)
    return rows if len(rows) > 2 else ["No fields."]


def _plain(value: Any) -> Any:
    return "" if value == b"" else list(value) if isinstance(value, tuple) else value


def messages_section() -> str:
    """Every message of both directions."""
    lines: list[str] = []
    both = (agent.Ping, agent.Pong, agent.Bye)
    parts = (
        ("From the client", [kind for kind in typing.get_args(agent.FromClient) if kind not in both]),
        ("From the daemon", [kind for kind in typing.get_args(agent.FromDaemon) if kind not in both]),
        ("From either side", list(both)),
        ("Inside others", [agent.SessionFacts, agent.ToolSpec]),
    )
    for title, kinds in parts:
        lines += [f"### {title}", ""]
        for kind in kinds:
            text = " ".join((kind.__doc__ or "").split())
            lines += [f"**`{tag(kind)}`** — {text}", "", *table(kind, MEANINGS[tag(kind)]), ""]
    lines += ["**`outcome`** — how the tool ended (no `type` key).", "", *table(Outcome, _OUTCOME), ""]
    lines += ["**`refusal`** — why a request was refused (no `type` key).", "", *table(Refusal, _REFUSAL)]
    return "\n".join(lines)


def codes_section() -> str:
    """Every code."""
    rows = ["| code | whose fault | meaning | next step | retry |", "| --- | --- | --- | --- | --- |"]
    for code, row in CODES.items():
        retry = "may help" if row.retryable else "no"
        rows.append(f"| `{code}` | {row.fault.value} | {row.meaning} | {row.next_step} | {retry} |")
    return "\n".join(rows)


def states_section() -> str:
    """The four tables of states.py."""
    lines: list[str] = []
    for title, rules in (
        ("The client may send, by the connection's state", states.RECEIVES),
        ("The daemon may send, by the connection's state", states.SENDS),
        ("The client may send about one number, by its phase", states.NUMBER_RECEIVES),
        ("The daemon may send about one number, by its phase", states.NUMBER_SENDS),
    ):
        lines += [f"{title}:", "", "| state | message → next state |", "| --- | --- |"]
        for state, row in rules.items():
            after: dict[str, list[str]] = {}
            for kind, following in row.items():  # type: ignore[attr-defined]  # four tables of two types of state
                name = f"`{tag(kind)}`" if issubclass(kind, agent.Message) else "end of stream"
                after.setdefault(following.value, []).append(name)
            cell = "; ".join(f"{', '.join(names)} → {name}" for name, names in after.items()) or "nothing"
            lines.append(f"| {state.value} | {cell} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def limits_section() -> str:
    """The limits a client meets."""
    limits = Limits()
    rows = [
        ("frame body", f"1 to {limits.max_frame} bytes; `welcome.max_frame` is what holds"),
        ("values in a frame, keys counted", str(limits.max_elements)),
        ("nesting", str(limits.max_depth)),
        ("tokens in a chain", str(limits.delegation_depth + 1)),
        ("one token; the chain", f"{limits.token_bytes}; {limits.chain_bytes} bytes"),
        ("arguments, as canonical JSON", f"{limits.argument_bytes} bytes, nested {limits.argument_depth} deep"),
        ("age of a proof", f"{limits.proof_window_s} s; {limits.iat_skew_s} s into the future"),
        ("time for `hello`; for one frame to arrive", f"{limits.hello_timeout_s:g} s each"),
        ("requests under way", f"{limits.calls_per_connection}; `welcome.calls` is what holds"),
        ("connections of one uid", str(limits.connections_per_uid)),
        ("numbers", f"1 to {MAX_NUMBER}, with at most 16384 gaps: count upwards"),
    ]
    return "\n".join(["| what | at most |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)])


_AFTER_EXAMPLE = (
    "`aat_hash` is base64url(SHA-256(`header.payload` of the leaf token)), and `aat_id` the leaf's `jti`. "
    "The frames `hello` and `call` in `tests/vectors/agent.json` carry these two proofs."
)


def example_section() -> str:
    """The worked example."""
    hello, call = segments(HELLO_PROOF), segments(CALL_PROOF)
    return "\n".join(
        [
            f"The holder's key is the Ed25519 seed `{HOLDER.seed().hex()}`. The daemon's first frame:",
            "",
            "```",
            encode(MESSAGES["challenge"]).hex(),
            "```",
            "",
            "that is, after four bytes of length:",
            "",
            "```json",
            json.dumps(msgspec.to_builtins(MESSAGES["challenge"])),
            "```",
            "",
            "The hello proof's header and payload, exactly these bytes:",
            "",
            "```json",
            hello["header"],
            hello["payload"],
            "```",
            "",
            "base64url without padding, joined by `.`, signed, the signature appended:",
            "",
            "```",
            hello["jws"],
            "```",
            "",
            "A call of `fs_read` on the same connection one second later has this proof:",
            "",
            "```json",
            call["header"],
            call["payload"],
            "```",
            "",
            "```",
            call["jws"],
            "```",
            "",
            _AFTER_EXAMPLE,
        ]
    )


SECTIONS = {
    "limits": limits_section,
    "messages": messages_section,
    "states": states_section,
    "example": example_section,
    "codes": codes_section,
}


def with_sections(text: str) -> str:
    """README's text with every generated part as it is now."""
    for name, make in SECTIONS.items():
        pattern = re.compile(rf"(<!-- {name}: generated -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        body = make()
        text, count = pattern.subn(lambda found, body=body: f"{found[1]}\n{body}\n\n{found[2]}", text)
        assert count == 1, f"README has {count} parts named {name}"
    return text


def outputs() -> dict[Path, str]:
    """What the two files have to hold."""
    return {
        VECTORS: json.dumps(vectors(), indent=1, ensure_ascii=True) + "\n",
        README: with_sections(README.read_text(encoding="utf-8")),
    }


def main() -> None:
    stale = [path for path, text in outputs().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv:
        sys.exit(f"run tests/vectors/make_agent.py: {[path.name for path in stale]}" if stale else 0)
    for path, text in outputs().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
