"""LangChain's ChatOpenAI, over /v1/chat/completions and over /v1/responses."""

from __future__ import annotations

from typing import Any

from cases import (
    CALCULATOR,
    KEY,
    LARGE,
    MODEL,
    MOST_TOKENS,
    SUM,
    URL,
    WRITTEN,
    case,
    heard,
    holds,
    in_base64,
    main,
    same,
    streamed,
)
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Sum(BaseModel):
    """A sum and its result."""

    first: int
    second: int
    result: int


@tool(CALCULATOR["name"], description=CALCULATOR["description"])
def calculator(expression: str) -> str:
    return "777"


def spoken(path: str) -> HumanMessage:
    """As a file: LangChain leaves recordings of OpenAI's form out of what it sends to /v1/responses."""
    return HumanMessage([{"type": "file", "base64": in_base64(path), "mime_type": "audio/wav", "filename": "a.wav"}])


def cases_of(api: str, responses: bool) -> None:
    model = ChatOpenAI(
        model=MODEL,
        base_url=URL,
        api_key=KEY,
        temperature=0,
        max_tokens=MOST_TOKENS,
        max_retries=0,
        timeout=120,
        use_responses_api=responses,
        store=False if responses else None,
        stream_usage=True,
    )

    def question(path: str) -> HumanMessage:
        return spoken(path) if responses else HumanMessage(heard(path)[0]["content"])

    @case(f"{api}, invoke")
    def _() -> None:
        reply = model.invoke([("system", "Listen and answer."), ("human", WRITTEN["text"])])
        holds(reply.text, WRITTEN["answer"])
        assert reply.usage_metadata["output_tokens"] > reply.usage_metadata["output_token_details"]["reasoning"] > 0

    @case(f"{api}, audio")
    def _() -> None:
        holds(model.invoke([question(SUM["file"])]).text, SUM["answer"])
        if not responses:
            audio = {"type": "audio", "base64": in_base64(SUM["file"]), "mime_type": "audio/wav"}
            holds(model.invoke([HumanMessage([audio])]).text, SUM["answer"])

    @case(f"{api}, stream")
    def _() -> None:
        asked = [question(SUM["file"])]
        chunks = list(model.stream(asked))
        streamed([chunk.text for chunk in chunks if chunk.text], model.invoke(asked).text)
        whole: Any = chunks[0]
        for chunk in chunks[1:]:
            whole += chunk
        assert whole.usage_metadata["output_tokens"] > 0

    @case(f"{api}, async")
    async def _() -> None:
        holds((await model.ainvoke(WRITTEN["text"])).text, WRITTEN["answer"])
        pieces = [chunk.text async for chunk in model.astream(WRITTEN["text"])]
        holds("".join(pieces), WRITTEN["answer"])

    @case(f"{api}, structured output")
    def _() -> None:
        for method in ("json_schema", "function_calling"):
            assert isinstance(model.with_structured_output(Sum, method=method).invoke(WRITTEN["text"]), Sum), method

    @case(f"{api}, tool call and back")
    def _() -> None:
        messages = [question(LARGE["file"])]
        bound = model.bind_tools([calculator])
        reply = bound.invoke(messages)
        (call,) = reply.tool_calls
        same((call["name"], call["args"]), (CALCULATOR["name"], {"expression": LARGE["expression"]}))
        result = ToolMessage("777", tool_call_id=call["id"])
        holds(bound.invoke([*messages, reply, result]).text, "777")

    @case(f"{api}, agent")
    def _() -> None:
        agent = create_agent(model, [calculator])
        said = agent.invoke({"messages": [question(LARGE["file"])]})["messages"]
        same([type(message).__name__ for message in said], ["HumanMessage", "AIMessage", "ToolMessage", "AIMessage"])
        holds(said[-1].text, "777")


cases_of("chat", responses=False)
cases_of("responses", responses=True)
main()
