"""A long recording is heard to its end, and what it leaves behind in the server's processes and shared memory."""

import numpy as np

from held import MIB, SHARED, held
from step_audio.audio import encode_wav
from step_audio.clips import SAMPLE_RATE
from step_audio_client import Audio, Sampling, user

MINUTES = 30  # 72 clips: 22,500 audio tokens and the two marks of each clip
ONE = Sampling(max_tokens=1, temperature=0)


def recording(seconds: float) -> bytes:
    samples = np.random.default_rng(int(seconds)).uniform(-0.1, 0.1, int(seconds * SAMPLE_RATE)).astype(np.float32)
    return encode_wav(samples)


def test_half_an_hour_is_heard_and_leaves_no_memory_behind(ask, service):
    def now() -> dict[str, float]:
        return held(service.server.process.pid, service.server.launch.prefix)

    for seconds in (5, 30, 60):
        ask(lambda client, s=seconds: client.complete([user(Audio(recording(s)))], ONE))
    before = now()
    long = recording(MINUTES * 60)
    assert 22_680 <= ask(lambda client: client.complete([user(Audio(long))], ONE)).usage.prompt_tokens <= 22_720
    after = now()
    grown = {name: round(after[name] - was, 1) for name, was in before.items()}
    # Its features are 92 MB, in two regions; of the file, 58 MB, a copy may stay in one.
    assert grown.pop(SHARED) < 2 * len(long) / MIB, grown
    del grown["stub of tensorrt_llm"]  # which keeps what it computes long prompts in
    assert max(grown.values()) < 100, grown
