"""The same questions through plain torch, for comparison with the tokens that were served.

The encoder's module and transformers' Qwen2, one question at a time in float32, with neither engine, batching,
paged cache nor quantisation between the weights and the choice of the next token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from step_audio.arrays import Float32Array
from step_audio.audio import decode_audio
from step_audio.chat import ClipInfo, build_prompt
from step_audio.checkpoint import Checkpoint, decoder_tensors, to_float32
from step_audio.clips import content_hash, split_clips
from step_audio.config import ModelConfig
from step_audio.conversation import parse_conversation
from step_audio.encoder import load_encoder
from step_audio.mel import frame_count, log_mel, token_count
from step_audio.tokenizer import Tokenizer
from step_audio_client.messages import split_audio
from step_audio_evaluation.agreement import Greedy
from step_audio_evaluation.items import Item
from step_audio_training.model import qwen2


class TorchReference:
    """Raises CheckpointError for a directory that is no checkpoint."""

    def __init__(self, directory: Path):
        self.config = ModelConfig.from_directory(directory)
        self.tokenizer = Tokenizer.from_directory(directory)
        checkpoint = Checkpoint(directory)
        self.encoder = load_encoder(checkpoint, self.config.audio, "L")
        weights = {
            name: torch.from_numpy(to_float32(checkpoint.read(name))) for name in decoder_tensors(self.config.text)
        }
        self.stop_ids = self.tokenizer.special.stop_ids
        self.decoder = qwen2(self.config).eval()
        self.decoder.load_state_dict(weights, assign=True)

    @torch.no_grad()
    def greedy(self, item: Item, max_tokens: int) -> Greedy:
        """Up to and including a stop token."""
        inputs, cache = self._prompt(item)[None], None
        token_ids: list[int] = []
        margins: list[float] = []
        while len(token_ids) < max_tokens:
            output = self.decoder(inputs_embeds=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            best = output.logits[0, -1].topk(2)
            token_ids.append(int(best.indices[0]))
            margins.append(float(best.values[0] - best.values[1]))
            if token_ids[-1] in self.stop_ids:
                break
            inputs = self.decoder.model.embed_tokens(best.indices[:1])[None]
        return Greedy(token_ids, margins)

    def text(self, token_ids: Sequence[int]) -> str:
        return self.tokenizer.decode(token_ids)

    def _prompt(self, item: Item) -> Tensor:
        """Embeddings [positions, hidden] of the prompt, recordings in their places."""
        messages, recordings = split_audio(item.request())
        samples = [split_clips(decode_audio(recording)) for recording in recordings]
        prompt = build_prompt(
            parse_conversation(messages, json.dumps(item.tools)),
            self.tokenizer,
            self.config.text.vocab_size,
            [[ClipInfo(token_count(frame_count(len(c))), content_hash(c)) for c in clips] for clips in samples],
            add_generation_prompt=item.prefix is None,
            continue_final_message=item.prefix is not None,
        )
        ids = torch.from_numpy(prompt.input_ids).long()
        audio = ids >= self.config.text.vocab_size  # these are rows of the clips, one clip after the other
        embeddings: Tensor = self.decoder.model.embed_tokens(ids.masked_fill(audio, 0))
        if rows := [self._embed(clip) for clips in samples for clip in clips]:
            embeddings[audio] = torch.cat(rows)
        return embeddings

    def _embed(self, clip: Float32Array) -> Tensor:
        """[tokens, hidden]"""
        mel = log_mel(clip, self.config.audio.n_mels)
        embeddings: Tensor = self.encoder(torch.from_numpy(mel)[None], torch.tensor([mel.shape[1]]))[0]
        return embeddings
