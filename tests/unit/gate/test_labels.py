"""Which labels a result carries before anybody looked at it, and which a task is taken to have read."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from runner.catalog import compile_bundle, read_folders, shared
from runner.gate.context import Context
from runner.gate.labels import mixes, of_result, of_task, widened
from runner.model import LabelledFiles, Manifest, TaskProfile, ToolProfile
from runner.stream.layers import layers
from runner.stream.reading import Heard, Reading
from runner.stream.shingles import READ

CATALOG = compile_bundle(read_folders(shared("profiles"), shared("tools"), shared("policies")))
DEFAULT = CATALOG.task_profiles["default"]


def profile(*files: LabelledFiles) -> TaskProfile:
    return replace(DEFAULT, files=files)


FOLDER = LabelledFiles(path="/workspace/customers", label="customer")
TABLES = LabelledFiles(path="/workspace/in/*.csv", label="customer.table", programs=False)


def carried(tool: str, *files: LabelledFiles, mixed: bool = False, **arguments: Any) -> frozenset[str]:
    manifest = CATALOG.tools[tool]
    return of_result(manifest, CATALOG.tool_profiles[manifest.profile], profile(*files), arguments, mixed=mixed)


@pytest.mark.parametrize(
    ("tool", "arguments", "found"),
    [
        ("fs_read", {"path": "customers/a.txt"}, {"customer"}),
        ("fs_read", {"path": "/workspace/x/../customers/deep/a.txt"}, {"customer"}),
        ("fs_read", {"path": "customers2/a.txt"}, set()),
        ("fs_read", {"path": "in/a.csv"}, {"customer.table"}),
        ("fs_read", {"path": "in/a.txt"}, set()),
        ("fs_read", {"path": "in/deep/a.csv"}, set()),
        ("fs_search", {"pattern": "x", "path": "in"}, {"customer.table"}),
        ("fs_search", {"pattern": "x"}, {"customer", "customer.table"}),
        ("fs_list", {"path": "other"}, set()),
        ("sql_query", {"sql": "select 1", "server": "db/x"}, set()),
        ("sql_query", {"sql": "select 1", "path": "customers/a.db"}, {"customer"}),
        ("shell_run", {"argv": ["true"]}, {"customer"}),
        ("python_run", {"code": "1"}, {"customer"}),
    ],
)
def test_a_result_carries_what_its_call_could_have_read(tool: str, arguments: Any, found: set[str]) -> None:
    assert carried(tool, FOLDER, TABLES, **arguments) == found
    assert carried(tool, **arguments) == frozenset()


def test_once_a_program_ran_any_file_may_be_a_copy() -> None:
    assert carried("fs_read", FOLDER, TABLES, path="other.txt") == frozenset()
    assert carried("fs_read", FOLDER, TABLES, path="other.txt", mixed=True) == {"customer"}
    found = {
        name for name, manifest in CATALOG.tools.items() if mixes(manifest, CATALOG.tool_profiles[manifest.profile])
    }
    assert found >= {"shell_run", "python_run"}
    assert not found & {"fs_read", "fs_write", "fs_search", "workspace_put"}


def test_a_tool_without_the_workspace_has_read_no_file() -> None:
    manifest = Manifest(
        id="x", description="x", consequence="low", profile="p", kind="argv", digest="", code_digest="",
        parameters={}, labels=("crm",),
    )  # fmt: skip
    none = ToolProfile(name="p", description="p", digest="", isolation="call", workspace="none", tmp=False)
    assert of_result(manifest, none, profile(FOLDER), {}, mixed=True) == {"crm"}


def test_a_narrow_label_is_the_wider_one_too() -> None:
    assert widened(["pii.email.work", "crm"]) == ("crm", "pii", "pii.email", "pii.email.work")
    assert widened([]) == ()


def test_a_session_has_the_labels_of_what_was_delivered() -> None:
    context, reading = Context(), Reading(bytes(32))
    assert context.view("", 0).labels == ()
    context.reading = reading
    Heard(reading, "c1", frozenset({"customer"})).heard("stdout", b"x", {"pii.email"})
    Heard(reading, "c2", frozenset({"never.delivered"}))
    assert context.view("", 0).labels == ("customer", "pii", "pii.email")
    assert context.view("", 0).forgotten == 0


def test_a_task_that_goes_on_after_a_restart_is_taken_to_have_read_everything() -> None:
    context = Context(resumed=True)
    context.presumed = of_task(profile(FOLDER, TABLES), CATALOG.tools)
    assert context.view("", 0).labels == ("customer", "customer.table")
    assert context.view("", 0).forgotten == 1
    assert context.mixed


# --- what was read, as it is remembered ------------------------------------------------------------------------------

ROW = b"C-10294,Ada Lovelace,030 1234567\n"


def test_what_was_delivered_is_known_at_once_and_not_before() -> None:
    reading = Reading(bytes(32))
    heard = Heard(reading, "c1", frozenset({"customer"}))
    assert not reading.match(layers(ROW)).labels
    heard.heard("stdout", b"number,name,phone\n" + ROW, ())
    assert reading.match(layers(ROW)).labels == {"customer"}


@pytest.mark.parametrize("asks", [True, False])
def test_a_record_is_known_whatever_pieces_it_came_in(asks: bool) -> None:
    reading = Reading(bytes(32))
    heard = Heard(reading, "c1", frozenset({"customer"}))
    for at in range(0, len(ROW), 5):
        heard.heard("stdout", ROW[at : at + 5], ())
        if asks:
            reading.match(layers(b"anything"))
    assert reading.match(layers(b"call 0301234567")).labels == {"customer"}
    assert reading.match(layers(b"Lovelace, Ada: C-10294, or Ada Lovelace")).labels == {"customer"}


def test_text_without_a_given_label_is_not_kept() -> None:
    reading = Reading(bytes(32))
    Heard(reading, "c1", frozenset()).heard("stdout", ROW, {"pii.phone"})
    assert not reading
    assert reading.labels == {"pii.phone"}


def test_two_who_remember_at_once_finish_each_others_work() -> None:
    reading = Reading(bytes(32))
    for number in range(3):
        Heard(reading, f"c{number}", frozenset({"customer"})).heard("value", ROW * 500, ())
    slow = reading.remembering("c1")
    next(slow)
    assert reading.match(layers(ROW)).labels == {"customer"}
    assert list(slow) == []


def test_what_is_left_out_of_a_result_is_counted() -> None:
    reading = Reading(bytes(32))
    heard = Heard(reading, "c1", frozenset({"customer"}))
    for _ in range(3):
        heard.heard("stdout", b"x" * (READ // 2), ())
    assert reading.forgotten == READ // 2
