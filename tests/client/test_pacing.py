"""When a segment is due, by counts of tokens and by the clock of the playback; no clock runs here."""

from __future__ import annotations

import pytest

from step_audio_client import MindPaced
from step_audio_client.pacing import FIRST_LEAD, MARGIN, Due, Pacing
from step_audio_client.playback import Playback


def think(pacing: Pacing, count: int) -> None:
    for _ in range(count):
        pacing.add_thought_token()


def speak(pacing: Pacing, thought_tokens: int, count: int, begun: float = 0.0, first: float = 0.0) -> None:
    """A segment whose tokens all come at `first`."""
    segment = pacing.begin(thought_tokens, begun)
    for _ in range(count):
        pacing.add_spoken_token(segment, True, first)


def test_by_count():
    """A thought that is ahead leaves none out; how much more of it there is does not matter."""
    pacing = Pacing(MindPaced("think_first", 10, 3))
    think(pacing, 9)
    assert pacing.one_brain and pacing.due(0) is None and pacing.wait(0) is None
    think(pacing, 26)
    assert not pacing.one_brain
    pacing.close_thought(1.5)
    due = []
    while (segment := pacing.due(9e9)) and not segment.last:
        due.append(segment.thought_tokens)
        speak(pacing, segment.thought_tokens, 3)
    assert due == [10, 20, 30] and segment == Due(36, last=True)
    assert (pacing.timing().thought_ended, pacing.timing().thought_tokens) == (1.5, 36)


@pytest.mark.parametrize(("open_tokens", "one_brain"), [(9, True), (10, False)])
def test_the_token_that_closes_the_thought_makes_no_segment_due(open_tokens, one_brain):
    pacing = Pacing(MindPaced("think_first", 10, 3))
    think(pacing, open_tokens)
    pacing.close_thought(0)
    assert pacing.one_brain == one_brain


@pytest.mark.parametrize(
    ("mode", "most", "thought"),
    [
        ("think_first", 9, 9),  # never gets to a segment
        ("think_first", 12, 10),  # the segment that is due then has the two that are left
        ("think_first", 33, 23),  # 10 and 5, 10 and 5, 3
        ("speak_first", 5, 0),
        ("speak_first", 33, 20),  # 5 and 10, 5 and 10, 3
        ("think_before_speak", 33, 33),
    ],
)
def test_max_tokens_are_shared_in_the_order_of_the_segments(mode, most, thought):
    """However far the speech has come."""
    pacing = Pacing(MindPaced(mode, 10, 5), most)
    count = 0
    while pacing.thought == "open":
        think(pacing, 1)
        count += 1
    assert (pacing.thought, count) == ("cut", thought)


def test_by_the_clock():
    """20 tokens at 10 a second are heard at 2 s; the segment took 0.1 s to its first."""
    pacing = Pacing(MindPaced("speak_first", 10, 20, speech_rate=10.0))
    assert pacing.due(0) == Due(0, last=False)
    speak(pacing, 0, 20, begun=0.0, first=0.1)
    think(pacing, 55)
    end = 0.1 + 20 / 10
    lead = 0.1 + MARGIN
    assert pacing.due(end - lead - 0.01) is None
    assert pacing.wait(end - lead - 0.25) == pytest.approx(0.25) and pacing.wait(end) == 0
    assert pacing.due(end - lead + 0.01) == Due(55, last=False)
    speak(pacing, 55, 20, begun=end - lead, first=end + 0.5)  # late
    assert (pacing.timing().underruns, pacing.timing().silence) == (1, pytest.approx(0.5))
    slower = 0.5 + lead + MARGIN
    assert pacing.due(end + 0.5 + 2 - slower - 0.01) is None
    assert pacing.due(end + 0.5 + 2 - slower + 0.01) == Due(55, last=False)
    pacing.close_thought(3.0)
    assert pacing.due(3.0) == Due(56, last=True), "the rest at once"


def test_the_first_guess_of_how_long_a_segment_takes_is_forgotten():
    pacing = Pacing(MindPaced("speak_first", 10, 20, speech_rate=10.0))
    assert FIRST_LEAD > 0.01
    speak(pacing, 0, 20, begun=0.0, first=0.01)
    assert pacing.wait(0) == pytest.approx(0.01 + 2 - 0.01 - MARGIN)


@pytest.mark.parametrize("rate", [None, 10.0])
@pytest.mark.parametrize(("mode", "first"), [("think_first", 10), ("speak_first", 0)])
def test_the_first_segment_goes_by_count_even_with_a_rate(mode, first, rate):
    pacing = Pacing(MindPaced(mode, 10, 5, speech_rate=rate))
    think(pacing, 25)
    assert pacing.due(0) == pacing.due(9e9) == Due(first, last=False)


def test_an_end_without_a_marker():
    pacing = Pacing(MindPaced("think_first", 10, 5))
    think(pacing, 4)
    pacing.end_thought("stop", 1.0)
    assert pacing.due(1.0) == Due(4, last=True)
    pacing = Pacing(MindPaced("think_first", 10, 5))
    think(pacing, 4)
    pacing.end_thought("length", 1.0)
    assert pacing.due(1.0) is None and pacing.thought == "cut" and pacing.timing().thought_ended is None


def test_playback_counts_silence():
    playback = Playback(10)
    for now, tokens in ((1.0, 5), (1.2, 5), (2.5, 1), (2.55, 1)):
        playback.add(tokens, now)
    assert (playback.underruns, round(playback.silence, 6), round(playback.end, 6)) == (1, 0.5, 2.7)
    playback.add(0, 9)
    assert playback.underruns == 1
