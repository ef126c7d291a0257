"""What is asked about a recording of `scenes`: the tasks of `examples`, in many phrasings, and those beyond them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from step_audio_training.arithmetic import SPOKEN, Sum, in_words
from step_audio_training.examples import (
    ASKED,
    CALCULATOR,
    ONE_RECORDING,
    Example,
    _system,
    _turn,
    called,
    make_example,
    worked_out,
)
from step_audio_training.recordings import DrawnRecording
from step_audio_training.requests import INVENTED, NO_TOOL, draw_tools, invented, json_answer, schema_of
from step_audio_training.scenes import draw_scene, spoken
from step_audio_training.texts import plain
from step_audio_training.voices import Speaker

# The tasks' weights, among those that suit a recording.
SHARES: dict[str, float] = {
    "arithmetic": 16, "arithmetic_no_think": 4, "arithmetic_cut_thought": 5,
    "transcription": 5, "transcription_no_think": 7,
    "pitch": 10, "rate": 8, "beeps": 9, "speakers": 12, "tone": 7, "sound": 5,
    "compare": 10, "text_only": 2, "tool_call": 8, "tool_result": 3, "second_turn": 4,
    "order": 12, "facts": 6, "sum_in_json": 5, "sound_in_json": 2, "talk": 6, "talk_then_sum": 2,
    "word_count": 3, "loud": 7, "phrase": 6, "strange": 8,
}  # fmt: skip
ABOUT_ONE = (*ONE_RECORDING, *(t for t in SHARES if t in ("order", "facts", "sum_in_json", "sound_in_json", "talk",
             "talk_then_sum", "word_count", "loud", "phrase", "strange")))  # fmt: skip

# More ways to ask what ASKED asks, and what it does not.
PHRASINGS: dict[str, tuple[str, ...]] = {
    "arithmetic": ("", "Listen and work it out.", "How much is it?", "Please answer.", "What is the result?",
                   "Do the sum in the recording.", "What does it come to?"),
    "transcription": ("Please write this down.", "What did they say?", "Type what is said.", "Take dictation.",
                      "What are the words?", "Give me the text of the recording.", "Transcribe.", "What did I say?"),
    "pitch": ("Does the voice sound high or low?", "Is it a high or a low voice?", "High voice or low voice?",
              "Tell me whether the voice is low or high."),
    "rate": ("How fast is the speech, fast or slow?", "Is this spoken fast or slow?", "Fast or slow speech?",
             "Does the speaker hurry, or speak slowly?"),
    "beeps": ("How often does it beep?", "What is the number of beeps?", "Tell me how many beeps there are."),
    "speakers": ("Is it one speaker or two?", "Do one or two people talk?", "Count the voices.",
                 "What is the number of speakers?"),
    "tone": ("Which way does the tone go?", "Is the tone rising, falling or steady?",
             "Up, down or level: how is the tone?"),
    "sound": ("What do I play you, speech, a tone or noise?", "Speech, tone or noise?", "What is to be heard here?"),
    "higher": ("Who has the higher voice, the first or the second?", "Is the first or the second voice higher?"),
    "faster": ("Who talks faster, the first or the second?", "Is the first or the second faster?"),
    "larger": ("Is the first or the second result larger?", "Which sum comes to more, the first or the second?"),
    "word_count": ("How many words did I say?", "Count the words.", "How many words are there?",
                   "What is the number of words?", "How many words do you hear?"),
    "loud": ("Which word was louder?", "Which word is the loudest?", "Which word stands out?",
             "What word did I say louder?"),
    "phrase": ("Was that a question?", "Is this a question?", "Did I ask something?", "Question or statement?"),
}  # fmt: skip
ALOUD = (
    "transcription",
    "pitch",
    "rate",
    "beeps",
    "speakers",
    "tone",
    "sound",
    "compare",
    "word_count",
    "loud",
    "phrase",
)
ASKED_FOR_JSON = (
    "Answer with JSON only, by this schema: {}", "Answer in JSON. Schema: {}", "JSON, please: {}",
    "Give the answer as a JSON object that fits {}", "Fill in: {}",
)  # fmt: skip
RESULTS = ("ok", "done", "it is done", "failed", "not found", "12 degrees", "half past nine", "yes", "no", "3 of 7")
HEARD_INSTEAD = {
    "music": "music", "singing": "singing", "another language": "another language", "silence": "nothing",
    "noise": "noise",
}  # fmt: skip


def _pick(values: Sequence[str], random: np.random.Generator) -> str:
    return values[random.integers(len(values))]


def draw_task(random: np.random.Generator) -> str:
    tasks = list(SHARES)
    return tasks[random.choice(len(tasks), p=np.array(list(SHARES.values())) / sum(SHARES.values()))]


def make_lesson(
    task: str, heard: Sequence[DrawnRecording], random: np.random.Generator, held_out: bool = False
) -> Example | None:
    """An example of `task` about these recordings; None where they do not suit it."""
    if task == "second_turn" and len(heard) == 2 and heard[0].sum and heard[1].sum and not held_out:
        joined = Sum((heard[0].sum.result, heard[1].sum.numbers[1]), heard[1].sum.signs)
        if joined.held_out:
            return None
    made = _further(task, heard[0], random, held_out) if heard else None
    if made is None and task in OLDER:
        made = make_example(OLDER[task], heard, random, held_out)  # type: ignore[arg-type]
    if made is not None and task == "tool_call" and random.random() < 0.4:
        made = replace(made, tools=_with_others(made.tools or [CALCULATOR], random))
    if made is not None and made.tools and not held_out and random.random() < 0.5:
        made = replace(made, tools=[reworded(tool, random) for tool in made.tools])
    return None if made is None else rephrased(made, random)


OLDER = {task: task for task in SHARES if task not in ABOUT_ONE or task in ONE_RECORDING}


def _with_others(tools: list[dict[str, Any]], random: np.random.Generator) -> list[dict[str, Any]]:
    others = draw_tools(None, random)
    taken = {tool["function"]["name"] for tool in tools}
    merged = [*tools, *(tool for tool in others if tool["function"]["name"] not in taken)]
    return [merged[n] for n in random.permutation(len(merged))]


def rephrased(example: Example, random: np.random.Generator) -> Example:
    """The same question, often in other words."""
    if random.random() < 0.4:
        return example

    def part(value: dict[str, Any]) -> dict[str, Any]:
        for key, texts in ASKED.items():
            if value["type"] == "text" and value["text"] in texts and value["text"]:
                return {"type": "text", "text": _pick(PHRASINGS[key], random) or value["text"]}
        return value

    messages = [
        {**m, "content": [part(p) for p in m["content"]]} if isinstance(m["content"], list) else m
        for m in example.messages
    ]
    return replace(example, messages=messages)


def asked_aloud(
    example: Example, random: np.random.Generator, held_out: bool = False, speakers: tuple[Speaker, ...] | None = None
) -> Example:
    """The same with the question spoken, in a recording of its own behind the others."""
    last = example.messages[-1]
    if example.thought is None or example.task not in ALOUD or not isinstance(last["content"], list):
        return example
    texts = [part["text"] for part in last["content"] if part["type"] == "text"]
    if len(texts) != 1 or not texts[0]:
        return example
    said = spoken("asked", plain(texts[0]), random, held_out, speakers)
    content = [part for part in last["content"] if part["type"] == "audio"] + [{"type": "audio"}]
    return replace(
        example,
        messages=[*example.messages[:-1], {**last, "content": content}],
        recordings=(*example.recordings, said),
        thought=f"I am asked: {said.text}. {example.thought}",
    )


def _further(task: str, heard: DrawnRecording, random: np.random.Generator, held_out: bool) -> Example | None:
    match task:
        case "order":
            return _order(heard, random, held_out)
        case "tool_result" if not held_out and heard.kind in ("large_sum", "order"):
            return _told(heard, random)
        case "facts" if heard.kind == "facts" and heard.request:
            fields = list(heard.request.fields)
            fields = [fields[n] for n in random.permutation(len(fields))]
            return _in_json(task, heard, fields, f"I hear: {heard.text}.", random)
        case "sum_in_json" if heard.kind == "sum" and heard.sum:
            key, other = (("result", "expression"), ("answer", "sum"), ("value", "question"))[random.integers(3)]
            if not held_out and random.random() < INVENTED:
                key, other = invented(2, random)
            fields = [(key, heard.sum.result)] + ([(other, heard.sum.written)] if random.random() < 0.5 else [])
            return _in_json(task, heard, fields, worked_out(heard.sum, heard.text), random)
        case "sound_in_json":
            return _sound_in_json(heard, random)
        case "talk" | "talk_then_sum":
            return _talk(task, heard, random, held_out)
        case "word_count" if heard.text and heard.kind in ("sentence", "dictation", "phrase", "loud"):
            words = heard.text.split()
            counted = ", ".join(f"{in_words(n)} {word}" for n, word in enumerate(words, 1))
            return _plain(task, heard, f"I count: {counted}.", f"Words: {len(words)}.", str(len(words)), random)
        case "loud" if heard.kind == "loud":
            thought, answer = f"I hear: {heard.text}. The loudest is {heard.told}.", f"The louder word is {heard.told}."
            return _plain(task, heard, thought, answer, heard.told, random)
        case "phrase" if heard.kind == "phrase":
            answer = "Yes, a question." if heard.told == "question" else "No, a statement."
            thought = f"I hear: {heard.text}. With {heard.text.split()[0]} in front it is a {heard.told}."
            return _plain(task, heard, thought, answer, heard.told, random)
        case "strange" if heard.kind in ("strange", "beeps", "tone"):
            instead = HEARD_INSTEAD.get(heard.told) or {"beeps": "beeps", "tone": "a tone"}[heard.kind]
            asked = _pick(("arithmetic", "transcription", "word_count", "phrase"), random)
            answer = f"I did not understand that. I hear {instead}."
            example = _plain(asked, heard, f"I hear {instead}, and no words.", answer, instead, random)
            return replace(example, task="strange", thought=None if random.random() < 0.2 else example.thought)
    return None


def _plain(
    task: str, heard: DrawnRecording, thought: str, answer: str, expected: str, random: np.random.Generator
) -> Example:
    messages = [*_system(random), _turn(heard, _pick(PHRASINGS[task], random), random)]
    return Example(task, messages, (heard,), thought, answer, expected)


def _order(heard: DrawnRecording, random: np.random.Generator, held_out: bool) -> Example | None:
    request = heard.request
    if heard.kind != "order" or request is None or request.skill is None:
        return None
    messages = [*_system(random), _turn(heard, "", random)]
    if random.random() < 0.15:
        tools = draw_tools(None, random, request.skill, held_out)
        thought = f"I hear: {heard.text}. {_listed(tools)} No tool does this."
        return Example("order", messages, (heard,), thought, NO_TOOL, NO_TOOL, tools, tags=("no tool",))
    guise = request.skill.guise(random, held_out)
    tools = draw_tools((request.skill, guise), random, held_out=held_out)
    arguments = json_answer(list(zip(guise.keys, request.values, strict=True)))
    call = f"<tool_call>function\n{guise.name}\n{arguments}</tool_call>"
    thought = f"I hear: {heard.text}. {_listed(tools)} I use {guise.name}."
    return Example("order", messages, (heard,), thought, call, arguments, tools)


def _listed(tools: Sequence[dict[str, Any]]) -> str:
    """Their names, as the request has them: what is called is one of these, and none that was learnt."""
    return f"I have {', '.join(tool['function']['name'] for tool in tools)}."


def _told(heard: DrawnRecording, random: np.random.Generator) -> Example | None:
    """What a tool says is repeated, true or not, in whatever words it comes."""
    request, asked = heard.request, heard.sum
    fields: list[tuple[str, int | str]]
    said = asked.read if asked else "The result"
    result = str(asked.result) if asked and random.random() < 0.6 else str(random.integers(1000))
    if asked and random.random() < 0.7:
        tools, name, fields = [CALCULATOR], "calculator", [("expression", asked.written)]
    elif asked:
        first, second = asked.numbers
        fields = [("operation", SPOKEN[asked.signs]), ("first", first), ("second", second)]
        tools, name = (
            [{**CALCULATOR, "function": CALCULATOR["function"] | {"parameters": schema_of(fields)}}],
            "calculator",
        )
    elif request and request.skill:
        guise = request.skill.guise(random)
        tools, name = draw_tools((request.skill, guise), random), guise.name
        fields = list(zip(guise.keys, request.values, strict=True))
        result = result if random.random() < 0.5 else _pick(RESULTS, random)
    else:
        return None
    content = _pick((result, result, json.dumps({"result": result}), f"The result is {result}."), random)
    messages = [
        *_system(random),
        _turn(heard, _pick(ASKED["arithmetic"], random) if asked else "", random),
        *called(name, json_answer(fields), content, "" if random.random() < 0.6 else None),
    ]
    thought = f"The {name.replace('_', ' ')} says {result}."
    return Example("tool_result", messages, (heard,), thought, f"{said} is {result}.", result, tools)


def in_figures(example: Example) -> Example:
    """The sum of its recording asked in writing."""
    asked = example.recordings[0].sum
    assert asked
    messages = [
        {**m, "content": f"What is {asked.read}?"} if isinstance(m["content"], list) else m for m in example.messages
    ]
    return replace(example, messages=messages, recordings=())


def reworded(tool: dict[str, Any], random: np.random.Generator) -> dict[str, Any]:
    """The same tool as others' libraries send it: its keys in another order, with more of them."""

    def shuffled(keys: dict[str, Any]) -> dict[str, Any]:
        names = list(keys)
        return {names[n]: keys[names[n]] for n in random.permutation(len(names))}

    function = dict(tool["function"])
    parameters = dict(function.get("parameters", {}))
    if random.random() < 0.4:
        parameters["additionalProperties"] = False
    if random.random() < 0.15:
        parameters["$schema"] = "http://json-schema.org/draft-07/schema#"
    if random.random() < 0.15:
        parameters["title"] = function["name"]
    if parameters:
        function["parameters"] = shuffled(parameters) if random.random() < 0.5 else parameters
    if random.random() < 0.3:
        function["strict"] = bool(random.random() < 0.5)
    return {**tool, "function": shuffled(function) if random.random() < 0.3 else function}


def _in_json(
    task: str, heard: DrawnRecording, fields: Sequence[tuple[str, int | str]], thought: str, random: np.random.Generator
) -> Example:
    wish = _pick(ASKED_FOR_JSON, random).format(json.dumps(schema_of(fields)))
    if random.random() < 0.3:
        messages = [{"role": "system", "content": wish}, _turn(heard, "", random)]
    else:
        messages = [_turn(heard, wish, random)]
    answer = json_answer(fields)
    thinks = random.random() >= 0.2
    tags = ("with thought" if thinks else "without thought",)
    return Example(task, messages, (heard,), thought if thinks else None, answer, answer, tags=tags)


def _sound_in_json(heard: DrawnRecording, random: np.random.Generator) -> Example | None:
    for task in ("pitch", "rate", "beeps", "tone"):
        made = make_example(task, [heard], random)
        if made is not None and (task not in ("pitch", "rate") or random.random() < 0.6):
            value: int | str = int(made.expected) if made.expected.isdecimal() else made.expected
            return _in_json("sound_in_json", heard, [(task, value)], made.thought or "", random)
    return None


def _talk(task: str, heard: DrawnRecording, random: np.random.Generator, held_out: bool) -> Example | None:
    if heard.kind != "talk" or heard.request is None:
        return None
    first = _turn(heard, "", random)
    thought = f"I hear: {heard.text}. {heard.request.thought}"
    if task == "talk":
        messages = [*_system(random), first]
        return Example(task, messages, (heard,), thought, heard.request.reply, heard.request.reply)
    follow = draw_scene(random, "sum", held_out)
    assert follow.sum
    messages = [first, {"role": "assistant", "content": heard.request.reply}, _turn(follow, "", random)]
    answer = f"{follow.sum.read} is {follow.sum.result}."
    return Example(task, messages, (heard, follow), worked_out(follow.sum, follow.text), answer, str(follow.sum.result))
