"""Counters that outlive the process that counts, and how they come to Triton's metrics."""

from __future__ import annotations

import weakref
from collections import Counter

import pytest

from step_audio import counters
from step_audio.counters import DEATHS, FOLDER, LEASES_EXPIRED, Counters, read
from step_audio.steps.counter_report import CounterReport
from waiting import wait_until


def test_they_go_on_where_the_last_process_ended(tmp_path):
    for _ in range(2):
        counting = Counters(tmp_path, "serve", [(DEATHS, "tokenizer"), (DEATHS, "lease")])
        counting.count(DEATHS, "tokenizer")
    assert read(tmp_path / FOLDER / "serve.json") == {(DEATHS.name, "tokenizer"): 2, (DEATHS.name, "lease"): 0}
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["serve.json"]


@pytest.mark.parametrize("text", ["", "[", "{}", "[[1]]", '[["a", "b", "c"]]', "7"])
def test_a_damaged_file_is_begun_anew(tmp_path, text):
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "serve.json").write_text(text)
    Counters(tmp_path, "serve", []).count(DEATHS, "lease")
    assert read(tmp_path / FOLDER / "serve.json") == {(DEATHS.name, "lease"): 1}


def test_what_cannot_be_written_stops_nobody(tmp_path, caplog):
    (tmp_path / FOLDER).write_text("a file")
    Counters(tmp_path, "serve", []).count(DEATHS, "lease")
    assert "could not be written" in caplog.text


class Triton:
    """`pb_utils`, as far as it counts."""

    def __init__(self):
        self.values = Counter()
        self.held = []
        triton = self

        class MetricFamily:
            COUNTER = "counter"

            def __init__(self, name, description, kind):
                assert kind == "counter" and description
                self.name = name

            def Metric(self, labels):
                return Metric((self.name, *labels.items()))

        class Metric:
            def __init__(self, key):
                self.key = key
                triton.values[key] += 0
                triton.held.append(weakref.ref(self))

            def increment(self, value):
                triton.values[self.key] += value

        self.MetricFamily = MetricFamily


def test_all_files_are_shown_and_followed(tmp_path, monkeypatch):
    monkeypatch.setattr("step_audio.steps.counter_report.PERIOD", 0.01)
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "later.json").write_text('[["step_audio_of_another_version_total", "x", 7]]')
    serve = Counters(tmp_path, "serve", [(DEATHS, "lease")])
    lease = Counters(tmp_path, "lease", [(LEASES_EXPIRED, "gone")])
    lease.count(LEASES_EXPIRED, "gone")
    triton = Triton()
    report = CounterReport(triton, tmp_path)
    died, gone = (DEATHS.name, ("model", "lease")), (LEASES_EXPIRED.name, ("reason", "gone"))
    wait_until(lambda: triton.values == {died: 0, gone: 1} and len(triton.values) == 2)
    for _ in range(3):
        serve.count(DEATHS, "lease")
    wait_until(lambda: triton.values == {died: 3, gone: 1})
    report.close()
    assert [metric() for metric in triton.held] == [None, None]  # Triton crashes over one that outlives its backend


def test_every_counter_has_a_name_of_its_kind():
    assert all(name.startswith("step_audio_") and name.endswith("_total") for name in counters.FAMILIES)
