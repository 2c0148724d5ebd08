"""What a wall is built on: folders that tools make are opened through no link."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CONFINE = """
import json, os, sys
from runner.guest import walls
walls._MADE_BY_TOOLS = (sys.argv[1] + "/",)
walls.prctl(walls.NO_NEW_PRIVS, 1)
try:
    ruleset = walls.Ruleset(walls.landlock_abi(), {"read": [sys.argv[2]], "write": [sys.argv[2]], "execute": ["/usr"]})
    walls.enter(ruleset.descriptor)
except OSError as error:
    print(json.dumps(str(error)))
else:
    print(json.dumps(ruleset.places))
"""


def confined(root: Path, path: Path) -> object:
    """`confine` in a process of its own: it cannot be undone."""
    argv = [sys.executable, "-c", CONFINE, str(root), str(path)]
    return json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)


def test_no_wall_is_built_on_a_link(tmp_path: Path) -> None:
    (tmp_path / "made/folder").mkdir(parents=True)
    (tmp_path / "made/link").symlink_to(tmp_path / "made/folder")
    (tmp_path / "made/above").symlink_to(tmp_path / "made")
    status = (tmp_path / "made/folder").stat()
    expected = {str(tmp_path / "made/folder"): [status.st_dev, status.st_ino]}
    assert confined(tmp_path / "made", tmp_path / "made/folder") == expected
    for path in ("made/link", "made/above/folder", "made/none"):
        assert isinstance(confined(tmp_path / "made", tmp_path / path), str), path
    assert confined(tmp_path / "elsewhere", tmp_path / "made/link") == {}  # the image's own links are followed
