"""Writes down recordings with Whisper: run_whisper.py MODEL CLIPS.npz, a line of JSON with the text for each.

MODEL is a CTranslate2 model of Whisper's English kind with its tokenizer.json, CLIPS has float32 mel spectrograms
[80, T] under "0", "1" and so on, with silence up to 30 s, as Whisper was trained. Five beams, as OpenAI's own command
has it; an answer that goes round in circles ends at MOST tokens, where that command would try again.
"""

from __future__ import annotations

import json
import sys

import ctranslate2
import numpy as np
import tokenizers

FRAMES = 3000
MOST = 48
PROMPT = ("<|startoftranscript|>", "<|notimestamps|>")


def main() -> None:
    folder, file = sys.argv[1:]
    model = ctranslate2.models.Whisper(folder, device="cpu", compute_type="float32")
    tokenizer = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
    prompt = [tokenizer.token_to_id(token) for token in PROMPT]
    with np.load(file) as clips:
        for n in range(len(clips.files)):
            mel = np.ascontiguousarray(clips[str(n)][None, :, :FRAMES])
            (result,) = model.generate(ctranslate2.StorageView.from_array(mel), [prompt], beam_size=5, max_length=MOST)
            print(json.dumps(tokenizer.decode(result.sequences_ids[0])), flush=True)


if __name__ == "__main__":
    main()
