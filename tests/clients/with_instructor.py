"""instructor over the openai package: objects of a class out of calls and answers."""

from __future__ import annotations

import instructor
import openai
from cases import KEY, MODEL, MOST_TOKENS, SUM, URL, WRITTEN, case, heard, main
from pydantic import BaseModel, Field

plain = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0, timeout=120)
QUESTION = [{"role": "user", "content": WRITTEN["text"]}]
ask = {"model": MODEL, "temperature": 0, "max_retries": 0}


class Sum(BaseModel):
    """A sum and its result."""

    first: int
    second: int
    result: int = Field(description="the first number and the second")


for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):

    @case(f"{mode.name.lower()}, create")
    def _(mode: instructor.Mode = mode) -> None:
        client = instructor.from_openai(plain, mode=mode)
        for messages in (QUESTION, heard(SUM["file"], "Answer the question.")):
            found = client.chat.completions.create(
                messages=list(messages), response_model=Sum, max_tokens=MOST_TOKENS, **ask
            )
            assert isinstance(found, Sum)


@case("tools, create_partial")
def _() -> None:
    client = instructor.from_openai(plain, mode=instructor.Mode.TOOLS)
    found = list(client.create_partial(messages=list(QUESTION), response_model=Sum, max_tokens=MOST_TOKENS, **ask))
    Sum.model_validate(found[-1].model_dump())


@case("json_schema, create_iterable")
def _() -> None:
    client = instructor.from_openai(plain, mode=instructor.Mode.JSON_SCHEMA)
    for found in client.create_iterable(messages=list(QUESTION), response_model=Sum, max_tokens=MOST_TOKENS, **ask):
        assert isinstance(found, Sum)
        break


@case("responses_tools, create")
def _() -> None:
    client = instructor.from_openai(plain, mode=instructor.Mode.RESPONSES_TOOLS)
    found = client.responses.create(input=WRITTEN["text"], response_model=Sum, max_output_tokens=MOST_TOKENS, **ask)
    assert isinstance(found, Sum)


main()
