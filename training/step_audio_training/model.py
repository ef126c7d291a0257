"""The trainable model: the product's own encoder, transformers' Qwen2 behind it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from step_audio.config import ModelConfig
from step_audio.encoder import Attention, AudioEncoder
from step_audio_training.collation import IGNORED, LETTERS, TrainingBatch
from step_audio_training.recordings import SOUNDS


def qwen2(config: ModelConfig) -> Qwen2ForCausalLM:
    """The decoder, with random weights."""
    text = config.text
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=text.vocab_size,
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            num_hidden_layers=text.num_hidden_layers,
            num_attention_heads=text.num_attention_heads,
            num_key_value_heads=text.num_key_value_heads,
            max_position_embeddings=text.max_position_embeddings,
            rms_norm_eps=text.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": text.rope_theta},
            tie_word_embeddings=False,
        )
    )
    model.set_attn_implementation("eager")  # torch's fused attention takes four times as long in bfloat16 on a CPU
    return model


class PlainAttention(Attention):
    """The encoder's attention by two products: torch's fused one takes 2.6 times as long in bfloat16 on a CPU, and is a
    fifth of a step."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor) -> Tensor:
        scores = q @ k.transpose(-1, -2)
        shares = scores.masked_fill(~key_mask, torch.finfo(scores.dtype).min).softmax(-1)
        return shares.to(v.dtype) @ v


HEARING = {"spelled": 0.6, "letters": 0.3, "words": 1.0, "sounds": 1.0}  # weights of the losses
WEIGHED = {"nothing": 0.4, "loud word": 3.0}  # of the sounds: much of each clip is the one, one word in four the other
LETTERS_PER_TOKEN = 3  # that an embedding has room for: 37.5 a second, more than anybody says
LETTERS_PER_FRAME = 2  # of the encoder: 50 a second, so that neighbours that are alike have a place between them
SPELLING_WIDTH, SPELLING_KERNEL = 512, 5


@dataclass
class Heard:
    """The encoder's output `frames` [clips, T, width], and the adaptor's `embeddings` [clips, tok, hidden]."""

    frames: Tensor
    embeddings: Tensor


class Listener(nn.Module):
    """The heads for letters, tokens and sounds only help encoder and adaptor to learn; they are not part of the
    checkpoint."""

    sound_weights: Tensor
    trained_ids: Tensor
    position: Tensor  # among the trained ids, of each id; -1 for the others

    def __init__(self, config: ModelConfig, trained_ids: Tensor):
        """`trained_ids` int64 [n]: the tokens that occur. The other rows of the head are zero and stay so: their
        logits are 0, and the softmax counts them without computing them."""
        super().__init__()
        self.config = config
        self.audio = AudioEncoder(config.audio, "L")
        for block in self.audio.encoder.blocks:
            block.attn = PlainAttention(config.audio.n_audio_state, config.audio.n_audio_head)
        self.decoder = qwen2(config)
        width, around = config.audio.n_audio_state, SPELLING_KERNEL // 2
        self.spelling = nn.Sequential(
            nn.Conv1d(width, SPELLING_WIDTH, SPELLING_KERNEL, padding=around),
            nn.GELU(),
            nn.Conv1d(SPELLING_WIDTH, SPELLING_WIDTH, SPELLING_KERNEL, padding=around),
            nn.GELU(),
            nn.Conv1d(SPELLING_WIDTH, LETTERS_PER_FRAME * (len(LETTERS) + 1), 1),
        )
        self.letters = nn.Linear(config.text.hidden_size, LETTERS_PER_TOKEN * (len(LETTERS) + 1))
        self.sounds = nn.Linear(config.text.hidden_size, len(SOUNDS))
        self.blank = nn.Linear(config.text.hidden_size, 1)
        self.sharpness = nn.Parameter(torch.tensor(20.0))  # embeddings of tokens are short, and are to stay so
        weights = torch.tensor([WEIGHED.get(sound, 1.0) for sound in SOUNDS])
        self.register_buffer("sound_weights", weights, persistent=False)
        self.register_buffer("trained_ids", trained_ids, persistent=False)
        position = torch.full((config.text.vocab_size,), -1)
        position[trained_ids] = torch.arange(len(trained_ids))
        self.register_buffer("position", position, persistent=False)
        self.untrained = math.log(config.text.vocab_size - len(trained_ids))
        with torch.no_grad():
            self.audio.encoder.positional_embedding.weight.copy_(
                _sinusoids(config.audio.n_audio_ctx, config.audio.n_audio_state)
            )
            self.decoder.lm_head.weight.zero_()
            self.decoder.lm_head.weight[trained_ids] = 0.02 * torch.randn(len(trained_ids), config.text.hidden_size)

    def embed(self, batch: TrainingBatch, encoder_learns: bool = True) -> Heard:
        if batch.heard is not None:
            return Heard(batch.heard, self.audio.adapter(batch.heard))
        with torch.set_grad_enabled(encoder_learns and torch.is_grad_enabled()):
            frames = self.audio.encoder(batch.mels, batch.frames, masked_frames=0)
        return Heard(frames, self.audio.adapter(frames))

    def hearing_loss(self, heard: Heard, batch: TrainingBatch) -> dict[str, Tensor]:
        """How well the encoder's frames tell the letters of what is said, in order (CTC, a letter's mean), where it
        learns; and the embeddings these (the same), its tokens (the same), and which sound there is at each (cross
        entropy).

        The frames' letters are learnt within minutes, where the embeddings', which are few, take hours.

        For tokens they are held against the decoder's own embeddings: what it reads of a recording comes to look like
        the words that it has learnt to copy from text. Those learn with it only where it answers as well: else they
        would be words that it does not know.
        """
        embeddings = heard.embeddings.float()
        lengths = (batch.sounds != IGNORED).sum(1)
        spelled = {} if batch.heard is not None else {"spelled": self._spelled(heard, batch)}
        letters = self.letters(embeddings).unflatten(2, (LETTERS_PER_TOKEN, -1)).flatten(1, 2)
        told = _ctc(letters, batch.letters, LETTERS_PER_TOKEN * lengths, batch.letter_counts)
        table = self.decoder.model.embed_tokens.weight[self.trained_ids]
        table = table if batch.groups else table.detach()
        words = torch.cat([self.blank(embeddings), self.sharpness * F.linear(embeddings, table)], 2)
        read = _ctc(words, self.position[batch.words] + 1, lengths, batch.word_counts)
        sounds = F.cross_entropy(
            self._sounds(heard).transpose(1, 2), batch.sounds, ignore_index=IGNORED, weight=self.sound_weights
        )
        return {**spelled, "letters": told, "words": read, "sounds": sounds}

    def _spelled(self, heard: Heard, batch: TrainingBatch) -> Tensor:
        frames = self.spelling(heard.frames.transpose(1, 2)).transpose(1, 2).float()
        frames = frames.unflatten(2, (LETTERS_PER_FRAME, -1)).flatten(1, 2)
        return _ctc(frames, batch.letters, LETTERS_PER_FRAME * ((batch.frames + 1) // 4), batch.letter_counts)

    def _sounds(self, heard: Heard) -> Tensor:
        scores: Tensor = self.sounds(heard.embeddings.float())
        return scores

    def answer_loss(self, heard: Heard | None, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        """Mean cross entropy of the answers' tokens, and the share of them that comes first.

        A token of a long answer counts less than one of a short answer, by the root of the lengths: the one word that
        answers a question about a sound would else be lost among the steps of sums.
        """
        vocab = self.config.text.vocab_size
        table = self.decoder.model.embed_tokens.weight
        rows = heard.embeddings[batch.sounds != IGNORED] if heard else table[:0]  # each clip's own
        states, targets, weights = [], [], []
        for ids, labels in batch.groups:
            inputs = self.decoder.model.embed_tokens(ids.clamp(max=vocab - 1))
            audio = ids >= vocab
            inputs = inputs.masked_scatter(audio[:, :, None], rows[ids[audio] - vocab].to(inputs.dtype))
            hidden = self.decoder.model(inputs_embeds=inputs, use_cache=False).last_hidden_state
            counted = labels != IGNORED
            states.append(hidden[counted])
            targets.append(self.position[labels[counted]])
            weights.append((counted / counted.sum(1, keepdim=True).sqrt())[counted])
        logits = F.linear(torch.cat(states), self.decoder.lm_head.weight[self.trained_ids]).float()
        logits = F.pad(logits, (0, 1), value=self.untrained)
        target, weight = torch.cat(targets), torch.cat(weights)
        losses = F.cross_entropy(logits, target, reduction="none")
        return (weight * losses).sum() / weight.sum(), (logits.argmax(-1) == target).float().mean()


def _ctc(scores: Tensor, targets: Tensor, lengths: Tensor, counts: Tensor) -> Tensor:
    """Mean loss of a target. `scores` [clips, T, classes], of which the first is none of them; `targets` [n], of all
    clips one after the other, `lengths` and `counts` [clips]: of the scores and of the targets."""
    loss = F.ctc_loss(
        scores.log_softmax(2).transpose(0, 1), targets, lengths, counts, zero_infinity=True, reduction="sum"
    )
    return loss / counts.sum().clamp(min=1)


def _sinusoids(length: int, width: int) -> Tensor:
    """Whisper's: a start from which positions that training never reaches are not noise."""
    scale = torch.exp(-math.log(10_000) * torch.arange(width // 2) / (width // 2 - 1))
    angle = torch.arange(length)[:, None] * scale
    return 0.1 * torch.cat([angle.sin(), angle.cos()], 1)
