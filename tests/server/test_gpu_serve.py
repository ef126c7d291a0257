"""`step-audio serve --profile`: from its settings to a server of all ranks, restarted and stopped; and what is missing.

Engines are said to be built, mpirun and tritonserver are stand-ins (gpu_stand_ins.py).
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpu_stand_ins import Machine
from lazy import Lazy
from lora_fixture import save_adapter
from step_audio.artefacts import Artefacts
from step_audio.audio import decode_audio
from step_audio.chat import ClipInfo, build_prompt
from step_audio.checkpoint import decoder_tensors
from step_audio.clips import SAMPLE_RATE, content_hash
from step_audio.config import ModelConfig
from step_audio.conversation import parse_conversation
from step_audio.errors import ArtefactError
from step_audio.tokenizer import Tokenizer
from step_audio_build.convert.make_tiny import make_tiny
from step_audio_build.planning.memory_plan import TOKENS_PER_BLOCK
from step_audio_build.planning.profiles import audio_rows, load_profile
from step_audio_build.stages import repository as building
from step_audio_client.messages import split_audio
from step_audio_client.tls import Tls
from step_audio_server import prepare, serve, supervision, tritonserver
from step_audio_server.errors import ServerError
from step_audio_server.launch import gpu_image
from step_audio_server.launch.gpu_image import GpuImageError
from step_audio_server.launch.ports import Ports, free_ports
from step_audio_server.serve import Service
from step_audio_server.settings import ServeSettings, SettingsError
from waiting import wait_until

torch = Lazy("torch")

PROFILE = "4xH100-16k"
READ_BUILT = building.read_built
WARM_UP = serve.warm_up


@pytest.fixture
def gpus(tmp_path, monkeypatch):
    return Machine(tmp_path / "machine", monkeypatch)


@pytest.fixture
def service(gpus, tmp_path, monkeypatch):
    """A `Service` of a profile whose engines are said to be built; what it says is in `said`."""
    checkpoint, work = tmp_path / "Step-Audio-R1.1", tmp_path / "work"
    make_tiny(checkpoint, layers=1, max_position_embeddings=32_768)
    engine = work / PROFILE / "engine"
    engine.mkdir(parents=True)
    limits = {"max_batch_size": 32, "max_seq_len": 16_384, "max_prompt_embedding_table_size": 32 * 7512}
    (engine / "config.json").write_text(json.dumps({"build_config": limits}))
    built = Artefacts(
        engine_dir=engine,
        encoder_file=work / PROFILE / "encoder.plan",
        tokenizer_file=work / "tokenizer.json",
        xgrammar_tokenizer_info_file=work / "xgrammar_tokenizer_info.json",
        table_dtype="bfloat16",
        max_prompt_table_rows=7512,
        tokens_per_block=32,
    )
    monkeypatch.setattr(building, "read_built", lambda *_: built)

    async def warm_up(address: str, tls: Tls) -> None:
        warmed.append(address)

    warmed: list[str] = []
    monkeypatch.setattr(serve, "warm_up", warm_up)
    monkeypatch.setattr(supervision, "WATCH_PERIOD", 0.05)
    nothing = SimpleNamespace(fault=lambda: None, stop=lambda: None)
    monkeypatch.setattr(tritonserver, "Heartbeat", lambda *_: nothing)
    grpc, http, metrics = free_ports(3)
    settings = ServeSettings.create(
        checkpoint=checkpoint, work_dir=work, profile=PROFILE, grpc_port=grpc, http_port=http, metrics_port=metrics
    )
    made = Service(settings, lambda line: made.said.append(line))
    made.said, made.warmed = [], warmed
    return made


def run(service: Service, *steps) -> None:
    """`service.run()`, while each of `steps` is waited for, in order, and then SIGTERM is sent."""

    ended = threading.Event()

    def walk():
        try:
            for step in steps:
                wait_until(lambda step=step: ended.is_set() or step())
        finally:
            if not ended.is_set():
                os.kill(os.getpid(), signal.SIGTERM)

    walker = threading.Thread(target=walk)
    walker.start()
    try:
        service.run()
    finally:
        ended.set()
        walker.join()


def nothing_claimed() -> None:
    pass


def ready(service: Service, times: int):
    return lambda: sum(line.startswith("ready") for line in service.said) == times


def kill(service: Service, rank: int):
    def step() -> bool:
        os.kill(service.server._ranks[rank], signal.SIGKILL)
        return True

    return step


def test_adapters_of_a_rank_that_the_engine_was_not_built_for(service, tmp_path):
    text = ModelConfig.from_directory(service.settings.checkpoint).text
    state = {name: torch.zeros(shape) for name, shape in decoder_tensors(text).items()}
    folder = save_adapter(tmp_path / "terse", state, rank=4, seed=0)
    settings = service.settings.model_copy(update={"lora_modules": (f"terse={folder}",)})
    said = f"adapter terse has r 4, and profile {PROFILE} made an engine without adapters: set max_lora_rank = 4"
    with pytest.raises(ArtefactError, match=said):
        prepare.prepare(settings, service.ports, service.said.append, nothing_claimed)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ArtefactError, match=r"adapter terse: .*adapter_config"):
        prepare.prepare(settings, service.ports, service.said.append, nothing_claimed)


@pytest.mark.processes
def test_serve_on_gpus(gpus, service):
    run(service, ready(service, 1))
    assert "profile 4xH100-16k: 4 x H100" in service.said
    assert service.warmed == [service.address]
    (call,) = gpus.calls("mpirun")
    assert f"--model-repository={service.settings.run_dir}/repository" in call
    assert not any(word.startswith("--backend-directory") for word in call)  # the image's own
    runtime = json.loads((service.settings.run_dir / "runtime.json").read_text())
    assert (runtime["max_seq_len"], runtime["max_prompt_table_rows"], runtime["encoder_batch_clips"]) == (
        16_384, 7512, load_profile(PROFILE).encoder_batch_clips,
    )  # fmt: skip
    assert runtime["limits"]["max_audio_seconds"] == 600
    assert service.said[-1] == "stopping"
    assert not list(Path("/dev/shm").glob(f"step_audio_{os.getpid()}_{service.settings.grpc_port}_*"))


def test_where_a_server_is_reached(service):
    for host, reached in (("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("10.0.0.7", "10.0.0.7")):
        settings = service.settings.model_copy(update={"triton_host": host})
        assert Service(settings).address == f"{reached}:{settings.grpc_port}"


@pytest.mark.processes
def test_a_dead_rank_restarts_them_all(gpus, service):
    run(service, ready(service, 1), kill(service, 2), ready(service, 2))
    assert len(gpus.calls("mpirun")) == 2 and len(gpus.calls("rank0")) == 2
    # mpirun is quick to end the others
    died = re.compile(r"(rank \d of tritonserver died|tritonserver ended with status 1): starting again")
    (said,) = (line for line in service.said if died.fullmatch(line))
    (line,) = (service.settings.run_dir / "deaths.jsonl").read_text().splitlines()
    assert json.loads(line)["text"] == said.removesuffix(": starting again")
    assert len(list(service.settings.run_dir.glob("tritonserver.log*"))) == 2


@pytest.mark.processes
def test_it_never_gives_up(gpus, service, monkeypatch):
    """A restart that fails is followed by another."""
    monkeypatch.setattr(supervision, "PAUSES", (0.0, 0.1))
    start, failing = Service.start, [True, True]

    def begin(self):
        if self.said and self.said[-1].endswith("starting again in 0 s") and failing:
            failing.pop()
            raise ServerError("tritonserver did not start")
        start(self)

    monkeypatch.setattr(Service, "start", begin)
    run(service, ready(service, 1), kill(service, 1), ready(service, 2), kill(service, 3), ready(service, 3))
    assert service.said.count("tritonserver did not start: starting again in 0 s") == 2
    assert service.server is None and not failing


@pytest.mark.processes
def test_a_start_that_fails_says_why(gpus, service):
    gpus.fault("rank1-fails")
    with pytest.raises(ServerError) as caught:
        service.start()
    assert str(caught.value).startswith(
        "tritonserver did not start: rank 1 ended first; failed to load 'tensorrt_llm': rank 1 has no engine (log: "
    )
    assert service.server is None


@pytest.mark.processes
def test_a_stop_while_it_starts(gpus, service):
    gpus.fault("loads-for-ever")
    run(service, lambda: service.server is not None and len(service.server._ranks) == 4)
    assert not any(line.startswith("ready") for line in service.said)
    assert service.server is None and gpus.events() == []


# What is missing is said


def test_what_the_machine_lacks(gpus, service, monkeypatch):
    ports = Ports(*free_ports(3))
    monkeypatch.setattr(gpu_image.shutil, "which", lambda name: None)
    with pytest.raises(GpuImageError, match=r"mpirun is not on PATH.*26\.07-trtllm-python-py3"):
        prepare.prepare(service.settings, ports, print, nothing_claimed)
    (gpus.triton / "backends/tensorrtllm/libtriton_tensorrtllm.so").unlink()
    with pytest.raises(GpuImageError, match=r"libtriton_tensorrtllm\.so is missing: serve on GPUs inside nvcr\.io"):
        prepare.prepare(service.settings, ports, print, nothing_claimed)


def test_a_forgotten_profile(gpus, service, monkeypatch):
    monkeypatch.setattr(gpu_image.importlib.util, "find_spec", lambda name: None)
    settings = service.settings.model_copy(update={"profile": None})
    with pytest.raises(GpuImageError, match="this image serves on GPUs: give --profile"):
        prepare.prepare(settings, Ports(*free_ports(3)), print, nothing_claimed)


def test_an_unknown_profile(service):
    settings = service.settings.model_copy(update={"profile": "3xA100"})
    with pytest.raises(SettingsError, match="there is no profile 3xA100; use 1xB200-16k"):
        prepare.prepare(settings, Ports(*free_ports(3)), print, nothing_claimed)


def test_engines_that_are_not_there(service, monkeypatch):
    monkeypatch.setattr(building, "read_built", READ_BUILT)
    with pytest.raises(ArtefactError, match=r"there are no engines of profile 4xH100-16k in .*run `step-audio build"):
        prepare.prepare(service.settings, Ports(*free_ports(3)), print, nothing_claimed)


def test_a_broken_engine_directory(service):
    config = service.settings.work_dir / PROFILE / "engine" / "config.json"
    for text in ("", "{}", '{"build_config": {"max_batch_size": 1}}'):
        config.write_text(text)
        with pytest.raises(ArtefactError, match=r"config\.json is missing or not that of an engine"):
            prepare.prepare(service.settings, Ports(*free_ports(3)), print, nothing_claimed)


@pytest.mark.parametrize("name", ["tp", "max_batch_size", "max_seq_len", "kv_cache_tokens"])
def test_what_a_profile_decides(tmp_path, name):
    with pytest.raises(SettingsError, match=f"^{name} is decided by the profile the engine was built for; leave it"):
        ServeSettings.create(checkpoint=tmp_path, work_dir=tmp_path, profile=PROFILE, **{name: 4096})


def test_settings_on_gpus(tmp_path):
    settings = ServeSettings.create(checkpoint=tmp_path, work_dir=tmp_path, profile=PROFILE)
    assert settings.resolved_startup_timeout() == 1800
    assert settings.model_copy(update={"profile": None}).resolved_startup_timeout() == 600
    decided = settings.for_engine(32, 16_384, encoder_batch_clips=4, max_audio_seconds=600)
    assert (decided.max_batch_size, decided.max_seq_len, decided.encoder_batch_clips) == (32, 16_384, 4)
    assert decided.limits.max_audio_seconds == 600
    own = ServeSettings.create(
        checkpoint=tmp_path, work_dir=tmp_path, encoder_batch_clips=1, limits={"max_audio_seconds": 60}
    ).for_engine(32, 16_384, encoder_batch_clips=4, max_audio_seconds=600)
    assert own.encoder_batch_clips == 1 and own.limits.max_audio_seconds == 60
    with pytest.raises(SettingsError, match="triton_host"):
        ServeSettings.create(checkpoint=tmp_path, work_dir=tmp_path, triton_host="everywhere")


def test_the_warm_up_meets_its_own_blocks(tmp_path, monkeypatch):
    """The same request twice, which is longer than a block of the KV cache; its recording is in the first."""
    asked = []

    class Client:
        def __init__(self, address, tls):
            self.address = address

        async def __aenter__(self):
            return self

        async def __aexit__(self, *_):
            pass

        async def complete(self, messages, sampling, timeout):
            asked.append((self.address, messages, sampling))

    monkeypatch.setattr(serve, "StepAudioClient", Client)
    asyncio.run(WARM_UP("here", Tls()))
    first, second = asked
    assert first == second and first[0] == "here"
    text, (recording,) = split_audio(first[1])
    samples = decode_audio(recording)
    clips = [[ClipInfo(audio_rows(len(samples) / SAMPLE_RATE), content_hash(samples))]]
    make_tiny(tmp_path / "tiny", layers=1, audio_layers=1)
    tokenizer = Tokenizer.from_directory(tmp_path / "tiny")
    ids = build_prompt(parse_conversation(json.loads(text)), tokenizer, 10**6, clips).input_ids
    assert len(ids) > TOKENS_PER_BLOCK > (ids >= 10**6).argmax()
