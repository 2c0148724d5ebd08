"""The tool image's name, and pins: a tag means the image it named at first use."""

from __future__ import annotations

import io
import json
import re
import tarfile
from types import SimpleNamespace
from typing import Any

import pytest

from runner.engine import image
from runner.engine.docker import Image
from runner.errors import RunnerError

OLD, NEW = "sha256:" + "a" * 64, "sha256:" + "b" * 64


class Store:
    """Answers as the Docker engine's image store does."""

    def __init__(self, **images: str) -> None:
        self.images = images

    def image(self, name: str) -> Image | None:
        found = name if name in self.images.values() else self.images.get(name.replace(":", "_"))
        return Image(id=found, labels={}) if found else None


def test_the_digest_follows_every_byte_and_every_name(monkeypatch):
    whole = image.inputs()
    assert "Containerfile" in whole
    assert "runner/guest/supervisor.py" in whole
    digests = {image.inputs_digest()}
    for changed in (
        {**whole, "Containerfile": whole["Containerfile"] + b"\n"},
        {**whole, "runner/guest/extra.py": b""},
        {name: data for name, data in whole.items() if not name.endswith("supervisor.py")},
    ):
        monkeypatch.setattr(image, "inputs", lambda kind, changed=changed: changed)
        digests.add(image.inputs_digest())
    assert len(digests) == 4
    assert image.tag() == f"toolrunner/tools:{image.inputs_digest()[:16]}"


def test_each_kind_has_a_name_a_stage_and_a_remedy_of_its_own(monkeypatch):
    stages = re.findall(r"(?m)^FROM \S+ AS (\S+)$", image.inputs()["Containerfile"].decode())
    assert stages == list(image.KINDS) == ["tools", "web"]
    assert image.tag(image.WEB) == f"toolrunner/web:{image.inputs_digest(image.WEB)[:16]}"
    assert image.inputs_digest(image.WEB) != image.inputs_digest()
    assert "scripts/setup --web" in image.WEB.remedy
    other = image.WEB._replace(packages=(*image.WEB.packages, "jq"))
    assert image.tag(other) != image.tag(image.WEB)


def test_a_build_stops_at_the_stage_of_its_kind():
    built: list[dict[str, Any]] = []

    class Builder(Store):
        def build(self, context, **asked):
            built.append(asked)
            self.images[asked["tag"].replace(":", "_")] = NEW
            return iter(["a line"])

        def image(self, name):
            found = super().image(name)
            return Image(id=found.id, labels=built[-1]["labels"]) if found and built else found

    said: list[str] = []
    for kind in image.KINDS.values():
        store = Builder(**{kind.base.replace(":", "_"): OLD})
        assert image.build(store, kind.base, said.append, kind=kind) == NEW
        assert (built[-1]["stage"], built[-1]["tag"]) == (kind.name, image.tag(kind))
        with pytest.raises(RunnerError, match="is not on this host") as refused:
            image.build(Store(), kind.base, kind=kind)
        assert kind.setup in refused.value.refused.next_step
    assert said == ["a line"] * 2


def test_a_wheel_carries_the_same_inputs(monkeypatch, tmp_path):
    whole = image.inputs()
    package = tmp_path / "site-packages/runner"
    for name, data in whole.items():
        path = package / "share/Containerfile" if name == "Containerfile" else package.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    monkeypatch.setattr(image, "runner", SimpleNamespace(__file__=str(package / "__init__.py")))
    assert image.inputs() == whole


def test_a_first_use_is_pinned_and_a_moved_tag_is_refused(tmp_path):
    pins = image.Pins(tmp_path / "engine/images.json")
    assert pins.resolve(Store(tools_1=OLD), "tools:1") == OLD
    assert json.loads((tmp_path / "engine/images.json").read_text()) == {"tools:1": OLD}
    assert (tmp_path / "engine/images.json").stat().st_mode & 0o777 == 0o600
    assert image.Pins(tmp_path / "engine/images.json").resolve(Store(tools_1=OLD), "tools:1") == OLD
    with pytest.raises(RunnerError, match="now names") as refused:
        pins.resolve(Store(tools_1=NEW), "tools:1")
    assert "remove its line" in refused.value.refused.next_step
    assert json.loads((tmp_path / "engine/images.json").read_text()) == {"tools:1": OLD}


def test_an_id_needs_no_pin_and_a_missing_image_says_what_to_do(tmp_path):
    pins = image.Pins(tmp_path / "images.json")
    assert pins.resolve(Store(tools_1=OLD), OLD) == OLD
    assert not (tmp_path / "images.json").exists()
    with pytest.raises(RunnerError, match="runner image build"):
        pins.resolve(Store(), "tools:1")


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', "{"])
def test_broken_pins_pin_nothing_and_are_refused(tmp_path, text):
    (tmp_path / "images.json").write_text(text)
    with pytest.raises(RunnerError, match="pins"):
        image.Pins(tmp_path / "images.json").resolve(Store(tools_1=OLD), "tools:1")


@pytest.mark.parametrize("kind", image.KINDS.values(), ids=image.KINDS)
def test_the_build_context_holds_nothing_of_this_machine(kind):
    with tarfile.open(fileobj=io.BytesIO(image._context(kind))) as archive:
        members: list[Any] = archive.getmembers()
    assert {member.name for member in members} == set(image.inputs(kind))
    assert {(member.uid, member.gid, member.mtime, member.mode, member.uname) for member in members} == {
        (0, 0, 0, 0o644, "")
    }
