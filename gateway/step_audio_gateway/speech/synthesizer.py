"""The process of the built-in voice: `python -m step_audio_gateway.speech.synthesizer`.

Reads lines of JSON, {"text", "speed"}, from its standard input, a socket, and writes for each the length of its audio,
4 bytes, big-endian, and PCM16 at 24 kHz; the length FAILED stands for none, where a text cannot be said. It ends with
its input.
"""

from __future__ import annotations

import json
import os
import socket
import sys

import numpy as np

FAILED = 0xFFFFFFFF
NICE = 10  # answers go first: a second of speech takes some milliseconds


def main() -> None:
    os.nice(NICE)
    with socket.socket(fileno=os.dup(0)) as caller:
        from hibari import Hibari

        voice = Hibari()
        voice("Hello.")  # the first one loads what it reads words by
        for line in caller.makefile("rb"):
            asked = json.loads(line)
            try:
                samples = voice(asked["text"], speed=asked["speed"], seed=0)
            except Exception as error:
                print(f"the built-in voice: {type(error).__name__}", file=sys.stderr)  # no word of the text
                caller.sendall(FAILED.to_bytes(4))
                continue
            data = (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
            caller.sendall(len(data).to_bytes(4) + data)


if __name__ == "__main__":
    main()
