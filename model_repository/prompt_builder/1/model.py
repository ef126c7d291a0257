"""Triton step `prompt_builder`: moves tensors, the work is `step_audio.steps.prompt_builder`."""

import triton_python_backend_utils as pb_utils

from step_audio.errors import InvalidRequest
from step_audio.steps.prompt_builder import PromptBuilder, PromptRequest
from step_audio.steps.runtime import Runtime
from step_audio.steps.triton_io import guarded, optional


class TritonPythonModel:
    """Triton's entry to `PromptBuilder`."""

    def initialize(self, args):
        self.builder = PromptBuilder(Runtime.from_triton(args))

    def execute(self, requests):
        return [guarded(pb_utils, self._build, request) for request in requests]

    def _build(self, request):
        def scalar(name):
            tensor = optional(pb_utils, request, name)
            return None if tensor is None else tensor.reshape(-1)[0]

        messages = scalar("messages")
        if messages is None:
            raise InvalidRequest("missing required input 'messages'")
        stop_words = optional(pb_utils, request, "stop_words_list")
        inputs = self.builder.build(
            PromptRequest(
                messages=messages,
                **{name: optional(pb_utils, request, name)[0] for name in ("frames", "audio_index", "content_hash")},
                tools=scalar("tools"),
                add_generation_prompt=scalar("add_generation_prompt"),
                continue_final_message=scalar("continue_final_message"),
                request_output_len=scalar("request_output_len"),
                end_id=scalar("end_id"),
                stop_words_list=None if stop_words is None else stop_words[0],
            )
        )
        return [pb_utils.Tensor(name, array[None]) for name, array in inputs.items()]
