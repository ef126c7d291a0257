"""The run: broken off and taken up again, failed requests, full queues."""

import asyncio
import errno
import io
import json
import random
from dataclasses import replace

import pytest

from evaluation_fixture import SETTINGS, item
from step_audio.progress import Progress
from step_audio_client import (
    ChatDelta,
    ChatUsage,
    Generation,
    RequestError,
    Sampling,
    ServerBusy,
    Thinking,
    Usage,
)
from step_audio_evaluation import run as running
from step_audio_evaluation.answers import AnswerFile, EvaluatedAnswer
from step_audio_evaluation.items import EvaluationError
from step_audio_evaluation.report import grade, make_report

# -- the run


class Stub:
    """A client whose answers are known. `faults`: by question, what is raised, one after the other."""

    def __init__(self, faults=None, alive=True, hold=()):
        self.faults, self.alive, self.hold = faults or {}, alive, hold
        self.asked, self.at_once, self.most = [], 0, 0
        self.adapters: set[str | None] = set()

    async def ready(self):
        return self.alive

    async def complete(self, messages, sampling, tools, continue_final_message, adapter):
        self.adapters.add(adapter)
        text = messages[0]["content"]
        self.asked.append(text)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await asyncio.sleep(1000 if text in self.hold else 0.001)
            if self.faults.get(text):
                raise self.faults[text].pop(0)
        finally:
            self.at_once -= 1
        return Generation([1, 2], f"Hm.\n</think>\nIt is {text}.", [], "stop", Usage(9, 2))

    async def chat(self, messages, options):
        self.adapters.add(options.adapter)
        self.asked.append((messages[0]["content"], options.thinking))
        yield ChatDelta(reasoning="Hm", token_ids=[1])
        yield ChatDelta(content="It is 5.", token_ids=[2, 3], finish_reason="stop", usage=ChatUsage(9, 3, 0, 1))


def questions(count):
    return [item(f"q-{n}", str(n), str(n)) for n in range(count)]


def run(items, client, directory, concurrency=4, settings=SETTINGS, adapter=None):
    answers = AnswerFile(directory, settings)
    stream = io.StringIO()
    asyncio.run(running.run(items, client, Sampling(temperature=0), answers, concurrency, stream, adapter))
    return answers, stream.getvalue()


def test_run(tmp_path):
    items, client = questions(20), Stub()
    answers, shown = run(items, client, tmp_path)
    assert client.most == 4 and sorted(client.asked, key=int) == [str(n) for n in range(20)]
    assert all(one.score.correct for one in grade(items, answers.of))
    assert shown.splitlines()[-1] == "answers: 20 of 20" and len(shown.splitlines()) == 10
    lines = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert len(lines) == 20 and json.loads(lines[0])["expected"] in map(str, range(20))


def test_the_order_in_which_answers_come_decides_nothing(tmp_path):
    items = [item(f"q-{n}", str(n), str(n % 3)) for n in range(20)]  # some are answered right
    first = None
    for seed, concurrency in enumerate((1, 3, 20)):
        draw = random.Random(seed)

        class Late(Stub):
            async def complete(self, *args, draw=draw, **options):
                for _ in range(draw.randint(0, 9)):
                    await asyncio.sleep(0)
                return await super().complete(*args, **options)

        answers, _ = run(items, Late({"7": [RequestError("no")]}), tmp_path / str(seed), concurrency)
        report = make_report(grade(items, answers.of), SETTINGS, "today")
        first = first or report
        assert report == first and 0 < report.rows[0].correct < 20


@pytest.mark.parametrize("code", [errno.EPIPE, errno.ENOSPC])
def test_what_cannot_be_written_ends_it_as_it_stands(code, tmp_path, monkeypatch):
    """A pipe that nobody reads, a full disk: neither is a recording's fault."""

    def fails(*_):
        raise OSError(code, "no")

    written = {errno.EPIPE: (Progress, "step"), errno.ENOSPC: (AnswerFile, "add")}
    monkeypatch.setattr(*written[code], fails)
    with pytest.raises(OSError) as caught:
        run(questions(3), Stub(), tmp_path)
    assert caught.value.errno == code


@pytest.mark.parametrize("adapter", ["terse", None])
def test_an_adapter_is_asked_each_question(adapter, tmp_path):
    items, client = [*questions(2), item("b", budget=4)], Stub()
    run(items, client, tmp_path, adapter=adapter)
    assert client.adapters == {adapter} and len(client.asked) == 3


def test_run_goes_on_where_it_was_broken_off(tmp_path):
    items = questions(6)
    run(items[:4], Stub(), tmp_path)
    file = tmp_path / "answers.jsonl"
    file.write_bytes(file.read_bytes()[:-10])  # killed within the fourth line
    client = Stub()
    answers, _ = run(items, client, tmp_path)
    assert len(client.asked) == 3 and len(answers.of) == 6
    again = Stub()
    answers, _ = run(items, again, tmp_path)
    assert again.asked == [] and all(one.score.correct for one in grade(items, answers.of))


def test_run_refuses_to_mix_settings(tmp_path):
    run(questions(1), Stub(), tmp_path)
    with pytest.raises(EvaluationError, match="holds answers with seed 0, not 1: choose another --output"):
        AnswerFile(tmp_path, {**SETTINGS, "seed": 1})
    with pytest.raises(EvaluationError, match="with data None, not 'x'"):
        AnswerFile(tmp_path, {**SETTINGS, "data": "x"})
    with pytest.raises(EvaluationError, match="with model 'stub', not None"):
        AnswerFile(tmp_path, {"seed": 0, "sampling": {"temperature": 0.0}})
    (tmp_path / "settings.json").unlink()
    with pytest.raises(EvaluationError, match="choose another"):
        AnswerFile(tmp_path, SETTINGS)


def test_run_refuses_other_questions(tmp_path):
    run(questions(2), Stub(), tmp_path)
    with pytest.raises(EvaluationError, match="another question as q-1"):
        run([item("q-1", "1", "9")], Stub(), tmp_path)


def test_a_file_that_holds_no_answers(tmp_path):
    AnswerFile(tmp_path, SETTINGS)
    good = EvaluatedAnswer(id="q-0", expected="0").model_dump_json().encode()
    for line in (b'{"id": "x"}', b'{"id": "x", "expected": "\xff"}', b"\xff\xfe", b"\0" * 9, b"[" * 100_000):
        (tmp_path / "answers.jsonl").write_bytes(good + b"\n" + line + b"\n")
        with pytest.raises(EvaluationError, match=r"answers.jsonl, line 2: not an answer: remove the line"):
            AnswerFile(tmp_path, SETTINGS)


@pytest.mark.parametrize("text", ["[]", "null", "{", "\xff", pytest.param("[" * 100_000, id="deep")])
def test_settings_that_are_none(tmp_path, text):
    (tmp_path / "settings.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(EvaluationError, match=r"settings.json does not say how .* choose another --output"):
        AnswerFile(tmp_path, SETTINGS)


def test_failed_requests_are_kept_counted_wrong_and_asked_again(tmp_path):
    items = questions(5)
    answers, _ = run(items, Stub({"2": [RequestError("too much audio")]}), tmp_path)
    graded = grade(items, answers.of)
    assert [one.score.correct for one in graded] == [True, True, False, True, True]
    assert answers.of["q-2"].error == "too much audio"
    row = make_report(graded, SETTINGS, "today").rows[0]
    assert (row.n, row.correct, row.failed) == (5, 4, 1)
    client = Stub()
    answers, _ = run(items, client, tmp_path)
    assert client.asked == ["2"] and answers.of["q-2"].error is None


def test_a_recording_that_vanished(tmp_path):
    gone = replace(item(), messages=({"role": "user", "content": [{"type": "audio"}]},), audio=(tmp_path / "gone.wav",))
    answers, _ = run([gone], Stub(), tmp_path / "out")
    assert answers.of[gone.id].error == f"{tmp_path / 'gone.wav'} cannot be read: No such file or directory"


def test_a_full_queue_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "BUSY_PAUSES", (0.001, 0.001))
    busy = [ServerBusy("the server's queue is full")]
    answers, _ = run(questions(2), Stub({"0": busy * 2, "1": busy * 3}), tmp_path)
    assert answers.of["q-0"].error is None and "queue is full" in answers.of["q-1"].error


def test_a_server_that_is_gone_ends_the_run(tmp_path):
    client = Stub({"3": [RequestError("no server answers")]}, alive=False)
    with pytest.raises(EvaluationError, match="no server answers; the same command goes on"):
        run(questions(50), client, tmp_path, concurrency=1)
    assert list(AnswerFile(tmp_path, SETTINGS).of) == ["q-0", "q-1", "q-2"]


def test_a_budget_is_asked_for_and_its_answer_read_as_any(tmp_path):
    items = [replace(item(f"q-{budget}", "2+3?", "5"), budget=budget) for budget in (0, 16, "unlimited")]
    client = Stub()
    answers, _ = run(items, client, tmp_path)
    asked = {thinking for _, thinking in client.asked}
    assert asked == {Thinking(budget=0), Thinking(budget=16), Thinking()}
    for one in items:
        answer = answers.of[one.id]
        assert answer.token_ids == [1, 2, 3] and one.parse(answer.text).content == "It is 5."
