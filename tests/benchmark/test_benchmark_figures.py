"""Figures of a load against numbers worked out by hand, and what is asked."""

import asyncio
import json
import math

import numpy as np
import pytest

from audio_fixture import tone
from fake_triton import message, script, serving
from gateway_fixture import REPLY, FakeClient, listening
from step_audio.audio import decode_audio, encode_wav
from step_audio.clips import SAMPLE_RATE
from step_audio.errors import StepAudioError
from step_audio_benchmark.figures import Objective, figures, flat, spread
from step_audio_benchmark.load import Level, LoadRun, OwnLoad
from step_audio_benchmark.records import Record
from step_audio_benchmark.report import tables
from step_audio_benchmark.run import Cell
from step_audio_benchmark.sheet import Planned, sheet
from step_audio_benchmark.stages import between, read
from step_audio_benchmark.targets import connected
from step_audio_benchmark.workload import Workload
from step_audio_build.planning.profiles import load_profile
from step_audio_client import RequestError
from step_audio_server.commands.cli import main

TWO = [
    # 1 token after 0.5 s, then 2 and 3 more, each 0.25 s later; the answer begins with the second message
    Record(10.0, 4.0, [(10.5, 1), (10.75, 2), (11.0, 3)], 10.75, 11.0, 50, 6),
    Record(10.0, 2.0, [(10.1, 1), (12.1, 5)], None, 12.5, 40, 6),
]
REFUSED = Record(10.0, 3.0, ended=10.2, error="429: busy")


def test_figures_by_hand():
    made = flat(figures(LoadRun([*TWO, REFUSED], 2.5), Objective(first_token=0.3)))
    assert (made["requests"], made["failed"]) == (3, 1)
    assert made["tokens_rate"] == 12 / 2.5 and made["audio_rate"] == 6 / 2.5 and made["requests_rate"] == 2 / 2.5
    assert made["goodput"] == 1 / 2.5  # 0.5 s is too late, and a refusal is not good
    assert made["request_tokens_rate"] == pytest.approx((6 / 1.0 + 6 / 2.5) / 2)
    assert made["first_token.p50"] == pytest.approx(0.3)  # between 0.1 and 0.5
    assert made["first_answer.p50"] == pytest.approx(0.75)  # one request never answered
    assert made["token_seconds.p50"] == pytest.approx((0.5 / 5 + 2.0 / 5) / 2)
    assert made["gaps.p50"] == pytest.approx(0.25) and made["gaps.p99"] == pytest.approx(0.25 + (2.0 - 0.25) * 0.98)


def test_an_objective_between_tokens():
    goods = [Objective(token_seconds=limit).met(TWO[0]) for limit in (0.09, 0.11)]
    assert goods == [False, True] and not Objective().met(REFUSED)


def test_a_load_of_refusals_has_no_latencies():
    made = figures(LoadRun([REFUSED], 1.0), Objective())
    assert made.failed == 1 and made.tokens_rate == 0 and made.first_token is None and made.request_tokens_rate is None


def test_spread_over_rounds():
    kept = spread([3.0, None, 1.0, 2.0])
    assert kept is not None and (kept.median, kept.low, kept.high) == (2.0, 1.0, 3.0) and spread([None]) is None


def test_stages_are_means_of_what_passed_between_two_pages():
    def page(count: int, queue: int, infer: int) -> dict:
        part = lambda ns: {"count": count, "ns": ns}  # noqa: E731
        stats = {"success": part(queue + infer), "queue": part(queue), "compute_infer": part(infer)}
        idle = {"success": {"count": 0, "ns": 0}}
        return {
            "model_stats": [{"name": "encoder", "inference_stats": stats}, {"name": "idle", "inference_stats": idle}]
        }

    stages = between(read(page(10, 1_000_000, 5_000_000)), read(page(14, 9_000_000, 25_000_000)))
    assert set(stages) == {"encoder"}
    stage = stages["encoder"]
    assert (stage.requests, stage.queue, stage.compute, stage.total) == (4, 2.0, 5.0, 7.0)


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "speech.wav"
    path.write_bytes(encode_wav(tone(3.0, SAMPLE_RATE)[0]))
    return path


def test_questions_are_told_apart_and_come_again(recording):
    workload = Workload((recording,), (0.5, 2.0), 8)
    questions = workload.questions(6)
    assert [q.audio_seconds for q in questions] == [0.5, 2.0] * 3
    assert [len(decode_audio(q.audio)) for q in questions] == [8000, 32000] * 3
    assert len({q.audio for q in questions}) == 6 and workload.questions(6) == questions
    assert workload.turns(5) == 6  # the lengths begin anew for the next
    again = Workload((recording,), (0.5,), 8, distinct=2).questions(4)
    assert again[:2] == again[2:] and again[0] != again[1]
    texts = Workload((), (), 8).questions(3)
    assert len({q.text for q in texts}) == 3 and not any(q.audio for q in texts)


def test_a_workload_of_no_recordings_or_no_length_is_refused(recording):
    with pytest.raises(StepAudioError, match="--audio"):
        Workload((), (1.0,), 8)
    with pytest.raises(StepAudioError, match="more than 0"):
        Workload((recording,), (-1.0,), 8)


class Counting:
    """A target that answers after three turns of the loop, and knows how many it had at once."""

    name = "counting"

    def __init__(self) -> None:
        self.now = self.most = 0

    async def ask(self, question, workload):
        self.now += 1
        self.most = max(self.most, self.now)
        for _ in range(3):
            await asyncio.sleep(0)
        self.now -= 1
        return Record(0.0, ended=1.0, output_tokens=8)


async def test_a_closed_loop_keeps_its_width_and_asks_everything_once():
    target, done = Counting(), []
    questions = Workload((), (), 8).questions(20)
    run = await OwnLoad(target).run(Level(concurrency=4), questions, Workload((), (), 8), lambda: done.append(1))
    assert len(run.records) == len(done) == 20 and target.most == 4


@pytest.mark.parametrize("level", [Level(concurrency=4), Level(rate=1e6)])
async def test_nobody_reads_how_far_it_is(level):
    """The command ends silently then; a group of errors it would not know."""

    def on_done():
        raise BrokenPipeError

    workload = Workload((), (), 8)
    with pytest.raises(BrokenPipeError):
        await OwnLoad(Counting()).run(level, workload.questions(9), workload, on_done)


async def test_an_answer_of_another_length_is_a_failed_one():
    workload = Workload((), (), 9)
    run = await OwnLoad(Counting()).run(Level(concurrency=1), workload.questions(1), workload, lambda: None)
    assert run.records[0].error == "8 tokens came instead of 9: is there room for them?"


async def test_an_open_loop_waits_for_nobody():
    target = Counting()
    target.ask = stuck = _Stuck()
    workload = Workload((), (), 8)
    load = asyncio.create_task(OwnLoad(target).run(Level(rate=1e6), workload.questions(50), workload, lambda: None))
    while stuck.begun < 50:
        await asyncio.sleep(0)
    stuck.release.set()
    assert len((await load).records) == 50


class _Stuck:
    def __init__(self) -> None:
        self.begun, self.release = 0, asyncio.Event()

    async def __call__(self, question, workload):
        self.begun += 1
        await self.release.wait()
        return Record(0.0, ended=1.0, output_tokens=8)


async def test_http_counts_tokens_and_sees_the_answer_begin(recording):
    fake = FakeClient()
    workload = Workload((recording,), (0.5,), 6, sampling={"temperature": 0.7, "top_k": 50})
    with listening(fake) as url:
        async with connected(None, url) as [target]:
            record = await target.ask(workload.question(3), workload)
    assert record.error is None and record.output_tokens == 6 and record.prompt_tokens == 20
    assert sum(tokens for _, tokens in record.pieces) == 6 and len(record.pieces) == 4
    assert record.first_answer == record.pieces[2][0]  # two messages of thought before it
    sampling = fake.options.sampling
    assert (sampling.max_tokens, sampling.min_tokens, sampling.top_k, sampling.seed) == (6, 6, 50, 3)


async def test_a_refusal_over_http_is_the_requests_own(recording):
    fake = FakeClient(lambda messages, options: [RequestError("the prompt is too long")])
    workload = Workload((), (), 6)
    with listening(fake) as url:
        async with connected(None, url) as [target]:
            record = await target.ask(workload.question(0), workload)
    assert record.error is not None and "the prompt is too long" in record.error and not record.pieces


async def test_a_broken_answer_is_a_failed_one():
    fake = FakeClient(lambda messages, options: [*REPLY[:2], RequestError("the server stopped")])
    workload = Workload((), (), 6)
    with listening(fake) as url:
        async with connected(None, url) as [target]:
            record = await target.ask(workload.question(0), workload)
    assert record.error is not None and "the server stopped" in record.error


async def test_what_is_no_api_is_named():
    with pytest.raises(StepAudioError, match="does not answer as an OpenAI-compatible API"):
        async with connected(None, "http://127.0.0.1:9"):
            pass


def test_tables_tell_medians_and_ratios_of_rounds():
    def cell(target: str, number: int, seconds: float) -> Cell:
        run = LoadRun(TWO, seconds)
        return Cell(target, Level(concurrency=2), number, run, figures(run, Objective()), {}, {"engine": 0.006}, 0.1)

    cells = [cell("gRPC", 0, 1.0), cell("HTTP", 0, 2.0), cell("gRPC", 1, 1.0), cell("HTTP", 1, 4.0)]
    text = tables(cells)
    assert "| 2 at once | HTTP / gRPC | 0.38 (0.25-0.50) | 1.00 (1.00-1.00) |" in text
    assert "| engine                        |             500 |             500 |" in text  # 12 ms for 24 tokens
    assert json.dumps(flat(cells[0].figures)) and not any(math.isnan(x) for x in flat(cells[0].figures).values() if x)
    assert np.isfinite(cells[0].figures.tokens_rate)


def test_a_sheet_tells_the_machine_the_plan_and_the_share_of_its_bound():
    """By hand: one request with a token each 0.1 s, which the memory of four H100 allows each 6.04 ms."""
    one = Record(0.0, 4.0, [(0.5, 1), (1.5, 10)], None, 1.5, 50, 11)
    run = LoadRun([one], 1.5)
    cells = [Cell("gRPC", Level(concurrency=n), 0, run, figures(run, Objective()), {}, {}, 0.1) for n in (1, 8)]
    planned = Planned.of(load_profile("4xH100-65k"))
    text = sheet(cells, {"gpus": "4 x H100, driver 590.44"}, planned)
    assert "- gpus: 4 x H100, driver 590.44" in text and "- profile: 4xH100-65k (" in text
    alone, loaded = (line.split("|") for line in text.splitlines() if line.startswith(("| 1 at", "| 8 at")))
    assert [cell.strip() for cell in alone[1:-1]] == ["1 at once", "gRPC", "7.3", "7.3", "500", "500", "100", "6%"]
    assert loaded[-2].strip() == "-"
    assert "of the bound" not in sheet(cells, {}, None)


async def test_answers_that_find_no_room_fail_the_command(tmp_path, capsys):
    async with serving(script(message(1, 2), message(3, final=True))) as [(_, address, _)]:
        given = ["--url", address, "--output-tokens", "16", "--requests", "2", "--rounds", "1", "--clip-seconds", "1"]
        status = await asyncio.to_thread(main, ["bench", "--output", str(tmp_path), *given])
    assert status == 1 and "gRPC: 3 tokens came instead of 16" in capsys.readouterr().err
