"""SECURITY.md's promises: the test that it names for each is there."""

from __future__ import annotations

import re

from paths import ROOT

TABLE = re.compile(r"^## Each promise and its test$(.*?)^## ", re.M | re.S)
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def promises() -> dict[str, list[tuple[str, str]]]:
    """Promise -> (file, function) of each of its tests."""
    (table,) = TABLE.findall((ROOT / "SECURITY.md").read_text("utf-8"))
    rows = [line.strip("|").split("|") for line in table.strip().splitlines()[2:]]
    return {promise.strip(): TEST.findall(tests) for promise, tests in rows}


def test_every_promise_has_a_test_that_is_there():
    found = promises()
    assert len(found) >= 15
    assert [promise for promise, tests in found.items() if not tests] == []
    missing = [
        f"{file}::{name}"
        for tests in found.values()
        for file, name in tests
        if not re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text("utf-8"), re.M)
    ]
    assert missing == []


def test_no_test_is_named_in_another_form():
    """Which the one above would overlook."""
    text = (ROOT / "SECURITY.md").read_text("utf-8")
    assert len(re.findall(r"::test_", text)) == sum(map(len, promises().values()))
