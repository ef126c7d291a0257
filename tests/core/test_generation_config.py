"""How a checkpoint wants to be asked, in its own file."""

import json

import pytest

from step_audio.errors import CheckpointError
from step_audio.generation_config import Pace, Suggestions, pace_of, suggestions_of


def test_the_paper_s_where_a_checkpoint_has_none(tmp_path):
    assert pace_of(tmp_path) == Pace(think_tokens=80, speak_tokens=20)
    (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": 0.7, "top_p": 0.9}))
    assert pace_of(tmp_path) == Pace()


def test_what_a_checkpoint_says(tmp_path):
    said = {"transformers_version": "4.57", "mind_paced_speaking": {"think_tokens": 16, "speak_tokens": 2}}
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    assert pace_of(tmp_path) == Pace(think_tokens=16, speak_tokens=2) and suggestions_of(tmp_path) == Suggestions()
    (tmp_path / "generation_config.json").write_text(json.dumps({"suggestions": {"say": ["Hello."]}}))
    assert suggestions_of(tmp_path) == Suggestions(say=("Hello.",)) and pace_of(tmp_path) == Pace()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "cannot be read"),
        ('{"mind_paced_speaking": {"think_tokens": 0}}', "mind_paced_speaking: think_tokens: "),
        ('{"mind_paced_speaking": {"speak": 2}}', "mind_paced_speaking: speak: "),
        ('{"mind_paced_speaking": 16}', "mind_paced_speaking: "),
    ],
)
def test_faults_name_the_file_and_the_key(tmp_path, text, fault):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError) as raised:
        pace_of(tmp_path)
    assert "generation_config.json" in str(raised.value) and fault in str(raised.value)
