"""What all routes share: the client of the served model, the settings, the counters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from step_audio_client import ChatOptions, RawOptions, RawPrompt, StepAudioClient
from step_audio_gateway.chunks import Deltas
from step_audio_gateway.defaults import Defaults
from step_audio_gateway.errors import ApiError
from step_audio_gateway.fetch import Fetcher
from step_audio_gateway.generations import merged
from step_audio_gateway.metrics import Metrics
from step_audio_gateway.settings import GatewaySettings


class Gateway:
    """What every route works with: settings, the client of the served model, counters, the fetcher of recordings.

    Raises SettingsError.
    """

    def __init__(self, settings: GatewaySettings, client: StepAudioClient, fetcher: Fetcher | None = None):
        self.settings = settings
        self.client = client
        self.defaults = Defaults.of(settings)
        self.metrics = Metrics(client.counts)
        self.fetcher = fetcher or Fetcher(settings.allowed_media_domains, settings.media_timeout)

    async def model_names(self) -> tuple[str, ...]:
        """What requests may call the model, the first one being what replies call it, and its adapters.

        Raises RequestError.
        """
        info = await self.client.serving_info()
        return *(self.settings.served_model_name or (info["model"],)), *info["adapters"]

    async def adapter(self, model: str) -> str | None:
        """The adapter that goes by the name of a model; None: it is the model itself. Raises RequestError."""
        own, adapters = self.settings.served_model_name, (await self.client.serving_info())["adapters"]
        return model if model in adapters and model not in own else None

    async def model_name(self, asked: str | None) -> str:
        """The name to answer with. Raises ApiError (404), RequestError."""
        names = await self.model_names()
        if asked and asked not in names:
            there = " and ".join(map(repr, names[:1] + tuple((await self.client.serving_info())["adapters"])))
            raise ApiError(404, f"there is no model {asked!r} here, but {there}", "model", "model_not_found")
        return asked or names[0]

    def answers(self, messages: Sequence[dict[str, Any]], options: Sequence[ChatOptions]) -> Deltas:
        """An answer for each of `options`, all under way at once."""
        return merged([self.metrics.observed(self.client.chat(messages, option)) for option in options])

    def texts(self, prompts: Sequence[RawPrompt], options: Sequence[RawOptions]) -> Deltas:
        """For each of `prompts` a text for each of `options`, all under way at once."""
        asked = [(prompt, option) for prompt in prompts for option in options]
        return merged([self.metrics.observed(self.client.continue_raw(*pair)) for pair in asked])
