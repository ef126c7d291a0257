"""Writes published_fields.json: names of request fields that OpenAI, vLLM and SGLang publish, read from their wheels.

    pip download --no-deps -d wheels openai vllm vllm==0.10.2 sglang
    python tests/gateway/published_fields.py wheels/*.whl

vLLM 0.10.2 is the last one but a few with guided_json and its like, which clients still send.
"""

from __future__ import annotations

import ast
import json
import sys
import zipfile
from pathlib import Path

# Classes of requests, by route; those of other names in the wheels are of other routes.
ROUTES = {
    "/v1/chat/completions": ("ChatCompletionRequest", "chat/completion_create_params.py:CompletionCreateParamsBase"),
    "/v1/completions": ("CompletionRequest", "types/completion_create_params.py:CompletionCreateParamsBase"),
    "/v1/responses": ("ResponsesRequest", "ResponseCreateParamsBase"),
    "/v1/audio/transcriptions": ("TranscriptionRequest", "TranscriptionCreateParamsBase"),
    "/v1/audio/translations": ("TranslationRequest", "TranslationCreateParamsBase", "TranslationCreateParams"),
    "/v1/audio/speech": ("SpeechCreateParams",),
    "/tokenize": ("TokenizeCompletionRequest", "TokenizeChatRequest", "TokenizeRequest"),
    "/detokenize": ("DetokenizeRequest",),
    "stream_options": ("StreamOptions", "ChatCompletionStreamOptionsParam"),
    "structured_outputs": ("StructuredOutputsParams",),
}
FILES = (
    "openai/types/chat/completion_create_params.py",
    "openai/types/completion_create_params.py",
    "openai/types/chat/chat_completion_stream_options_param.py",
    "openai/types/audio/transcription_create_params.py",
    "openai/types/audio/translation_create_params.py",
    "openai/types/audio/speech_create_params.py",
    "openai/types/responses/response_create_params.py",
    "protocol.py",
    "vllm/sampling_params.py",
)


def classes(wheel: Path) -> dict[str, ast.ClassDef]:
    """Of the wheel's modules that describe requests, by name."""
    found: dict[str, ast.ClassDef] = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(FILES) and "multimodal_gen" not in name:
                tree = ast.parse(archive.read(name))
                for node in ast.walk(tree):
                    if isinstance(node, ast.ClassDef):
                        found[node.name] = found[f"{'/'.join(Path(name).parts[-2:])}:{node.name}"] = node
    return found


def fields(name: str, known: dict[str, ast.ClassDef]) -> set[str]:
    """Of the class and of those that it is made from, as far as they are known."""
    if (node := known.get(name)) is None:
        return set()
    own = {
        item.target.id
        for item in node.body
        if isinstance(item, ast.AnnAssign)
        and isinstance(item.target, ast.Name)
        and not item.target.id.startswith("_")
        and not ast.unparse(item.annotation).startswith("ClassVar")
    }
    return own.union(*(fields(base.id, known) for base in node.bases if isinstance(base, ast.Name)))


def main(wheels: list[Path]) -> None:
    table: dict[str, dict[str, list[str]]] = {route: {} for route in ROUTES}
    for wheel in wheels:
        package = "-".join(wheel.name.split("-")[:2])
        known = classes(wheel)
        for route, names in ROUTES.items():
            if found := set().union(*(fields(name, known) for name in names)):
                table[route][package] = sorted(found)
    text = json.dumps(table, indent=1)
    Path(__file__).with_suffix(".json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
