"""Labels that a manifest and a profile give are read, checked and normal."""

from __future__ import annotations

from typing import Any

from runner.model import LabelledFiles


def test_a_tool_gives_labels_to_all_of_its_results(folders: Any) -> None:
    folders.edit("tools/sh/tool.toml", 'kind = "argv"', 'kind = "argv"\nlabels = ["customer", "crm.note", "customer"]')
    catalog = folders.compile()
    assert catalog.tools["sh"].labels == ("crm.note", "customer")
    assert catalog.tools["count"].labels == ()


def test_a_profile_gives_labels_to_files(folders: Any) -> None:
    tables = '[[files]]\npath = "in/./*.csv"\nlabel = "customer"\n\n'
    tables += '[[files]]\npath = "/workspace"\nlabel = "crm"\nprograms = false\n\n[ceilings]'
    folders.edit("profiles/base.toml", "[ceilings]", tables)
    assert folders.compile().task_profiles["base"].files == (
        LabelledFiles(path="/workspace/in/*.csv", label="customer"),
        LabelledFiles(path="/workspace", label="crm", programs=False),
    )
