"""docs/reference/ out of docstrings and the gateway's OpenAPI schema: `make docs` writes it anew."""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import importlib
import inspect
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from prometheus_client.metrics import MetricWrapperBase

import step_audio_client
from step_audio import counters
from step_audio.containers import CONTAINERS
from step_audio.conversation import ROLES, SAME_ROLES
from step_audio.engine import EngineStats
from step_audio.markdown import markdown_table
from step_audio.sampling_parameters import PARAMETERS, Parameter
from step_audio.settings import fields_of, names_of
from step_audio.steps.trtllm.metrics import FAMILIES, readings
from step_audio_client import StepAudioClient
from step_audio_gateway import vllm_flags as http_flags
from step_audio_gateway.app import create_app
from step_audio_gateway.metrics import REFUSALS, Metrics
from step_audio_gateway.settings import GatewaySettings
from step_audio_server.commands import vllm_flags as serve_flags
from step_audio_server.settings import ServeSettings

FOLDER = Path(__file__).parent / "reference"
NOTE = "<!-- Written by docs/build_reference.py: change the docstrings, then run `make docs`. -->"

FROM_VLLM = """`step-audio serve DIR` takes the flags of `vllm serve` that mean the same. `step-audio gateway`, which is
the HTTP API alone, takes those that are about HTTP. It listens on port 9999; 8000 to 8002 are Triton's own
(`--http-port`, `--grpc-port`, `--metrics-port`). `--config` is TOML, not YAML. DIR is a directory:
`step-audio build --model HF_ID@REVISION` downloads. What requests may hold: [openai-api.md](../openai-api.md)."""

# Modules of the client library in the order in which they are read, and what they are about.
MODULES = {
    "client": "The client",
    "messages": "Messages and recordings",
    "sampling": "Sampling",
    "chat_types": "Options and results of a chat",
    "raw": "Raw prompts",
    "audio_report": "What was amiss with recordings",
    "errors": "Errors",
    "counts": "Counts",
    "replies": "Replies taken apart",
    "reasoning": "Thought and answer",
    "tool_calls": "Tool calls",
    "tts": "Speech",
    "tls": "TLS",
    "realtime": "Realtime sessions",
    "realtime_events": "Events of realtime sessions",
}

METRIC_HEADING = ("name", "type", "labels", "")

Schema = dict[str, Any]


def pages() -> dict[str, str]:
    """File name in docs/reference/ -> text."""
    return {
        "client.md": client_page(),
        "http.md": http_page(),
        "metrics.md": metrics_page(),
        "requests.md": requests_page(),
        "vllm.md": vllm_page(),
    }


def client_page() -> str:
    parts = ["# Client library: `step_audio_client`", NOTE, prose(step_audio_client.__doc__)]
    for name, title in MODULES.items():
        module = importlib.import_module(f"step_audio_client.{name}")
        parts += [f"## {title}", prose(module.__doc__), *_public(module)]
    return "\n\n".join(parts) + "\n"


def prose(docstring: str | None) -> str:
    """Markdown of a docstring: examples of the interpreter become blocks of code."""
    return re.sub(r"^(>>> .*(?:\n.+)*)", r"```pycon\n\1\n```", inspect.cleandoc(docstring or ""), flags=re.M)


def _public(module: ModuleType) -> Iterator[str]:
    """What the package exports of the module, in the order of the source."""
    source = inspect.getsource(module)
    for node in ast.parse(source).body:
        match node:
            case ast.ClassDef() | ast.FunctionDef() if node.name in step_audio_client.__all__:
                yield f"### `{node.name}`"
                yield _code(_signature(source, node))
                yield prose(ast.get_docstring(node))
                if isinstance(node, ast.ClassDef):
                    yield from _methods(source, node)
            case ast.Assign(targets=[ast.Name(id=name)]) if name in step_audio_client.__all__:
                yield f"### `{name}`"
                yield _code(_lines(source, node.lineno, node.end_lineno))


def _methods(source: str, node: ast.ClassDef) -> Iterator[str]:
    for member in node.body:
        if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef) and not member.name.startswith("_"):
            yield f"#### `{node.name}.{member.name}`"
            yield _code(_signature(source, member))
            if text := ast.get_docstring(member):
                yield prose(text)


def _signature(source: str, node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """As it is written, decorators included; of a class, with its fields and their comments, or its `__init__`."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    head = _lines(source, first, node.body[0].lineno - 1).removesuffix(":")
    if not isinstance(node, ast.ClassDef):
        return head
    value = getattr(step_audio_client, node.name)
    fields = list(_fields_of(source, node))
    made = [member for member in node.body if isinstance(member, ast.FunctionDef) and member.name == "__init__"]
    if fields:
        inner = "\n".join(fields)
    elif made:
        inner = _signature(source, made[0])
    elif dataclasses.is_dataclass(value):  # with the fields of another one
        inner = "\n".join(map(_field, dataclasses.fields(value)))
    else:
        return head
    return head + ":\n" + "\n".join(f"    {line}" if line else "" for line in inner.splitlines())


def _fields_of(source: str, node: ast.ClassDef) -> Iterator[str]:
    """As they are written; of a dataclass those first that it has from others of the module."""
    classes = {one.name: one for one in ast.parse(source).body if isinstance(one, ast.ClassDef)}
    for base in node.bases if node.decorator_list else ():
        if isinstance(base, ast.Name) and base.id in classes:
            yield from _fields_of(source, classes[base.id])
    if fields := [member for member in node.body if isinstance(member, ast.AnnAssign)]:
        yield _lines(source, fields[0].lineno, fields[-1].end_lineno)


def _field(field: dataclasses.Field[Any]) -> str:
    facts = field.metadata.get("facts")
    return f"{field.name}: {field.type} = {field.default!r}" + (f"  # {facts.text}" if facts else "")


def _lines(source: str, first: int, last: int | None) -> str:
    return inspect.cleandoc("\n" + "\n".join(source.splitlines()[first - 1 : last])).rstrip()


def _code(text: str) -> str:
    return f"```python\n{text}\n```"


async def _openapi() -> Schema:
    async with StepAudioClient() as client:  # connects to nothing before it is asked
        return create_app(GatewaySettings(), client).openapi()


def http_page() -> str:
    document = asyncio.run(_openapi())
    schemas = document["components"]["schemas"]
    forms = {name for name in schemas if name.startswith("Body_")}  # FastAPI's names for forms
    parts = [
        "# HTTP API",
        NOTE,
        "What the gateway answers to. The same as an OpenAPI document: `/openapi.json` of a running one. With API keys "
        "set, everything under `/v1/` needs `Authorization: Bearer KEY`. In requests `null` is the same as leaving a "
        "field out. Every error has an [ErrorBody](#errorbody).",
    ]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts += [f"## {method.upper()} {path}", operation["description"]]
            for kind, content in operation.get("requestBody", {}).get("content", {}).items():
                name = content["schema"]["$ref"].rpartition("/")[2]
                if name in forms:
                    parts += [f"Form, `{kind}`:", _fields(schemas[name])]
                else:
                    parts.append(f"Body, `{kind}`: {type_of(content['schema'])}.")
            parts.append(_responses(operation["responses"]))
    parts.append("## Objects")
    for name in sorted(set(schemas) - forms):
        parts += [f"### {name}", " ".join(schemas[name].get("description", "").split()), _fields(schemas[name])]
    return "\n\n".join(parts) + "\n"


def _responses(responses: Schema) -> str:
    rows = ["| status | | content |", "|---|---|---|"]
    for status, response in responses.items():
        contents = response.get("content", {}).items()
        kinds = [
            f"`{kind}`: {said}" for kind, of in contents if "ErrorBody" not in (said := _event_or_type(of["schema"]))
        ]
        said = response["description"] if status != "200" else ""
        rows.append(f"| {status} | {said} | {'; '.join(kinds)} |")
    return "\n".join(rows)


def _event_or_type(schema: Schema) -> str:
    """What a server-sent event's data holds, or the type of a whole body."""
    data = schema.get("properties", {}).get("data")
    if data is None:
        return type_of(schema)
    if "contentSchema" in data:
        return f"events whose data is {type_of(data['contentSchema'])}"
    end, each = data["anyOf"]
    return f"events whose data is {type_of(each['contentSchema'])}, then `{end['const']}`"


def _fields(schema: Schema) -> str:
    rows = ["| field | type | |", "|---|---|---|"]
    for name, field in schema.get("properties", {}).items():
        said = [field["description"]] if "description" in field else []
        if name in schema.get("required", ()):
            said.append("required")
        elif (default := field.get("default")) is not None:
            said.append(f"default `{json.dumps(default)}`")
        kind = type_of(field, optional=name not in schema.get("required", ()))
        rows.append(f"| `{name}` | {kind} | {_cell('; '.join(said))} |")
    return "\n".join(rows)


def type_of(schema: Schema, optional: bool = False) -> str:
    """In words, with its bounds. An optional field's `null` is the same as leaving it out, and not said."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "allOf" in schema:
        return type_of(schema["allOf"][0])
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        kinds = [
            kind for choice in choices if (kind := type_of(choice, optional)) and not (optional and kind == "null")
        ]
        return " or ".join(dict.fromkeys(kinds))
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if schema.get("type") == "array":
        bounds = _bounds(schema, "minItems", "maxItems")
        return f"list of {type_of(schema['items'])}{bounds}" if schema.get("items") else f"list{bounds}"
    if schema.get("type") == "string":
        kind = "file" if "octet-stream" in schema.get("contentMediaType", schema.get("format", "")) else "string"
        return kind + _bounds(schema, "minLength", "maxLength", " characters")
    return str(schema.get("type", "anything")) + _bounds(schema, "minimum", "maximum")


def _bounds(schema: Schema, least: str, most: str, unit: str = "") -> str:
    words = {least: "at least", "exclusiveMinimum": "more than", most: "at most", "exclusiveMaximum": "less than"}
    bounds = {word: schema[key] for key, word in words.items() if key in schema}
    # The schema writes the bounds of integers as floats, too.
    said = [f"{word} {n:g}" if schema["type"] == "number" else f"{word} {int(n)}" for word, n in bounds.items()]
    return f" ({', '.join(said)}{unit})" if said else ""


def requests_page() -> str:
    """The core's lists, which all interfaces share."""
    parameters = [("name", "flag", "Triton input", "type", "default", "values at the HTTP door", "")]
    for one in PARAMETERS:
        parameters.append(
            (
                ", ".join(f"`{name}`" for name in (one.name, *one.aliases)),
                f"`--{one.name.replace('_', '-')}`" if "command" in one.places else "",
                f"`{one.input}`{'' if one.nvidia else ' (CPU only)'}",
                np.dtype(one.dtype).name,
                "" if one.default is None else f"`{json.dumps(one.default)}`",
                _values(one) if "http" in one.places else "",
                one.text,
            )
        )
    containers = [("container", "extensions", "MIME types")]
    for each in CONTAINERS:
        containers.append((each.name, " ".join(each.extensions), " ".join(each.mime_types)))
    same = "; ".join(f"`{role}` is the same as `{other}`" for role, other in SAME_ROLES.items())
    parts = [
        "# What a request may hold",
        NOTE,
        "## Sampling parameters",
        "One name in the client library and in the body of `/v1/chat/completions`, a flag of `step-audio chat` and "
        "`eval`, and an input of shape [1, 1] of the models `step_audio_r1`, `step_audio_continue` and `tensorrt_llm`. "
        "Without a default nothing is sent, and TensorRT-LLM's own holds. TensorRT-LLM 1.2.1's Triton backend has no "
        "input for what is marked `CPU only`: on GPUs it is refused by its name, and `/v1/models` leaves it out of "
        "`supported_parameters`.",
        markdown_table(parameters, numbers=False),
        "## Recordings",
        "The bytes tell what a file is; its name and declared type are not looked at. Of a video the first audio "
        "stream is heard.",
        markdown_table(containers, numbers=False),
        "## Roles of messages",
        f"{', '.join(f'`{role}`' for role in ROLES)}; {same}. How each is written into the prompt: "
        "`step_audio/chat_template.py`.",
    ]
    return "\n\n".join(parts) + "\n"


def vllm_page() -> str:
    """From the lists by which flags are read."""
    fields = fields_of(ServeSettings)
    other = [
        (f"`--{name.replace('_', '-')}`", f"`--{names[0].replace('_', '-')}`", fields[names[0]].description or "")
        for names in map(names_of, fields, fields.values())
        for name in names[1:]
    ]
    same = ", ".join(f"`{flag}`" for flag in (*http_flags.SAME, *serve_flags.SAME))
    tables = (http_flags.ALWAYS | serve_flags.ALWAYS, http_flags.REFUSED | serve_flags.REFUSED)
    always, refused = ([(f"`{flag}`", text) for flag, text in table.items()] for table in tables)
    return (
        "\n\n".join(
            [
                "# For those who come from `vllm serve`",
                NOTE,
                FROM_VLLM,
                f"Of the same name and meaning: {same}.",
                "## Other names",
                "Understood as flags, in the environment (`STEP_AUDIO_MAX_MODEL_LEN`) and in the file.",
                markdown_table([("`vllm serve`", "here", ""), *other], numbers=False),
                "## What is so in any case",
                "These are taken, and change nothing.",
                markdown_table([("`vllm serve`", ""), *always], numbers=False),
                "## Refused by name",
                "They mean something that is not done here, or is done otherwise. Any other flag is unknown.",
                markdown_table([("`vllm serve`", "instead"), *refused], numbers=False),
            ]
        )
        + "\n"
    )


def metrics_page() -> str:
    parts = [
        "# Metrics",
        NOTE,
        "In Prometheus' text format. What to make of them: [monitoring.md](../monitoring.md).",
        "## The gateway's `/metrics`",
        "Since the gateway was started.",
        markdown_table([METRIC_HEADING, *_gateway_metrics()], numbers=False),
        "Reasons of `step_audio_refused_total`:",
        markdown_table([("reason", ""), *((f"`{name}`", text) for name, text in REFUSALS.items())], numbers=False),
        "## tritonserver's `/metrics`, port 8002",
        "The counters hold over all restarts, for the work directory keeps them.",
        markdown_table(
            [
                METRIC_HEADING,
                *(
                    (f"`{one.name}`", "counter", f"`{one.label}`", one.description)
                    for one in counters.FAMILIES.values()
                ),
            ],
            numbers=False,
        ),
        "Of the LLM, under the names of TensorRT-LLM's backend, which on GPUs reports more of them:",
        markdown_table([METRIC_HEADING, *_llm_metrics()], numbers=False),
        "tritonserver's own begin with `nv_inference_`, each with the label `model`: NVIDIA's "
        "[list](https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/metrics.html).",
    ]
    return "\n\n".join(parts) + "\n"


def _gateway_metrics() -> Iterator[tuple[str, ...]]:
    made = Metrics()
    labels = {one._name: one._labelnames for one in vars(made).values() if isinstance(one, MetricWrapperBase)}
    for family in sorted(made.registry.collect(), key=lambda family: family.name):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        yield f"`{name}`", family.type, _labels(labels.get(family.name, ())), family.documentation


def _llm_metrics() -> Iterator[tuple[str, ...]]:
    zeros = {field.name: 1 for field in dataclasses.fields(EngineStats)}
    values: dict[str, list[str]] = {}
    for reading in readings(EngineStats(**zeros)):
        values.setdefault(reading.family, []).append(f"`{reading.value_of}`")
    for name, (description, label) in FAMILIES.items():
        yield f"`{name}`", "gauge", f"`{label}`", f"{description}: {', '.join(values[name])}"


def _labels(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _values(one: Parameter) -> str:
    least = f"at least {one.at_least:g}" if one.at_least is not None and abs(one.at_least) < 2**31 else ""
    least = f"above {one.above:g}" if one.above is not None else least
    most = f"at most {one.at_most:g}" if one.at_most is not None and one.at_most < 2**31 - 1 else ""
    return ", ".join(filter(None, (least, most))) or "any"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, "utf-8")
