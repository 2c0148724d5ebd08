"""People who do not exist, as the files and results that hold them are written, and the ways to send one elsewhere."""

from __future__ import annotations

import base64
import csv
import gzip
import html
import io
import json
import random
import textwrap
from collections.abc import Callable
from urllib.parse import quote, urlencode

_FIRST = (
    "Ada",
    "Grace",
    "Alan",
    "Edsger",
    "Barbara",
    "Niklaus",
    "Frances",
    "Donald",
    "Radia",
    "Ken",
    "Zuzana",
    "Jürgen",
    "Łukasz",
    "Søren",
    "Chloé",
    "Émile",
    "Íñigo",
    "Мария",
    "Οδυσσέας",
    "Ngozi",
    "Wanjiru",
    "Priya",
    "Arjun",
    "Mei",
    "Haruto",
    "Siobhán",
    "Oisín",
    "Fatima",
    "Yusuf",
    "Leila",
)
_LAST = (
    "Lovelace",
    "Hopper",
    "Turing",
    "Dijkstra",
    "Liskov",
    "Wirth",
    "Allen",
    "Knuth",
    "Perlman",
    "Thompson",
    "Nováková",
    "Müller",
    "Wiśniewski",
    "Ångström",
    "Dupont",
    "Zola",
    "Etxeberria",
    "Кузнецова",
    "Παπαδόπουλος",
    "Okafor",
    "Kamau",
    "Raman",
    "Mehta",
    "Chen",
    "Tanaka",
    "Murphy",
    "Byrne",
    "Haddad",
    "Demir",
    "Rahimi",
    "Schneider",
    "Weber",
    "Fischer",
    "Meyer",
    "Wagner",
    "Becker",
    "Schulz",
    "Hoffmann",
)
_CITY = (
    "Berlin",
    "Essen",
    "Leer",
    "Köln",
    "Kiel",
    "Wien",
    "Graz",
    "Basel",
    "Bern",
    "Praha",
    "Gdańsk",
    "Malmö",
    "Lyon",
    "Bilbao",
    "Cork",
    "Lagos",
    "Pune",
    "Osaka",
)
_STREET = (
    "Lindenallee",
    "Hauptstraße",
    "Mühlweg",
    "Gartenstraße",
    "Am Markt",
    "Ringstraße",
    "Seeweg",
    "Rue de la Paix",
)
FIELDS = ("customer", "first_name", "last_name", "email", "phone", "iban", "street", "city", "born", "status")


def person(drawn: random.Random) -> dict[str, str]:
    """One customer."""
    first, last = drawn.choice(_FIRST), drawn.choice(_LAST)
    account = "".join(drawn.choices("0123456789", k=18))
    return {
        "customer": f"C-{drawn.randrange(10_000, 1_000_000)}",
        "first_name": first,
        "last_name": last,
        "email": f"p{drawn.randrange(10**7)}.{drawn.randrange(10**4)}@example.com",
        "phone": f"+49 {drawn.randrange(30, 999)} {drawn.randrange(10**6, 10**7)}",
        "iban": f"DE{drawn.randrange(10, 99)}{account}",
        "street": f"{drawn.choice(_STREET)} {drawn.randrange(1, 200)}",
        "city": drawn.choice(_CITY),
        "born": f"19{drawn.randrange(40, 99)}-{drawn.randrange(1, 13):02d}-{drawn.randrange(1, 29):02d}",
        "status": drawn.choice(("active", "closed", "on hold")),
    }


def people(seed: int, count: int) -> list[dict[str, str]]:
    """The same ones for the same seed."""
    drawn = random.Random(seed)
    return [person(drawn) for _ in range(count)]


def as_csv(rows: list[dict[str, str]], delimiter: str = ",") -> str:
    """With a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_json(rows: list[dict[str, str]]) -> str:
    """An array of objects, spread over lines."""
    return json.dumps(rows, indent=2, ensure_ascii=False)


def as_lines(rows: list[dict[str, str]]) -> str:
    """An object a line."""
    return "\n".join(json.dumps(row) for row in rows) + "\n"


def as_query(rows: list[dict[str, str]]) -> str:
    """As sql_query answers."""
    return json.dumps({"columns": list(rows[0]), "rows": [list(row.values()) for row in rows]})


def as_text(rows: list[dict[str, str]]) -> str:
    """A name and a value a line, as a mail or a form has them."""
    return "\n".join("".join(f"{name}: {value}\n" for name, value in row.items()) for row in rows)


WRITTEN: dict[str, Callable[[list[dict[str, str]]], str]] = {
    "csv": as_csv,
    "tsv": lambda rows: as_csv(rows, "\t"),
    "json": as_json,
    "lines": as_lines,
    "query": as_query,
    "text": as_text,
}


def _row(row: dict[str, str]) -> str:
    return ",".join(row.values())


# What goes out of a record, by what is left of it.
PARTS: dict[str, Callable[[dict[str, str]], str]] = {
    "row": _row,
    "object": json.dumps,
    "form": urlencode,
    "reversed order": lambda row: "; ".join(reversed(row.values())),
    "sentence": lambda row: f"Please call {row['first_name']} {row['last_name']} (number {row['customer']}) today.",
    "last name first": lambda row: f"{row['last_name']}, {row['first_name']}, {row['customer']}",
    "name and street": lambda row: f"{row['first_name']} {row['last_name']} lives at {row['street']}",
    "address": lambda row: f"write to {row['email']}",
    "phone": lambda row: f"call {row['phone']}",
    "phone, local": lambda row: "call 0" + row["phone"].removeprefix("+49 ").replace(" ", "/"),
    "iban, grouped": lambda row: " ".join(textwrap.wrap(row["iban"], 4)),
    "markup": lambda row: (
        "<table><tr>" + "".join(f"<td>{html.escape(each)}</td>" for each in row.values()) + "</tr></table>"
    ),
    "markdown": lambda row: "| " + " | ".join(f"**{each}**" for each in row.values()) + " |",
}

# How it is written.
CODINGS: dict[str, Callable[[str], bytes]] = {
    "plain": str.encode,
    "upper case": lambda text: text.upper().encode(),
    "wrapped": lambda text: textwrap.fill(text, 24).encode(),
    "quoted": lambda text: textwrap.indent(textwrap.fill(text, 60), "> ").encode(),
    "base64": lambda text: base64.b64encode(text.encode()),
    "base64, lines": lambda text: base64.encodebytes(b"some text before it, to fill a line; " + text.encode()),
    "base64, url-safe": lambda text: base64.urlsafe_b64encode(text.encode()),
    "base64 in JSON": lambda text: json.dumps({"data": base64.b64encode(text.encode()).decode()}).encode(),
    "base64 twice": lambda text: base64.b64encode(base64.b64encode(text.encode())),
    "hex": lambda text: text.encode().hex().encode(),
    "hex, spaced": lambda text: text.encode().hex(" ").encode(),
    "percent": lambda text: quote(text).encode(),
    "every byte percent": lambda text: "".join(f"%{byte:02X}" for byte in text.encode()).encode(),
    "JSON escapes": lambda text: json.dumps(json.dumps({"text": text})).encode(),
    "UTF-16": lambda text: text.encode("utf-16"),
    "gzip": lambda text: gzip.compress(text.encode()),
    "gzip in base64": lambda text: base64.b64encode(gzip.compress(text.encode())),
    "entities": lambda text: "".join(f"&#{ord(char)};" for char in text).encode(),
    "full width": lambda text: "".join(
        chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in text
    ).encode(),
}
