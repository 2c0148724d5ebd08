"""Verifies a ledger folder, or an export of one, with a public key and nothing of the daemon's code.

    python verify_ledger.py LEDGER KEY [ANCHOR ...]      KEY: name+hash+key, or a file that holds it

Exit status 0: it verifies; 6: it does not, and the findings are printed; 1: wrong usage. Written from formats alone, so
that the daemon's own verifier (`runner trace verify --no-content`) and it check each other: RFC 6962, C2SP tlog-tiles,
tlog-checkpoint, signed-note, tlog-proof, and the docstrings of runner/ledger/{tail,sequence,rotation}.py.
"""

import base64
import contextlib
import hashlib
import json
import re
import struct
import sys
import zlib
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

KINDS = "start stop reload repair rotate beacon degraded token revoke task_begin task_end refusals sandbox sandbox_end"
KINDS += " call outcome hold release prune prune_image pending image reopen withdraw refused_reload egress egress_end"
KINDS = f"{KINDS} alert secret raw_open".split()
HEAD, ENTRY, SIGNED, CONTENT = 1, 2, 3, 4  # records of the tail, and the most bytes of each
LIMIT = {HEAD: 16 << 20, ENTRY: 65535, SIGNED: 4096, CONTENT: 16 << 10}
PROOF = re.compile(r"c2sp\.org/tlog-proof@v1\nextra (.*)\nindex (0|[1-9][0-9]{0,15})((?:\n.*)*)\Z")
OWN = re.compile(r"daemon:[a-z]{1,32}\Z")
NUMBER = re.compile(r"(0|[1-9][0-9]{0,15})\Z")
PLACE = re.compile(r"tile/(entries|0|[1-9][0-9]?)/((?:x[0-9]{3}/)*[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?\Z")
NAMES = re.compile(r"(checkpoint|key|key\.next|key\.pub|vkey|lock|tail|rotation\.[1-9][0-9]{0,3})\Z")


def need(true, problem):
    if not true:
        raise ValueError(problem)


def sha(*data):
    return hashlib.sha256(b"".join(data)).digest()


def read(path):
    need(path.is_file() and not path.is_symlink(), f"{path.name} is missing, or not a regular file")
    return path.read_bytes()


def unbase64(text, size=0):
    data = base64.b64decode(text, validate=True)
    need(base64.b64encode(data).decode() == text and len(data) in (size or len(data),), "base64, but not canonical")
    return data


def path(level, number, width=0):
    index = re.sub("(...)(?=.)", r"x\1/", f"{number:0{(len(str(number)) + 2) // 3 * 3}}")
    return f"tile/{level}/{index}" + (f".p/{width}" if width else "")


class Key:
    def __init__(self, text):
        self.name, hashed, encoded = text.strip().split("+", 2)
        data = unbase64(encoded)
        self.text, self.id = text.strip(), sha(self.name.encode(), b"\n", data)[:4]
        need(self.name and self.id.hex() == hashed and data[0] == 1, f"{text}: not a verifier key")
        self.public = Ed25519PublicKey.from_public_bytes(data[1:])

    def open(self, note, count):
        """The lines, `count` of them, of a note that this key signed."""
        text, empty, signatures = note.decode().rpartition("\n\n")
        plain = not any(char < " " and char != "\n" for char in note.decode())
        need(empty and plain and signatures.endswith("\n") and text.count("\n") == count - 1, "no such signed note")
        signed = False
        for line in signatures[:-1].split("\n"):
            dash, name, signature = line.split(" ")
            need(dash == "—" and name and "+" not in name and not any(map(str.isspace, name)), "a malformed signature")
            if (name, unbase64(signature)[:4]) == (self.name, self.id):
                self.public.verify(unbase64(signature)[4:], f"{text}\n".encode())
                signed = True
        need(signed, f"not signed by {self.text}")
        return text.split("\n")

    def checkpoint(self, note):
        origin, size, root = self.open(note, 3)
        need(origin == self.name and NUMBER.match(size) and len(note) <= 64 << 10, "not a checkpoint of this log")
        return int(size), unbase64(root, 32)


def canonical(data):
    """An entry's members; its bytes must be their one encoding, RFC 8785 without floats and null."""
    told = json.loads(data, parse_float=lambda text: need(False, f"a float: {text}"))
    again = json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    need(again == data and len(data) <= 65535 and told["v"] == 1 and told["v"] is not True, "an entry not canonical")
    need(told["kind"] in KINDS and isinstance(told["time"], str), "an entry of an unknown kind, or without a time")
    values = [told]
    for value in values:  # grows while it is walked
        values += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        need(value is not None and (type(value) is not int or abs(value) < 1 << 53), "null, or too large an integer")
    return told


def follow(state, seen, position, told):
    """One entry after `state`: a call has one decision, and an outcome only after its plan. `seen` are call ids."""
    kind, waiting, call = told["kind"], state["open"], told.get("call", "")
    state["life"] = {"start": "running", "stop": "stopped"}.get(kind, state["life"])
    if kind == "call":
        permitted = "plan" not in told or told["decision"]["effect"] in ("allow", "modify")
        fits = permitted and 0 < len(call) <= 128 and call not in seen and call[:7] != "daemon:"
        need(fits, f"position {position}: call {call} may not be")
        seen.add(call)
        state["newest"] = max(state["newest"], call)
        waiting |= {call: [position, told["who"]["task"]]} if "plan" in told else {}
    elif kind == "outcome":
        waited = waiting.pop(call, [0, None])
        need(waited[1] == told["task"], f"position {position}: an outcome that no open call waits for")
    elif kind in ("egress", "egress_end", "alert"):
        request, own, ends = (call, told.get("request")), OWN.match(call) and not told["task"], kind == "egress_end"
        counts = ends or (kind == "egress" and told["decision"]["effect"] == "allow")
        fits = waiting.get(call, [0, None])[1] == told["task"] and (not counts or (request in seen) == ends)
        need(own or fits, f"position {position}: {kind} of no open call, or of no open request")
        seen ^= {request} if counts and not own else set()


class Keys:
    """The log's keys, oldest first, each with the size from which it signs: one that is trusted, and the handovers."""

    def __init__(self, trusted, handovers=()):
        self.chain, self.entries, self.claims = [], {}, []
        for number, data in enumerate(handovers, 1):
            start, _, note = data.partition(b"\n\n")
            need(form := PROOF.match(start.decode()), f"rotation {number} is no tlog-proof")
            entry, position, hashes = unbase64(form[1]), int(form[2]), form[3].split("\n")[1:]
            told = canonical(entry)
            old, new = Key(told["old"]), Key(told["new"])
            total = sha(b"\0", entry)  # the last leaf of all: every hash of its path lies to the left
            for step in hashes:
                total = sha(b"\x01", unbase64(step, 32), total)
            same = old.checkpoint(note) == new.checkpoint(note) == (position + 1, total)
            need(same and told["kind"] == "rotate" and len(hashes) == position.bit_count(), f"rotation {number}")
            self.chain = self.chain or [(old, 0)]
            follows = self.chain[-1][0].text == old.text and self.chain[-1][1] <= position
            need(follows and new.text not in [key.text for key, _ in self.chain], f"rotation {number} does not follow")
            self.chain.append((new, position + 1))
            self.entries[position] = entry
            self.claims.append((f"rotation.{number}", position + 1, total))
        self.chain = self.chain or [(trusted, 0)]
        need(trusted.text in [key.text for key, _ in self.chain], "no rotation leads to or from the key given")
        self.newest = self.chain[-1][0]

    def checkpoint(self, note):
        for place, (key, low) in reversed(list(enumerate(self.chain))):
            with contextlib.suppress(ValueError, InvalidSignature):
                size, root = key.checkpoint(note)
                if low <= size <= [*self.chain, (key, size)][place + 1][1]:
                    return size, root
        raise ValueError(f"not signed by {self.newest.text}, nor by a key before it for its part")


class Ledger:
    def __init__(self, folder, key, anchors):
        self.folder, self.keys, self.wrong, self.exported, self.base = Path(folder), Keys(key), [], False, 0
        self.state, self.seen, self.handovers = {"life": "none", "newest": "", "open": {}}, set(), {}
        self.entries, self.stack, self.roots, self.levels = [], [], [sha()], [[] for _ in range(8)]
        self.listed = set(filter(None, [self.attempt("names", self.place, item) for item in self.folder.rglob("*")]))
        self.attempt("key", self.follow_keys, key)
        self.claims = list(self.keys.claims)
        for note in [*anchors, self.folder / "checkpoint"]:
            published = self.attempt(note, lambda file: self.keys.checkpoint(read(Path(file))), note) or (0, sha())
            self.claims.append((note, *published))
        self.attempt("entries", self.walk, published[0])
        for who, size, root in self.claims:
            self.attempt(who, need, [root] == self.roots[size : size + 1], f"{size} entries here have another root")
        if (self.folder / "key.next").exists() and len(self.entries) - 1 not in self.keys.entries:
            self.handovers.pop(len(self.entries) - 1, None)  # a replacement of the key that was cut off
        self.attempt("key", need, self.handovers == self.keys.entries, "the rotations are not those of the entries")
        for place in sorted(self.listed.union(self.expected())):
            self.attempt(place, self.check_place, place)

    def attempt(self, where, what, *arguments):
        try:
            return what(*arguments)
        except (InvalidSignature, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            self.wrong.append(f"{where}: {str(error) or 'a signature does not verify'}")

    def place(self, item):
        """The name of a tile or bundle; None for any other file that may be here, as what was cut off (.new) may."""
        name = str(item.relative_to(self.folder))
        known = [form.match(name.removesuffix(".new")) for form in (NAMES, PLACE)]
        kind = any(known) if item.is_file() else item.is_dir() and (name + "/").startswith("tile/")
        need(kind and not item.is_symlink(), f"{name}: nothing of a ledger has this name")
        return name if known[1] and item.is_file() and not name.endswith(".new") else None

    def follow_keys(self, key):
        count = sum(bool(NAMES.match(item.name)) for item in self.folder.glob("rotation.*"))
        self.keys = Keys(key, [read(self.folder / f"rotation.{number + 1}") for number in range(count)])
        last = self.keys.chain[-2 if (self.folder / "key.next").exists() else -1 :]
        for item in [self.folder / name for name in ("key.pub", "vkey") if (self.folder / name).exists()]:
            need(read(item) in [f"{one.text}\n".encode() for one, _ in last], f"{item.name} is not the key given")

    def add(self, data):
        """One entry: its place in the tree, in the order of calls, and among the keys."""
        node, height, told = sha(b"\0", data), 0, canonical(data)
        self.levels[0].append(node)
        while self.stack and self.stack[-1][0] == height:
            node, height = sha(b"\x01", self.stack.pop()[1], node), height + 1
            if height % 8 == 0:
                self.levels[height // 8].append(node)
        self.stack.append((height, node))
        for _, part in self.stack[-2::-1]:
            node = sha(b"\x01", part, node)
        self.roots.append(node)
        follow(self.state, self.seen, len(self.entries), told)
        self.handovers |= {len(self.entries): data} if told["kind"] == "rotate" else {}
        self.entries.append(data)

    def bundle(self, number, width=0):
        data, found, place = read(self.folder / path("entries", number, width)), [], 0
        while place < len(data):
            found.append(data[place + 2 : (end := place + 2 + int.from_bytes(data[place : place + 2], "big"))])
            place = end
        need(place == len(data) and len(found) == (width or 256), f"bundle {number} does not hold its entries")
        return found

    def walk(self, published):
        """Every entry in order: bundles, then the tail, or an export's last bundle."""
        self.exported = not any((self.folder / name).exists() for name in ("tail", "lock"))
        self.base, signed, acknowledged, records = published - published % 256, -1, -1, []
        if self.exported and published % 256:
            records = [(ENTRY, data) for data in self.bundle(published // 256, published % 256)]
        elif not self.exported:
            (self.base, size, root, state), records = read_tail(read(self.folder / "tail"), self.keys.newest)
            self.claims.append(("the tail's head", self.base, root))
            acknowledged = max(size, published)
        for data in (data for number in range(self.base // 256) for data in self.bundle(number)):
            self.add(data)
        need(self.exported or state == self.state, "the tail's head tells another state than the entries")
        for kind, data in records:
            if kind == ENTRY:
                self.add(data)
            elif kind == SIGNED:
                fits = self.keys.newest.checkpoint(data) == (len(self.entries), self.roots[-1])
                need(fits and len(self.entries) > signed, "the tail has a checkpoint of other entries")
                signed = len(self.entries)
        need(signed >= acknowledged, "acknowledged entries are missing")

    def expected(self):
        """The files that must be there: of every whole bundle, and in an export the partial ones too."""
        size = self.base + (len(self.entries) % 256 if self.exported else 0)
        for name, count in [("entries", size), *((level, size >> 8 * level) for level in range(8))]:
            yield from (path(name, number) for number in range(count // 256))
            yield from [path(name, count // 256, count % 256)] if self.exported and count % 256 else []

    def check_place(self, place):
        """A tile or bundle holds what the entries make, and nothing behind their end."""
        level, index, width = PLACE.match(place).groups()
        number, count = int(re.sub("[x/]", "", index)), int(width or 256)
        need(place == path(level, number, int(width or 0)) and count <= 256 - bool(width), "not the name of its place")
        made = (self.entries if level == "entries" else self.levels[int(level)])[number * 256 :][:count]
        data = b"".join([len(one).to_bytes(2, "big") + one if level == "entries" else one for one in made])
        need(len(made) == count and read(self.folder / place) == data, "it is not what the entries make")


def read_tail(data, key):
    """(base, size, root, state) of the head, and the readable records: (kind, bytes, end)."""

    def record(place):
        if place + 9 > len(data):
            return None, b"", place
        kind, length, crc = struct.unpack_from(">BII", data, place)
        body, end = data[place + 9 : place + 9 + length], place + 9 + length
        whole = length <= LIMIT.get(kind, -1) and end <= len(data)
        return kind if whole and zlib.crc32(data[place : place + 5] + body) == crc else None, body, end

    kind, note, place = record(0)
    need(kind == HEAD, "the tail's first record is damaged")
    name, numbers, root, state = key.open(note, 4)
    base, size = map(int, numbers.split(" "))
    need(name == f"{key.name}/tail" and base % 256 == 0 and 0 <= base <= size, "the tail's head is of another log")
    records, count, signed = [], base, base
    while (found := record(place))[0] not in (None, HEAD):
        records.append(found[:2])
        place, count = found[2], count + (found[0] == ENTRY)
        signed = count if found[0] == SIGNED else signed
    # Unreadable bytes are a torn write, unless a whole later group follows: then they had been acknowledged.
    for start in re.finditer(rb"(?=\x03\0\0)", data[place:]):
        kind, note, end = record(place + start.start())
        with contextlib.suppress(ValueError, InvalidSignature):
            if kind == SIGNED and key.checkpoint(note)[0] > signed and record(end)[0]:
                raise LookupError(f"acknowledged entries are damaged at byte {place}")
    return (base, size, bytes.fromhex(root), json.loads(state)), records


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    trusted = Key(read(Path(sys.argv[2])).decode() if Path(sys.argv[2]).exists() else sys.argv[2])
    ledger = Ledger(sys.argv[1], trusted, sys.argv[3:])
    print(*[f"wrong: {problem}\n" for problem in ledger.wrong], sep="", end="")
    print(f"{'NOT VERIFIED' if ledger.wrong else 'verified'}: {trusted.name}, {len(ledger.entries)} entries")
    sys.exit(6 if ledger.wrong else 0)
