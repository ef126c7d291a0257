"""The `prompt_builder` step: messages and what is known of the clips to the LLM's inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from step_audio.arrays import AnyArray, Int32Array, UInt64Array
from step_audio.chat import ClipInfo, build_prompt
from step_audio.conversation import parse_conversation
from step_audio.errors import ContextTooLong, InvalidRequest
from step_audio.guides import GuideSpec, bounded
from step_audio.steps.clip_limits import check_hashes, clip_tokens
from step_audio.steps.lanes import Lane
from step_audio.steps.runtime import Runtime
from step_audio.steps.tensors import Reply, Tensors, byte_strings, one, row, scalar
from step_audio.tokenizer import Tokenizer, check_vocabulary
from step_audio.word_list import pack_word_list, unpack_word_list


@dataclass(frozen=True)
class PromptRequest:
    """One request's inputs; None where an optional one was not sent."""

    messages: bytes
    frames: Int32Array  # [clips]
    audio_index: Int32Array  # [clips]
    content_hash: UInt64Array  # [clips]
    tools: bytes | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    request_output_len: int | None = None
    end_id: int | None = None
    stop_words_list: Int32Array | None = None  # [2, n]
    suffix_ids: Int32Array | None = None  # [n], of an answer that has begun elsewhere
    guide: GuideSpec | None = None


class PromptBuilder:
    """One request's messages to the LLM's prompt: ids, audio positions with their content hashes, stop set, length,
    guide."""

    def __init__(self, runtime: Runtime):
        self.runtime = runtime
        self.tokenizer = Tokenizer.from_json(runtime.tokenizer_file.read_text(encoding="utf-8"))
        check_vocabulary(self.tokenizer, runtime.model.text.vocab_size)

    def build(self, request: PromptRequest) -> dict[str, AnyArray]:
        """Inputs of `tensorrt_llm` by name, without a batch dimension. Raises InvalidRequest."""
        suffix = self._suffix(request.suffix_ids)
        stop_set = self._stop_set(request)
        guide = None if request.guide is None else bounded(request.guide)
        conversation = parse_conversation(request.messages, request.tools)
        clips = self._clips(request, conversation.audio_count)
        proceed = bool(request.continue_final_message)
        # Who continues a message wants no new turn; who asks for both is refused.
        new_turn = not proceed if request.add_generation_prompt is None else bool(request.add_generation_prompt)
        prompt = build_prompt(
            conversation,
            self.tokenizer,
            self.runtime.model.text.vocab_size,
            clips,
            template=self.runtime.chat_template,
            add_generation_prompt=new_turn,
            continue_final_message=proceed,
            max_positions=self.runtime.max_seq_len,
        )
        length = len(prompt.input_ids) + len(suffix)
        outputs: dict[str, AnyArray] = {
            "input_ids": np.concatenate([prompt.input_ids, suffix]),
            "input_lengths": np.array([length], np.int32),
            "prompt_table_extra_ids": np.concatenate([prompt.extra_ids, np.zeros(len(suffix), np.uint64)]),
            "request_output_len": np.array([self._output_len(length, request.request_output_len)], np.int32),
        }
        return outputs | stop_set | _guide_outputs(guide)

    def _clips(self, request: PromptRequest, audios: int) -> list[list[ClipInfo]]:
        """Of each of the messages' audio parts."""
        if not len(request.frames) == len(request.audio_index) == len(request.content_hash):
            raise InvalidRequest("frames, audio_index and content_hash differ in their number of clips", "frames")
        tokens = clip_tokens(request.frames, self.runtime)
        check_hashes(request.content_hash)
        index = request.audio_index.tolist()
        if audios and not index:
            raise InvalidRequest(f"messages have {audios} audio parts, but 0 audios were sent", "messages")
        if index != sorted(index) or list(dict.fromkeys(index)) != list(range(audios)):
            raise InvalidRequest(
                f"audio_index must name the messages' {audios} audio parts from 0 on, each, and in their order",
                "audio_index",
            )
        clips: list[list[ClipInfo]] = [[] for _ in range(audios)]
        for audio, count, digest in zip(index, tokens, request.content_hash.tolist(), strict=True):
            clips[audio].append(ClipInfo(count, digest))
        return clips

    def _suffix(self, ids: Int32Array | None) -> Int32Array:
        if ids is None:
            return np.zeros(0, np.int32)
        if len(ids) >= self.runtime.max_seq_len:
            raise ContextTooLong(
                f"suffix_ids has {len(ids)} ids and max_seq_len is {self.runtime.max_seq_len}", "suffix_ids"
            )
        vocab_size = self.runtime.model.text.vocab_size
        if np.any((ids < 0) | (ids >= vocab_size)):  # from there on they are the recordings' positions
            raise InvalidRequest(f"suffix_ids must be token ids from 0 to {vocab_size - 1}", "suffix_ids")
        return ids

    def _output_len(self, prompt_length: int, asked: int | None) -> int:
        room = self.runtime.max_seq_len - prompt_length
        if room < 1:
            raise ContextTooLong(
                f"the prompt has {prompt_length} positions and max_seq_len is {self.runtime.max_seq_len}; "
                "send less audio or text"
            )
        if asked is None:
            return room
        if asked < 1:
            raise InvalidRequest(f"request_output_len must be at least 1, got {asked}", "request_output_len")
        return min(asked, room)

    def _stop_set(self, request: PromptRequest) -> dict[str, Int32Array]:
        """The engine takes one `end_id` and a list of words: the checkpoint's stop ids are spread over both."""
        words = [] if request.stop_words_list is None else unpack_word_list(request.stop_words_list)
        if request.end_id is not None:
            outputs = {"end_id": np.array([request.end_id], np.int32)}
            if request.stop_words_list is not None:
                outputs["stop_words_list"] = request.stop_words_list
            return outputs
        first, *others = self.tokenizer.special.stop_ids
        words = [*([token] for token in others), *words]
        return {"end_id": np.array([first], np.int32), "stop_words_list": pack_word_list(words)}


def _of_clips(inputs: Tensors, name: str) -> AnyArray:
    value = row(inputs, name)
    return np.zeros(0, np.int32) if value is None else value


def _guide_of(kind: bytes | None, text: bytes | None) -> GuideSpec | None:
    """Raises InvalidRequest."""
    if not kind:
        if text:
            said = "input 'guided_decoding_guide' needs 'guided_decoding_guide_type' beside it"
            raise InvalidRequest(said, "guided_decoding_guide")
        return None
    try:
        return GuideSpec.of(kind.decode("utf-8", "replace"), (text or b"").decode())
    except UnicodeDecodeError:
        raise InvalidRequest("input 'guided_decoding_guide' is not UTF-8", "guided_decoding_guide") from None


def _guide_outputs(guide: GuideSpec | None) -> dict[str, AnyArray]:
    """A later step of an ensemble gets all or nothing: empty texts, where there is none."""
    kind, text = ("", "") if guide is None else (guide.kind, guide.text)
    return {
        "guided_decoding_guide_type": np.array([kind.encode()], object),
        "guided_decoding_guide": np.array([text.encode()], object),
    }


class PromptBuilderStep:
    """The step in its worker."""

    def __init__(self, runtime: Runtime):
        self._builder = PromptBuilder(runtime)
        self._lane = Lane(self._work)
        self._guided = Lane(self._work)  # where a library is imported, which takes seconds

    def submit(self, inputs: Tensors, reply: Reply) -> None:
        lane = self._guided if any(byte_strings(inputs, "guided_decoding_guide_type")) else self._lane
        lane.put(inputs, reply, cost=sum(map(len, byte_strings(inputs, "messages"))))

    def _work(self, inputs: Tensors) -> Tensors:
        messages = one(inputs, "messages")
        if messages is None:
            raise InvalidRequest("missing required input 'messages'", "messages")
        outputs = self._builder.build(
            PromptRequest(
                messages=messages,
                **{name: _of_clips(inputs, name) for name in ("frames", "audio_index", "content_hash")},
                tools=one(inputs, "tools"),
                add_generation_prompt=scalar(inputs, "add_generation_prompt"),
                continue_final_message=scalar(inputs, "continue_final_message"),
                request_output_len=scalar(inputs, "request_output_len"),
                end_id=scalar(inputs, "end_id"),
                stop_words_list=row(inputs, "stop_words_list"),
                suffix_ids=row(inputs, "suffix_ids"),
                guide=_guide_of(one(inputs, "guided_decoding_guide_type"), one(inputs, "guided_decoding_guide")),
            )
        )
        return {name: array[None] for name, array in outputs.items()}
