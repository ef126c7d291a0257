"""What a build starts from: a checkpoint from the hub, the decoder as a Qwen2 model, checkpoints of other precisions.

The hub is a small server here, asked by the real client.
"""

import json
import shutil
import sys
from types import SimpleNamespace

import pytest

from export_fixture import export_nothing
from hub_fixture import COMMIT, hub_of
from lazy import Lazy
from stand_ins import StandIns
from step_audio.checkpoint import Checkpoint, encoder_tensors
from step_audio.config import ModelConfig
from step_audio.errors import StepAudioError
from step_audio_build.artefacts import artefact
from step_audio_build.convert.decoder_only import bytes_written, write_decoder_only
from step_audio_build.convert.make_tiny import make_tiny
from step_audio_build.planning.profiles import load_profile
from step_audio_build.stages import build as stages
from step_audio_build.stages import quantized
from step_audio_build.stages.convert import ConvertStage
from step_audio_build.stages.download import DownloadStage, with_whole_commit
from step_audio_build.stages.layout import BuildJob, BuildSettings
from step_audio_build.stages.quantized import calibrated, is_finished, quantize_command

torch = Lazy("torch")

PROFILE = load_profile("4xH100-16k")
FP8 = PROFILE.model_copy(update={"precision": "fp8"})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """In shards: the first two hold the encoder's tensors and the beginning of the decoder's."""
    directory = tmp_path_factory.mktemp("inputs") / "tiny"
    make_tiny(directory, dtype="bfloat16", audio_layers=1, shards=4, max_position_embeddings=32_768)
    return directory


def job_for(work, profile=PROFILE, **source) -> BuildJob:
    return BuildJob(BuildSettings.create(profile=profile, work_dir=work, **source), lambda line: None)


@pytest.fixture
def hub(tiny, monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with hub_of(tiny) as server:
        yield server


def download_for(hub, work, revision=COMMIT) -> DownloadStage:
    return DownloadStage(job_for(work, model=f"someone/tiny@{revision}"), hub.endpoint)


def fetched(hub) -> list[str]:
    """Names of files whose bytes were asked for."""
    return [path.rpartition("/")[2] for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path]


def test_download(hub, tiny, tmp_path):
    stage = download_for(hub, tmp_path / "work")
    assert not stage.finished()
    stage.run()
    target = tmp_path / "work" / "tiny-8abb296c0912"
    assert stage.job.checkpoint == target and stage.finished()
    for path in tiny.iterdir():
        assert (target / path.name).read_bytes() == path.read_bytes()
    assert not (target / "modeling.py").exists()  # no code is fetched
    manifest = json.loads((target / "download.manifest.json").read_text())
    assert manifest["identity"]["settings"]["commit"] == COMMIT
    hub.requests.clear()
    again = download_for(hub, tmp_path / "work")
    again.run()
    assert not hub.requests  # finished: the hub is not even asked


def test_the_size_of_a_download_without_the_hub(hub, tiny, tmp_path):
    """For doctor; what is there already does not count."""
    stage = download_for(hub, tmp_path / "work")
    stage.job.model = ModelConfig.from_directory(tiny)
    weights = sum(path.stat().st_size for path in tiny.glob("*.safetensors"))
    assert 0.95 * weights < stage.size_unasked() <= weights and not hub.requests
    stage.run()
    assert stage.size_unasked() == 0


def test_a_branch_is_followed_once(hub, tmp_path):
    stage = download_for(hub, tmp_path / "work", "main")
    stage.run()
    manifest = json.loads((tmp_path / "work" / "tiny-main" / "download.manifest.json").read_text())
    assert manifest["identity"]["settings"] == {"repository": "someone/tiny", "revision": "main", "commit": COMMIT}
    assert download_for(hub, tmp_path / "work", "main").finished()


def test_a_commit_s_first_digits_are_the_commit(hub, tmp_path):
    """Before a path is made of it, and without the hub once it is here."""
    short, work = f"someone/tiny@{COMMIT[:7]}", tmp_path / "work"
    assert with_whole_commit(short, work, hub.endpoint) == f"someone/tiny@{COMMIT}"
    download_for(hub, work).run()
    hub.requests.clear()
    assert with_whole_commit(short, work, hub.endpoint) == f"someone/tiny@{COMMIT}"
    for as_it_is in ("someone/tiny@main", f"someone/tiny@{COMMIT}", "someone/tiny@v1.1"):
        assert with_whole_commit(as_it_is, tmp_path, hub.endpoint) == as_it_is
    assert not hub.requests
    assert with_whole_commit("someone/tiny@beefbee", tmp_path, hub.endpoint) == "someone/tiny@beefbee", "a branch"
    for digits, message in (("1234567", "no commit begins so"), ("abcdefa", "2 commits begin so")):
        with pytest.raises(StepAudioError, match=f"{digits}: {message}; give all 40 digits"):
            with_whole_commit(f"someone/tiny@{digits}", tmp_path, hub.endpoint)


def test_an_interrupted_download_goes_on(hub, tiny, tmp_path, monkeypatch):
    import huggingface_hub

    fetch, count = huggingface_hub.hf_hub_download, 0

    def stop_before_the_last(*arguments, **options):
        nonlocal count
        count += 1
        if count == len(list(tiny.iterdir())):
            raise KeyboardInterrupt
        return fetch(*arguments, **options)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", stop_before_the_last)
    with pytest.raises(KeyboardInterrupt):
        download_for(hub, tmp_path / "work").run()
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    stage = download_for(hub, tmp_path / "work")
    left = [file for file in tiny.iterdir() if not (stage.job.checkpoint / file.name).exists()]
    assert len(left) == 1 and stage.size() == left[0].stat().st_size and not stage.finished()
    hub.requests.clear()
    stage.run()
    assert fetched(hub) == [left[0].name]


def test_bytes_that_changed_on_the_way(hub, tmp_path):
    hub.fault = "damaged"
    with pytest.raises(StepAudioError, match="arrived damaged"):
        download_for(hub, tmp_path / "work").run()
    hub.fault = None
    download_for(hub, tmp_path / "work").run()


@pytest.mark.parametrize(
    ("fault", "message"),
    [(404, "does not know this revision"), (403, "asks for a licence"), (500, "answered 500")],
)
def test_a_hub_that_refuses(fault, message, hub, tmp_path):
    hub.fault = fault
    with pytest.raises(StepAudioError, match=message) as caught:
        download_for(hub, tmp_path / "work").run()
    assert "\n" not in str(caught.value)


def test_offline(tmp_path, monkeypatch):
    stage = DownloadStage(job_for(tmp_path, model=f"someone/tiny@{COMMIT}"), "http://127.0.0.1:9")
    with pytest.raises(StepAudioError, match=r"cannot be reached; copy the checkpoint .* --checkpoint DIR"):
        stage.run()


def test_nobody_reads_how_far_a_download_is(hub, tmp_path, monkeypatch):
    """The hub's own bars: `step-audio build 2>&1 | head -1` is no hub that cannot be reached."""
    import huggingface_hub

    def fails(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fails)
    with pytest.raises(BrokenPipeError):
        download_for(hub, tmp_path / "work").run()


def test_room_for_everything_before_the_first_weight(hub, tiny, tmp_path, monkeypatch):
    """Only the configuration is fetched to know how large all of it becomes."""
    monkeypatch.setattr(DownloadStage.__init__, "__defaults__", (hub.endpoint,))
    monkeypatch.setattr(artefact.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    settings = job_for(tmp_path / "work", model=f"someone/tiny@{COMMIT}").settings
    with pytest.raises(StepAudioError, match="stages download to convert: "):
        stages.build(settings, lambda line: None, last="convert")
    assert fetched(hub) == ["config.json", "model.safetensors.index.json"] and not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda index: index["weight_map"].update(odd="model-9.safetensors"),
            "lacks model-9.safetensors, which its mod",
        ),
        (
            lambda index: index["weight_map"].pop("encoder.conv1.weight"),
            "has no encoder.conv1.weight: it is not a Step",
        ),
        (lambda index: index.pop("weight_map"), "model.safetensors.index.json is malformed"),
    ],
)
def test_a_revision_that_is_not_whole_is_seen_before_its_weights_are_fetched(
    spoil, message, tiny, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    index = json.loads((tiny / "model.safetensors.index.json").read_text())
    spoil(index)
    odd = tmp_path / "odd"
    shutil.copytree(tiny, odd)
    (odd / "model.safetensors.index.json").write_text(json.dumps(index))
    with hub_of(odd) as hub:
        monkeypatch.setattr(DownloadStage.__init__, "__defaults__", (hub.endpoint,))
        settings = job_for(tmp_path / "work", model=f"someone/tiny@{COMMIT}").settings
        _, lacking = stages.describe(settings)
        assert len(lacking) == 1 and message in lacking[0]
        with pytest.raises(StepAudioError, match=message):
            stages.build(settings, lambda line: None, last="convert")
    assert not [name for name in fetched(hub) if name.endswith(".safetensors")]


def test_the_decoder_as_a_qwen2_model(tiny, tmp_path):
    """transformers loads it with no tensor too many or missing, and it answers as the checkpoint does."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from reference import Reference

    manifest = write_decoder_only(tiny, tmp_path / "qwen2")
    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "qwen2", dtype=torch.float32, output_loading_info=True
    )
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    reference = Reference(tiny)
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, reference.model(ids).logits, rtol=1e-4, atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "qwen2")
    assert tokenizer("Count to ten.").input_ids == reference.tokenizer.encode("Count to ten.").ids
    assert tokenizer.eos_token == "<|endoftext|>"

    written = Checkpoint(tmp_path / "qwen2")
    assert not set(written.tensors) & set(encoder_tensors(ModelConfig.from_directory(tiny).audio))
    links = [path.name for path in (tmp_path / "qwen2").glob("*.safetensors") if path.stat().st_nlink > 1]
    copies = sum(info.stop - info.start for info in written.tensors.values() if info.file.name not in links)
    assert links and copies == bytes_written(tiny)
    assert write_decoder_only(tiny, tmp_path / "qwen2") == manifest


def test_weight_only_precisions_share_the_bytes(tiny, tmp_path, monkeypatch):
    export_nothing(monkeypatch)
    int8 = PROFILE.model_copy(update={"precision": "int8"})
    convert = ConvertStage(job_for(tmp_path, int8, checkpoint=tiny))
    assert not convert.needs_gpu and not convert.finished()
    convert.run()
    assert convert.finished() and ConvertStage(job_for(tmp_path, checkpoint=tiny)).finished()
    plain, quantised = (tmp_path / f"decoder-tp4-{name}" for name in ("bfloat16", "int8"))
    for rank in range(4):
        assert (plain / f"rank{rank}.safetensors").samefile(quantised / f"rank{rank}.safetensors")
    old, new = (json.loads((path / "config.json").read_text()) for path in (plain, quantised))
    assert new["quantization"].pop("quant_algo") == "W8A16" and old["quantization"].pop("quant_algo") is None
    assert old == new
    int4 = ConvertStage(job_for(tmp_path, PROFILE.model_copy(update={"precision": "int4"}), checkpoint=tiny))
    assert not int4.finished()
    int4.run()
    config = json.loads((tmp_path / "decoder-tp4-int4" / "config.json").read_text())
    assert config["quantization"]["quant_algo"] == "W4A16"
    assert convert.finished()


@pytest.mark.parametrize(
    ("update", "flags", "samples", "name"),
    [
        ({"precision": "fp8"}, "--qformat fp8", 512, "decoder-tp4-fp8"),
        ({"precision": "awq"}, "--qformat int4_awq --awq_block_size 128", 32, "decoder-tp4-awq"),
        (
            {"precision": "fp8", "kv_cache_dtype": "fp8", "fp8_kv_cache_despite_faults": True},
            "--qformat fp8",
            512,
            "decoder-tp4-fp8-kv-fp8",
        ),
    ],
)
def test_calibrated_precisions(update, flags, samples, name, tiny, tmp_path, monkeypatch):
    machine = StandIns(tmp_path / "machine", monkeypatch)
    script = machine.programs / "quantize.py"
    work, profile = tmp_path / "prompts", PROFILE.model_copy(update=update)  # "mpt" would be MPT's
    job = job_for(work, profile, checkpoint=tiny, quantize_script=script, calibration_data="/data/news")
    assert ConvertStage(job).needs_gpu and not ConvertStage(job).finished()
    machine.tell("quantize.py", status=1, print="CUDA error: out of memory")
    with pytest.raises(StepAudioError, match=r"quantize.py ended with status 1: CUDA error: out of memory; log"):
        calibrated(job)
    assert not (work / name).exists()
    machine.forget_calls()
    machine.tell("quantize.py")
    calibrated(job)
    [call] = machine.calls("quantize.py")
    kv = "--kv_cache_dtype fp8 " if profile.kv_cache_dtype == "fp8" else ""
    wanted = (
        f"--model_dir ./qwen2 --dtype bfloat16 {flags} --calib_size {samples} --calib_dataset /data/news "
        f"{kv}--tp_size 4 --output_dir {work}/{name}.partial"
    )
    assert call["argv"] == wanted.split()
    assert is_finished(job) and (work / name / "rank3.safetensors").is_file()
    other = job_for(work, profile, checkpoint=tiny, quantize_script=script, calibration_data="/data/poems")
    with pytest.raises(StepAudioError, match=f"{samples} of /data/news, not {samples} of /data/poems"):
        is_finished(other)


def test_the_quantiser_runs_in_the_image_s_python(tiny, tmp_path, monkeypatch):
    """Ours has packages of other releases before the image's."""
    machine = StandIns(tmp_path / "machine", monkeypatch)
    machine.add_program("python3", "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])")
    job = job_for(tmp_path / "work", FP8, checkpoint=tiny, quantize_script=machine.programs / "quantize.py")
    assert quantize_command(job, tmp_path)[0] == sys.executable  # there is no image here
    monkeypatch.setattr(quantized, "IMAGE_PYTHON", machine.programs / "python3")
    calibrated(job)
    [call] = machine.calls("python3")
    assert call["argv"][0] == str(job.settings.quantize_script) and is_finished(job)


def test_without_nvidias_script(tiny, tmp_path, monkeypatch):
    StandIns(tmp_path / "machine", monkeypatch)
    given = {"quantize_script": tmp_path / "no.py", "calibration_data": str(tmp_path)}
    (tmp_path / "news.txt").write_text("Once upon a time.")
    settings = job_for(tmp_path / "work", FP8, checkpoint=tiny, **given).settings
    with pytest.raises(StepAudioError, match=r"no.py is not there; name NVIDIA's with --quantize-script"):
        stages.build(settings, lambda line: None, last="convert")
