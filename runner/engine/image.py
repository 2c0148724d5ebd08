"""The images that sandboxes are made from: named by the digest of what goes into them, built without network, pinned
by id at first use.

There are two, of one recipe: `TOOLS`, small, for tools without a network, and `WEB`, the same on a larger base, with
what the tools that have one need.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import runner
from runner.engine.docker import INPUTS_LABEL, Docker, Image
from runner.errors import refuse

RECIPE = "Containerfile"
_GUEST = "runner/guest"
_PACKAGES = "packages"


class Kind(NamedTuple):
    """An image that this package builds. `packages` are Debian's that its base has beside those of every base."""

    name: str  # also its stage in the recipe
    repository: str
    base: str
    setup: str  # what makes its base
    packages: tuple[str, ...] = ()

    @property
    def remedy(self) -> str:
        """How it comes to be on a host."""
        return f"build it with `runner image build --kind {self.name}`, or run {self.setup}"


TOOLS = Kind("tools", "toolrunner/tools", "toolrunner/base:bookworm", "scripts/setup")
WEB = Kind(
    "web",
    "toolrunner/web",
    "toolrunner/web-base:bookworm",
    "scripts/setup --web",
    # git and curl with whom they trust; a PostgreSQL client that speaks the protocol itself, so that its connection can
    # go through a proxy (libpq's cannot); what finds an article in a page, and what writes HTML as text.
    ("ca-certificates", "curl", "git", "python3-asyncpg", "python3-html2text", "python3-readability"),
)
BASE = TOOLS.base
KINDS = {kind.name: kind for kind in (TOOLS, WEB)}


def inputs(kind: Kind = TOOLS) -> dict[str, bytes]:
    """Everything that goes into the image, by its path in the build context: the recipe, the guest's code, and which
    packages it expects of its base."""
    package = Path(runner.__file__).resolve().parent
    recipe = next(
        (path for path in (package / "share" / RECIPE, package.parent / RECIPE) if path.is_file()),
        None,
    )
    if recipe is None:
        raise refuse("host", f"{RECIPE} is not beside the package", next_step="reinstall the package")
    files = {RECIPE: recipe.read_bytes()}
    for path in sorted((package / "guest").rglob("*.py")):
        files[f"{_GUEST}/{path.relative_to(package / 'guest')}"] = path.read_bytes()
    if kind.packages:
        files[_PACKAGES] = "".join(f"{each}\n" for each in kind.packages).encode()
    return files


def inputs_digest(kind: Kind = TOOLS) -> str:
    """SHA-256 over the paths and bytes of `inputs`, each length-prefixed."""
    total = hashlib.sha256()
    for name, data in sorted(inputs(kind).items()):
        total.update(len(name).to_bytes(4, "big") + name.encode() + len(data).to_bytes(8, "big") + data)
    return total.hexdigest()


def tag(kind: Kind = TOOLS) -> str:
    """The tag of the image that these inputs make."""
    return f"{kind.repository}:{inputs_digest(kind)[:16]}"


def find(docker: Docker, kind: Kind = TOOLS) -> Image | None:
    """The built image of these inputs, None when it is missing or its label names other inputs."""
    found = docker.image(tag(kind))
    return found if found and found.labels.get(INPUTS_LABEL) == inputs_digest(kind) else None


def build(docker: Docker, base: str, say: Callable[[str], None] = lambda line: None, *, kind: Kind = TOOLS) -> str:
    """Build it on the local image `base`, unless it exists already; returns its id. `say` gets the builder's lines.

    Raises `RunnerError` (host) when the base is missing or lacks what the recipe looks for, or the build fails."""
    existing = find(docker, kind)
    if existing:
        return existing.id
    if docker.image(base) is None:
        raise refuse(
            "host",
            f"the base image {base} is not on this host",
            next_step=f"run {kind.setup}, which makes it, or name another with --base",
        )
    for line in docker.build(
        io.BytesIO(_context(kind)),
        recipe=RECIPE,
        stage=kind.name,
        tag=tag(kind),
        arguments={"BASE": base},
        labels={INPUTS_LABEL: inputs_digest(kind)},
    ):
        say(line)
    built = find(docker, kind)
    if built is None:
        raise refuse("host", f"the builder finished but {tag(kind)} does not exist")
    return built.id


def _context(kind: Kind) -> bytes:
    """The build context as a tar: no owner, time or mode of this machine in it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in sorted(inputs(kind).items()):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o644
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


class Pins:
    """Which id each tag had when it was first used, in one file. A tag that moved is refused until somebody says
    that it may: an image is code that runs with every call."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def resolve(self, docker: Docker, name: str, kind: Kind = TOOLS) -> str:
        """The id of the local image `name` (a tag or an id). Raises `RunnerError` (host) when missing or moved."""
        found = docker.image(name)
        if found is None:
            raise refuse("host", f"the image {name} is not on this host", next_step=kind.remedy)
        if name.startswith("sha256:"):
            return found.id
        pins = self._read()
        pinned = pins.setdefault(name, found.id)
        if pinned != found.id:
            raise refuse(
                "host",
                f"the tag {name} now names {found.id[:19]}, not {pinned[:19]} as when it was first used",
                field=str(self._path),
                next_step=f"if that was on purpose, remove its line from {self._path}; otherwise restore the image",
            )
        self._write(pins)
        return found.id

    def _read(self) -> dict[str, str]:
        try:
            pins = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise refuse("host", f"the image pins cannot be read: {error}", field=str(self._path)) from error
        if not isinstance(pins, dict) or not all(isinstance(value, str) for value in pins.values()):
            raise refuse("host", "the image pins are not a map of tag to id", field=str(self._path))
        return pins

    def _write(self, pins: dict[str, str]) -> None:
        if self._path.exists() and self._read() == pins:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = self._path.with_suffix(".new")
        with new.open("w", encoding="utf-8") as file:
            json.dump(pins, file, indent=2, sort_keys=True)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        new.chmod(0o600)
        new.replace(self._path)
