"""A recording as it is heard: the room, the microphone, the noise, the channel, and ends that are cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from step_audio.arrays import Float32Array
from step_audio.clips import SAMPLE_RATE
from step_audio_training.channel import cut_ends, transmit
from step_audio_training.recordings import DrawnRecording, draw_conditions, record
from step_audio_training.sound import reverberate


def heard_by(
    recording: DrawnRecording, random: np.random.Generator, held_out: bool = False
) -> tuple[Float32Array, float]:
    """The recording under conditions of all kinds and over any channel; and the seconds of silence in front."""
    conditions = draw_conditions(random, held_out)
    if random.random() < 0.12:  # far from the microphone
        tail = np.zeros(SAMPLE_RATE // 4, np.float32)
        far = reverberate(np.append(recording.samples, tail), float(random.uniform(0.3, 0.9)), random, wet=(0.6, 1.4))
        recording = replace(recording, samples=far)
    samples = record(recording, conditions, random)
    before = conditions.before
    if random.random() < 0.25:  # close to the ends, or a little beyond them
        first, last = (int((edge - random.uniform(-0.03, 0.05)) * SAMPLE_RATE) for edge in (before, conditions.behind))
        samples = samples[max(first, 0) : len(samples) - max(last, 0)]
        before -= max(first, 0) / SAMPLE_RATE
        samples = cut_ends(samples, random, 0.01)
    return transmit(samples, random), before
