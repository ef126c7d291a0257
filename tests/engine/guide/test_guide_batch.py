"""Guides beside others: neighbours, eviction, faults, and compiling that holds up nobody."""

import re
import threading
import time
from dataclasses import replace

import pytest

from engine_fixture import ask, generate, model, options, prompt, submit
from guide_fixture import EOT, text
from step_audio.engine import Engine, GuideSpec
from step_audio.engine.guide import CompiledGuide, GuideCompiler
from waiting import SECONDS

# Beside others


def test_neighbours_draw_what_they_draw_alone(engine):
    guided = [submit(engine, f"g{i}", prompt(9, i), 60, guide=GuideSpec("regex", "[0-9]{60}")) for i in range(3)]
    plain = [submit(engine, f"p{i}", prompt(20, i), 40) for i in range(3)]
    for i, answer in enumerate(plain):
        assert answer.wait().tokens() == generate(prompt(20, i), 40)
    for answer in guided:
        assert re.fullmatch("[0-9]{60}", text(answer.wait()))


def test_an_evicted_answer_goes_on_in_its_guide(info):
    """With too few blocks for all, answers lose their cache and are computed again, from text already accepted."""
    spec, weights = model()
    engine = Engine(
        options(
            xgrammar_tokenizer_info_path=info,
            batch_scheduler_policy="max_utilization",
            max_tokens_in_paged_kv_cache=8 * 32,
            enable_kv_cache_reuse=False,
        ),
        (replace(spec, max_seq_len=256), weights),
    )
    try:
        running = [submit(engine, f"{i}", prompt(9, i), 120, guide=GuideSpec("regex", "[0-9]{100}")) for i in range(4)]
        for answer in running:
            assert re.fullmatch("[0-9]{100}", text(answer.wait()))
    finally:
        engine.shutdown()


def test_the_library_is_imported_when_the_first_answer_has_ended(info, monkeypatch):
    """A server that starts does not wait for it."""
    begun = threading.Event()
    monkeypatch.setattr(GuideCompiler, "_load", lambda self, vocab: begun.set())
    engine = Engine(options(xgrammar_tokenizer_info_path=info), model())
    try:
        assert engine.alive and not begun.is_set()
        ask(engine, prompt(9), 5)
        assert begun.wait(SECONDS)
    finally:
        engine.shutdown()


def test_a_fault_of_the_library_ends_one_request(engine, monkeypatch):
    monkeypatch.setattr("step_audio.engine.engine.TokenGuide", None)
    answer = ask(engine, prompt(9), 5, guide=GuideSpec("regex", "a"))
    assert str(answer.last.error) == "internal error" and answer.last.final
    monkeypatch.setattr(GuideCompiler, "compile", None)
    answer = ask(engine, prompt(9), 5, guide=GuideSpec("regex", "a"))
    assert str(answer.last.error) == "internal error" and answer.last.final
    assert ask(engine, prompt(20), 30).tokens() == generate(prompt(20), 30)


@pytest.fixture
def slow(monkeypatch):
    """Compiling waits for this event."""
    event = threading.Event()
    compile_ = GuideCompiler.compile

    def wait(self, guide) -> CompiledGuide:
        assert event.wait(SECONDS)
        return compile_(self, guide)

    monkeypatch.setattr(GuideCompiler, "compile", wait)
    yield event
    event.set()


def test_compiling_holds_up_nobody(engine, slow):
    guided = submit(engine, "guided", prompt(9), 50, guide=GuideSpec("regex", "yes|no"), end_id=EOT)
    assert ask(engine, prompt(20), 30).tokens() == generate(prompt(20), 30)
    assert not guided.outputs and engine.stats().waiting_requests == 1
    slow.set()
    assert text(guided.wait()) in ("yes", "no")


@pytest.mark.parametrize("guide", [GuideSpec("regex", "yes|no"), GuideSpec("regex", "(")])
def test_cancelled_while_compiling(engine, slow, guide):
    guided = submit(engine, "guided", prompt(9), 50, guide=guide, num_return_sequences=2)
    assert engine.cancel("guided")
    assert guided.wait().last.finished == "cancelled" and len(guided.outputs) == 2
    slow.set()
    time.sleep(0.05)  # for the compiler to hand over what nobody waits for
    assert ask(engine, prompt(20), 30).tokens() == generate(prompt(20), 30)
    assert len(guided.outputs) == 2 and engine.stats().active_requests == 0


def test_shut_down_while_compiling(info, slow):
    engine = Engine(options(xgrammar_tokenizer_info_path=info), model())
    guided = [submit(engine, f"{i}", prompt(9), 50, guide=GuideSpec("regex", "yes|no")) for i in range(4)]
    engine.shutdown()
    assert all(answer.wait().last.finished == "cancelled" for answer in guided)
