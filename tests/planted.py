"""Text with secrets and personal data planted in it, and text that only looks like it: seeded, written from the makers'
formats and not from the rules, so that what the rules miss is seen."""

# ruff: noqa: E501 - a table of forms reads best with one a line
from __future__ import annotations

import base64
import json
import random
import string
import uuid
from collections.abc import Callable, Iterator

Make = Callable[[random.Random], str]
ALNUM = string.ascii_letters + string.digits
URL64 = ALNUM + "-_"
B64 = ALNUM + "+/"
HEX = "0123456789abcdef"
UP = string.ascii_uppercase + string.digits
LOW = string.ascii_lowercase + string.digits


def some(source: random.Random, letters: str, count: int) -> str:
    """So many letters."""
    return "".join(source.choices(letters, k=count))


def fixed(prefix: str, letters: str, count: int, after: str = "") -> Make:
    """A prefix, random letters, an end."""
    return lambda source: prefix + some(source, letters, count) + after


def _uuid(source: random.Random) -> str:
    return str(uuid.UUID(int=source.getrandbits(128), version=4))


def _jwt(source: random.Random) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value, separators=(",", ":")).encode()).rstrip(b"=").decode()

    head = {"alg": source.choice(["HS256", "RS256", "ES256", "EdDSA"]), "typ": "JWT"}
    body = {"sub": some(source, LOW, 12), "iat": source.randrange(10**9), "scope": "read write"}
    return f"{part(head)}.{part(body)}.{some(source, URL64, source.choice([43, 86, 342]))}"


def _pem(source: random.Random) -> str:
    kind = source.choice(["RSA ", "EC ", "", "OPENSSH ", "ENCRYPTED ", "DSA "])
    body = "\n".join(some(source, B64, 64) for _ in range(source.randrange(3, 30)))
    return f"-----BEGIN {kind}PRIVATE KEY-----\n{body}\n{some(source, B64, 22)}==\n-----END {kind}PRIVATE KEY-----"


def _password(source: random.Random) -> str:
    return "".join(source.sample(some(source, string.ascii_letters, 8) + some(source, string.digits, 3) + "!x", 13))


def _basic(source: random.Random) -> str:
    return base64.b64encode(f"{some(source, LOW, 6)}:{_password(source)}".encode()).decode()


# Format → what makes a value, and the texts that it stands in: "{}" is the value. () = the usual places of a token.
PLACES = (
    "{}",
    "TOKEN={}",
    'export KEY="{}"',
    "  value: {}\n",
    '{{"a": "{}", "b": 1}}',
    "got {} from it.",
    "?key={}&x=1",
)
CREDENTIALS: dict[str, tuple[Make, tuple[str, ...]]] = {
    "aws access key": (fixed("AKIA", string.ascii_uppercase + "234567", 16), ()),
    "aws secret key": (
        fixed("", B64, 40),
        ("aws_secret_access_key = {}", 'AWS_SECRET_ACCESS_KEY="{}"', '"SecretAccessKey": "{}"'),
    ),
    "gcp api key": (fixed("AIza", URL64, 35), ()),
    "azure storage": (fixed("", B64, 86, "=="), ("DefaultEndpointsProtocol=https;AccountName=a;AccountKey={};",)),
    "github": (lambda s: f"gh{s.choice('pousr')}_{some(s, ALNUM, 36)}", ()),
    "github fine-grained": (lambda s: f"github_pat_{some(s, ALNUM, 22)}_{some(s, ALNUM, 59)}", ()),
    "gitlab": (fixed("glpat-", URL64, 20), ()),
    "slack bot": (lambda s: f"xoxb-{some(s, '123456789', 12)}-{some(s, '123456789', 13)}-{some(s, ALNUM, 24)}", ()),
    "slack webhook": (
        lambda s: f"T{some(s, UP, 8)}/B{some(s, UP, 8)}/{some(s, ALNUM, 24)}",
        ("https://hooks.slack.com/services/{}",),
    ),
    "stripe": (
        lambda s: f"{s.choice(['sk', 'rk'])}_{s.choice(['live', 'test'])}_{some(s, ALNUM, s.choice([24, 99]))}",
        (),
    ),
    "openai": (lambda s: f"sk-{some(s, ALNUM, 20)}T3BlbkFJ{some(s, ALNUM, 20)}", ()),
    "openai project": (fixed("sk-proj-", URL64, 156), ()),
    "anthropic": (fixed("sk-ant-api03-", URL64, 93, "AA"), ()),
    "hugging face": (fixed("hf_", string.ascii_letters, 34), ()),
    "npm": (fixed("npm_", ALNUM, 36), ()),
    "pypi": (fixed("pypi-AgEIcHlwaS5vcmc", URL64, 150), ()),
    "docker": (fixed("dckr_pat_", URL64, 27), ()),
    "digitalocean": (fixed("dop_v1_", HEX, 64), ()),
    "heroku": (_uuid, ("HEROKU_API_KEY={}", "heroku_key: {}")),
    "twilio": (fixed("SK", HEX, 32), ()),
    "sendgrid": (lambda s: f"SG.{some(s, URL64, 22)}.{some(s, URL64, 43)}", ()),
    "mailgun": (fixed("key-", HEX, 32), ()),
    "mailchimp": (fixed("", HEX, 32, "-us19"), ()),
    "shopify": (fixed("shpat_", HEX, 32), ()),
    "square": (fixed("sq0csp-", URL64, 43), ()),
    "telegram": (lambda s: f"{s.randrange(10**8, 10**10)}:AA{some(s, URL64, 33)}", ("{}", "BOT={}", "/bot{}/getMe")),
    "discord": (lambda s: f"M{some(s, ALNUM, 25)}.{some(s, URL64, 6)}.{some(s, URL64, 38)}", ()),
    "databricks": (fixed("dapi", HEX, 32), ()),
    "grafana": (lambda s: f"glsa_{some(s, ALNUM, 32)}_{some(s, HEX, 8)}", ()),
    "vault": (fixed("hvs.", ALNUM, 24), ()),
    "terraform": (lambda s: f"{some(s, ALNUM, 14)}.atlasv1.{some(s, ALNUM, 67)}", ()),
    "age": (fixed("AGE-SECRET-KEY-1", "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L", 58), ()),
    "atlassian": (fixed("ATATT3", URL64, 186), ()),
    "linear": (fixed("lin_api_", ALNUM, 40), ()),
    "notion": (fixed("secret_", ALNUM, 43), ()),
    "figma": (fixed("figd_", URL64, 43), ()),
    "postman": (lambda s: f"PMAK-{some(s, HEX, 24)}-{some(s, HEX, 34)}", ()),
    "new relic": (fixed("NRAK-", UP, 27), ()),
    "sentry": (fixed("sntryu_", HEX, 64), ()),
    "datadog": (fixed("", HEX, 32), ("DD_API_KEY={}", "datadog_api_key: {}")),
    "cloudflare": (fixed("", URL64, 40), ("CLOUDFLARE_API_TOKEN={}",)),
    "okta": (fixed("00", URL64, 40), ("Authorization: SSWS {}", "OKTA_TOKEN={}")),
    "airtable": (lambda s: f"pat{some(s, ALNUM, 14)}.{some(s, HEX, 64)}", ()),
    "doppler": (fixed("dp.pt.", ALNUM, 43), ()),
    "pulumi": (fixed("pul-", HEX, 40), ()),
    "rubygems": (fixed("rubygems_", HEX, 48), ()),
    "planetscale": (fixed("pscale_tkn_", URL64, 43), ()),
    "jwt": (_jwt, ("{}", "Authorization: Bearer {}", '"token": "{}"', "jwt={}")),
    "pem": (_pem, ("{}\n", "key: |\n{}\n", "cat id_rsa\n{}\n$ ")),
    "url password": (
        _password,
        ("postgres://app:{}@db.example.net:5432/main", "redis://:{}@cache/0", "https://bob:{}@example.org/x"),
    ),
    "bearer": (
        fixed("", URL64, 40),
        ("Authorization: Bearer {}", "-H 'authorization: bearer {}'", "> Authorization: Bearer {}\r\n"),
    ),
    "basic": (_basic, ("Authorization: Basic {}", "-H 'Authorization: Basic {}'")),
    "cookie": (fixed("", ALNUM, 32), ("Set-Cookie: session={}; Path=/; HttpOnly", "Cookie: sid={}; lang=en")),
    "connection string": (_password, ("Server=db;Database=x;User Id=sa;Password={};Encrypt=true",)),
    "assigned key": (
        fixed("", ALNUM, 32),
        ("API_KEY={}", "api_key: '{}'", '"apiKey": "{}"', "client_secret => {}", 'SECRET_KEY = "{}"'),
    ),
    "assigned token": (fixed("", HEX, 40), ("AUTH_TOKEN={}", "access_token: {}", '"token":"{}"', "secret={}")),
    "password": (_password, ("DB_PASSWORD={}", "password: {}", '"password": "{}"', "PGPASSWORD='{}'", 'passwd = "{}"')),
}


def _luhn(digits: str) -> str:
    total = sum(sum(divmod(int(d) * (2 - i % 2), 10)) for i, d in enumerate(reversed(digits)))
    return digits + str(-total % 10)


def _card(source: random.Random) -> str:
    start, size = source.choice(
        [("4", 16), ("51", 16), ("55", 16), ("2221", 16), ("34", 15), ("37", 15), ("6011", 16), ("36", 14)]
    )
    digits = _luhn(start + some(source, string.digits, size - len(start) - 1))
    sep = source.choice(["", " ", "-"]) if size == 16 else ""
    return sep.join(digits[at : at + 4] for at in range(0, size, 4)) if sep else digits


def _iban(source: random.Random) -> str:
    country, form = source.choice(
        [
            ("DE", "18d"),
            ("GB", "4a14d"),
            ("FR", "10d11d2d"),
            ("NL", "4a10d"),
            ("ES", "20d"),
            ("CH", "17d"),
            ("NO", "11d"),
        ]
    )
    body, number = "", ""
    for char in form:
        if char.isdigit():
            number += char
        else:
            body += some(source, string.digits if char == "d" else string.ascii_uppercase, int(number))
            number = ""
    check = 98 - int("".join(str(int(char, 36)) for char in body + country + "00")) % 97
    text = f"{country}{check:02}{body}"
    return text if source.random() < 0.5 else " ".join(text[at : at + 4] for at in range(0, len(text), 4))


def _email(source: random.Random) -> str:
    name = source.choice(["{a}.{b}", "{a}", "{a}{n}", "{a}_{b}", "{a}+{b}", "{b}-{a}.x"])
    text = name.format(
        a=some(source, string.ascii_lowercase, 5), b=some(source, string.ascii_lowercase, 7), n=source.randrange(100)
    )
    host = some(source, string.ascii_lowercase, source.randrange(3, 12))
    return f"{text}@{source.choice(['', 'mail.', 'a-b.'])}{host}.{source.choice(['org', 'com', 'de', 'co.uk', 'io', 'museum'])}"


def _phone(source: random.Random) -> str:
    d = lambda count: some(source, string.digits, count)  # noqa: E731
    return source.choice([
        f"+49 {source.randrange(150, 180)} {d(8)}", f"+1 {source.randrange(201, 989)}-{source.randrange(200, 999)}-{d(4)}",
        f"+44 20 {d(4)} {d(4)}", f"+33 6 {d(2)} {d(2)} {d(2)} {d(2)}", f"+4930{d(8)}",
        f"({source.randrange(201, 989)}) {source.randrange(200, 999)}-{d(4)}", f"{source.randrange(201, 989)}-{source.randrange(200, 999)}-{d(4)}",
    ])  # fmt: skip


def _ssn(source: random.Random) -> str:
    return f"{source.randrange(100, 660)}-{source.randrange(10, 99)}-{source.randrange(1000, 9999)}"


TEXT = ("{}", "is {} now", '"{}"', "x,{},y", "({})", "to: {}\n", "<{}>")
PII: dict[str, tuple[Make, tuple[str, ...]]] = {
    "pii.email": (_email, TEXT),
    "pii.phone": (_phone, ("{}", "call {} now", '"{}"', "Tel. {}\n")),
    "pii.iban": (_iban, ("{}", "IBAN: {}", '"{}"', "to {}, please")),
    "pii.card": (_card, ("{}", "card {} exp", '"{}"', "pan: {}\n")),
    "pii.ssn": (_ssn, ("{}", "SSN: {}", '"ssn": "{}"')),
}


def planted(kind: tuple[Make, tuple[str, ...]], seed: str, count: int) -> Iterator[tuple[bytes, bytes]]:
    """So many texts with a value each, and the value."""
    make, places = kind
    for number in range(count):
        source = random.Random(f"{seed} {number}")
        value = make(source)
        yield source.choice(places or PLACES).format(value).encode(), value.encode()


def _base64_image(source: random.Random) -> str:
    return "data:image/png;base64,iVBORw0KGgo" + base64.b64encode(source.randbytes(600)).decode()


def _bad_card(source: random.Random) -> str:
    good = _card(source)
    return good[:-1] + str((int(good[-1]) + source.randrange(1, 9)) % 10)


# What must be left alone: kind → what makes one.
NEGATIVES: dict[str, Make] = {
    "uuid": _uuid,
    "uuid id": lambda s: f'{{"id": "{_uuid(s)}", "request_id": "{_uuid(s)}"}}',
    "git sha": lambda s: f"commit {some(s, HEX, 40)}\nAuthor: x",
    "git short": lambda s: f"{some(s, HEX, 7)}..{some(s, HEX, 7)} main -> main",
    "sha256": lambda s: f"sha256:{some(s, HEX, 64)}",
    "sha file": lambda s: f"{some(s, HEX, 64)}  ./build/app.tar.gz",
    "image": _base64_image,
    "lock file": lambda s: f'"integrity": "sha512-{base64.b64encode(s.randbytes(64)).decode()}",',
    "pip hash": lambda s: f"    --hash=sha256:{some(s, HEX, 64)} \\",
    "go sum": lambda s: f"example.org/x v1.2.3 h1:{base64.b64encode(s.randbytes(32)).decode()}",
    "etag": lambda s: f'ETag: "{some(s, HEX, 32)}"',
    "md5": lambda s: f"MD5 ({some(s, LOW, 5)}.iso) = {some(s, HEX, 32)}",
    "version": lambda s: f"v{s.randrange(30)}.{s.randrange(30)}.{s.randrange(300)}-rc.{s.randrange(9)}+build.{s.randrange(9999)}",
    "time": lambda s: f"2026-{s.randrange(1, 13):02}-{s.randrange(1, 29):02}T{s.randrange(24):02}:10:{s.randrange(60):02}.{s.randrange(10**6):06}+02:00",
    "epoch": lambda s: f"ts={s.randrange(10**12, 2 * 10**12)} took={s.randrange(10**6)}ns",
    "order number": lambda s: f"order {s.randrange(10**9, 10**10)}-{s.randrange(1000)}",
    "invoice": lambda s: f"INV-2026-{s.randrange(10**6):06}",
    "date": lambda s: f"{s.randrange(1, 29):02}.{s.randrange(1, 13):02}.2026",
    "ip": lambda s: f"{s.randrange(1, 255)}.{s.randrange(255)}.{s.randrange(255)}.{s.randrange(1, 255)}:{s.randrange(1024, 65535)}",
    "ipv6": lambda s: ":".join(some(s, HEX, 4) for _ in range(8)),
    "bad card": _bad_card,
    "ssh prompt": lambda s: f"{some(s, LOW, 5)}@{some(s, LOW, 6)}-{s.randrange(9)}:~/src$ ls",
    "decorator": lambda s: f"@{s.choice(['pytest', 'app', 'functools'])}.{some(s, string.ascii_lowercase, 7)}",
    "npm scope": lambda s: f"npm i @{some(s, string.ascii_lowercase, 5)}/{some(s, string.ascii_lowercase, 6)}@{s.randrange(9)}.{s.randrange(20)}.1",
    "git remote": lambda s: f"git@github.com:{some(s, LOW, 5)}/{some(s, LOW, 8)}.git",
    "placeholder": lambda s: s.choice(["api_key = <your-key>", "API_KEY=your_api_key_here", "password: changeme", "token: ${TOKEN}", "SECRET=xxxxxxxxxxxxxxxx", "password=example", "key: {{ .Values.apiKey }}", "TOKEN=$(cat token)", "AKIAIOSFODNN7EXAMPLE"]),
    "colour": lambda s: f"color: #{some(s, HEX, 6)}; background: #{some(s, HEX, 3)};",
    "mac": lambda s: ":".join(some(s, HEX, 2) for _ in range(6)),
    "isbn": lambda s: f"ISBN 978-{s.randrange(10)}-{s.randrange(100, 999)}-{s.randrange(10000, 99999)}-{s.randrange(10)}",
    "minified": lambda s: f"!function(e,t){{var n=e.token||t.password,r={s.randrange(999)};return n&&r.secret(n)}}(window,{some(s, string.ascii_letters, 3)});",
    "code": lambda s: s.choice(["password = getpass()", "token = os.environ['TOKEN']", "self.secret = secret", "def check_password(password: str) -> bool:", "api_key=settings.API_KEY,", "const token = await getToken(user);", "if password != confirm_password:", "secret_name = f'{name}-tls'", "password = request.form['password']", "key=lambda item: item.token"]),
    "k8s": lambda s: f"pod/{some(s, string.ascii_lowercase, 6)}-{some(s, HEX, 9)}-{some(s, LOW, 5)}   1/1   Running   0   {s.randrange(99)}d",
    "container": lambda s: f"{some(s, HEX, 12)}   nginx:1.27   \"/docker-entrypoint.s…\"   Up {s.randrange(9)} hours",
    "trace": lambda s: f"traceparent: 00-{some(s, HEX, 32)}-{some(s, HEX, 16)}-01",
    "float": lambda s: f"loss: {s.random():.16f} acc: {s.random():.16f}",
    "numbers": lambda s: " ".join(str(s.randrange(10**s.randrange(1, 9))) for _ in range(12)),
    "coordinates": lambda s: f"{s.uniform(-90, 90):.6f}, {s.uniform(-180, 180):.6f}",
    "public key": lambda s: f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5{some(s, B64, 48)} me",
    "certificate": lambda s: "-----BEGIN CERTIFICATE-----\n" + "\n".join(some(s, B64, 64) for _ in range(6)) + "\n-----END CERTIFICATE-----",
    "hex dump": lambda s: f"{s.randrange(2**24):08x}: " + " ".join(some(s, HEX, 4) for _ in range(8)) + "  ................",
    "compiler": lambda s: f"src/{some(s, LOW, 6)}.c:{s.randrange(999)}:{s.randrange(80)}: warning: unused variable '{some(s, string.ascii_lowercase, 5)}'",
    "arn": lambda s: f"arn:aws:iam::{s.randrange(10**11, 10**12)}:role/{some(s, string.ascii_lowercase, 9)}",
    "media": lambda s: f"icon_{some(s, LOW, 4)}@{s.randrange(1, 4)}x.png",
}  # fmt: skip


def negatives(seed: str, count: int) -> Iterator[tuple[str, bytes]]:
    """So many of each kind."""
    for kind, make in NEGATIVES.items():
        for number in range(count):
            yield kind, make(random.Random(f"{seed} {kind} {number}")).encode()
