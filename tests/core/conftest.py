"""The small tokenizer."""

import pytest

from step_audio.tokenizer import Tokenizer
from tokenizer_fixture import build_json


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_json(build_json())
