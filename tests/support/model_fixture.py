"""A small model's configuration, and what its steps are told when they run."""

from step_audio.config import AudioEncoderConfig, ModelConfig, TextConfig
from step_audio.steps.runtime import Limits, Runtime


def model(positions: int = 65_536) -> ModelConfig:
    return ModelConfig(
        text=TextConfig(
            hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=8, num_key_value_heads=2,
            head_dim=16, vocab_size=1000, max_position_embeddings=positions, rms_norm_eps=1e-5, rope_theta=1e6,
            dtype="bfloat16",
        ),
        audio=AudioEncoderConfig(
            n_mels=128, n_audio_ctx=1500, n_audio_state=64, n_audio_head=4, n_audio_layer=1, llm_dim=64,
            kernel_size=3, adapter_stride=2,
        ),
    )  # fmt: skip


def runtime() -> Runtime:
    return Runtime(
        model=model(), name="Step-Audio-R1.1", tokenizer_file="/srv/private/tokenizer.json",
        encoder_file="/srv/private/encoder.onnx", chat_template="/srv/private/mine.jinja", length_rule="L-2",
        max_seq_len=8192, max_batch_size=32, max_prompt_table_rows=4096, tokens_per_block=32, encoder_batch_clips=8,
        encoder_cache_bytes=1 << 20, table_dtype="float16", limits=Limits(max_audios=3),
        sampling_parameters=("temperature", "seed"),
    )  # fmt: skip
