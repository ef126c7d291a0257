"""Engines of the small random model: started by the test, or shared."""

from dataclasses import replace

import pytest

from engine_fixture import model, options
from step_audio.engine import Engine


@pytest.fixture
def start():
    engines = []

    def make(spec_changes=None, **changes):
        spec, weights = model()
        engines.append(Engine(options(**changes), (replace(spec, **(spec_changes or {})), weights)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.shutdown()


@pytest.fixture(scope="module")
def engine():
    engine = Engine(options(), model())
    yield engine
    engine.shutdown()
