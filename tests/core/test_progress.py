"""How far long work is, in a terminal and in a log."""

import io

from step_audio.progress import Progress


def test_progress_prints_a_line_for_each_tenth():
    stream = io.StringIO()
    report = Progress("decoder", stream=stream)
    for done in range(205, 1001, 5):  # resumed at a fifth
        report(done * 10**6, 10**9)
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["20", "30", "40", "50", "60", "70", "80", "90", "100"]
    assert lines[1].startswith("decoder: 30 % of 1.00 GB, ") and lines[1].endswith(" s left")
    assert lines[-1] == "decoder: 100 % of 1.00 GB"


def test_progress_shows_the_last_note():
    stream = io.StringIO()
    report = Progress("training", unit="", total=20, stream=stream)
    for step in range(20):
        report.step("loss 0.5" if step == 2 else "")
    first, *others = stream.getvalue().splitlines()
    assert first.startswith("training: 2 of 20") and not first.endswith("loss 0.5")
    assert len(others) == 9 and all(line.endswith("loss 0.5") for line in others)


def test_progress_draws_a_bar_in_a_terminal():
    stream = io.StringIO()
    stream.isatty = lambda: True
    report = Progress("decoder", stream=stream)
    for done in (200, 600, 1000):
        report(done, 1000)
    assert "decoder: 100%" in stream.getvalue() and "1.00k/1.00k" in stream.getvalue()
