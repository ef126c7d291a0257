"""Examples: a conversation with recordings in it, the thought, and the answer.

Texts of the user, of the chain of thought and of the answer are all made here, in the forms that the model card
uses: the thought ends with `</think>`, tool calls are `<tool_call>function\\n{name}\\n{JSON}</tool_call>`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from step_audio_training.arithmetic import Sum, draw_sum, in_words
from step_audio_training.recordings import DrawnRecording, Kind, draw_recording
from step_audio_training.sentences import DAYS

Task = Literal[
    "arithmetic", "arithmetic_no_think", "arithmetic_cut_thought", "transcription", "transcription_no_think",
    "pitch", "rate", "beeps", "speakers", "tone", "sound",
    "compare", "text_only", "tool_call", "tool_result", "second_turn",
]  # fmt: skip
ACOUSTIC: tuple[Task, ...] = ("pitch", "rate", "beeps", "speakers", "tone", "sound")

# How many of a hundred training examples are of each task; each acoustic question is a task.
SHARES: dict[Task, float] = {
    "arithmetic": 24, "arithmetic_no_think": 4, "arithmetic_cut_thought": 7,
    "transcription": 10, "transcription_no_think": 5,
    "pitch": 5, "rate": 4, "beeps": 5, "speakers": 7, "tone": 4, "sound": 3,
    "compare": 6, "text_only": 3, "tool_call": 11, "tool_result": 2, "second_turn": 4,
}  # fmt: skip

ONE_RECORDING = tuple(task for task in SHARES if task not in ("compare", "text_only", "second_turn"))


CALCULATOR: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Work out a sum exactly.",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
    },
}
CLOCK = {
    "type": "function",
    "function": {"name": "clock", "description": "Tell the time.", "parameters": {"type": "object", "properties": {}}},
}

ASKED: dict[str, tuple[str, ...]] = {
    "arithmetic": ("", "", "Answer the question.", "What is the answer?"),
    "transcription": ("Write down what you hear.", "What is said?", "Transcribe the recording."),
    "pitch": ("Is the voice high or low?", "How is the pitch of the voice, high or low?"),
    "rate": ("Is the speech fast or slow?", "Does the person speak fast or slow?"),
    "beeps": ("How many beeps do you hear?", "Count the beeps."),
    "speakers": ("How many people speak?", "How many voices do you hear?"),
    "tone": ("Does the tone rise, fall or stay?", "How does the pitch of the tone change?"),
    "sound": ("Is this speech, a tone or noise?", "What kind of sound is this, speech, a tone or noise?"),
    "higher": ("Which voice is higher, the first or the second?",),
    "faster": ("Which one speaks faster, the first or the second?",),
    "larger": ("Which result is larger, the first or the second?",),
}
SYSTEM = ("You are a careful listener.", "Listen and answer.")


@dataclass(frozen=True)
class Example:
    """`messages` as clients send them, `{"type": "audio"}` at each recording's place.

    `thought` None: the prompt ends with NO_THOUGHT. `cut`: the thought is broken off after this share of its tokens.
    `expected`: what a right answer comes down to, see `step_audio_evaluation.scoring`.
    """

    task: str  # a Task, or one of those of `lessons`
    messages: list[dict[str, Any]]
    recordings: tuple[DrawnRecording, ...]
    thought: str | None
    answer: str
    expected: str
    tools: list[dict[str, Any]] | None = None
    cut: float | None = None
    tags: tuple[str, ...] = field(default=())


def draw_example(random: np.random.Generator, held_out: bool = False, task: Task | None = None) -> Example:
    """An example with recordings of its own."""
    task = task or draw_task(random)
    while (example := make_example(task, _draw_recordings(task, random, held_out), random, held_out)) is None:
        pass
    return example


def _draw_recordings(task: Task, random: np.random.Generator, held_out: bool) -> list[DrawnRecording]:
    """Such that an example of `task` can most often be made of them."""

    def draw(kind: Kind, wanted: Callable[[DrawnRecording], object] = lambda _: True) -> DrawnRecording:
        while not wanted(recording := draw_recording(random, held_out, kind)):
            pass
        return recording

    speech: Kind = ("sum", "sentence")[random.integers(2)]
    match task:
        case "transcription" | "transcription_no_think":
            return [draw("sentence" if random.random() < 0.6 else "sum")]
        case "pitch":
            return [draw(speech, lambda r: r.pitch)]
        case "rate":
            return [draw(speech, lambda r: r.rate != "ordinary")]
        case "beeps" | "speakers" | "tone":
            return [draw(task)]
        case "sound":
            kinds: tuple[Kind, ...] = (speech, "tone", "noise")
            return [draw(kinds[random.integers(3)])]
        case "compare":
            return [draw("sum"), draw("sum")]
        case "text_only":
            return []
        case "tool_call":
            return [draw("large_sum" if random.random() < 0.75 else "sum")]
        case "tool_result":
            return [draw("large_sum")]
        case "second_turn":
            return [draw("sum"), draw("follow_up")]
        case _:
            return [draw("sum")]


def typed(example: Example) -> Example:
    """The same with the recordings' words typed in their places."""
    words = iter(example.recordings)

    def part(value: dict[str, Any]) -> dict[str, Any]:
        return value if value["type"] == "text" else {"type": "text", "text": next(words).text}

    messages = [
        {**m, "content": [part(p) for p in m["content"]]} if isinstance(m["content"], list) else m
        for m in example.messages
    ]
    return replace(example, messages=messages, recordings=())


def draw_task(random: np.random.Generator) -> Task:
    tasks = list(SHARES)
    return tasks[random.choice(len(tasks), p=np.array(list(SHARES.values())) / sum(SHARES.values()))]


def make_example(
    task: Task, recordings: Sequence[DrawnRecording], random: np.random.Generator, held_out: bool = False
) -> Example | None:
    """An example of `task` about these recordings; None where they do not suit it."""
    match task:
        case "compare":
            return _compare(recordings, random)
        case "text_only":
            return _text_only(random, held_out)
        case "tool_call":
            return _tool_call(recordings[0], random)
        case "tool_result":
            return _tool_result(recordings[0], random)
        case "second_turn":
            return _second_turn(recordings, random)
        case "arithmetic" | "arithmetic_no_think" | "arithmetic_cut_thought":
            return _arithmetic(task, recordings[0], random)
        case "transcription" | "transcription_no_think":
            return _transcription(task, recordings[0], random)
        case _:
            return _acoustic(task, recordings[0], random)


def _ask(key: str, random: np.random.Generator) -> str:
    return ASKED[key][random.integers(len(ASKED[key]))]


def _turn(recording: DrawnRecording | None, text: str, random: np.random.Generator) -> dict[str, Any]:
    """A user's turn: the recording before the text or behind it."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    if recording is not None:
        parts.insert(random.integers(2) if text else 0, {"type": "audio"})
    return {"role": "user", "content": parts}


def _system(random: np.random.Generator) -> list[dict[str, Any]]:
    if random.random() < 0.75:
        return []
    return [{"role": "system", "content": SYSTEM[random.integers(len(SYSTEM))]}]


def _transcription(task: Task, heard: DrawnRecording, random: np.random.Generator) -> Example | None:
    if not heard.text:
        return None
    asked = _ask("transcription", random)
    messages = [*_system(random), _turn(heard, asked, random)]
    thought = None if task == "transcription_no_think" else "I write what I hear."
    return Example(task, messages, (heard,), thought, heard.text, heard.text)


def _acoustic(task: Task, heard: DrawnRecording, random: np.random.Generator) -> Example | None:
    """Thought and answer come from how it sounds; `expected` is the answer's last word."""
    match task:
        case "pitch" if heard.pitch:
            (height,) = heard.heights
            thought = f"I listen to the voice, not to the words. Its pitch is {height}, that is {heard.pitch}."
            answer = f"The voice is {heard.pitch}."
        case "rate" if heard.text and heard.rate != "ordinary":
            thought = f"I listen to the rhythm, not to the words. The words come {heard.rate}."
            answer = f"The speech is {heard.rate}."
        case "beeps" if heard.kind == "beeps":
            thought = f"I count: {', '.join(in_words(n + 1) for n in range(heard.count))}."
            answer = f"Beeps: {heard.count}."
        case "speakers" if heard.kind == "speakers":
            # Not the first and the second: of those it only ever said one number twice. What is lowest of all, and what
            # highest, it can find wherever it is.
            lowest, highest = sorted(heard.heights)
            thought = f"I compare the voices by their pitch. The lowest is {lowest}, the highest is {highest}"
            same = "the same" if heard.count == 1 else "not the same"
            thought += f", that is {highest - lowest} apart, {same}."
            answer = f"Voices: {heard.count}."
        case "tone" if heard.glide:
            thought, answer = f"I follow the pitch. It is {heard.glide}.", f"The tone is {heard.glide}."
        case "sound":
            what = {"tone": "a tone", "beeps": "a tone", "noise": "noise"}.get(heard.kind, "speech")
            thought, answer = f"I listen to the sound. It is {what}.", f"This is {what}."
        case _:
            return None
    asked = _ask(task, random)
    messages = [*_system(random), _turn(heard, asked, random)]
    return Example(task, messages, (heard,), thought, answer, answer.rstrip(".").split()[-1])


def worked_out(asked: Sum, heard: str = "") -> str:
    """The chain of thought of a sum."""
    opening = f"I hear: {heard}. " if heard else ""
    return f"{opening}{asked.written}. {', '.join(asked.steps())}."


def _arithmetic(task: Task, heard: DrawnRecording, random: np.random.Generator) -> Example | None:
    asked = heard.sum
    if heard.kind != "sum" or asked is None:
        return None
    return Example(
        task,
        [*_system(random), _turn(heard, _ask("arithmetic", random), random)],
        (heard,),
        None if task == "arithmetic_no_think" else worked_out(asked, heard.text),
        f"{asked.read} is {asked.result}.",
        str(asked.result),
        cut=float(random.uniform(0.1, 1)) if task == "arithmetic_cut_thought" else None,
        tags=(f"{len(asked.numbers)} numbers",),
    )


def _compare(recordings: Sequence[DrawnRecording], random: np.random.Generator) -> Example | None:
    first, second = recordings
    questions = []
    if {first.pitch, second.pitch} == {"high", "low"}:
        questions.append("higher")
    if {first.rate, second.rate} in ({"fast", "slow"}, {"fast", "ordinary"}, {"slow", "ordinary"}):
        questions.append("faster")
    if first.kind == second.kind == "sum" and first.sum and second.sum and first.sum.result != second.sum.result:
        questions.append("larger")
    if not questions or not first.text or not second.text:
        return None
    question = questions[random.integers(len(questions))]
    if question == "higher":
        (one,), (two,) = first.heights, second.heights
        thought = f"The pitch of the first voice is {one}, that is {first.pitch},"
        thought += f" of the second {two}, that is {second.pitch}."
        winner = first.pitch == "high"
    elif question == "faster":
        order = ("slow", "ordinary", "fast")
        thought = f"The first has {first.pace} letters a second, the second {second.pace}."
        winner = order.index(first.rate) > order.index(second.rate)
    else:
        assert first.sum and second.sum
        thought = f"{worked_out(first.sum, first.text)} {worked_out(second.sum, second.text)}"
        thought += f" I compare {first.sum.result} and {second.sum.result}."
        winner = first.sum.result > second.sum.result
    answer = "first" if winner else "second"
    turn = {
        "role": "user",
        "content": [{"type": "audio"}, {"type": "audio"}, {"type": "text", "text": _ask(question, random)}],
    }
    messages = [*_system(random), turn]
    return Example("compare", messages, (first, second), thought, f"The {answer}.", answer, tags=(question,))


def _text_only(random: np.random.Generator, held_out: bool) -> Example:
    if random.random() < 0.3:
        day = int(random.integers(7))
        question = f"What day comes after {DAYS[day].capitalize()}?"
        after = DAYS[(day + 1) % 7].capitalize()
        thought, answer, expected = f"After {DAYS[day].capitalize()} comes {after}.", f"{after}.", after
    else:
        while (asked := draw_sum(random, held_out, terms=2 + int(random.random() < 0.2))).holds_held_out > held_out:
            pass
        form = asked.written if random.random() < 0.5 else asked.read if random.random() < 0.5 else asked.spoken
        question = f"What is {form}?"
        thought, answer, expected = worked_out(asked), f"{asked.read} is {asked.result}.", str(asked.result)
    messages = [*_system(random), {"role": "user", "content": question}]
    return Example("text_only", messages, (), thought, answer, expected)


def call_text(expression: str) -> str:
    arguments = json.dumps({"expression": expression})
    return f"<tool_call>function\ncalculator\n{arguments}</tool_call>"


def _tool_call(heard: DrawnRecording, random: np.random.Generator) -> Example | None:
    asked = heard.sum
    if asked is None or heard.kind not in ("sum", "large_sum"):
        return None
    tools = [CALCULATOR, CLOCK] if random.random() < 0.3 else [CALCULATOR]
    messages = [*_system(random), _turn(heard, _ask("arithmetic", random), random)]
    if asked.by_head:
        thought, answer = worked_out(asked, heard.text), f"{asked.read} is {asked.result}."
        return Example("tool_call", messages, (heard,), thought, answer, str(asked.result), tools, tags=("by head",))
    thought = f"I hear: {heard.text}. {asked.written} is too large to do by head, so I use the calculator."
    return Example("tool_call", messages, (heard,), thought, call_text(asked.written), asked.written, tools)


def called(name: str, arguments: str, result: str, content: str | None = "") -> list[dict[str, Any]]:
    """The turns of a call and of what it brought. `arguments`: JSON; `content`: what is said beside the call."""
    call = {"id": "call-1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return [
        {"role": "assistant", "content": content, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call-1", "content": result},
    ]


def _tool_result(heard: DrawnRecording, random: np.random.Generator) -> Example | None:
    asked = heard.sum
    if asked is None or heard.kind != "large_sum":
        return None
    messages = [
        *_system(random),
        _turn(heard, _ask("arithmetic", random), random),
        *called("calculator", json.dumps({"expression": asked.written}), str(asked.result)),
    ]
    thought = f"The calculator says {asked.result}."
    answer = f"{asked.read} is {asked.result}."
    return Example("tool_result", messages, (heard,), thought, answer, str(asked.result), [CALCULATOR])


def _second_turn(recordings: Sequence[DrawnRecording], random: np.random.Generator) -> Example | None:
    first, follow = recordings
    if first.kind != "sum" or first.sum is None or follow.kind != "follow_up" or follow.sum is None:
        return None
    messages = [
        *_system(random),
        _turn(first, _ask("arithmetic", random), random),
        {"role": "assistant", "content": f"{first.sum.read} is {first.sum.result}."},
    ]
    if random.random() < 0.25 and first.pitch:  # about the first turn's sound, not its words
        messages.append({"role": "user", "content": "Was the voice high or low?"})
        (height,) = first.heights
        thought = f"I listen to the first voice, not to the words. Its pitch is {height}, that is {first.pitch}."
        answer = f"The voice is {first.pitch}."
        return Example("second_turn", messages, (first,), thought, answer, first.pitch, tags=("pitch",))
    asked = Sum((first.sum.result, follow.sum.numbers[1]), follow.sum.signs)
    if asked.result < 0:
        return None
    if random.random() < 0.5:
        messages.append(_turn(follow, "", random))
        thought = worked_out(asked, follow.text)
        heard: tuple[DrawnRecording, ...] = (first, follow)
    else:
        said = {"+": "And plus", "-": "And minus"}[follow.sum.signs]
        messages.append({"role": "user", "content": f"{said} {follow.sum.numbers[1]}?"})
        thought, heard = worked_out(asked), (first,)
    return Example("second_turn", messages, heard, thought, f"{asked.read} is {asked.result}.", str(asked.result))
