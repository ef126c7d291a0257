"""A tiny Qwen2 decoder, written to rank files by hand, and a few ways to ask an engine for answers."""

from __future__ import annotations

import json
import math
import tempfile
import threading
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from lazy import Lazy
from step_audio.engine import Engine, EngineOptions, GenerationRequest, SamplingParams, SequenceOutput
from step_audio.engine.executor import Batch
from step_audio.engine.trtllm_checkpoint import load_engine
from waiting import SECONDS

torch = Lazy("torch")
save_file = Lazy("safetensors.torch:save_file")

VOCAB = 1001  # odd, so that two ranks need a padding row
HIDDEN = 64
BUILD = {
    "max_batch_size": 8,
    "max_seq_len": 512,
    "max_num_tokens": 128,
    "max_prompt_embedding_table_size": 8 * 100,
    "plugin_config": {"tokens_per_block": 32},
}


@cache
def hugging_face():
    """Weights large enough that answers depend on the whole prompt and near-ties are rare."""
    from transformers import Qwen2Config, Qwen2ForCausalLM  # seconds, which collecting the tests need not take

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=BUILD["max_seq_len"],
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )
    model = Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm" in name:
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("bias") or "embed" in name:
                tensor.normal_()
            else:
                tensor.normal_(std=tensor.shape[1] ** -0.5)
    return model


def write_engine(
    directory: Path,
    tp: int = 1,
    dtype: torch.dtype | None = None,
    build: dict | None = None,
    changed: dict[str, torch.Tensor] | None = None,
) -> Path:
    """`hugging_face()` as TensorRT-LLM would have it on `tp` GPUs; `changed`: tensors in place of its own."""
    model, dtype = hugging_face(), dtype or torch.float32
    state = {name: tensor.to(dtype) for name, tensor in {**model.state_dict(), **(changed or {})}.items()}
    config = model.config
    head = config.hidden_size // config.num_attention_heads
    copies = max(tp // config.num_key_value_heads, 1)

    def rows(tensor, rank, parts=tp):
        return tensor.chunk(parts)[rank]

    directory.mkdir(parents=True, exist_ok=True)
    padding = torch.zeros(math.ceil(VOCAB / tp) * tp - VOCAB, config.hidden_size, dtype=dtype)
    for rank in range(tp):
        tensors = {
            "transformer.vocab_embedding.weight": state["model.embed_tokens.weight"],
            "transformer.ln_f.weight": state["model.norm.weight"],
            "lm_head.weight": rows(torch.cat([state["lm_head.weight"], padding]), rank),
        }
        for index in range(config.num_hidden_layers):
            theirs, ours = f"model.layers.{index}", f"transformer.layers.{index}"
            for kind in ("weight", "bias"):
                q, k, v = (state[f"{theirs}.self_attn.{name}_proj.{kind}"] for name in "qkv")
                shares = [rows(q, rank), *(rows(part, rank // copies, tp // copies) for part in (k, v))]
                assert shares[1].shape[0] % head == 0
                tensors[f"{ours}.attention.qkv.{kind}"] = torch.cat(shares)
            tensors[f"{ours}.attention.dense.weight"] = state[f"{theirs}.self_attn.o_proj.weight"].chunk(tp, 1)[rank]
            tensors[f"{ours}.mlp.fc.weight"] = rows(state[f"{theirs}.mlp.gate_proj.weight"], rank)
            tensors[f"{ours}.mlp.gate.weight"] = rows(state[f"{theirs}.mlp.up_proj.weight"], rank)
            tensors[f"{ours}.mlp.proj.weight"] = state[f"{theirs}.mlp.down_proj.weight"].chunk(tp, 1)[rank]
            tensors[f"{ours}.input_layernorm.weight"] = state[f"{theirs}.input_layernorm.weight"]
            tensors[f"{ours}.post_layernorm.weight"] = state[f"{theirs}.post_attention_layernorm.weight"]
        save_file(
            {name: tensor.clone().contiguous() for name, tensor in tensors.items()},
            directory / f"rank{rank}.safetensors",
        )
    pretrained = {
        "architecture": "Qwen2ForCausalLM",
        "dtype": str(dtype).removeprefix("torch."),
        "vocab_size": VOCAB,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "norm_epsilon": config.rms_norm_eps,
        "rotary_base": 1e6,
        "mapping": {"world_size": tp, "tp_size": tp, "pp_size": 1},
    }
    settings = {"version": "1.2.1", "pretrained_config": pretrained, "build_config": {**BUILD, **(build or {})}}
    (directory / "config.json").write_text(json.dumps(settings))
    return directory


@cache
def model():
    """(spec, weights) of the tiny engine; the directory may go, the mapping stays."""
    with tempfile.TemporaryDirectory() as directory:
        return load_engine(write_engine(Path(directory)))


def options(**changes) -> EngineOptions:
    return EngineOptions(engine_dir="unused", threads=2, **changes)


@dataclass
class Answer:
    """Everything that came out for one request."""

    outputs: list[SequenceOutput] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def __call__(self, output: SequenceOutput) -> None:
        self.outputs.append(output)
        if output.final:
            self.done.set()

    def wait(self) -> Answer:
        assert self.done.wait(SECONDS), "no final output"
        return self

    def tokens(self, index: int = 0) -> list[int]:
        return [token for output in self.outputs if output.sequence_index == index for token in output.token_ids]

    def log_probs(self, index: int = 0) -> list[float]:
        return [value for output in self.outputs if output.sequence_index == index for value in output.log_probs]

    @property
    def last(self) -> SequenceOutput:
        return self.outputs[-1]


def submit(engine: Engine, name: str, ids, max_new_tokens: int = 16, **fields) -> Answer:
    """`fields` of SamplingParams and of GenerationRequest alike."""
    sampling = {key: fields.pop(key) for key in list(fields) if key in SamplingParams.__slots__}
    answer = Answer()
    engine.submit(
        GenerationRequest(name, np.asarray(ids, np.int32), max_new_tokens, answer, SamplingParams(**sampling), **fields)
    )
    return answer


def ask(engine: Engine, ids, max_new_tokens: int = 16, **fields) -> Answer:
    return submit(engine, "only", ids, max_new_tokens, **fields).wait()


def prompt(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([length, seed]).integers(0, VOCAB, length).astype(np.int32)


def generate(ids, max_new_tokens: int = 16, embeddings: np.ndarray | None = None) -> list[int]:
    """transformers' greedy answer; `embeddings` [n, hidden] in place of the ids' own."""
    ids = np.asarray(ids, np.int64)
    return list(_generate(ids.tobytes(), max_new_tokens, None if embeddings is None else embeddings.tobytes()))


@cache
def _generate(ids: bytes, max_new_tokens: int, embeddings: bytes | None) -> list[int]:
    prompt = torch.from_numpy(np.frombuffer(ids, np.int64).copy())[None]
    inputs = {"input_ids": prompt}
    if embeddings is not None:
        inputs = {"inputs_embeds": torch.from_numpy(np.frombuffer(embeddings, np.float32).copy()).view(1, -1, HIDDEN)}
    torch.set_num_threads(1)  # for so small a model the second thread only gets in the way
    with torch.inference_mode():
        out = hugging_face().generate(
            **inputs, attention_mask=torch.ones_like(prompt), max_new_tokens=max_new_tokens, do_sample=False
        )
    return out[0, 0 if embeddings is not None else prompt.shape[1] :].tolist()


LAYOUT = {"a": [3, 9, 1, 0], "b": [7, 8], "c": [5]}  # blocks of three sequences, in no order


def batch(embed, *parts):
    """parts: (sequence, past, ids); all logits of the last position of each."""
    sizes = [len(ids) for _, _, ids in parts]
    begins = np.cumsum([0, *sizes]).astype(np.int32)
    used = [LAYOUT[name][: -(-(past + len(ids)) // 32)] for name, past, ids in parts]
    return Batch(
        embeddings=embed(np.concatenate([ids for _, _, ids in parts])),
        position_ids=np.concatenate([np.arange(past, past + len(ids)) for _, past, ids in parts]).astype(np.int32),
        past_lens=np.array([past for _, past, _ in parts], np.int32),
        subsequence_begins=begins,
        block_indices=np.concatenate(used).astype(np.int32),
        block_indices_begins=np.cumsum([0, *(len(blocks) for blocks in used)]).astype(np.int32),
        max_context_len=max(past + len(ids) for _, past, ids in parts),
        logit_indices=begins[1:] - 1,
    )
