"""TensorRT-LLM's interface, as its own config.pbtxt declares it."""

TABLE, LOGITS = "TABLE", "LOGITS"  # types that depend on the build

# TensorRT-LLM 1.2.1's tensorrt_llm/config.pbtxt: name, type, dims; "s" is dims [1] reshaped to []. lora_weights is FP16
# there, which no engine of another type takes: "Expected lora weights to be the same data type as base model".
INPUTS = """
input_ids INT32 -1 | encoder_input_features TABLE -1,-1 | encoder_output_lengths INT32 s | input_lengths INT32 s
request_output_len INT32 s | num_return_sequences INT32 s | draft_input_ids INT32 -1 | decoder_input_ids INT32 -1
decoder_input_lengths INT32 s | draft_logits LOGITS -1,-1 | draft_acceptance_threshold FP32 s | end_id INT32 s
pad_id INT32 s | stop_words_list INT32 2,-1 | bad_words_list INT32 2,-1 | embedding_bias FP32 -1 | beam_width INT32 s
temperature FP32 s | runtime_top_k INT32 s | runtime_top_p FP32 s | runtime_top_p_min FP32 s
runtime_top_p_decay FP32 s | runtime_top_p_reset_ids INT32 s | len_penalty FP32 s | early_stopping BOOL s
repetition_penalty FP32 s | min_tokens INT32 s | beam_search_diversity_rate FP32 s | presence_penalty FP32 s
frequency_penalty FP32 s | seed UINT64 s | return_log_probs BOOL s | return_context_logits BOOL s
return_generation_logits BOOL s | return_perf_metrics BOOL s | return_num_input_tokens BOOL s
return_num_output_tokens BOOL s | exclude_input_in_output BOOL s | stop BOOL s | streaming BOOL s
prompt_embedding_table TABLE -1,-1 | prompt_table_extra_ids UINT64 -1 | prompt_vocab_size INT32 s
cross_attention_mask BOOL -1,-1 | mrope_rotary_cos_sin FP32 -1 | mrope_position_deltas INT64 1 | lora_task_id UINT64 s
lora_weights TABLE -1,-1 | lora_config INT32 -1,3 | context_phase_params UINT8 -1 | skip_cross_attn_blocks BOOL 1
retention_token_range_starts INT32 -1 | retention_token_range_ends INT32 -1 | retention_token_range_priorities INT32 -1
retention_token_range_durations_ms INT32 -1 | retention_decode_priority INT32 1 | retention_decode_duration_ms INT32 1
guided_decoding_guide_type STRING 1 | guided_decoding_guide STRING 1 | lookahead_window_size INT32 1
lookahead_ngram_size INT32 1 | lookahead_verification_set_size INT32 1
"""


def table(text: str, table_type: str = "TYPE_BF16") -> dict[str, tuple[str, list[int], bool]]:
    """Name -> type, dims, whether it is reshaped to a scalar."""
    types = {TABLE: table_type, LOGITS: "TYPE_FP32"}
    rows = [entry.split() for entry in text.replace("\n", "|").split("|") if entry.strip()]
    return {
        name: (types.get(kind, f"TYPE_{kind}"), [1] if dims == "s" else [int(n) for n in dims.split(",")], dims == "s")
        for name, kind, dims in rows
    }
