"""The one list of roles: the prompt, the HTTP door, the page and the documents follow it."""

from __future__ import annotations

import re

import pytest
from pydantic import ValidationError

from paths import ROOT
from step_audio.chat_template import TEMPLATES, Control, render
from step_audio.conversation import ROLES, SAME_ROLES, Text, parse_conversation
from step_audio.errors import InvalidRequest
from step_audio_client.messages import user
from step_audio_gateway.page import PLAYGROUND
from step_audio_gateway.schemas import ChatMessage, ChatRequest


def prompt(role: str) -> str:
    """As the default template writes one message of that role."""
    segments = render(parse_conversation([{"role": role, "content": "so and so"}]), add_generation_prompt=False)
    return "".join(s.text if isinstance(s, Text) else f"[{s.name}]" for s in segments if isinstance(s, (Text, Control)))


@pytest.mark.parametrize("role", ROLES)
def test_each_is_shown_to_the_model(role):
    assert "so and so" in prompt(role)


def test_a_role_that_is_the_same_as_another_is_written_so():
    assert SAME_ROLES["developer"] == "system"
    for role, other in SAME_ROLES.items():
        assert prompt(role) == prompt(other)
        assert {role, other} <= set(ROLES) and other not in SAME_ROLES


def test_no_other_is_accepted():
    with pytest.raises(InvalidRequest, match=f"use one of {', '.join(ROLES)}$"):
        parse_conversation([{"role": "narrator", "content": "a"}])
    with pytest.raises(ValidationError):
        ChatMessage(role="narrator", content="a")


def test_the_http_door_takes_the_list():
    schema = ChatRequest.model_json_schema()["$defs"]["ChatMessage"]["properties"]["role"]
    assert tuple(schema["enum"]) == ROLES


def test_the_page_and_the_client_library_know_no_others():
    source = "".join(file.read_text("utf-8") for file in PLAYGROUND.glob("*.js"))
    spoken = set(re.findall(r"\brole: \"(\w+)\", (?:content|tool_call_id)", source))
    assert {"system", "user", "assistant", "tool"} <= spoken <= set(ROLES)
    assert user("a")["role"] in ROLES


def test_the_documents_name_them():
    (line,) = re.findall(r"^## Roles of messages\n+(.*)$", (ROOT / "docs/reference/requests.md").read_text(), re.M)
    assert re.findall(r"`(\w+)`", line.partition(";")[0]) == [*ROLES]


def test_templates_know_what_is_written_for_them():
    """A template must not name a role that no message can have."""
    for name in TEMPLATES:
        text = (ROOT / "step_audio/templates" / f"{name}.jinja").read_text("utf-8")
        asked = set(re.findall(r"\[?['\"]?role['\"]?\]? == ['\"](\w+)['\"]", text))
        assert asked <= set(ROLES), name
