"""The form that an answer must have, by whichever name it was asked for."""

from __future__ import annotations

import json
from typing import Any

from step_audio_client import Guide
from step_audio_gateway.controls import StructuredOutputs
from step_audio_gateway.errors import refused
from step_audio_gateway.schemas import AnswerRequest, JsonObjectFormat, JsonSchemaFormat


def guide_of(request: AnswerRequest) -> Guide | None:
    """Raises ApiError where there are two."""
    found = _asked(request)
    if len(found) > 1:
        raise refused(f"{found[0].name} and {found[1].name} exclude each other: send one of them", found[1].name)
    return found[0] if found else None


def _asked(request: AnswerRequest) -> list[Guide]:
    found: list[Guide] = []
    match request.response_format:
        case JsonObjectFormat():
            found.append(Guide("json", name="response_format"))
        case JsonSchemaFormat(json_schema=wanted):
            found.append(_schema(wanted.schema_, "response_format"))
    structured = request.structured_outputs or StructuredOutputs.model_validate({})
    within = "structured_outputs."
    if structured.json_object:
        found.append(Guide("json", name=f"{within}json_object"))
    schemas = {f"{within}json": structured.json_, "guided_json": request.guided_json}
    regexes = {
        f"{within}regex": structured.regex, "guided_regex": request.guided_regex, "regex": request.regex
    }  # fmt: skip
    choices = {f"{within}choice": structured.choice, "guided_choice": request.guided_choice}
    grammars = {
        f"{within}grammar": structured.grammar,
        "guided_grammar": request.guided_grammar,
        "ebnf": request.ebnf,
    }
    found += [_schema(value, name) for name, value in schemas.items() if value is not None]
    found += [Guide("regex", value, name) for name, value in regexes.items() if value is not None]
    found += [Guide("ebnf_grammar", _one_of(value), name) for name, value in choices.items() if value is not None]
    found += [Guide("ebnf_grammar", value, name) for name, value in grammars.items() if value is not None]
    return found


def _schema(schema: dict[str, Any] | str, name: str) -> Guide:
    return Guide("json_schema", schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False), name)


def _one_of(texts: list[str]) -> str:
    r"""A grammar of just these; its texts are spelt as JSON's are.

    >>> print(_one_of(["yes", 'say "no"']))
    root ::= "yes" | "say \"no\""
    """
    return "root ::= " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)
