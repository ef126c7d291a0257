"""Request fields that OpenAI, vLLM and SGLang publish and that ask for what is not done here.

A field of theirs is one of ours, or it is here: refused, but for the values that ask for nothing, or ignored, because
the answer is the same without it. `tests/gateway/published_fields.json` has all of their names, and a test holds each
to one of the three.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from step_audio_gateway.errors import unsupported

Refused = Mapping[str, tuple[tuple[Any, ...], str]]

NEVER: tuple[Any, ...] = ()  # no value asks for nothing
OFF = (False,)
NONE: tuple[Any, ...] = ([],)

REFUSED: Refused = {
    # How tokens are chosen.
    "best_of": ((1,), "use n"),
    "logit_bias": (({},), "the engine has no bias of single tokens; use bad_words"),
    "use_beam_search": (OFF, "answers are sampled"),
    "length_penalty": ((1,), "answers are sampled, not searched"),
    "allowed_token_ids": (NEVER, "use response_format"),
    "typical_p": ((1,), "use top_p or top_k"),
    "custom_logit_processor": (NEVER, "no code of callers is run"),
    "custom_params": (({},), "they are for custom_logit_processor, which is not run"),
    "logits_processors": (NONE, "no code of callers is run"),
    "repetition_detection": (NEVER, "use repetition_penalty"),
    "watermark": (OFF, "answers are not marked"),
    "watermarking": (OFF, "answers are not marked"),
    # Where the answer ends, what of it is shown.
    "stop_regex": (NONE, "use stop"),
    "include_stop_str_in_output": (OFF, "a stop string is never part of the answer"),
    "no_stop_trim": (OFF, "a stop string is never part of the answer"),
    "spaces_between_special_tokens": ((True,), "special tokens are shown as they are"),
    "echo": (OFF, "the reply begins behind the prompt"),
    "include_reasoning": ((True,), "leave reasoning_content unread, or switch thinking off"),
    "stream_reasoning": ((True,), "the thought comes as it is written"),
    "verbosity": (("medium",), "say in a message how long the answer is to be"),
    # The form of the answer.
    "structural_tag": (NEVER, "use response_format, tools or structured_outputs.grammar"),
    "guided_whitespace_pattern": (NEVER, "JSON has one space behind commas and colons"),
    "functions": (NONE, "use tools"),
    "function_call": (("none",), "use tool_choice"),
    "web_search_options": (NEVER, "the model searches nothing"),
    "prediction": (NEVER, "leave it out"),
    "moderation": (NEVER, "nothing is moderated"),
    "task": (NEVER, "this model has no tasks to choose from"),
    # Log-probabilities and other figures.
    "prompt_logprobs": (NEVER, "only generated tokens have log-probabilities"),
    "logprob_token_ids": (NEVER, "use top_logprobs"),
    "sampling_logprobs_mode": (NEVER, "log-probabilities are those of what was drawn from"),
    "return_tokens_as_token_ids": (OFF, "tokens are shown as text and bytes"),
    "return_token_ids": (OFF, "the reply has no token ids"),
    "return_token_offsets": (OFF, "the reply has no offsets of tokens"),
    "return_prompt_token_ids": (OFF, "the reply has no token ids"),
    "return_prompt_text": (OFF, "the reply does not repeat the prompt"),
    "return_input_ids_in_sglext": (OFF, "the reply has no token ids"),
    "return_output_ids_in_sglext": (OFF, "the reply has no token ids"),
    "return_hidden_states": (OFF, "the engine keeps none"),
    "return_routed_experts": (OFF, "the model has no experts"),
    "routed_experts_prompt_start": ((0,), "the model has no experts"),
    "routed_experts_start_len": ((0,), "the model has no experts"),
    "return_sampling_mask": (OFF, "the reply has no masks"),
    "return_meta_info": (OFF, "see usage"),
    "return_cached_tokens_details": (OFF, "see usage"),
    "return_spec_tokens_details": (OFF, "no tokens are drafted"),
    "return_weight_versions": (OFF, "see /v1/models"),
    "return_flat_raw_output_top_logprobs": (OFF, "use logprobs"),
    "return_flat_raw_top_logprobs_b64": (OFF, "use logprobs"),
    # The prompt.
    "chat_template": (NEVER, "the server's own is used"),
    "documents": (NONE, "put them into a message"),
    "truncate_prompt_tokens": (NEVER, "send fewer messages"),
    "truncation_side": (NEVER, "send fewer messages"),
    "add_special_tokens": (OFF, "the chat template writes them"),
    "input_ids": (NEVER, "send messages"),
    "prompt_embeds": (NEVER, "send messages"),
    "input_embeds": (NEVER, "send messages"),
    "mm_payload": (NEVER, "send recordings as parts of messages"),
    "images_config": (NEVER, "the model sees no pictures"),
    "video_config": (NEVER, "the model sees no pictures"),
    "max_dynamic_patch": (NEVER, "the model sees no pictures"),
    "min_dynamic_patch": (NEVER, "the model sees no pictures"),
    "use_audio_in_video": (OFF, "send the recording as a part of its own"),
    "mm_processor_kwargs": (({},), "recordings are always prepared the same way"),
    "media_io_kwargs": (({},), "recordings are always prepared the same way"),
    # Who computes it, who shares what.
    "lora_path": (NEVER, "an adapter is named as model"),
    "priority": ((0,), "requests are served in their order"),
    "cache_salt": (NEVER, "computed prompts are shared between callers; serve tenants apart to keep them apart"),
    "extra_key": (NEVER, "computed prompts are shared between callers; serve tenants apart to keep them apart"),
    "session_params": (NEVER, "send the whole conversation"),
    "previous_response_id": (NEVER, "send the whole conversation"),
    "store": (OFF, "nothing is kept"),
    "kv_transfer_params": (NEVER, "prompt and answer are computed at one place"),
    "ec_transfer_params": (NEVER, "prompt and answer are computed at one place"),
    "bootstrap_host": (NEVER, "prompt and answer are computed at one place"),
    "bootstrap_port": (NEVER, "prompt and answer are computed at one place"),
    "bootstrap_room": (NEVER, "prompt and answer are computed at one place"),
    "data_parallel_rank": (NEVER, "the server chooses"),
    "routed_dp_rank": (NEVER, "the server chooses"),
    "disagg_prefill_dp_rank": (NEVER, "the server chooses"),
    "vllm_xargs": (({},), "leave it out"),
}

# Of /tokenize, and of /detokenize.
REFUSED_TOKENIZE: Refused = {
    "chat_template": (NEVER, "the server's own is used"),
    "chat_template_kwargs": (({},), "the template takes none"),
    "reasoning_effort": (NEVER, "the tokens are those of a prompt that is to be thought about"),
    "tool_choice": (("auto",), "leave out the tools that are not to be shown"),
    "mm_processor_kwargs": (({},), "the positions of recordings have no tokens"),
    "media_io_kwargs": (({},), "the positions of recordings have no tokens"),
}
REFUSED_DETOKENIZE: Refused = {
    "skip_special_tokens": (OFF, "control tokens are shown by their names"),
}

# Of /v1/responses, besides.
REFUSED_RESPONSES: Refused = {
    "access_programs": (NEVER, "leave it out"),
    "background": (OFF, "the reply comes at once"),
    "background_options": (NEVER, "the reply comes at once"),
    "conversation": (NEVER, "nothing is kept: send the whole conversation as input"),
    "previous_response_id": (NEVER, "nothing is kept: send the whole conversation as input"),
    "previous_input_messages": (NEVER, "send the whole conversation as input"),
    "enable_response_messages": (OFF, "output has the answer's items; ask /tokenize for the prompt's tokens"),
    "context_management": (NONE, "send fewer items"),
    "prompt": (NEVER, "there are no stored prompts; use instructions and input"),
    "truncation": (("disabled",), "send fewer items"),
    "image": (NEVER, "the model sees and makes no pictures"),
    "modalities": ((["text"],), "ask /v1/chat/completions for audio"),
    "audio": (NEVER, "ask /v1/chat/completions for audio"),
    "messages": (NEVER, "use input"),
    "response_format": (NEVER, "use text.format"),
    "logprobs": (OFF, "use include"),
    "max_tokens": (NEVER, "use max_output_tokens"),
    "max_completion_tokens": (NEVER, "use max_output_tokens"),
    "n": ((1,), "there is one answer"),
    "separate_reasoning": ((True,), "the thought is an item of its own"),
    "mind_paced_speaking": (NEVER, "ask /v1/chat/completions"),
}
IGNORED_RESPONSES = {
    "max_tool_calls": "of tools that the server itself calls: there are none",
}

# Of /v1/completions.
REFUSED_COMPLETIONS: Refused = {
    name: told for name, told in REFUSED.items() if name not in ("echo", "add_special_tokens")
} | {
    "modalities": ((["text"],), "ask /v1/chat/completions for audio"),
    "audio": (NEVER, "ask /v1/chat/completions for audio"),
    "suffix": (("",), "the model writes behind a prompt, not before anything"),
    "best_of": ((1,), "use n"),
    "json_schema": (NEVER, "use structured_outputs.json"),
    "logprob_token_ids": (NEVER, "use logprobs"),
    "thinking_token_budget": ((-1,), "the text is not parted: ask /v1/chat/completions"),
    "input_ids": (NEVER, "send them as prompt"),
    "prompt_embeds": (NEVER, "send token ids as prompt"),
    "input_embeds": (NEVER, "send token ids as prompt"),
    "mm_payload": (NEVER, "ask /v1/chat/completions about recordings"),
    "truncate_prompt_tokens": (NEVER, "send a shorter prompt"),
    "truncation_side": (NEVER, "send a shorter prompt"),
    "session_params": (NEVER, "send the whole prompt"),
}
IGNORED_COMPLETIONS = {
    "add_special_tokens": "the tokenizer adds none",
}

# Of /v1/audio/speech.
REFUSED_SPEECH: Refused = {
    "instructions": (("",), "the voice takes none"),
}

# Of /v1/audio/transcriptions, as texts of a form.
REFUSED_FORM: dict[str, tuple[tuple[str, ...], str]] = {
    "timestamp_granularities": ((), "the model gives no times"),
    "include": ((), "a transcription comes without log-probabilities; ask /v1/chat/completions"),
    "chunking_strategy": (("auto",), "the server cuts recordings itself"),
    "known_speaker_names": ((), "speakers are not told apart"),
    "known_speaker_references": ((), "speakers are not told apart"),
    "hotwords": ((), "put them into the prompt"),
    "keywords": ((), "put them into the prompt"),
    "languages": ((), "use language"),
    "to_language": ((), "ask /v1/audio/translations for English, /v1/chat/completions for others"),
    "audio_data": ((), "send a file"),
    "n": (("1",), "there is one answer"),
    "use_beam_search": (("false",), "answers are sampled"),
    "length_penalty": (("1", "1.0"), "answers are sampled, not searched"),
    "include_stop_str_in_output": (("false",), "there are no stop strings"),
    "stream_continuous_usage_stats": (("false",), "usage comes with the last event"),
    "watermarking": (("false",), "answers are not marked"),
    "vllm_xargs": (("{}",), "leave it out"),
}
REFUSED_TRANSLATION = REFUSED_FORM | {
    "to_language": (("en", "english"), "ask /v1/chat/completions"),
    "stream": (("false", "0"), "a translation comes whole"),
}
IGNORED_FORM = {
    "stream_include_usage": "the last event has the usage in any case",
    "audio_duration_s": "the recording tells",
}

# And why the answer is the same without them.
IGNORED: dict[str, str] = {
    "user": "a label",
    "metadata": "a label",
    "safety_identifier": "a label",
    "session_id": "a label",
    "request_id": "a label; the header X-Request-Id is kept",
    "rid": "a label; the header X-Request-Id is kept",
    "service_tier": "there is one",
    "prompt_cache_key": "where to look for what is cached: all of it is looked through",
    "prompt_cache_options": "how long it is kept: as long as there is room",
    "prompt_cache_retention": "how long it is kept: as long as there is room",
    "guided_decoding_backend": "which library follows a guide: there is one",
    "stream_interval": "how many tokens share a chunk: as few as there is time for",
    "return_mm_kwargs": "of another route",
    "custom_labels": "labels",
}


def check_published(given: Mapping[str, Any] | None, refused: Refused) -> None:
    """Raises ApiError for the first of the given fields that asks for what is refused."""
    for name, value in (given or {}).items():
        if name in refused and value is not None:
            neutral, instead = refused[name]
            if value not in neutral:
                raise unsupported(name, instead)
