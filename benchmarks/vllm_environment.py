"""Makes an environment with vLLM's build for CPUs, all versions exact, and prints its Python: for --llm-python."""

from __future__ import annotations

import sys

from peers.environments import Environment
from peers.vllm_server import ENVIRONMENT
from step_audio.command_line import echo
from step_audio.errors import StepAudioError
from step_audio_server.commands.bench import CACHE


def main() -> None:
    environment = Environment(CACHE / "peers", ENVIRONMENT)
    try:
        environment.install(echo)
    except StepAudioError as error:
        sys.exit(str(error))
    print(environment.python)


if __name__ == "__main__":
    main()
