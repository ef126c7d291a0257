"""What keeps a server running, and what it leaves to be read."""

import json
import subprocess
import threading

import pytest

from step_audio import counters
from step_audio_server import records, supervision
from step_audio_server.errors import ServerCrashed, ServerError
from step_audio_server.records import Death, Records, limit, rotate
from step_audio_server.supervision import PAUSES, Keeper
from waiting import wait_until


class Clock(threading.Event):
    """`wait` returns at once and lets the time pass; after `ends` of them, it is set."""

    def __init__(self, ends: int):
        super().__init__()
        self.now, self.waits, self.ends = 0.0, [], ends

    def wait(self, timeout=None):
        self.now += timeout
        self.waits.append(timeout)
        return len(self.waits) > self.ends

    def pauses(self):
        return [wait for wait in self.waits if wait != supervision.WATCH_PERIOD]


class Kept:
    """Dies as often as told, each time after `lives` looks."""

    def __init__(self, deaths, lives=1, failing=0):
        self.deaths, self.lives, self.failing = deaths, lives, failing
        self.looks, self.events = 0, []

    def fault(self):
        self.looks += 1
        if self.deaths and self.looks % (self.lives + 1) == self.lives:
            self.deaths -= 1
            return Death(f"death {self.deaths}")
        return None

    def start(self):
        self.events.append("start")
        if self.failing:
            self.failing -= 1
            raise ServerError("no start")

    def end(self):
        self.events.append("end")

    def restarted(self, death):
        self.events.append(str(death))


@pytest.fixture
def clock():
    return Clock(2000)


def keep(kept, clock, said=None):
    Keeper(kept, (lambda line: None) if said is None else said.append, clock, clock=lambda: clock.now).run()


def test_ever_longer_pauses_but_no_end(clock):
    kept, said = Kept(30), []
    keep(kept, clock, said)
    assert kept.deaths == 0 and len(said) == 30 == kept.events.count("start") == kept.events.count("end")
    assert clock.pauses()[: len(PAUSES)] == list(PAUSES) and set(clock.pauses()[len(PAUSES) :]) == {PAUSES[-1]}
    assert kept.events[:3] == ["end", "start", "death 29"]
    assert said[0] == "death 29: starting again" and said[2] == "death 27: starting again in 1 s"


def test_what_has_worked_for_a_few_seconds_is_started_again_at_once(clock):
    kept = Kept(20, lives=int(3 / supervision.WATCH_PERIOD))
    keep(kept, clock)
    assert kept.deaths == 0 and clock.pauses() == [0.0] * 20


def test_starts_that_failed_count_no_more_when_one_has_worked(clock):
    kept = Kept(2, lives=int(3 / supervision.WATCH_PERIOD), failing=4)
    keep(kept, clock)
    assert kept.deaths == 0 and clock.pauses() == [*PAUSES[:5], 0.0]


def test_a_start_that_fails_is_tried_again(clock):
    kept, said = Kept(1, failing=3), []
    keep(kept, clock, said)
    assert kept.events == ["end", *["start"] * 4, "death 0"]
    assert said == [
        "death 0: starting again",
        "no start: starting again",
        "no start: starting again in 1 s",
        "no start: starting again in 2 s",
    ]


def test_a_stop_ends_the_waiting(clock):
    clock.ends = 6
    kept = Kept(1, failing=1000)
    keep(kept, clock)
    assert kept.events.count("start") == 5 and clock.pauses()[-1] == PAUSES[5]


def test_deaths_are_lines_of_json(tmp_path):
    kept = Records(tmp_path)
    kept.begin()
    kept.died("tritonserver", Death("the process of audio_encoder died", "audio_encoder", "SIGKILL", in_flight=3))
    kept.died("tritonserver", Death("tritonserver ended with status 1", status=1))
    first, second = map(json.loads, (tmp_path / "deaths.jsonl").read_text().splitlines())
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "text": "the process of audio_encoder died", "model": "audio_encoder", "signal": "SIGKILL", "status": None,
        "in_flight": 3, "restarts": 1,
    }  # fmt: skip
    assert (second["status"], second["model"], second["restarts"]) == (1, None, 2)


def test_deaths_and_restarts_are_counted_over_all_starts(tmp_path):
    for _ in range(2):
        kept = Records(tmp_path)
        kept.begin()
        kept.died("tritonserver", Death("the process of audio_encoder died", "audio_encoder"))
        kept.restarted("tritonserver")
        kept.died("gateway", Death("the gateway ended with status 1", "gateway"))
    found = counters.read(tmp_path / "counters/serve.json")
    assert found["step_audio_deaths_total", "audio_encoder"] == found["step_audio_deaths_total", "gateway"] == 2
    assert found["step_audio_restarts_total", "tritonserver"] == 2
    assert found["step_audio_restarts_total", "gateway"] == found["step_audio_deaths_total", "tritonserver"] == 0


def test_logs_are_numbered_and_the_oldest_is_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "KEPT_LOGS", 3)
    log = tmp_path / "tritonserver.log"
    for number in range(6):
        rotate(log)
        log.write_text(str(number))
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == {f"tritonserver.log{end}": text for end, text in zip(["", ".1", ".2", ".3"], "5432", strict=True)}


def test_a_long_run_s_log_is_put_aside_in_pieces(tmp_path, monkeypatch):
    """While another process writes it, which is told nothing."""
    monkeypatch.setattr(records, "KEPT_LOGS", 2)
    monkeypatch.setattr(records, "MAX_LOG_BYTES", 100)
    log = tmp_path / "tritonserver.log"
    with open(log, "ab") as stream:
        writer = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=stream)
    for number in range(4):
        writer.stdin.write(f"{number}".encode() * 60)
        writer.stdin.flush()
        wait_until(lambda number=number: log.read_text().endswith(f"{number}"))
        limit(log)
    writer.stdin.write(b"end")
    writer.stdin.close()
    writer.wait()
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    aside = {"tritonserver.log.1": "2" * 60 + "3" * 60, "tritonserver.log.2": "0" * 60 + "1" * 60}
    assert found == {"tritonserver.log": "end"} | aside
    assert (tmp_path / "tritonserver.log.1").stat().st_mode & 0o777 == 0o600


class Starting(Kept):
    """The first starts end with these errors."""

    def __init__(self, *errors):
        super().__init__(0)
        self.errors = list(errors)

    def start(self):
        self.events.append("start")
        if self.errors:
            raise self.errors.pop(0)


def test_a_first_start_that_crashes_is_tried_again_however_often(clock):
    kept, said = Starting(*[ServerCrashed("it crashed: signal 11")] * 20), []
    assert Keeper(kept, said.append, clock, clock=lambda: clock.now).begin()
    assert kept.events == ["start"] * 21 and clock.pauses() == [*PAUSES[1:], *[PAUSES[-1]] * 13]
    assert said[1] == "it crashed: signal 11: starting again in 1 s"


def test_a_first_start_that_is_refused_ends_with_the_reason(clock):
    """Where a crash came before it, too."""
    for errors in ([ServerError("no such model")], [ServerCrashed("it crashed"), ServerError("no such model")]):
        with pytest.raises(ServerError, match="no such model"):
            Keeper(Starting(*errors), lambda line: None, clock).begin()


def test_a_first_start_is_given_up_when_it_is_stopped():
    kept, clock = Starting(*[ServerCrashed("it crashed")] * 20), Clock(3)
    assert not Keeper(kept, lambda line: None, clock).begin()
    assert kept.events == ["start"] * 4
