"""What is in a saved image: whether it is the image of an id, and its packages, as dpkg's files in the layers say.

Nothing of the image is run: its layers are read as data, within bounds.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from runner.errors import refuse

_MANIFEST = 4 << 20  # bytes of the archive's manifest and of the image's config
_STATUS = 32 << 20  # bytes of dpkg's status; Debian's largest installations have 10
_SBOM = 768 << 10  # bytes of the list: some 5,000 packages
_STATUS_FILE, _STATUS_FOLDER = "var/lib/dpkg/status", "var/lib/dpkg/status.d/"
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"
_URL = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")  # RFC 9562's name space for URLs


def packages(path: Path, image: str) -> tuple[str, int, str]:
    """The packages of a saved image as CycloneDX 1.5, their number, and why they could not be listed."""
    try:
        installed = list(_packages(_status(path)))
        return _sbom(image, installed), len(installed), ""
    except (tarfile.TarError, ValueError, KeyError, EOFError) as error:
        return "", 0, f"its packages could not be listed: {error}"[:200]


def check_config(path: Path, name: str) -> None:
    """An image's id is the digest of its config: raises `RunnerError` unless the archive holds that one."""
    try:
        with tarfile.open(path, "r:") as archive:
            config = _read(archive, str(_manifest(archive)["Config"]), _MANIFEST)
    except (tarfile.TarError, KeyError, ValueError) as error:
        raise refuse("unavailable", f"what was saved is no archive of an image: {error}") from None
    if hashlib.sha256(config).hexdigest() != name:
        raise refuse("unavailable", "what was saved is another image")


def _manifest(archive: tarfile.TarFile) -> dict[str, Any]:
    (only,) = json.loads(_read(archive, "manifest.json", _MANIFEST))
    return dict(only)


def _read(archive: tarfile.TarFile, name: str, most: int) -> bytes:
    member = archive.getmember(name)
    if not member.isreg() or member.size > most:
        raise ValueError(f"{name} is no file, or larger than {most} bytes")
    file = archive.extractfile(member)
    assert file is not None
    with file:
        return file.read()


def _status(path: Path) -> dict[str, bytes]:
    """dpkg's status files as the layers leave them, by name: a later layer replaces or removes an earlier one's."""
    found: dict[str, bytes] = {}
    with tarfile.open(path, "r:") as archive:
        for layer in _manifest(archive)["Layers"]:
            file = archive.extractfile(layer)
            if file is None:
                raise ValueError(f"layer {layer} is no file")
            with file:
                _apply(file, found)
    return found


def _apply(layer: IO[bytes], found: dict[str, bytes]) -> None:
    added: dict[str, bytes] = {}
    with tarfile.open(fileobj=layer, mode="r:*") as files:
        for member in files:
            name = member.name.removeprefix("./")
            folder, _, base = name.rpartition("/")
            if base == _OPAQUE:
                _drop(found, folder)
            elif base.startswith(_WHITEOUT):
                _drop(found, f"{folder}/{base.removeprefix(_WHITEOUT)}".lstrip("/"))
            elif member.isreg() and (name == _STATUS_FILE or name.startswith(_STATUS_FOLDER)):
                if member.size + sum(map(len, added.values())) > _STATUS:
                    raise ValueError(f"dpkg's status is larger than {_STATUS} bytes")
                data = files.extractfile(member)
                assert data is not None
                added[name] = data.read()
    found.update(added)


def _drop(found: dict[str, bytes], place: str) -> None:
    for name in [name for name in found if name == place or name.startswith(f"{place}/")]:
        del found[name]


def _packages(status: dict[str, bytes]) -> Iterator[tuple[str, str, str]]:
    """(name, version, architecture) of every installed package, each once, sorted."""
    seen = set()
    for name, data in status.items():
        for stanza in data.decode("utf-8", "replace").split("\n\n"):
            fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and line[0] not in " \t")
            # A file in status.d is a package that is there: it has no Status field.
            installed = (
                "Status" not in fields if name != _STATUS_FILE else fields.get("Status", "").endswith(" installed")
            )
            if installed and "Package" in fields and "Version" in fields:
                seen.add((fields["Package"], fields["Version"], fields.get("Architecture", "")))
    yield from sorted(seen)


def _sbom(image: str, packages: list[tuple[str, str, str]]) -> str:
    """The packages as CycloneDX 1.5. The same for the same image: it has no time, and its serial is its name's."""
    components = [
        {
            "type": "library",
            "bom-ref": (url := f"pkg:deb/debian/{quote(name)}@{quote(version, safe='')}?arch={quote(architecture)}"),
            "name": name,
            "version": version,
            "purl": url,
        }
        for name, version, architecture in packages
    ]
    whole = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_URL, image)}",
        "version": 1,
        "metadata": {"component": {"type": "container", "bom-ref": image, "name": "image", "version": image}},
        "components": components,
    }
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
    if len(text) > _SBOM:
        raise ValueError(f"the list of {len(packages)} packages is longer than {_SBOM} bytes")
    return text
