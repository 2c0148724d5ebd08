"""Fetches a page and makes readable text of it: readability finds the article, html2text writes it as Markdown."""

import hashlib
import re
from contextlib import suppress
from email.message import Message

import html2text
import lxml.etree
import lxml.html
import readability

from runner.guest.beneath import ToolError
from runner.guest.outward import parse_url, request

MOST = 4 << 20  # bytes of a page that are read
MOST_TEXT = 200_000  # bytes of text that are returned
ACCEPT = "text/html, application/xhtml+xml, text/*;q=0.9, application/json;q=0.8, application/xml;q=0.8"
# What a reader does not see, and what stands around an article.
HIDDEN = (
    "//script|//style|//noscript|//template|//iframe|//*[@hidden or @aria-hidden='true']"
    "|//*[contains(translate(@style, ' ', ''), 'display:none') or contains(@style, 'visibility:hidden')]"
)
ABOUT = "|//nav|//footer|//aside"
HTML = ("text/html", "application/xhtml+xml")
_TEXT = re.compile(r"text/|application/(?:json|xml|javascript|yaml)|[^;]*\+(?:json|xml)")
_DECLARED = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([A-Za-z0-9._:-]{1,40})", re.IGNORECASE)
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]"
)


def run(call):
    """The text of the page, and where it came from."""
    given = call.arguments
    url = parse_url(given["url"])
    answer = request("GET", url, headers={"Accept": ACCEPT}, most=MOST)
    about = Message()
    about["Content-Type"] = answer.header("content-type") or "application/octet-stream"
    kind = about.get_content_type()
    found = {
        "source": str(url),
        "status": answer.status,
        "type": kind,
        "sha256": hashlib.sha256(answer.body).hexdigest(),
        "size": len(answer.body),
        "untrusted": True,
    }
    if answer.header("location"):
        found["location"] = answer.header("location")[:4096]
    if answer.body and not (kind in HTML or _TEXT.match(kind)):
        raise ToolError(f"{url.origin}: answers {kind[:80]}, which is no text: http_request returns bytes", "not_text")
    text = decoded(answer.body, about.get_content_charset() or "")
    if kind in HTML and text.strip():
        found["title"], text = article(text, given.get("content", "main") == "main")
    # What no reader sees, an agent should not read either: controls, direction marks, tags, zero-width characters.
    text = _INVISIBLE.sub("", text)
    begin, limit = given.get("offset", 0), given.get("limit", 20000)
    piece = text[begin : begin + limit].encode()[:MOST_TEXT].decode("utf-8", "ignore")
    more = begin + len(piece) < len(text)
    found |= {"text": piece, "truncated": more or answer.cut}
    return {**found, "next": begin + len(piece)} if more else found


def decoded(body, said):
    """Text of bytes: by the header, else by what the page says of itself, else UTF-8. Never fails."""
    declared = _DECLARED.search(body[:4096])
    for name in (said, declared[1].decode() if declared else "", "utf-8"):
        try:
            if name:
                return body.decode(name, "replace")
        except (LookupError, ValueError):  # no such encoding, or one that is not of text
            continue
    return body.decode("utf-8", "replace")


def article(html, main):
    """Title and Markdown of a page, without what it hides; all of it where no article is found."""
    try:
        tree = lxml.html.document_fromstring(html)
        title = tree.findtext(".//title") or ""
        for element in tree.xpath(HIDDEN + ABOUT if main else HIDDEN):
            element.drop_tree()
        seen = lxml.html.tostring(tree, encoding="unicode")
    except (lxml.etree.LxmlError, ValueError, AssertionError):  # no page that can be read as one
        return "", markdown(html)
    text = ""
    if main:
        with suppress(Exception):  # it raises many kinds for pages that have no article
            text = markdown(readability.Document(seen).summary(html_partial=True))
    return _INVISIBLE.sub("", " ".join(title.split()))[:500], text if text.strip() else markdown(seen)


def markdown(html):
    """HTML as Markdown, without images and wrapping."""
    writer = html2text.HTML2Text(bodywidth=0)
    writer.ignore_images = True
    writer.unicode_snob = True
    return writer.handle(html)
