"""Guided answers through the served pipeline."""

import re

import numpy as np
import pytest

import raw_triton
from step_audio.tokenizer import Tokenizer


def served(service, kind: str, guide: str) -> str:
    responses = raw_triton.call(
        service.address,
        "step_audio_r1",
        {
            "messages": raw_triton.texts('[{"role": "user", "content": "yes or no?"}]'),
            "request_output_len": raw_triton.scalar(20, np.int32),
            "guided_decoding_guide_type": raw_triton.texts(kind),
            "guided_decoding_guide": raw_triton.texts(guide),
        },
    )
    ids = [token for response in responses for token in response.outputs["output_ids"].reshape(-1).tolist()]
    tokenizer = Tokenizer.from_json((service.settings.work_dir / "tokenizer.json").read_text(encoding="utf-8"))
    return tokenizer.decode(ids)


def test_through_the_pipeline(service):
    assert re.fullmatch("[0-9]{2}-(yes|no)", served(service, "regex", "[0-9]{2}-(yes|no)"))
    schema = '{"type": "object", "properties": {"a": {"enum": [1, 2]}, "b": {"const": "x"}}, "required": ["a", "b"]}'
    assert re.fullmatch(r'\{"a": [12], "b": "x"\}', served(service, "json_schema", schema))
    assert re.match(r'\{("|\})', served(service, "json", ""))
    with pytest.raises(raw_triton.calls.StreamError, match=r"cannot be used as regex: .*not closed"):
        served(service, "regex", "(")
