"""An independent way from recordings and messages to greedy tokens, for comparison with the server's.

Nothing of `step_audio` is used: files are decoded by libsndfile through librosa, spectra by torch.stft, the encoder
is written down once more from its definition, one unpadded clip at a time, the prompt is one string that the
tokenizers library reads with its special tokens on, and the decoder is transformers' own Qwen2.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from functools import wraps
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from lazy import Lazy
from step_audio.audio import encode_wav

torch, F = Lazy("torch"), Lazy("torch.nn.functional")
librosa = Lazy("librosa")
load_file = Lazy("safetensors.torch:load_file")

CLIP = 25 * 16_000


def without_gradients(method):
    @wraps(method)
    def run(*arguments, **options):
        with torch.no_grad():
            return method(*arguments, **options)

    return run


@dataclass
class Greedy:
    tokens: list[int]
    logprobs: list[float]
    margin: float  # the smallest lead of a chosen logit over the next best one


class Reference:
    """Greedy decoding in float32 of the checkpoint in `directory`."""

    def __init__(self, directory: Path):
        from transformers import Qwen2Config, Qwen2ForCausalLM  # seconds, which collecting the tests need not take

        self.weights = {}
        for file in sorted(directory.glob("*.safetensors")):
            self.weights |= {name: tensor.float() for name, tensor in load_file(file).items()}
        self.config = json.loads((directory / "config.json").read_text())
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        text = self.config["text_config"]
        keep = (
            "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "vocab_size", "max_position_embeddings", "rms_norm_eps",
        )  # fmt: skip
        qwen = Qwen2Config(
            **{key: text[key] for key in keep},
            rope_parameters={"rope_type": "default", "rope_theta": text["rope_theta"]},
            tie_word_embeddings=False,
        )
        decoder = {name: t for name, t in self.weights.items() if not name.startswith(("encoder.", "adapter."))}
        model = Qwen2ForCausalLM(qwen)
        missing, unexpected = model.load_state_dict(decoder, strict=False)
        assert not unexpected and not missing, (missing, unexpected)
        self.model = model.float().eval()
        self.stop_ids = [self.tokenizer.token_to_id(name) for name in ("<|EOT|>", "<|endoftext|>", "<|im_end|>")]

    def clips(self, recording: bytes) -> list[torch.Tensor]:
        samples, rate = librosa.load(io.BytesIO(recording), sr=None, mono=True)
        if rate != 16_000:
            samples = librosa.resample(samples, orig_sr=rate, target_sr=16_000, res_type="soxr_hq")
        return [torch.from_numpy(samples[i : i + CLIP].copy()) for i in range(0, len(samples), CLIP)]

    def log_mel(self, clip: torch.Tensor) -> torch.Tensor:
        padded = F.pad(clip, (0, 479))
        spectrum = torch.stft(padded, 400, 160, window=torch.hann_window(400), return_complex=True)
        power = spectrum[..., :-1].abs() ** 2
        bins = self.config["audio_encoder_config"]["n_mels"]
        filters = torch.from_numpy(librosa.filters.mel(sr=16_000, n_fft=400, n_mels=bins))
        log = (filters @ power).clamp(min=1e-10).log10()
        return (torch.maximum(log, log.max() - 8) + 4) / 4

    @without_gradients
    def embed_clip(self, clip: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden]"""
        w = self.weights
        heads = self.config["audio_encoder_config"]["n_audio_head"]

        def conv(x: torch.Tensor, name: str, stride: int) -> torch.Tensor:
            return F.gelu(F.conv1d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride=stride, padding=1))

        def linear(x: torch.Tensor, name: str) -> torch.Tensor:
            return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

        def norm(x: torch.Tensor, name: str) -> torch.Tensor:
            return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

        x = conv(conv(self.log_mel(clip)[None], "encoder.conv1", 1), "encoder.conv2", 2)[0].T
        x = x + w["encoder.positional_embedding.weight"][: len(x)]
        for i in range(self.config["audio_encoder_config"]["n_audio_layer"]):
            block = f"encoder.blocks.{i}"
            y = norm(x, f"{block}.attn_ln")
            q, k, v = (
                linear(y, f"{block}.attn.{part}").view(len(x), heads, -1).transpose(0, 1)
                for part in ("query", "key", "value")
            )
            attention = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v
            x = x + linear(attention.transpose(0, 1).reshape(len(x), -1), f"{block}.attn.out")
            y = norm(x, f"{block}.mlp_ln")
            x = x + linear(F.gelu(linear(y, f"{block}.mlp.0")), f"{block}.mlp.2")
        x = norm(F.avg_pool1d(x.T[None], 2)[0].T, "encoder.after_norm")
        x = conv(x.T[None], "adapter.conv", 2)[0].T
        return linear(F.relu(linear(x, "adapter.linear1")), "adapter.linear2")

    def prompt_embeddings(self, prompt: str, recordings: list[bytes]) -> torch.Tensor:
        """`prompt`: the rendered string, `<audio_patch>` where a recording stands."""
        tables = []
        for recording in recordings:
            tables.append([self.embed_clip(clip) for clip in self.clips(recording)])
        wrapped = iter(
            "".join(f"<audio_start>{'<audio_patch>' * len(table)}<audio_end>" for table in clips) for clips in tables
        )
        pieces = prompt.split("<audio_patch>")
        text = pieces[0] + "".join(next(wrapped) + piece for piece in pieces[1:])
        ids = torch.tensor(self.tokenizer.encode(text, add_special_tokens=False).ids)
        embeddings = self.weights["model.embed_tokens.weight"][ids].clone()
        flat = [table for clips in tables for table in clips]
        if flat:
            embeddings[ids == self.tokenizer.token_to_id("<audio_patch>")] = torch.cat(flat)
        return embeddings

    @without_gradients
    def greedy(self, prompt: str, recordings: list[bytes], max_tokens: int) -> Greedy:
        inputs = self.prompt_embeddings(prompt, recordings)[None]
        cache, tokens, logprobs, margin = None, [], [], float("inf")
        for _ in range(max_tokens):
            output = self.model(inputs_embeds=inputs, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            best = output.logits[0, -1].topk(2)
            margin = min(margin, float(best.values[0] - best.values[1]))
            tokens.append(int(best.indices[0]))
            logprobs.append(float(output.logits[0, -1].log_softmax(-1)[tokens[-1]]))
            if tokens[-1] in self.stop_ids:
                break
            inputs = self.model.model.embed_tokens(best.indices[0][None, None])
        return Greedy(tokens, logprobs, margin)


def sine_speech(seconds: float, seed: int, rate: int = 16_000) -> bytes:
    """A WAV file of gliding harmonics with pauses, for where no recording is at hand."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    pitch = 110 + 60 * np.sin(2 * np.pi * rng.uniform(0.2, 0.6) * t + rng.uniform(0, 6))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    voice = sum(np.sin(k * phase) / k for k in range(1, 12))
    gate = (np.sin(2 * np.pi * rng.uniform(1, 3) * t) > -0.5).astype(float)
    samples = 0.1 * voice * gate + 0.003 * rng.standard_normal(len(t))
    return encode_wav(samples, rate)
