"""What people ask for besides sums: that something be done with a tool, an answer in JSON, a little conversation.

Each request is words to be spoken, or written, and what belongs in the answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from step_audio_training.arithmetic import ONES, in_words
from step_audio_training.sentences import ACTS, COLOURS, DAYS, PEOPLE, THINGS
from step_audio_training.texts import words

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


@dataclass(frozen=True, slots=True)
class Guise:
    """What a client calls a tool, says of it, and calls its arguments."""

    name: str
    described: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Skill:
    """A tool that others call otherwise: of names, descriptions and arguments' names the last are for evaluation.

    `said`: ways to ask, with {0}, {1} for the arguments; `draw`: their values.
    """

    names: tuple[str, ...]
    described: tuple[str, ...]
    arguments: tuple[tuple[str, ...], ...]
    said: tuple[str, ...]
    draw: tuple[Callable[[np.random.Generator], int | str], ...] = ()

    def guise(self, random: np.random.Generator, held_out: bool = False) -> Guise:
        """To learn with, names are often such as nobody would give: they can be read nowhere but in the request."""
        if held_out:
            return Guise(self.names[-1], self.described[-1], self.arguments[-1])
        keys = self.arguments[random.integers(len(self.arguments) - 1)]
        if random.random() < INVENTED:
            keys = tuple(invented(len(keys), random))
        name = invented(1, random)[0] if random.random() < INVENTED else _one(self.names[:-1], random)
        return Guise(name, _one(self.described[:-1], random), keys)

    def tool(self, guise: Guise) -> dict[str, Any]:
        kinds = ["string" if isinstance(draw(np.random.default_rng(0)), str) else "integer" for draw in self.draw]
        properties = {key: {"type": kind} for key, kind in zip(guise.keys, kinds, strict=True)}
        parameters: dict[str, Any] = {"type": "object", "properties": properties}
        if guise.keys:
            parameters["required"] = list(guise.keys)
        function = {"name": guise.name, "description": guise.described, "parameters": parameters}
        return {"type": "function", "function": function}


INVENTED = 0.7  # of the names of tools and of arguments that are learnt with
NAME_PARTS = (
    "ask", "book", "box", "card", "change", "check", "code", "command", "data", "do", "entry", "event", "fetch",
    "field", "figure", "find", "first", "get", "group", "helper", "home", "idea", "info", "input", "item", "job", "key",
    "kind", "label", "line", "list", "look", "main", "make", "new", "next", "note", "number", "open", "option", "order",
    "page", "part", "plan", "point", "post", "put", "read", "request", "room", "run", "save", "second", "send",
    "service", "show", "side", "size", "state", "step", "table", "tell", "term", "text", "thing",
    "tool", "topic", "unit", "use", "user", "what", "word", "work", "write", "x", "y",
)  # fmt: skip
PARTS = (1, 1, 1, 2, 2, 3)  # of a name
LONGEST_PART = 11  # letters
FIRST, SECOND, THIRD = "bcdfghjklmnpqrstvwxz", "aeiouy", "bcdfghklmnprst"  # letters of a syllable; the last may lack


def invented(count: int, random: np.random.Generator) -> list[str]:
    """So many names that differ, of one to three parts."""
    names: list[str] = []
    while len(names) < count:
        parts = [_part(random) for _ in range(PARTS[random.integers(len(PARTS))])]
        if _kept() & set(parts):
            continue
        name = "_".join(parts) if random.random() < 0.7 else parts[0] + "".join(map(str.capitalize, parts[1:]))
        if name not in names:
            names.append(name)
    return names


def _part(random: np.random.Generator) -> str:
    """A word, often one that nobody has ever written: of a few dozen it would learn each, and not to copy.

    Two words in one make most tokens occur that a name may be of: what has not been copied once is not copied.
    """
    whose = random.random()
    if whose < 0.2:
        return _one(NAME_PARTS, random)
    if whose < 0.35:
        return _one(_words(LONGEST_PART), random)
    if whose < 0.75:
        return _one(_words(LONGEST_PART // 2), random) + _one(_words(LONGEST_PART // 2), random)
    return "".join(_syllable(random) for _ in range(random.integers(1, 4)))


def _syllable(random: np.random.Generator) -> str:
    return _one(FIRST, random) + _one(SECOND, random) + (_one(THIRD, random) if random.random() < 0.4 else "")


@cache
def _words(longest: int) -> tuple[str, ...]:
    """Those that are written down in training, of three letters to `longest`."""
    return tuple(word for word in words() if word.isalpha() and 3 <= len(word) <= longest)


@cache
def _kept() -> frozenset[str]:
    """What tools and arguments are called for evaluation, and the parts of that."""
    names = [name for skill in SKILLS for name in (skill.names[-1], *skill.arguments[-1])]
    return frozenset(part for name in names for part in (name, *name.split("_")))


SKILLS = (
    Skill(("get_weather", "weather", "weather_report", "meteo", "forecast"),
          ("Weather of a city.", "Say the weather.", "The weather in a place.", "Rain or sun, by city.",
           "Weather forecast."),
          (("city",), ("place",), ("town",), ("location",)),
          ("what is the weather in {0}", "how is the weather in {0}", "will it rain in {0}",
           "tell me the weather in {0}"),
          (lambda r: _one(CITIES, r),)),
    Skill(("set_timer", "timer", "countdown", "start_timer"),
          ("Set a timer.", "Count down.", "A timer of some minutes.", "Begin a countdown.", "Start a timer."),
          (("minutes",), ("length",), ("time",), ("duration_minutes",)),
          ("set a timer for {0} minutes", "wake me in {0} minutes", "start a timer of {0} minutes",
           "count down {0} minutes"),
          (_number(2, 60),)),
    Skill(("set_alarm", "alarm", "alarm_clock", "wake_up"),
          ("Set an alarm.", "An alarm at an hour.", "Alarm clock.", "Wake the user at an hour.", "Wake somebody up."),
          (("hour",), ("time",), ("clock",), ("at",)),
          ("set an alarm for {0} o'clock", "wake me at {0}", "please wake me up at {0} o'clock", "alarm at {0}"),
          (_number(1, 13),)),
    Skill(("play_music", "music", "sound_system", "play", "player"),
          ("Play music.", "Play what is asked for.", "Music, news and more.", "Plays a song.", "A music player."),
          (("title",), ("what",), ("song",), ("query",)),
          ("play {0}", "please play {0}", "i want to hear {0}", "put on {0}"), (lambda r: _one(MUSIC, r),)),
    Skill(("lights", "switch_light", "light", "lamps", "set_lamp"),
          ("Switch lights.", "Turn a light on or off.", "The light of a room.", "Lamps at home.", "Set a lamp."),
          (("room", "state"), ("where", "to"), ("lamp", "on_or_off"), ("place", "mode")),
          ("turn the light in the {0} {1}", "switch {1} the light in the {0}", "{0} light {1}",
           "light {1} in the {0} please"),
          (lambda r: _one(ROOMS, r), lambda r: _one(("on", "off"), r))),
    Skill(("call_person", "call", "dial", "telephone", "phone"),
          ("Call somebody.", "Make a telephone call.", "Ring a person.", "Dial somebody's number.", "Phone somebody."),
          (("name",), ("person",), ("who",), ("contact",)),
          ("call {0}", "please call {0}", "phone {0}", "i want to talk to {0}"), (lambda r: _one(NAMES, r),)),
    Skill(("add_to_list", "shopping_list", "groceries", "shop", "buy"),
          ("Put on the shopping list.", "The shopping list.", "What is to be bought.", "Add something to buy.",
           "Buy something."),
          (("count", "item"), ("amount", "thing"), ("number", "what"), ("quantity", "product")),
          ("put {0} {1} on the list", "we need {0} {1}", "add {0} {1} to the shopping list", "buy {0} {1}"),
          (_number(2, 30), lambda r: _one(FOOD, r))),
    Skill(("remind", "reminder", "set_reminder", "calendar", "remember"),
          ("Remind of something on a day.", "A reminder.", "Do not forget this on a day.", "An entry for a day.",
           "Remember for a day."),
          (("day", "text"), ("when", "what"), ("weekday", "note"), ("date", "task")),
          ("remind me on {0} to {1}", "on {0} i have to {1}", "remember to {1} on {0}",
           "{0} do not let me forget to {1}"),
          (lambda r: _one(DAYS, r), lambda r: _one(ERRANDS, r))),
    Skill(("set_volume", "volume", "sound_level", "loudness"),
          ("Set the volume in percent.", "How loud it is.", "The volume, 0 to 100.", "Louder or quieter.",
           "Set the loudness."),
          (("level",), ("percent",), ("volume",), ("value",)),
          ("volume {0}", "set the volume to {0}", "make it {0} percent loud", "turn the sound to {0}"),
          (_number(5, 100),)),
    Skill(("find_way", "route", "directions", "map", "navigate"),
          ("Find the way to a place.", "A route.", "The way to a city.", "How to get there.", "Navigate to a place."),
          (("to",), ("destination",), ("city",), ("target",)),
          ("how do i get to {0}", "show me the way to {0}", "take me to {0}", "i want to go to {0}"),
          (lambda r: _one(CITIES, r),)),
    Skill(("clock", "get_time", "time", "current_time", "now"),
          ("Tell the time.", "The time of day.", "The hour and the minute.", "What the clock says.",
           "What time it is."), ((), ()),
          ("what time is it", "tell me the time", "how late is it", "do you have the time")),
)  # fmt: skip
NO_TOOL = "I have no tool for that."


@dataclass(frozen=True)
class SpokenRequest:
    """`text` is said; `fields` are what it holds by name; `skill` and its `values` for a tool; `reply` for small
    talk."""

    text: str
    fields: tuple[tuple[str, int | str], ...] = ()
    skill: Skill | None = None
    values: tuple[int | str, ...] = ()
    thought: str = ""
    reply: str = ""


def draw_order(random: np.random.Generator) -> SpokenRequest:
    """Something to be done with a tool."""
    skill = SKILLS[random.integers(len(SKILLS))]
    values = tuple(draw(random) for draw in skill.draw)
    text = _one(skill.said, random).format(*(in_words(v) if isinstance(v, int) else v for v in values))
    return SpokenRequest(text, skill=skill, values=values)


def draw_tools(
    wanted: tuple[Skill, Guise] | None,
    random: np.random.Generator,
    without: Skill | None = None,
    held_out: bool = False,
) -> list[dict[str, Any]]:
    """One to four tools in any order, the wanted one among them; `without` a skill that none of them has."""
    avoided = wanted[0] if wanted else without
    others = [skill for skill in SKILLS if skill is not avoided]
    chosen = [others[n] for n in random.choice(len(others), int(random.integers(0 if wanted else 1, 4)), replace=False)]
    guised: list[tuple[Skill, Guise]] = []
    taken = {wanted[1].name} if wanted else set()
    for skill in chosen:
        while (guise := skill.guise(random, held_out)).name in taken:
            pass
        taken.add(guise.name)
        guised.append((skill, guise))
    if wanted:
        guised.insert(int(random.integers(len(guised) + 1)), wanted)
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
