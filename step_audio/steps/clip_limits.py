"""What the clips of a request may come to. Each step that is told of clips checks it: any can be asked directly."""

from __future__ import annotations

from step_audio import mel
from step_audio.arrays import Int32Array, UInt64Array
from step_audio.clips import CLIP_SAMPLES, CLIP_SECONDS
from step_audio.errors import ContextTooLong, InvalidRequest
from step_audio.steps.runtime import Runtime


def clip_tokens(frames: Int32Array, runtime: Runtime) -> list[int]:
    """The audio tokens of clips of so many frames, int32 [clips].

    Raises InvalidRequest for a length that no clip has, and where the audio alone does not fit the prompt table or
    leaves the prompt no room for a word.
    """
    if 2 * len(frames) >= runtime.max_seq_len:  # each stands between two marks
        said = f"audio: {len(frames)} clips, which leaves no room in max_seq_len {runtime.max_seq_len}"
        raise ContextTooLong(said, "audio")
    lengths = frames.tolist()
    if lengths and min(lengths) < mel.LEAST_FRAMES:
        raise InvalidRequest(f"frames: a clip has at least {mel.LEAST_FRAMES}, got {min(lengths)}", "frames")
    mel.check_clip(max(lengths, default=0), runtime.model.audio.n_audio_ctx)
    tokens = [mel.token_count(length, runtime.length_rule) for length in lengths]
    if (total := sum(tokens)) > runtime.max_prompt_table_rows:
        raise InvalidRequest(
            f"audio: {total} audio tokens (12.5 a second), the limit of the prompt table is "
            f"{runtime.max_prompt_table_rows}; send less audio",
            "audio",
        )
    if (positions := total + 2 * len(tokens)) >= runtime.max_seq_len:
        raise ContextTooLong(
            f"audio: {positions} prompt positions, which leaves no room in max_seq_len {runtime.max_seq_len}", "audio"
        )
    return tokens


def most_seconds(recordings: int, runtime: Runtime) -> float:
    """What the prompt table and `max_seq_len` have room for, at most, of so many recordings: more is not decoded.

    A recording's last clip has up to two tokens less than its share of a whole one's.
    """
    rows = min(runtime.max_prompt_table_rows, runtime.max_seq_len) + 2 * recordings
    return rows * CLIP_SECONDS / mel.token_count(mel.frame_count(CLIP_SAMPLES), runtime.length_rule)


def check_hashes(hashes: UInt64Array) -> None:
    """uint64 [clips]. Raises InvalidRequest for one that would let two recordings share KV cache."""
    if not hashes.all():
        raise InvalidRequest("content_hash: 0 stands for text, a clip's is 1 to 2^64 - 1", "content_hash")
