"""Training batches, made on the fly from a seed."""

from __future__ import annotations

import signal
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from step_audio.chat import ClipInfo
from step_audio.mel import log_mel
from step_audio.tokenizer import Tokenizer
from step_audio_training.collation import Encoded, TrainingBatch, clip_info, collate, embedding_count
from step_audio_training.examples import Example, typed
from step_audio_training.frozen import Hear
from step_audio_training.hearing import heard_by
from step_audio_training.lessons import ABOUT_ONE, SHARES, asked_aloud, draw_task, in_figures, make_lesson
from step_audio_training.reading import copied, names_copied
from step_audio_training.recordings import DrawnRecording, Kind
from step_audio_training.replay import Replay, Take, masked
from step_audio_training.scenes import draw_scene, draw_short_scene, draw_unspoken

RECORDINGS = 16  # of a batch
EXAMPLES = 24  # of a batch: a recording is asked about one and a half times
DRILLS: tuple[str | None, ...] = (  # further examples of a batch, in writing; None for any task
    None, None, None, "text_only", "text_only", "arithmetic", "arithmetic_cut_thought", "tool_result", "tool_result",
    "compare", "order", "order", "order", "order", "phrase", "talk", "transcription", "transcription_no_think",
)  # fmt: skip
COPYING: tuple[str, ...] = (  # and these where the encoder does not learn: in writing it learns to copy out of requests
    "order", "order", "order", "order", "order", "order", "order", "order", "sum_in_json", "sum_in_json", "sum_in_json",
    "facts", "facts", "names", "names", "names", "names", "names",
)  # fmt: skip
BATCHES = 6  # drawn together and sorted by length, so that little is padded
HEARINGS = 2  # of each recording in those, in other rooms, over other channels, with other questions
LONGEST = 9.0  # seconds of a recording
WORDED: tuple[Kind, ...] = (
    "sum", "large_sum", "sentence", "order", "facts", "talk", "dictation", "dictation", "phrase",
)  # fmt: skip
KEPT_CLEAN = 0.12  # of the takes that an encoder has heard that does not learn: no noise, room or channel
COPIED = 0.85  # of what is read before there is anything to hear
LONGEST_READ = 90  # tokens: short ones are many
CLIPS = 40  # of a batch that is heard, and nothing asked about it


@dataclass(frozen=True)
class Stages:
    """Before which batch each ends; the last has no end. They are rounded up to whole draws."""

    reading: int = 0
    hearing: int = 0

    def __post_init__(self) -> None:
        assert self.reading <= self.hearing


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
    """`Batches(...)[n]` is the n-th draw from `first` on: BATCHES batches."""

    def __init__(
        self,
        seed: int,
        first: int,
        last: int,
        tokenizer_json: str,
        vocab_size: int,
        n_mels: int,
        stages: Stages,
        hear: Hear | None = None,
    ):
        """`hear`: the encoder does not learn, and what it makes of recordings is kept."""
        self.seed, self.first, self.last = seed, first, last
        self.reading, self.hearing = (-(-end // BATCHES) for end in (stages.reading, stages.hearing))
        self.tokenizer_json, self.vocab_size, self.n_mels = tokenizer_json, vocab_size, n_mels
        self.tokenizer: Tokenizer | None = None
        self.replay = Replay(seed, partial(log_mel, n_mels=n_mels), LONGEST)
        self.kept = Replay(seed, hear, LONGEST, clean=KEPT_CLEAN, dictated=0) if hear else None

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, n: int) -> list[TrainingBatch]:
        self.tokenizer = self.tokenizer or Tokenizer(self.tokenizer_json)
        draw = self.first + n
        random = np.random.default_rng([self.seed, draw])
        if draw < self.reading:
            return [self._read(random) for _ in range(BATCHES)]
        if draw < self.hearing:
            return self._hear(draw - self.reading, random)
        if self.kept:
            takes = self.kept.draw(draw, RECORDINGS * BATCHES)
            parts = [takes[k * RECORDINGS : (k + 1) * RECORDINGS] for k in random.permutation(BATCHES)]
            return [self._batch_of_kept(part, self.kept.make, random) for part in parts]
        recordings = [draw_short_scene(random, LONGEST) for _ in range(RECORDINGS * BATCHES // HEARINGS)]
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
            Encoded(e, [clip_info(clips[id(r)][0]) for r in e.recordings], self.tokenizer, self.vocab_size)
            for e in examples
        ]
        return collate(
            [log_mel(samples, self.n_mels) for samples, _ in clips.values()],
            [(r, clips[key][1]) for key, r in heard.items()],
            [self._words(r) for r in heard.values()],
            encoded,
            [[list(heard).index(id(r)) for r in e.recordings] for e in examples],
            self.vocab_size,
            self.n_mels,
        )

    def _batch_of_kept(self, takes: Sequence[Take], hear: Hear, random: np.random.Generator) -> TrainingBatch:
        assert self.tokenizer
        heard = {id(take.recording): (take.heard, take.recording, take.before) for take in takes}
        examples = _examples([take.recording for take in takes], random)
        for recording in (r for e in examples for r in e.recordings):  # a second turn, or a question asked aloud
            if id(recording) not in heard:
                samples, before = heard_by(recording, random)
                heard[id(recording)] = hear(samples), recording, before
        examples += [drill(task, random) for task in (*DRILLS, *COPYING)]
        infos = {key: ClipInfo(embedding_count(rows), n) for n, (key, (rows, _, _)) in enumerate(heard.items(), 1)}
        encoded = [Encoded(e, [infos[id(r)] for r in e.recordings], self.tokenizer, self.vocab_size) for e in examples]
        return collate(
            [rows for rows, _, _ in heard.values()],
            [(recording, before) for _, recording, before in heard.values()],
            [self._words(recording) for _, recording, _ in heard.values()],
            encoded,
            [[list(heard).index(id(r)) for r in e.recordings] for e in examples],
            self.vocab_size,
            self.n_mels,
            by_encoder=True,
        )

    def _words(self, recording: DrawnRecording) -> list[int]:
        assert self.tokenizer
        return self.tokenizer.encode(f" {recording.text}") if recording.text else []

    def _read(self, random: np.random.Generator) -> TrainingBatch:
        assert self.tokenizer
        encoded: list[Encoded] = []
        while len(encoded) < EXAMPLES:
            example = copied(random) if random.random() < COPIED else drill(None, random)
            made = Encoded(example, [], self.tokenizer, self.vocab_size)
            if len(made.prompt) + len(made.answer) <= LONGEST_READ:
                encoded.append(made)
        return collate([], [], [], encoded, [[]] * EXAMPLES, self.vocab_size, self.n_mels)

    def _hear(self, draw: int, random: np.random.Generator) -> list[TrainingBatch]:
        takes = self.replay.draw(draw, CLIPS * BATCHES)
        made = []
        for k in random.permutation(BATCHES):
            part = takes[k * CLIPS : (k + 1) * CLIPS]
            said = [(take.recording, take.before) for take in part]
            words = [self._words(take.recording) for take in part]
            mels = [masked(take.heard, random) for take in part]
            made.append(collate(mels, said, words, [], [], self.vocab_size, self.n_mels))
        return made


def drill(task: str | None, random: np.random.Generator) -> Example:
    """What might have been said, in writing; `task` None for any."""
    if task == "names":
        return names_copied(random)
    wanted = task
    while True:
        task = wanted or draw_task(random)
        kind: Kind = WORDED[random.integers(len(WORDED))]
        if task in ("arithmetic", "arithmetic_cut_thought", "compare"):
            kind = "sum"
        elif task in ("tool_result", "order"):
            kind = "order" if task == "order" or random.random() < 0.3 else "large_sum"
        recordings = [draw_unspoken(random, kind) for _ in range(2)]
        if task == "second_turn":
            recordings = [draw_unspoken(random, "sum"), draw_unspoken(random, "follow_up")]
        if task in ("pitch", "rate", "sound", "sound_in_json", "speakers", "talk_then_sum"):
            continue
        if example := make_lesson(task, recordings, random):
            figures = task == "tool_result" and kind == "large_sum" and random.random() < 0.5
            return in_figures(example) if figures else typed(example)


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
    stages: Stages = Stages(),
    hear: Hear | None = None,
) -> Generator[TrainingBatch]:
    """Batches `first` to `last`: each says the same wherever a run begins (espeak-ng's voices waver)."""
    draws = Batches(seed, first // BATCHES, -(-last // BATCHES), tokenizer_json, vocab_size, n_mels, stages, hear)
    loader = DataLoader(
        draws, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None,
        worker_init_fn=_begin_worker,
    )  # fmt: skip
    skipped = first % BATCHES
    for batches in loader:
        yield from batches[skipped:]
        skipped = 0
