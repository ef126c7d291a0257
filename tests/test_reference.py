"""docs/reference/ says what the code says."""

from __future__ import annotations

import dataclasses
import inspect
import re

import pytest

import step_audio_client
from paths import ROOT
from scripts import script_of

FOLDER = ROOT / "docs/reference"
build_reference = script_of("docs/build_reference.py")


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return build_reference.pages()


def headings(text: str) -> list[str]:
    return [line.lstrip("#").strip().strip("`") for line in re.findall(r"^#{2,} .*$", text, re.M)]


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.iterdir()))
def test_the_page_is_what_the_code_says(name, pages):
    assert (FOLDER / name).read_text("utf-8") == pages[name], "run `make docs` and commit what it wrote"


def test_no_page_is_missing(pages):
    assert {path.name for path in FOLDER.iterdir()} == set(pages)


def test_all_that_the_client_library_exports_is_there(pages):
    assert set(step_audio_client.__all__) <= set(headings(pages["client.md"]))


def test_each_export_is_explained():
    """By words of its own: dataclasses have their signature for a docstring where nobody has written one."""
    for name in step_audio_client.__all__:
        value = getattr(step_audio_client, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__ and not value.__doc__.startswith(f"{name}("), name


def test_all_fields_are_there(pages):
    """Those that a class has from another, too."""
    text = pages["client.md"]
    for name in step_audio_client.__all__:
        if dataclasses.is_dataclass(kind := getattr(step_audio_client, name)):
            (part,) = re.findall(rf"^### `{name}`$(.*?)(?=^##|\Z)", text, re.M | re.S)
            assert all(f"    {field.name}: " in part for field in dataclasses.fields(kind)), name


def test_links_within_a_page_lead_somewhere(pages):
    text = pages["http.md"]
    anchors = {heading.lower().replace(" ", "-") for heading in headings(text)}
    links = set(re.findall(r"\]\(#([^)]+)\)", text))
    assert len(links) > 20 and links <= anchors


def test_bounds_defaults_and_requirements_are_said(pages):
    (asked,) = re.findall(r"^#+ `?ChatRequest`?$(.*?)(?=^#|\Z)", pages["http.md"], re.M | re.S)
    rows = {row.split("|")[1].strip(): row for row in re.findall(r"^\| `.*$", asked, re.M)}
    assert "at most 2" in rows["`temperature`"] and "default `0.7`" in rows["`temperature`"]
    assert "list of [ChatMessage](#chatmessage) (at least 1)" in rows["`messages`"]
    assert "required" in rows["`messages`"] and "required" not in rows["`seed`"]
