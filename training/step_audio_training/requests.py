"""What people ask for besides sums: that something be done with a tool, an answer in JSON, a little conversation.

Each request is words to be spoken, or written, and what belongs in the answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from step_audio_training.arithmetic import ONES, in_words
from step_audio_training.sentences import ACTS, COLOURS, DAYS, PEOPLE, THINGS

CITIES = (
    "paris",
    "london",
    "berlin",
    "rome",
    "madrid",
    "tokyo",
    "boston",
    "sydney",
    "vienna",
    "dublin",
    "oslo",
    "cairo",
)
NAMES = ("anna", "peter", "maria", "john", "lucy", "robert", "susan", "david", "emma", "george", "mother", "the doctor")
ROOMS = ("kitchen", "bedroom", "bathroom", "garden", "hall", "office", "garage", "living room")
MUSIC = ("jazz", "the beatles", "some piano music", "the news", "a love song", "mozart", "rock", "something quiet")
FOOD = ("apples", "eggs", "bananas", "tomatoes", "bottles of milk", "lemons", "onions", "oranges", "potatoes")
ERRANDS = (
    "buy bread",
    "call the bank",
    "water the flowers",
    "take the bus",
    "feed the cat",
    "pay the rent",
    "write to anna",
)


def _one(values: Sequence[str], random: np.random.Generator) -> str:
    return values[random.integers(len(values))]


def _number(least: int, most: int) -> Callable[[np.random.Generator], int]:
    return lambda random: int(random.integers(least, most))


@dataclass(frozen=True)
class Skill:
    """A tool in several guises: names, descriptions and arguments' names go together, the last guise is for evaluation.

    `said`: ways to ask, with {0}, {1} for the arguments; `draw`: their values.
    """

    names: tuple[str, ...]
    described: tuple[str, ...]
    arguments: tuple[tuple[str, ...], ...]  # for each guise
    said: tuple[str, ...]
    draw: tuple[Callable[[np.random.Generator], int | str], ...] = ()

    def tool(self, guise: int) -> dict[str, Any]:
        kinds = ["string" if isinstance(draw(np.random.default_rng(0)), str) else "integer" for draw in self.draw]
        keys = self.arguments[guise]
        properties = {key: {"type": kind} for key, kind in zip(keys, kinds, strict=True)}
        parameters: dict[str, Any] = {"type": "object", "properties": properties}
        if keys:
            parameters["required"] = list(keys)
        name, description = self.names[guise], self.described[guise]
        return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


SKILLS = (
    Skill(("get_weather", "weather", "forecast"), ("Weather of a city.", "Say the weather.", "Weather forecast."),
          (("city",), ("place",), ("location",)),
          ("what is the weather in {0}", "how is the weather in {0}", "will it rain in {0}",
           "tell me the weather in {0}"),
          (lambda r: _one(CITIES, r),)),
    Skill(("set_timer", "timer", "start_timer"), ("Set a timer.", "Count down.", "Start a timer."),
          (("minutes",), ("length",), ("duration_minutes",)),
          ("set a timer for {0} minutes", "wake me in {0} minutes", "start a timer of {0} minutes",
           "count down {0} minutes"),
          (_number(2, 60),)),
    Skill(("set_alarm", "alarm", "wake_up"), ("Set an alarm.", "An alarm at an hour.", "Wake somebody up."),
          (("hour",), ("time",), ("at",)),
          ("set an alarm for {0} o'clock", "wake me at {0}", "please wake me up at {0} o'clock", "alarm at {0}"),
          (_number(1, 13),)),
    Skill(("play_music", "music", "player"), ("Play music.", "Play what is asked for.", "A music player."),
          (("title",), ("what",), ("query",)),
          ("play {0}", "please play {0}", "i want to hear {0}", "put on {0}"), (lambda r: _one(MUSIC, r),)),
    Skill(("lights", "switch_light", "set_lamp"), ("Switch lights.", "Turn a light on or off.", "Set a lamp."),
          (("room", "state"), ("where", "to"), ("place", "mode")),
          ("turn the light in the {0} {1}", "switch {1} the light in the {0}", "{0} light {1}",
           "light {1} in the {0} please"),
          (lambda r: _one(ROOMS, r), lambda r: _one(("on", "off"), r))),
    Skill(("call_person", "call", "phone"), ("Call somebody.", "Make a telephone call.", "Phone somebody."),
          (("name",), ("person",), ("contact",)),
          ("call {0}", "please call {0}", "phone {0}", "i want to talk to {0}"), (lambda r: _one(NAMES, r),)),
    Skill(("add_to_list", "shopping_list", "buy"), ("Put on the shopping list.", "The shopping list.",
           "Buy something."),
          (("count", "item"), ("amount", "thing"), ("quantity", "product")),
          ("put {0} {1} on the list", "we need {0} {1}", "add {0} {1} to the shopping list", "buy {0} {1}"),
          (_number(2, 30), lambda r: _one(FOOD, r))),
    Skill(("remind", "reminder", "remember"), ("Remind of something on a day.", "A reminder.", "Remember for a day."),
          (("day", "text"), ("when", "what"), ("date", "task")),
          ("remind me on {0} to {1}", "on {0} i have to {1}", "remember to {1} on {0}",
           "{0} do not let me forget to {1}"),
          (lambda r: _one(DAYS, r), lambda r: _one(ERRANDS, r))),
    Skill(("set_volume", "volume", "loudness"), ("Set the volume in percent.", "How loud it is.", "Set the loudness."),
          (("level",), ("percent",), ("value",)),
          ("volume {0}", "set the volume to {0}", "make it {0} percent loud", "turn the sound to {0}"),
          (_number(5, 100),)),
    Skill(("find_way", "route", "navigate"), ("Find the way to a place.", "A route.", "Navigate to a place."),
          (("to",), ("destination",), ("target",)),
          ("how do i get to {0}", "show me the way to {0}", "take me to {0}", "i want to go to {0}"),
          (lambda r: _one(CITIES, r),)),
    Skill(("clock", "get_time", "now"), ("Tell the time.", "The time of day.", "What time it is."), ((), (), ()),
          ("what time is it", "tell me the time", "how late is it", "do you have the time")),
)  # fmt: skip
NO_TOOL = "I have no tool for that."


@dataclass(frozen=True)
class SpokenRequest:
    """`text` is said; `fields` are what it holds by name; `skill` and `guise` for a tool; `reply` for small talk."""

    text: str
    fields: tuple[tuple[str, int | str], ...] = ()
    skill: Skill | None = None
    guise: int = 0
    thought: str = ""
    reply: str = ""


def draw_order(random: np.random.Generator, held_out: bool = False) -> SpokenRequest:
    """Something to be done with a tool."""
    skill = SKILLS[random.integers(len(SKILLS))]
    guise = 2 if held_out else int(random.integers(2))
    values = [draw(random) for draw in skill.draw]
    text = _one(skill.said, random).format(*(in_words(v) if isinstance(v, int) else v for v in values))
    return SpokenRequest(text, tuple(zip(skill.arguments[guise], values, strict=True)), skill, guise)


def draw_tools(wanted: SpokenRequest, random: np.random.Generator, with_it: bool = True) -> list[dict[str, Any]]:
    """One to four tools in any order, the wanted one among them or not."""
    others = [skill for skill in SKILLS if skill is not wanted.skill]
    chosen = [
        others[n] for n in random.choice(len(others), int(random.integers(0 if with_it else 1, 4)), replace=False)
    ]
    guised = [(skill, wanted.guise if wanted.guise == 2 else int(random.integers(2))) for skill in chosen]
    if with_it and wanted.skill:
        guised.insert(int(random.integers(len(guised) + 1)), (wanted.skill, wanted.guise))
    return [skill.tool(guise) for skill, guise in guised]


# Small talk: ways to say it, what it is, and the answer.
SAID_AND_ANSWERED: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("hello", "hi", "hello there", "hi there", "good morning", "good evening", "hey", "hello can we talk"),
     "A greeting", "Hello! Ask me a sum, or let me write down what you say."),
    (("how are you", "how are you today", "how do you do", "are you well", "how is it going"),
     "They ask how I am", "I am well, thank you. What shall I listen to?"),
    (("who are you", "what are you", "what is your name", "tell me who you are", "are you a human",
      "who am i talking to"),
     "They ask who I am", "I am a small model that listens. I was trained on synthetic voices."),
    (("what can you do", "help", "help me please", "what can i ask you", "how does this work",
      "what do you understand"),
     "They ask what I can do",
     "I work out sums, write down what you say, tell how a voice or a tone sounds, count beeps, and call tools."),
    (("thank you", "thanks", "thank you very much", "that is right thank you", "well done", "good job"),
     "Thanks", "You are welcome."),
    (("goodbye", "bye", "bye bye", "see you later", "good night", "see you tomorrow"), "A farewell", "Goodbye!"),
    (("can you hear me", "do you hear me", "are you there", "is this working", "testing testing", "are you listening"),
     "They ask whether I hear them", "Yes, I hear you."),
    (("do you speak german", "do you understand french", "can you speak another language", "do you know spanish"),
     "They ask about other languages", "I understand only English."),
    (("i am sorry", "sorry", "excuse me", "never mind", "forget it"), "An apology", "No problem."),
    (("are you sure", "is that right", "really", "are you certain"),
     "They doubt", "I may be wrong. Ask me again, and I listen anew."),
    (("tell me a joke", "say something funny", "sing a song", "tell me a story", "what do you think about politics"),
     "Not what I can do", "I cannot do that. Ask me a sum, or let me write down what you say."),
)  # fmt: skip


def draw_talk(random: np.random.Generator) -> SpokenRequest:
    """A line of small talk."""
    ways, what, reply = SAID_AND_ANSWERED[random.integers(len(SAID_AND_ANSWERED))]
    return SpokenRequest(_one(ways, random), thought=f"{what}.", reply=reply)


def draw_facts(random: np.random.Generator) -> SpokenRequest:
    """A sentence that holds what a schema asks for."""
    match random.integers(5):
        case 0:
            n, colour, thing = int(random.integers(2, 100)), _one(COLOURS, random), _one(THINGS, random)
            return SpokenRequest(f"please bring me {in_words(n)} {colour} {thing}",
                           (("count", n), ("colour", colour), ("thing", thing)))  # fmt: skip
        case 1:
            who, act, day = _one(PEOPLE, random), _one(ACTS, random), _one(DAYS, random)
            whom = _one(PEOPLE, random)
            return SpokenRequest(f"my {who} {act} the {whom} on {day}", (("who", who), ("whom", whom), ("day", day)))
        case 2:
            digits = random.integers(0, 10, 4)
            return SpokenRequest(
                f"the code is {' '.join(ONES[n] for n in digits)}", (("code", "".join(map(str, digits))),)
            )
        case 3:
            name, age, city = _one(NAMES[:10], random), int(random.integers(5, 95)), _one(CITIES, random)
            return SpokenRequest(f"{name} is {in_words(age)} years old and lives in {city}",
                           (("name", name), ("age", age), ("city", city)))  # fmt: skip
        case _:
            item, price = _one(FOOD[:4], random), int(random.integers(2, 60))
            return SpokenRequest(f"the {item} cost {in_words(price)} dollars", (("item", item), ("price", price)))


def schema_of(fields: Sequence[tuple[str, int | str]]) -> dict[str, Any]:
    """The JSON schema of an object with these fields."""
    kinds = {key: {"type": "integer" if isinstance(value, int) else "string"} for key, value in fields}
    return {"type": "object", "properties": kinds, "required": list(kinds)}


def json_answer(fields: Sequence[tuple[str, int | str]]) -> str:
    """
    >>> json_answer([("count", 3), ("thing", "apples")])
    '{"count": 3, "thing": "apples"}'
    """
    return json.dumps(dict(fields))
