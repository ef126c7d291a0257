"""Training batches, made on the fly from a seed."""

from __future__ import annotations

import signal
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
from step_audio.mel import TOKENS_PER_SECOND, frame_count, log_mel, pad_batch, token_count
from step_audio.tokenizer import Tokenizer
from step_audio_training.examples import Example, typed
from step_audio_training.hearing import heard_by
from step_audio_training.lessons import ABOUT_ONE, SHARES, asked_aloud, draw_task, make_lesson
from step_audio_training.reading import copied
from step_audio_training.recordings import SOUNDS, DrawnRecording, Kind
from step_audio_training.scenes import draw_scene, draw_unspoken

RECORDINGS = 16  # of a batch
EXAMPLES = 24  # of a batch: a recording is asked about one and a half times
DRILLS: tuple[str | None, ...] = (  # further examples of a batch, in writing; None for any task
    None, None, None, "text_only", "text_only", "arithmetic", "arithmetic_cut_thought", "tool_result", "compare",
    "order", "order", "transcription", "transcription_no_think",
)  # fmt: skip
GROUPS = 4  # of examples of similar length, each padded to its own longest
BATCHES = 6  # drawn together and sorted by length, so that little is padded
HEARINGS = 2  # of each recording in those, in other rooms, over other channels, with other questions
LONGEST = 9.0  # seconds of a recording
IGNORED = -100  # labels that do not count, as torch's cross entropy has it
WORDED: tuple[Kind, ...] = (
    "sum", "large_sum", "sentence", "order", "facts", "talk", "dictation", "dictation", "phrase",
)  # fmt: skip
COPIED = 0.85  # of what is read before there is anything to hear
LONGEST_READ = 90  # tokens: short ones are many

LETTERS = "abcdefghijklmnopqrstuvwxyz' "  # those that are told apart; 0 is none of them
LETTER_IDS = {letter: n for n, letter in enumerate(LETTERS, 1)}
SOUND_IDS = {sound: n for n, sound in enumerate(SOUNDS)}


def sounds_when(recording: DrawnRecording, before: float, tokens: int) -> Int64Array:
    """Which of SOUNDS is heard in the middle of each of the clip's `tokens` embeddings, behind `before` seconds."""
    sounds = np.zeros(tokens, np.int64)
    at = (np.arange(tokens) + 0.5) / TOKENS_PER_SECOND - before
    for start, end, sound in recording.sounds:
        sounds[(at >= start) & (at < end)] = SOUND_IDS[sound]
    return sounds


@dataclass
class TrainingBatch:
    """`mels` float32 [clips, n_mels, T], `frames` int64 [clips]. Without clips it is all in writing.

    `sounds` int64 [clips, tok]: what is heard there, 0 for nothing, IGNORED past the clip's end. `letters` int64 [n],
    what is said in all clips one after the other, `letter_counts` int64 [clips] of each; `words` int64 [n] and
    `word_counts` int64 [clips]: the same as the tokenizer's tokens.

    `groups`: pairs of `ids` int64 [examples, S], each a token, or vocabulary size + row of the clips' embeddings, all
    clips' own rows one after the other; and `labels` int64 [examples, S], the token that comes next, IGNORED outside
    the answer.
    """

    mels: torch.Tensor
    frames: torch.Tensor
    sounds: torch.Tensor
    letters: torch.Tensor
    letter_counts: torch.Tensor
    words: torch.Tensor
    word_counts: torch.Tensor
    groups: list[tuple[torch.Tensor, torch.Tensor]]

    def to(self, device: torch.device) -> TrainingBatch:
        return TrainingBatch(
            self.mels.to(device),
            self.frames.to(device),
            self.sounds.to(device),
            self.letters.to(device),
            self.letter_counts.to(device),
            self.words.to(device),
            self.word_counts.to(device),
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


def _examples(recordings: Sequence[DrawnRecording], random: np.random.Generator) -> list[Example]:
    """EXAMPLES about these recordings, in which each is heard at least once if any task suits it."""
    made: list[Example] = []
    tasks, weights = np.array(list(SHARES)), np.array(list(SHARES.values()))
    for recording in recordings:  # a task that suits it, by the tasks' shares
        order = random.choice(len(tasks), len(tasks), replace=False, p=weights / weights.sum())
        suitable = (make_lesson(task, [recording], random) for task in tasks[order] if task in ABOUT_ONE)
        made += filter(None, [next(filter(None, suitable), None)])
    while len(made) < EXAMPLES:
        task = draw_task(random)
        picked = [recordings[n] for n in random.choice(len(recordings), 2, replace=False)]
        if task == "second_turn":
            picked = [picked[0], draw_scene(random, "follow_up")]
        if example := make_lesson(task, picked, random):
            made.append(example)
    return [asked_aloud(example, random) if random.random() < 0.12 else example for example in made]


class Batches(Dataset[list[TrainingBatch]]):
    """`Batches(...)[n]` is the n-th draw from `first` on: BATCHES batches, in writing before draw `listening`."""

    def __init__(
        self, seed: int, first: int, last: int, tokenizer_json: str, vocab_size: int, n_mels: int, listening: int = 0
    ):
        self.seed, self.first, self.last, self.listening = seed, first, last, listening
        self.tokenizer_json, self.vocab_size, self.n_mels = tokenizer_json, vocab_size, n_mels
        self.tokenizer: Tokenizer | None = None

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, n: int) -> list[TrainingBatch]:
        self.tokenizer = self.tokenizer or Tokenizer(self.tokenizer_json)
        random = np.random.default_rng([self.seed, self.first + n])
        if self.first + n < self.listening:
            return [self._read(random) for _ in range(BATCHES)]
        recordings: list[DrawnRecording] = []
        while len(recordings) < RECORDINGS * BATCHES // HEARINGS:
            try:
                drawn = draw_scene(random)
            except (OSError, ValueError):  # a word that a synthesizer cannot say
                continue
            if drawn.seconds < LONGEST:
                recordings.append(drawn)
        recordings.sort(key=lambda recording: recording.seconds)
        groups = [recordings[k : k + RECORDINGS] for k in range(0, len(recordings), RECORDINGS)] * HEARINGS
        return [self._batch(groups[k], random) for k in random.permutation(BATCHES)]

    def _batch(self, recordings: Sequence[DrawnRecording], random: np.random.Generator) -> TrainingBatch:
        assert self.tokenizer
        examples = _examples(recordings, random)
        heard = {id(r): r for r in recordings} | {id(r): r for e in examples for r in e.recordings}
        examples += [drill(task, random) for task in DRILLS]
        clips = {key: heard_by(r, random) for key, r in heard.items()}
        encoded = [
            Encoded(e, [clips[id(r)][0] for r in e.recordings], self.tokenizer, self.vocab_size) for e in examples
        ]
        return collate(
            [samples for samples, _ in clips.values()],
            [(r, clips[key][1]) for key, r in heard.items()],
            [self.tokenizer.encode(f" {r.text}") if r.text else [] for r in heard.values()],
            encoded,
            [[list(heard).index(id(r)) for r in e.recordings] for e in examples],
            self.vocab_size,
            self.n_mels,
        )

    def _read(self, random: np.random.Generator) -> TrainingBatch:
        assert self.tokenizer
        encoded: list[Encoded] = []
        while len(encoded) < EXAMPLES:
            example = copied(random) if random.random() < COPIED else drill(None, random)
            made = Encoded(example, [], self.tokenizer, self.vocab_size)
            if len(made.prompt) + len(made.answer) <= LONGEST_READ:
                encoded.append(made)
        return collate([], [], [], encoded, [[]] * EXAMPLES, self.vocab_size, self.n_mels)


def drill(task: str | None, random: np.random.Generator) -> Example:
    """What might have been said, in writing; `task` None for any."""
    wanted = task
    while True:
        task = wanted or draw_task(random)
        kind: Kind = WORDED[random.integers(len(WORDED))]
        if task in ("arithmetic", "arithmetic_cut_thought", "compare"):
            kind = "sum"
        elif task in ("tool_result", "order"):
            kind = "large_sum" if task == "tool_result" else "order"
        recordings = [draw_unspoken(random, kind) for _ in range(2)]
        if task == "second_turn":
            recordings = [draw_unspoken(random, "sum"), draw_unspoken(random, "follow_up")]
        if task in ("pitch", "rate", "sound", "sound_in_json", "speakers", "talk_then_sum"):
            continue
        if example := make_lesson(task, recordings, random):
            return typed(example)


def collate(
    samples: Sequence[Float32Array],
    said: Sequence[tuple[DrawnRecording, float]],
    words: Sequence[Sequence[int]],
    encoded: Sequence[Encoded],
    heard: Sequence[Sequence[int]],
    vocab_size: int,
    n_mels: int,
) -> TrainingBatch:
    """`said[c]`: clip c's recording, and the seconds of silence before it; `words[c]`: the tokens of what it says;
    `heard[e]`: example e's clips, in order."""
    mels, frames = pad_batch([log_mel(clip, n_mels) for clip in samples], n_mels)
    counts = [token_count(int(length)) for length in frames]
    starts = np.cumsum([0, *counts])
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
    sounds = _stack(
        [sounds_when(recording, before, count) for (recording, before), count in zip(said, counts, strict=True)],
        IGNORED,
    )
    letters = [[LETTER_IDS[letter] for letter in recording.text] for recording, _ in said]
    return TrainingBatch(
        torch.from_numpy(mels),
        torch.from_numpy(frames.astype(np.int64)),
        sounds,
        torch.tensor([letter for each in letters for letter in each], dtype=torch.int64),
        torch.tensor([len(each) for each in letters], dtype=torch.int64),
        torch.tensor([token for each in words for token in each], dtype=torch.int64),
        torch.tensor([len(each) for each in words], dtype=torch.int64),
        groups,
    )


def _stack(rows: Sequence[Int64Array], filling: int) -> torch.Tensor:
    stacked = np.full((len(rows), max(map(len, rows), default=0)), filling, np.int64)
    for target, row in zip(stacked, rows, strict=True):
        target[: len(row)] = row
    return torch.from_numpy(stacked)


def _begin_worker(_: int) -> None:
    """One thread; and a signal to all of a training's processes is the training's affair, which ends its workers."""
    torch.set_num_threads(1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def training_batches(
    seed: int,
    first: int,
    last: int,
    tokenizer_json: str,
    vocab_size: int,
    n_mels: int,
    workers: int,
    listening: int = 0,
) -> Iterator[TrainingBatch]:
    """Batches `first` to `last`, without recordings before batch `listening`, or the next that is drawn anew: each says
    the same wherever a run begins (espeak-ng's voices waver)."""
    draws = Batches(
        seed, first // BATCHES, -(-last // BATCHES), tokenizer_json, vocab_size, n_mels, -(-listening // BATCHES)
    )
    loader = DataLoader(
        draws, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None,
        worker_init_fn=_begin_worker,
    )  # fmt: skip
    skipped = first % BATCHES
    for batches in loader:
        yield from batches[skipped:]
        skipped = 0
