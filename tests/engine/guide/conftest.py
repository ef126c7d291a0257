"""An engine with guides, over the small tokenizer."""

import pytest

from engine_fixture import model, options
from guide_fixture import TOKENIZER
from step_audio.engine import Engine
from step_audio.tokenizer_info import xgrammar_tokenizer_info


@pytest.fixture(scope="module")
def info(tmp_path_factory):
    path = tmp_path_factory.mktemp("info") / "xgrammar_tokenizer_info.json"
    path.write_text(xgrammar_tokenizer_info(TOKENIZER), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def engine(info):
    engine = Engine(options(xgrammar_tokenizer_info_path=info), model())
    yield engine
    engine.shutdown()
