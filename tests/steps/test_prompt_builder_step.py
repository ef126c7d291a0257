"""The prompt builder's step: a request that it refuses is answered, and its worker goes on."""

import queue

import numpy as np

import tokenizer_fixture
from model_fixture import runtime
from step_audio.errors import InvalidRequest
from step_audio.steps.prompt_builder import PromptBuilderStep

HELLO = b'[{"role": "user", "content": "hello"}]'


def test_a_batch_is_refused_and_the_next_request_answered(tmp_path):
    """Nothing may be raised by `submit`: it would end the worker, and with it what others have asked."""
    file = tmp_path / "tokenizer.json"
    file.write_text(tokenizer_fixture.build_json(), encoding="utf-8")
    step = PromptBuilderStep(runtime().model_copy(update={"tokenizer_file": file, "chat_template": "default"}))
    answers: queue.SimpleQueue = queue.SimpleQueue()
    clips = {"frames": np.int32, "audio_index": np.int32, "content_hash": np.uint64}

    def ask(*messages):
        nothing = {name: np.zeros((len(messages), 0), kind) for name, kind in clips.items()}
        step.submit({"messages": list(messages), **nothing}, answers.put)
        return answers.get(timeout=60)

    refused, answered = ask(HELLO, HELLO), ask(HELLO)
    assert isinstance(refused, InvalidRequest) and "a batch of 2, send one request at a time" in str(refused)
    assert answered["input_lengths"].tolist() == [[answered["input_ids"].size]]
