"""Training batches, made on the fly from a seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from step_audio.arrays import Float32Array, Int64Array
from step_audio.chat import ClipInfo, build_prompt
from step_audio.chat_template import CLOSE_THOUGHT, NO_THOUGHT
from step_audio.clips import content_hash
from step_audio.conversation import parse_conversation
from step_audio.mel import (
    ADAPTOR_STRIDE,
    TOKENS_PER_SECOND,
    frame_count,
    log_mel,
    pad_batch,
    pooled_frames,
    token_count,
)
from step_audio.tokenizer import Tokenizer
from step_audio_training import arithmetic, sentences
from step_audio_training.examples import (
    ACOUSTIC,
    ONE_RECORDING,
    SHARES,
    Example,
    Task,
    draw_task,
    make_example,
    typed,
)
from step_audio_training.recordings import (
    SOUNDS,
    DrawnRecording,
    draw_conditions,
    draw_recording,
    draw_unspoken,
    record,
)

RECORDINGS = 16  # of a batch
EXAMPLES = 24  # of a batch: a recording is asked about one and a half times
TYPED = 12  # of a batch: further examples, without recordings
DRILLS = 18  # of a batch: what is practised in writing
PRACTICE: tuple[Task, ...] = (  # what is practised in writing
    "text_only", "text_only", "arithmetic", "arithmetic", "arithmetic_cut_thought", "tool_result",
)  # fmt: skip
GROUPS = 4  # of examples of similar length, each padded to its own longest
BATCHES = 6  # drawn together and sorted by length, so that little is padded
IGNORED = -100  # labels that do not count, as torch's cross entropy has it

_QUESTION_WORDS = "what is how much tell me work out please compute and now add take away the my on code a hundred"
WORDS = tuple(
    sorted(
        {
            *arithmetic.ONES, *filter(None, arithmetic.TENS), *arithmetic.SPOKEN.values(), *_QUESTION_WORDS.split(),
            *(word for words in sentences.WORD_LISTS for word in words),
        }
    )
)  # fmt: skip
WORD_IDS = {word: n + 1 for n, word in enumerate(WORDS)}  # 0 is no word
SOUND_IDS = {sound: n for n, sound in enumerate(SOUNDS)}


def heard_when(
    recording: DrawnRecording, before: float, tokens: int, frames: int
) -> tuple[Int64Array, Int64Array, Int64Array]:
    """What is heard when, with `before` seconds of silence in front.

    Which word (0 for none) and which of SOUNDS at each of the clip's `tokens` embeddings, and which phoneme (0 for
    none) at each of the encoder's `frames` before the adaptor; at the middle of each, int64.
    """
    words, sounds, phonemes = np.zeros(tokens, np.int64), np.zeros(tokens, np.int64), np.zeros(frames, np.int64)
    at = (np.arange(tokens) + 0.5) / TOKENS_PER_SECOND - before
    for word, (start, end) in zip(recording.text.split(), recording.words, strict=False):
        words[(at >= start) & (at < end)] = WORD_IDS[word]
    for start, end, sound in recording.sounds:
        sounds[(at >= start) & (at < end)] = SOUND_IDS[sound]
    at = (np.arange(frames) + 0.5) / (TOKENS_PER_SECOND * ADAPTOR_STRIDE) - before
    for start, phoneme in recording.phonemes:
        phonemes[at >= start] = phoneme
    return words, sounds, phonemes


@dataclass
class TrainingBatch:
    """`mels` float32 [clips, n_mels, T], `frames` int64 [clips].

    `words` and `sounds` int64 [clips, tok], `phonemes` int64 [clips, pooled frames]: what is heard there, 0 for
    nothing, IGNORED past the clip's end.

    `groups`: pairs of `ids` int64 [examples, S], each a token, or vocabulary size + row of the clips' embeddings, all
    clips' own rows one after the other; and `labels` int64 [examples, S], the token that comes next, IGNORED outside
    the answer.
    """

    mels: torch.Tensor
    frames: torch.Tensor
    words: torch.Tensor
    sounds: torch.Tensor
    phonemes: torch.Tensor
    groups: list[tuple[torch.Tensor, torch.Tensor]]

    def to(self, device: torch.device) -> TrainingBatch:
        return TrainingBatch(
            self.mels.to(device),
            self.frames.to(device),
            self.words.to(device),
            self.sounds.to(device),
            self.phonemes.to(device),
            [(ids.to(device), labels.to(device)) for ids, labels in self.groups],
        )


class Encoded:
    """An example as tokens: `prompt` as the server builds it, `answer` what the model is to write."""

    def __init__(self, example: Example, clips: Sequence[Float32Array], tokenizer: Tokenizer, vocab_size: int):
        """`clips`: samples of the example's recordings."""
        thinks = example.thought is not None
        messages = example.messages if thinks else [*example.messages, {"role": "assistant", "content": NO_THOUGHT}]
        infos = [[ClipInfo(token_count(frame_count(len(clip))), content_hash(clip))] for clip in clips]
        conversation = parse_conversation(messages, example.tools)
        prompt = build_prompt(
            conversation, tokenizer, vocab_size, infos, add_generation_prompt=thinks, continue_final_message=not thinks
        )
        self.prompt: list[int] = prompt.input_ids.tolist()
        self.answer: list[int] = []
        if example.thought is not None:
            thought = tokenizer.encode(example.thought)
            end = tokenizer.encode(CLOSE_THOUGHT)
            if example.cut is None:
                self.answer += thought + end
            else:  # what is there of the thought is given, not learnt
                self.prompt += thought[: max(1, int(example.cut * len(thought)))] + end
        self.answer += [*_encode_answer(example.answer, tokenizer), tokenizer.special.eot]


def _encode_answer(text: str, tokenizer: Tokenizer) -> list[int]:
    """The answer's tokens, tool calls within their control tokens."""
    if not text.startswith("<tool_call>"):
        return tokenizer.encode(text)
    body = text.removeprefix("<tool_call>").removesuffix("</tool_call>")
    return [tokenizer.special.tool_call, *tokenizer.encode(body), tokenizer.special.tool_call_end]


def _examples(recordings: Sequence[DrawnRecording], random: np.random.Generator, held_out: bool) -> list[Example]:
    """EXAMPLES about these recordings, in which each is heard at least once if any task suits it."""
    made: list[Example] = []
    tasks = np.array(list(SHARES))
    weights = np.array(list(SHARES.values()))
    for recording in recordings:  # a task that suits it, by the tasks' shares
        order = random.choice(len(tasks), len(tasks), replace=False, p=weights / weights.sum())
        suitable = (make_example(task, [recording], random, held_out) for task in tasks[order] if task in ONE_RECORDING)
        made += filter(None, [next(filter(None, suitable), None)])
    while len(made) < EXAMPLES:
        task: Task = draw_task(random)
        picked = [recordings[n] for n in random.choice(len(recordings), 2, replace=False)]
        if task == "second_turn":
            picked = [picked[0], draw_recording(random, held_out, "follow_up")]
        if example := make_example(task, picked, random, held_out):
            made.append(example)
    return made


class Batches(Dataset[list[TrainingBatch]]):
    """`Batches(...)[n]` is the n-th draw from `first` on: BATCHES batches."""

    def __init__(self, seed: int, first: int, last: int, tokenizer_json: str, vocab_size: int, held_out: bool = False):
        self.seed, self.first, self.last = seed, first, last
        self.tokenizer_json, self.vocab_size = tokenizer_json, vocab_size
        self.held_out = held_out
        self.tokenizer: Tokenizer | None = None

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, n: int) -> list[TrainingBatch]:
        self.tokenizer = self.tokenizer or Tokenizer(self.tokenizer_json)
        random = np.random.default_rng([self.seed, self.first + n])
        recordings = [draw_recording(random, self.held_out) for _ in range(RECORDINGS * BATCHES)]
        recordings.sort(key=lambda recording: recording.seconds)
        groups = [recordings[k * RECORDINGS : (k + 1) * RECORDINGS] for k in range(BATCHES)]
        return [self._batch(groups[k], random) for k in random.permutation(BATCHES)]

    def _batch(self, recordings: Sequence[DrawnRecording], random: np.random.Generator) -> TrainingBatch:
        assert self.tokenizer
        examples = _examples(recordings, random, self.held_out)
        heard = {id(r): r for r in recordings} | {id(r): r for e in examples for r in e.recordings}
        if not self.held_out:  # what it is watched on are recordings
            practised = PRACTICE * (DRILLS // len(PRACTICE))
            examples += [self._typed(task, random) for task in (*[None] * TYPED, *practised)]
        conditions = {key: draw_conditions(random, self.held_out) for key in heard}
        samples = {key: record(r, conditions[key], random) for key, r in heard.items()}
        encoded = [
            Encoded(e, [samples[id(r)] for r in e.recordings], self.tokenizer, self.vocab_size) for e in examples
        ]
        return collate(
            list(samples.values()),
            [(r, conditions[key].before) for key, r in heard.items()],
            encoded,
            [[list(heard).index(id(r)) for r in e.recordings] for e in examples],
            self.vocab_size,
        )

    def _typed(self, task: Task | None, random: np.random.Generator) -> Example:
        """What might have been said, in writing; None for any task."""
        wanted = task
        while True:
            task = wanted or draw_task(random)
            recordings = [draw_unspoken(random, self.held_out) for _ in range(2)]
            if task == "second_turn":
                recordings[1] = draw_unspoken(random, self.held_out, "follow_up")
            example = make_example(task, recordings, random, self.held_out)
            if example and example.task not in ACOUSTIC:
                return typed(example)


def collate(
    samples: Sequence[Float32Array],
    said: Sequence[tuple[DrawnRecording, float]],
    encoded: Sequence[Encoded],
    heard: Sequence[Sequence[int]],
    vocab_size: int,
) -> TrainingBatch:
    """`said[c]`: clip c's recording, and the seconds of silence before it; `heard[e]`: example e's clips, in order."""
    mels, frames = pad_batch([log_mel(clip) for clip in samples])
    counts = [token_count(int(length)) for length in frames]
    starts = np.concatenate([[0], np.cumsum(counts)])
    wholes, labels = [], []
    for example, clips in zip(encoded, heard, strict=True):
        rows = np.concatenate([np.arange(starts[c], starts[c + 1]) for c in clips]) if clips else np.zeros(0, np.int64)
        whole = np.array(example.prompt + example.answer)
        audio = whole >= vocab_size
        whole[audio] = vocab_size + rows[whole[audio] - vocab_size]
        wholes.append(whole[:-1])
        labels.append(np.array([IGNORED] * (len(example.prompt) - 1) + example.answer))
    order = np.argsort([len(whole) for whole in wholes])
    groups = [
        (_stack([wholes[n] for n in part], 0), _stack([labels[n] for n in part], IGNORED))
        for part in np.array_split(order, GROUPS)
    ]
    targets = [
        heard_when(recording, before, count, pooled_frames(int(length)))
        for (recording, before), count, length in zip(said, counts, frames, strict=True)
    ]
    words, sounds, phonemes = (_stack(list(rows), IGNORED) for rows in zip(*targets, strict=True))
    lengths = torch.from_numpy(frames.astype(np.int64))
    return TrainingBatch(torch.from_numpy(mels), lengths, words, sounds, phonemes, groups)


def _stack(rows: Sequence[Int64Array], filling: int) -> torch.Tensor:
    stacked = np.full((len(rows), max(map(len, rows))), filling, np.int64)
    for target, row in zip(stacked, rows, strict=True):
        target[: len(row)] = row
    return torch.from_numpy(stacked)


def training_batches(
    seed: int, first: int, last: int, tokenizer_json: str, vocab_size: int, workers: int
) -> Iterator[TrainingBatch]:
    """The batches of steps `first` to `last`. A run that goes on does not repeat the draw it was interrupted in."""
    draws = Batches(seed, -(-first // BATCHES), -(-last // BATCHES) + 1, tokenizer_json, vocab_size)
    loader = DataLoader(
        draws, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None,
        worker_init_fn=lambda _: torch.set_num_threads(1),
    )  # fmt: skip
    for batches in loader:
        yield from batches


def held_out_batches(seed: int, tokenizer_json: str, vocab_size: int) -> list[TrainingBatch]:
    """A few batches of voices, speeds, noises and sums that training does not have, all with recordings."""
    return Batches(seed, 2**31, 2**31 + 1, tokenizer_json, vocab_size, held_out=True)[0][:4]
