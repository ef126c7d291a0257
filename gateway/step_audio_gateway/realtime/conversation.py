"""What has been said: items in their order, and the messages that the model is asked with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from step_audio.serving_info import ServedLimits
from step_audio_gateway.realtime.faults import Fault
from step_audio_gateway.realtime.formats import SpokenAudio
from step_audio_gateway.realtime.items import ConversationItem, Part, new_id

MOST_ITEMS = 2000  # and parts of messages


class Dialogue:
    """Of one session."""

    def __init__(self) -> None:
        self.id = new_id("conv")
        self.items: list[ConversationItem] = []
        self.bytes = 0  # of what its items were made of

    @property
    def last_id(self) -> str | None:
        return self.items[-1].id if self.items else None

    def find(self, item_id: str, doing: str) -> ConversationItem:
        """`doing`: retrieve, delete or truncate. Raises Fault."""
        for item in self.items:
            if item.id == item_id:
                return item
        verb = {"retrieve": "retrieving", "delete": "deleting", "truncate": "truncating"}[doing]
        said = f"Error {verb} item: the item with id '{item_id}' does not exist."
        raise Fault(f"item_{doing}_invalid_item_id", said, "item_id")

    def add(self, item: ConversationItem, behind: str | None = None) -> str | None:
        """The id of the item before it. `behind`: that of the item to stand behind, "root" for the beginning; None:
        the end. Raises Fault."""
        if any(one.id == item.id for one in self.items):
            said = f"Error adding item: there is an item with id '{item.id}' already."
            raise Fault("item_create_duplicate_item_id", said, "item.id")
        if sum(max(1, len(one.parts)) for one in (*self.items, item)) > MOST_ITEMS:
            said = f"a conversation has at most {MOST_ITEMS} items and parts of messages: delete some"
            raise Fault("conversation_full", said, "item")
        if item.type == "function_call_output" and not self._called(item.call_id):
            said = f"Error adding item: there is no function call with call_id '{item.call_id}'."
            raise Fault("item_create_invalid_call_id", said, "item.call_id")
        place = len(self.items) if behind is None else 0 if behind == "root" else self._place_behind(behind)
        self.items.insert(place, item)
        self.bytes += item.bytes
        return self.items[place - 1].id if place else None

    def remove(self, item: ConversationItem) -> None:
        self.items.remove(item)
        self.bytes -= item.bytes

    def before(self, item: ConversationItem) -> str | None:
        """The id of the item before it, which is here."""
        place = self.items.index(item)
        return self.items[place - 1].id if place else None

    def _called(self, call_id: str) -> bool:
        return any(item.type == "function_call" and item.call_id == call_id for item in self.items)

    def _place_behind(self, item_id: str) -> int:
        for i, item in enumerate(self.items):
            if item.id == item_id:
                return i + 1
        said = f"Error adding item: the previous item with id '{item_id}' does not exist."
        raise Fault("item_create_invalid_previous_item_id", said, "previous_item_id")


def messages_of(items: Sequence[ConversationItem], instructions: str) -> list[dict[str, Any]]:
    """As the client library takes them. What is still being said is left out, and so is a turn with nothing in it."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    for item in items:
        if item.status == "in_progress":
            continue
        match item.type:
            case "function_call":
                if not messages or messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant", "content": ""})
                function = {"name": item.name, "arguments": item.text}
                call = {"id": item.call_id, "type": "function", "function": function}
                messages[-1].setdefault("tool_calls", []).append(call)
            case "function_call_output":
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": item.text})
            case "message" if content := [part.chat() for part in item.parts if part.text or part.recording]:
                messages.append({"role": item.role, "content": content})
    return messages


def recorded(items: Sequence[ConversationItem]) -> list[Part]:
    """The parts with the recordings of `messages_of`, in their order."""
    turns = (item for item in items if item.type == "message" and item.status != "in_progress")
    return [part for item in turns for part in item.parts if part.recording is not None]


def within(items: Sequence[ConversationItem], limits: ServedLimits) -> list[ConversationItem]:
    """The latest of `items` whose recordings one request may hold, from a turn of the user's on. `limits`: the served
    model's."""
    seconds, size, count = limits["max_audio_seconds"], limits["max_audio_bytes"], limits["max_audios"]
    kept: list[ConversationItem] = []
    for item in reversed(items):
        for recording in item.recordings:
            count, seconds, size = count - 1, seconds - recording.seconds, size - _wav_bytes(recording)
        if kept and min(count, seconds, size) < 0:
            return from_a_turn(kept[::-1])
        kept.append(item)
    return kept[::-1]


def from_a_turn(items: Sequence[ConversationItem]) -> list[ConversationItem]:
    """Without what stands before the first turn of the user's: answers to what has been left out."""
    for i, item in enumerate(items):
        if item.type == "message" and item.role != "assistant":
            return list(items[i:])
    return []


def latest(items: Sequence[ConversationItem], share: float) -> list[ConversationItem]:
    """For a context that is too long for the model: at most that share of the items, and fewer than all. What is left
    begins with a turn of the user's."""
    return from_a_turn(items[len(items) - min(int(share * len(items)), len(items) - 1) :])


def _wav_bytes(recording: SpokenAudio) -> int:
    return 44 + len(recording.data) * 2 // recording.format.sample_bytes
