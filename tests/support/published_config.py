"""The published model's config.json."""

AUDIO = {
    "n_mels": 128, "n_audio_ctx": 1500, "n_audio_state": 1280, "n_audio_head": 20, "n_audio_layer": 32,
    "llm_dim": 5120, "kernel_size": 3, "adapter_stride": 2, "n_codebook_size": 4096,
}  # fmt: skip
TEXT = {
    "hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64, "num_attention_heads": 40,
    "vocab_size": 158720, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "rope_scaling": None,
}  # fmt: skip
NESTED = {
    "model_type": "step_audio_2",
    "text_config": {**TEXT, "num_key_value_heads": 8, "max_position_embeddings": 65536, "torch_dtype": "bfloat16"},
    "audio_encoder_config": AUDIO,
}
