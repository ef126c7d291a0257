"""What the gateway can be told. Names are those of `vllm serve` where they mean the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt

from step_audio.errors import SettingsError
from step_audio.settings import Settings

if TYPE_CHECKING:
    from step_audio_client import Tls


BUILT_IN = "built-in"


def _several(value: Any) -> Any:
    """One string may hold several words, with commas between them: the environment has no lists."""
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
        return value  # refused by its type
    return tuple(part.strip() for word in words for part in word.split(",") if part.strip())


def _keys(value: Any) -> Any:
    words = _several(value)
    if words == () and value not in ((), []):
        raise ValueError("it is empty: give a key, or leave it out to let everybody call")
    return words


def _origins(values: tuple[str, ...]) -> tuple[str, ...]:
    """As browsers write them: what is written otherwise would never match."""
    for value in values:
        if value != "*" and not _ORIGIN.fullmatch(value):
            raise ValueError(f"{value!r} is no origin: write https://host or https://host:8443, or * for all pages")
    return values


def _domains(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if value != "*" and not _DOMAIN.fullmatch(value):
            raise ValueError(f"{value!r} is no host: write a name alone, or *.name, or * for all public ones")
    return values


def _hosts(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if value != "*" and not _HOST.fullmatch(value):
            raise ValueError(f"{value!r} is no host: write a name alone, without a port, or * for all")
    return values


def _root(path: str) -> str:
    if path and not _ROOT.fullmatch(path):
        raise ValueError("write it as /name, or /name/name, without a slash at the end")
    return path


def _speech(value: str | None) -> str | None:
    if value is not None and value != BUILT_IN and not value.startswith(("http://", "https://")):
        raise ValueError("write built-in, or an address as http://host:8880/v1")
    return value


_ROOT = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]+)?", re.IGNORECASE)
_HOST = re.compile(r"([a-z0-9_]([a-z0-9_-]*[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?", re.IGNORECASE)
_DOMAIN = re.compile(rf"(\*\.)?{_HOST.pattern}", re.IGNORECASE)
Several = Annotated[tuple[str, ...], BeforeValidator(_several)]
Keys = Annotated[tuple[str, ...], BeforeValidator(_keys)]


class GatewaySettings(Settings):
    """Everything `step-audio gateway` can be told."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all, then set --api-key")
    port: int = Field(9999, ge=1, le=65535, description="port to listen on")
    root_path: Annotated[str, AfterValidator(_root)] = Field(
        "", description="path under which a proxy shows the server, as /speech, whether the proxy cuts it off or not"
    )
    triton: Several = Field(("127.0.0.1:8001",), min_length=1, description="gRPC addresses of the served model")
    triton_ca: Path | None = Field(
        None, description="PEM certificates of those who sign the servers' at grpcs:// addresses (default: public ones)"
    )
    triton_cert: Path | None = Field(None, description="PEM certificate of the gateway, for servers that want one")
    triton_key: Path | None = Field(None, description="PEM key of triton-cert")
    triton_name: str | None = Field(None, description="name in the servers' certificates (default: the address's)")
    served_model_name: Several = Field(
        (), description="names that requests may use, the first one in replies (default: the checkpoint's)"
    )
    api_key: Keys = Field((), repr=False, description="keys that clients may use; better by environment or file")
    api_key_file: Path | None = Field(None, description="a file of keys, one a line")
    allowed_origins: Annotated[Several, AfterValidator(_origins)] = Field(
        (), description="web pages that may call from a browser, besides the playground"
    )
    allowed_hosts: Annotated[Several, AfterValidator(_hosts)] = Field(
        (),
        description="names by which requests may call a server without keys on loopback, besides addresses and names "
        "without a dot; * for all",
    )
    allowed_media_domains: Annotated[Several, AfterValidator(_domains)] = Field(
        (), description="hosts that https audio_url may name: host, *.domain, or * for all public ones (default: none)"
    )
    media_timeout: PositiveFloat = Field(20.0, description="seconds for fetching one audio_url")
    max_body_bytes: PositiveInt = Field(128 << 20, description="largest request; base64 makes audio a third larger")
    max_bytes_in_flight: PositiveInt = Field(
        1 << 30, description="of the bodies of all requests under way; then 429 (at least max-body-bytes)"
    )
    max_concurrent_requests: PositiveInt | None = Field(
        None,
        description="answers under way or waiting; then 429 (default: what the servers in reach compute at once, "
        "and max-waiting)",
    )
    max_waiting: NonNegativeInt = Field(
        0, description="requests let in that the servers have no room for yet: each waits for a place"
    )
    max_connections: PositiveInt = Field(
        1000, description="open connections; then the one idle for longest is closed; twice as many at most"
    )
    max_sessions: PositiveInt = Field(64, description="realtime sessions that may be open; then 429")
    session_seconds: PositiveFloat = Field(3600.0, description="length of a realtime session")
    session_idle_seconds: PositiveFloat = Field(
        600.0, description="a realtime session without speech, events and answers is ended"
    )
    session_buffer_seconds: PositiveFloat = Field(
        300.0, description="audio of one turn in a realtime session; never more than a request's to the servers"
    )
    speech: Annotated[str | None, AfterValidator(_speech)] = Field(
        None,
        description="who says answers aloud: built-in, or the base URL of a server with OpenAI's /audio/speech, as "
        "http://host:8880/v1 (default: nobody)",
    )
    speech_model: str = Field("tts-1", description="what the speech server is asked for")
    speech_voice: str = Field("alloy", description="the speech server's voice where a session names none")
    speech_api_key: str | None = Field(None, repr=False, description="the speech server's; better by environment")
    receive_timeout: PositiveFloat = Field(
        20.0, description="seconds for a request's headers, and between two pieces of its body; then 408"
    )
    min_receive_rate: PositiveInt = Field(
        16384, description="bytes a second that a body must come with, the first receive-timeout aside; then 408"
    )
    send_timeout: PositiveFloat = Field(
        60.0, description="seconds for which a client may read nothing of its answer, before that is stopped"
    )
    request_timeout: PositiveFloat | None = Field(None, description="seconds for a whole answer (default: no limit)")
    separate_reasoning: bool = Field(
        True, description="the thought in reasoning_content; if not, all stays in content as the model wrote it"
    )
    default_thinking: Literal["on", "off"] = Field("on", description="where a request says nothing of it")
    default_thinking_budget: NonNegativeInt | None = Field(
        None, description="tokens of thought where a request says nothing of them (default: no bound)"
    )
    reasoning_effort_budgets: Several = Field(
        ("minimal=128", "low=512", "medium=2048", "high=8192"),
        description="tokens of thought for each reasoning_effort; one that is not named has no bound",
    )
    default_sampling: Several = Field(
        (), description="sampling parameters where a request does not set them, as temperature=0.5 max_tokens=2048"
    )
    transcription_prompt: str = Field(
        "Write down what you hear.", description="what /v1/audio/transcriptions asks the model"
    )
    translation_prompt: str = Field(
        "Translate what you hear into English.", description="what /v1/audio/translations asks the model"
    )
    log_level: Literal["info", "debug"] = Field(
        "info", description="debug: also the text of each refusal, which may quote a line of what was sent"
    )
    log_content: bool = Field(False, description="put texts of requests and replies into the log")
    ssl_certfile: Path | None = Field(None, description="PEM certificate: serve https; browsers want it for recording")
    ssl_keyfile: Path | None = Field(None, description="PEM key of the certificate")

    def tls(self) -> Tls:
        """To the servers. Raises SettingsError."""
        from step_audio_client import Tls

        tls = Tls(self.triton_ca, self.triton_cert, self.triton_key, self.triton_name)
        try:
            for address in self.triton:
                tls.check(address)
        except ValueError as error:
            raise SettingsError(f"--triton: {error}") from None
        except OSError as error:
            raise SettingsError(f"--triton: {error.filename} cannot be read: {error.strerror}") from None
        return tls

    def keys(self) -> tuple[str, ...]:
        """All API keys; none means that everybody may call. Raises SettingsError."""
        if self.api_key_file is None:
            return self.api_key
        try:
            lines = self.api_key_file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"--api-key-file cannot be read: {error}") from None
        found = tuple(key for line in lines if (key := line.strip()) and not key.startswith("#"))
        if not found:  # an empty file must not open the door
            raise SettingsError("--api-key-file holds no key")
        return self.api_key + found
