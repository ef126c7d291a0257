"""The `audio_featurizer` step: the bytes of recordings to log-mel features of clips.

Order matters here: everything that can refuse a request is done before the first sample is decoded,
or, where only the samples can tell, before the first spectrum is computed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from step_audio import mel
from step_audio.arrays import Float32Array, Int32Array, UInt64Array
from step_audio.audio import MOST_LOST, Budget, likely_values, read_recording
from step_audio.clips import content_hash, split_clips
from step_audio.conversation import AudioPlace, KnownClip, parse_conversation
from step_audio.errors import AudioTooLong, InvalidRequest
from step_audio.steps.clip_limits import clip_tokens, most_seconds
from step_audio.steps.lanes import Lane
from step_audio.steps.runtime import Runtime
from step_audio.steps.tensors import Reply, Tensors, byte_strings, one

VALUES_PER_BYTE = 8  # that are decoded in the time that another lane's work takes for a byte


@dataclass(frozen=True)
class Features:
    """The clips of one request, in prompt order."""

    mel: Float32Array  # [clips that are not known, n_mels, frames of the longest], zero-padded
    mel_index: Int32Array  # [clips that are not known], which clip
    frames: Int32Array  # [clips], true lengths, 10 ms each
    audio_index: Int32Array  # [clips], which recording a clip is of
    content_hash: UInt64Array  # [clips]
    report: Float32Array  # [2, recordings]: seconds lost; 1 where the channels cancel each other


@dataclass
class _Clips:
    """Of one request, each by its number in prompt order."""

    recordings: list[int] = field(default_factory=list)  # which each is of
    known: dict[int, KnownClip] = field(default_factory=dict)
    samples: dict[int, Float32Array] = field(default_factory=dict)  # of the others

    def add_known(self, clip: KnownClip, recording: int) -> None:
        self.known[len(self.recordings)] = clip
        self.recordings.append(recording)

    def add(self, samples: Float32Array, recording: int) -> None:
        self.samples[len(self.recordings)] = samples
        self.recordings.append(recording)


class Featurizer:
    """Recordings of one request to log-mel features of clips, within the server's limits. Safe in several threads."""

    def __init__(self, runtime: Runtime):
        self.runtime = runtime

    def featurize(self, messages: bytes | None, audio: Sequence[bytes]) -> Features:
        """Raises InvalidRequest; `messages` is the request's JSON, None if it was not sent."""
        places = self._check_before_decoding(messages, audio)
        clips, report = self._clips(audio, places)
        lengths = {i: clip.frames for i, clip in clips.known.items()}
        lengths |= {i: mel.frame_count(len(samples)) for i, samples in clips.samples.items()}
        frames = np.array([lengths[i] for i in range(len(lengths))], np.int32)
        clip_tokens(frames, self.runtime)
        n_mels = self.runtime.model.audio.n_mels
        features = {i: mel.log_mel(samples, n_mels) for i, samples in clips.samples.items()}
        padded, _ = mel.pad_batch(list(features.values()), n_mels)
        hashes = {i: clip.content_hash for i, clip in clips.known.items()}
        hashes |= {i: content_hash(values) for i, values in features.items()}
        return Features(
            padded,
            np.array(list(features), np.int32),
            frames,
            np.array(clips.recordings, np.int32),
            np.array([hashes[i] for i in range(len(hashes))], np.uint64),
            report,
        )

    def _check_before_decoding(self, messages: bytes | None, audio: Sequence[bytes]) -> list[AudioPlace]:
        """Where each recording stands."""
        limits = self.runtime.limits
        if messages is None:
            raise InvalidRequest("missing required input 'messages'", "messages")
        places = parse_conversation(messages).audio_places
        if len(places) != len(audio):
            raise InvalidRequest(
                f"messages have {len(places)} audio parts, but {len(audio)} audios were sent", "messages"
            )
        if len(audio) > limits.max_audios:
            raise InvalidRequest(f"{len(audio)} audios, the limit is {limits.max_audios}", "audio")
        if (size := sum(map(len, audio))) > limits.max_audio_bytes:
            raise InvalidRequest(f"audio: {size} bytes, the limit is {limits.max_audio_bytes}", "audio")
        return places

    def _clips(self, audio: Sequence[bytes], places: Sequence[AudioPlace]) -> tuple[_Clips, Float32Array]:
        """And the report."""
        clips = _Clips()
        report = np.zeros((2, len(audio)), np.float32)
        limits = self.runtime.limits
        total = min(limits.max_audio_seconds, most_seconds(len(audio), self.runtime))
        budget = Budget(total)
        most_lost = 0 if limits.strict_audio else MOST_LOST
        for i, (data, place) in enumerate(zip(audio, places, strict=True)):
            for clip in place.known:
                clips.add_known(clip, i)
            budget.seconds -= sum(clip.frames for clip in place.known) / mel.FRAMES_PER_SECOND
            if budget.seconds < 0:
                raise AudioTooLong(f"audio[{i}]: longer than the limit of {total:g} s", f"audio[{i}]")
            if place.known and not data:
                continue
            try:
                recording = read_recording(data, budget, f"audio[{i}]", place.channel, most_lost)
            except AudioTooLong as error:
                if i == 0:
                    raise
                said = f"{error}: what the recordings before it leave of {total:g} s"
                raise InvalidRequest(said, error.param) from None
            report[:, i] = recording.lost, recording.cancelled
            for samples in split_clips(recording.samples[place.skip :]):
                clips.add(samples, i)
        return clips, report


class FeaturizerStep:
    """The step in its worker: requests without audio never wait for those with, of which those go first that cost least
    to decode, whatever their files' size."""

    def __init__(self, runtime: Runtime):
        self._featurizer = Featurizer(runtime)
        self._most_seconds = runtime.limits.max_audio_seconds
        self._text = Lane(self._work)
        self._weighed = Lane(self._weigh)
        self._audio = Lane(self._work, max(2, len(os.sched_getaffinity(0))))

    def submit(self, inputs: Tensors, reply: Reply) -> None:
        if byte_strings(inputs, "audio"):
            self._weighed.put(inputs, partial(self._decode, inputs, reply))
        else:
            self._text.put(inputs, reply)

    def _weigh(self, inputs: Tensors) -> Tensors:
        values = sum(likely_values(data, self._most_seconds) for data in byte_strings(inputs, "audio"))
        return {"cost": np.array(round(values / VALUES_PER_BYTE))}

    def _decode(self, inputs: Tensors, reply: Reply, weighed: Tensors | Exception) -> None:
        cost = 0 if isinstance(weighed, Exception) else np.asarray(weighed["cost"]).item()
        self._audio.put(inputs, reply, cost)

    def _work(self, inputs: Tensors) -> Tensors:
        features = self._featurizer.featurize(one(inputs, "messages"), byte_strings(inputs, "audio"))
        outputs: Tensors = {
            "frames": features.frames[None],
            "audio_index": features.audio_index[None],
            "content_hash": features.content_hash[None],
            "audio_report": features.report[None],
        }
        if not len(features.mel):
            return outputs
        return outputs | {"mel": features.mel[None], "mel_index": features.mel_index[None]}
