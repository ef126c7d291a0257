"""Engines of the small random model: started by the test, or shared."""

from dataclasses import replace

import pytest

from engine_fixture import model, options
from step_audio.engine import Engine


@pytest.fixture(scope="session", autouse=True)
def compiled_once():
    """The graph of the small model: to compile it takes as long as ten answers, and it holds nothing of theirs."""
    import openvino

    from step_audio.engine import openvino_executor

    build, compile_model = openvino_executor._decoder, openvino.Core.compile_model
    kept = {}

    def compiled(core, asked, device, settings):
        spec, weights, *others = asked
        key = (spec, id(weights), *others, str(settings))
        if key not in kept:
            kept[key] = weights, compile_model(core, build(*asked), device, settings)
        return kept[key][1]

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(openvino_executor, "_decoder", lambda *asked: asked)
        monkeypatch.setattr(openvino.Core, "compile_model", compiled)
        yield


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
