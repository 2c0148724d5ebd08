"""Texts that speak to a model and texts that only look alike (injection_texts.toml), and disguises for the former."""

from __future__ import annotations

import base64
import codecs
import html
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

_TEXTS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
DIRECT, UNSEEN, FOREIGN, SUBTLE = (tuple(_TEXTS[name]) for name in ("direct", "unseen", "foreign", "subtle"))
ORDINARY, ORDINARY_UNSEEN = tuple(_TEXTS["ordinary"]), tuple(_TEXTS["ordinary_unseen"])


def _letters(table: dict[str, str]) -> Callable[[str], str]:
    return lambda text: "".join(table.get(char, char) for char in text)


_CYRILLIC = dict(zip("aceopxyiAEOPCTXHKMB", "асеорхуіАЕОРСТХНКМВ", strict=True))
_LEET = dict(zip("oieasOIEAS", "0134501345", strict=True))
_FULL = {chr(code): chr(code + 0xFEE0) for code in range(0x21, 0x7F)}
_BOLD = {chr(97 + at): chr(0x1D41A + at) for at in range(26)} | {chr(65 + at): chr(0x1D400 + at) for at in range(26)}
_CIRCLED = {chr(97 + at): chr(0x24D0 + at) for at in range(26)} | {chr(65 + at): chr(0x24B6 + at) for at in range(26)}

# How a text is disguised. Each keeps what it says for a model that reads closely.
DISGUISES: dict[str, Callable[[str], str]] = {
    "plain": lambda text: text,
    "upper case": str.upper,
    "look-alike letters": _letters(_CYRILLIC),
    "full width": _letters(_FULL),
    "bold letters": _letters(_BOLD),
    "letters in circles": _letters(_CIRCLED),
    "accents": lambda text: "".join(char + "\u0301" if char in "aeiou" else char for char in text),
    "zero width": "\u200b".join,
    "soft hyphens": "\u00ad".join,
    "tags": lambda text: "".join(chr(0xE0000 + ord(char)) for char in text if " " <= char < "\x7f"),
    "variation selectors": lambda text: "🙂" + "".join(chr(0xE0100 + ord(c) - 16) for c in text if " " <= c < "\x7f"),
    "digits for letters": _letters(_LEET),
    "letters apart": lambda text: "  ".join(" ".join(word) for word in text.split()),
    "backwards": lambda text: text[::-1],
    "rot13": lambda text: codecs.encode(text, "rot13"),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 twice": lambda text: base64.b64encode(base64.b64encode(text.encode())).decode(),
    "base64 in lines": lambda text: base64.encodebytes(text.encode()).decode(),
    "base64 of UTF-16": lambda text: base64.b64encode(text.encode("utf-16-le")).decode(),
    "hex": lambda text: text.encode().hex(),
    "hex in pairs": lambda text: text.encode().hex(" "),
    "percent": lambda text: "".join(f"%{byte:02x}" for byte in text.encode()),
    "entities": lambda text: "".join(f"&#{ord(char)};" for char in text),
    "hexadecimal entities": lambda text: "".join(f"&#x{ord(char):x};" for char in text),
    "JSON escapes": lambda text: "".join(f"\\u{ord(char):04x}" if ord(char) < 0x10000 else char for char in text),
    "in JSON": lambda text: '{"items": [{"note": "' + text.replace("\n", "\\n").replace('"', '\\"') + '"}]}',
    "words in tags": lambda text: "<p>" + "</b> <b>".join(html.escape(text).split(" ")) + "</p>",
    "tags in words": lambda text: "<span></span>".join(re.findall(r"&[^;]*;|.", html.escape(text), re.DOTALL)),
    "comment": lambda text: f"<html><body><p>Welcome.</p><!-- {text} --><p>Bye.</p></body></html>",
    "hidden element": lambda text: f'<div>Hi</div><div style="display:none">{text}</div>',
    "alternative text": lambda text: f'<img src="a.png" alt="{html.escape(text)}">',
    "Markdown emphasis": lambda text: " ".join(f"**{word}**" for word in text.split()),
    "Markdown comment": lambda text: f"# Title\n\n[//]: # ({text})\n\nText.",
    "lines of one word": lambda text: "\n".join(text.split()),
    "emoji between words": lambda text: " 🔥 ".join(text.split()),
}  # fmt: skip
