"""`step-audio doctor`: each check against a machine that has, lacks or half has what is asked for, and this machine."""

from __future__ import annotations

import re
import resource
import socket

import pytest

from dockerfile import ROOT, executable
from doctor_fixture import H100, HEAD, L40S, TWO_SOCKETS, Space, found
from step_audio.safetensors import LFS_POINTER
from step_audio_build.commands.plan import PUBLISHED
from step_audio_build.convert.make_tiny import make_tiny
from step_audio_build.planning import host_memory
from step_audio_build.planning.memory_plan import plan
from step_audio_build.planning.profiles import load_profile
from step_audio_build.stages.layout import Layout
from step_audio_server.doctor import checks, cpu, host, image, pins
from step_audio_server.launch import gpu_image


def test_four_h100s_in_the_image_are_ready_for_their_profile(here, capsys):
    here.gpus(*[H100] * 4)
    here.ngc_image()
    status, report = here.doctor(capsys, "--profile", "4xH100-16k")
    assert (status, report["status"]) == (0, "ok")
    assert report["works"] == ["profile 4xH100-16k on GPUs"]
    names = [finding["name"] for finding in report["findings"]]
    assert names == [
        "driver", "CUDA", "GPUs", "GPU memory", "links", "image", "TensorRT-LLM", "TensorRT", "packages", "programs",
        "GPU plan", "memory", "/dev/shm", "disk", "ports", "permissions", "limits",
    ]  # fmt: skip
    assert found(report, "GPUs")["found"] == "4 x NVIDIA H100 80GB HBM3 (sm90, 85.5 GB)"
    assert found(report, "links")["found"] == "NVLink between all (NV18)"


def test_without_a_profile_the_fitting_ones_are_named(here, capsys):
    here.gpus(*[H100] * 4)
    here.ngc_image()
    status, report = here.doctor(capsys)
    assert status == 0
    assert report["works"] == [
        f"profile {name} on GPUs" for name in ("2xH100-16k", "2xH100-65k", "4xH100-16k", "4xH100-65k")
    ]
    assert not [finding for finding in report["findings"] if finding["name"].startswith("CPU")]


def test_another_machine_than_the_profile_s_is_a_fault(here, capsys):
    here.gpus(*[L40S] * 4, topology=TWO_SOCKETS)
    here.ngc_image()
    status, report = here.doctor(capsys, "--profile", "4xH100-16k")
    assert (status, report["works"]) == (1, [])
    gpus = found(report, "GPUs")
    assert gpus["status"] == "fault" and "sm90" in gpus["found"]
    assert gpus["advice"] == "profiles for this machine: 4xL40S-16k, 4xL40S-65k"
    assert found(report, "links")["status"] == "warning"


def test_too_few_gpus_are_a_fault(here, capsys):
    here.gpus(*[H100] * 2)
    here.ngc_image()
    status, report = here.doctor(capsys, "--profile", "4xH100-16k")
    assert status == 1
    assert "needs 4 GPUs, 2 are visible" in found(report, "GPUs")["found"]


def test_without_gpus_the_cpu_is_what_works(here, capsys):
    """This machine's own Python, server and runtimes, and no stand-in for them."""
    status, report = here.doctor(capsys)
    assert (status, report["works"]) == (0, ["any checkpoint on the CPU"])
    assert found(report, "GPUs") == {"name": "GPUs", "status": "ok", "found": "none; a CPU will do", "advice": ""}
    assert found(report, "CPU server")["found"] == "tritonserver of nvidia-pytriton 0.7.0"


def test_without_gpus_a_profile_is_a_fault(here, capsys):
    status, report = here.doctor(capsys, "--profile", "4xH100-16k")
    assert (status, report["works"]) == (1, [])
    assert found(report, "GPUs")["status"] == "fault"
    assert found(report, "GPUs")["advice"].startswith("install NVIDIA's driver")
    assert found(report, "image")["advice"].startswith(f"run inside {gpu_image.IMAGE}")


def test_gpus_outside_the_image_do_not_keep_the_cpu_from_serving(here, capsys):
    here.gpus("NVIDIA GeForce RTX 3060, 8.6, 12288, 550.54.14", head=HEAD.replace("13.1", "12.4"), topology="")
    status, report = here.doctor(capsys)
    assert (status, report["status"], report["works"]) == (0, "warning", ["any checkpoint on the CPU"])
    assert {found(report, name)["status"] for name in ("driver", "CUDA", "image", "programs")} == {"warning"}


def test_the_image_without_its_gpus_says_which_flag_is_missing(here, capsys):
    here.ngc_image()
    for flags, wanted in (((), (0, "warning")), (("--profile", "4xH100-16k"), (1, "fault"))):
        status, report = here.doctor(capsys, *flags)
        assert (status, found(report, "GPUs")["status"]) == wanted
        assert "--gpus all" in found(report, "GPUs")["advice"]
        assert report["works"] == []


def test_a_broken_driver_is_told_in_its_own_words(here, capsys):
    here.gpus("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", status=9)
    status, report = here.doctor(capsys)
    assert status == 0 and found(report, "GPUs")["status"] == "warning"
    assert "couldn't communicate" in found(report, "GPUs")["found"]
    assert here.doctor(capsys, "--profile", "4xH100-16k")[0] == 1


def test_versions_of_another_image_are_faults(here, monkeypatch):
    monkeypatch.setattr(image, "installed_version", {"tensorrt_llm": "1.1.0"}.get)
    llm, tensorrt = image.versions()
    assert (llm.status, llm.found) == ("fault", "1.1.0")
    assert (tensorrt.status, tensorrt.found) == ("fault", "not installed")


def test_programs_that_one_gpu_does_not_need(here):
    executable(here.bin / "trtllm-build", "#!/bin/sh\n")
    assert image.programs(load_profile("1xH200-16k")).status == "ok"
    assert "mpirun" in image.programs(load_profile("4xH100-16k")).found


def test_what_a_late_stage_imports_is_looked_for(here, capsys, monkeypatch):
    assert image.packages(load_profile("4xH100-16k")).status == "ok"
    monkeypatch.setattr(image, "find_spec", {"torch": True, "onnx": True, "onnxruntime": True}.get)
    lacking = image.packages(None)
    assert (lacking.status, lacking.found) == ("fault", "huggingface_hub, onnxscript not installed")


def test_what_fp8_is_calibrated_with_is_looked_at(here, capsys, monkeypatch, tmp_path):
    """The quantiser asks for it hours later; other precisions never do."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(checks, "QUANTIZE_SCRIPT", tmp_path / "quantize.py")
    here.gpus(*[H100] * 4)
    here.ngc_image()
    mine = tmp_path / "mine.toml"
    head = 'gpu = "H100"\ngpus = 4\nmax_seq_len = 16384\nmax_batch_size = 32\nmax_audio_seconds = 600\n'
    mine.write_text(f'{head}precision = "fp8"\n')
    status, report = here.doctor(capsys, "--profile", str(mine))
    said = [one for one in report["findings"] if one["name"] == "calibration"]
    assert status == 1 and [one["status"] for one in said] == ["fault", "fault"]
    assert said[0]["found"].endswith("quantize.py is not there")
    assert "the Hugging Face hub cannot be reached" in said[1]["advice"] and "hf download" in said[1]["advice"]
    assert found(report, "packages")["found"].startswith("modelopt, datasets")
    (tmp_path / "quantize.py").touch()
    (tmp_path / "news").mkdir()
    (tmp_path / "news/a.jsonl").write_text('{"text": "Once upon a time."}\n')
    report = here.doctor(capsys, "--profile", str(mine), "--calibration-data", str(tmp_path / "news"))[1]
    assert found(report, "calibration")["status"] == "ok"
    mine.write_text(f'{head}precision = "int8"\n')
    assert "calibration" not in {one["name"] for one in here.doctor(capsys, "--profile", str(mine))[1]["findings"]}


def test_memory_of_a_container_is_its_limit(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 200000000 kB\nMemFree: 1 kB\nMemAvailable: 190000000 kB\n")
    monkeypatch.setattr(host_memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(host_memory, "CGROUP", tmp_path)
    wanted = plan(load_profile("4xH100-16k"), PUBLISHED)
    assert wanted.weights == 17_635_977_216  # a rank's, of which TensorRT has two copies while it builds
    (row,) = re.findall(r"^\| memory \|.*", (ROOT / "docs/deploy.md").read_text("utf-8"), re.MULTILINE)
    one, all_four = (host_memory.build_memory(wanted, workers) / 1e9 for workers in (1, 4))
    assert f"{one:.1f} GB at least, {all_four:.0f} GB for all four" in row
    assert host.memory(wanted).status == "ok"
    (tmp_path / "memory.max").write_text("120000000000\n")
    (tmp_path / "memory.current").write_text("1000000000\n")
    few = host.memory(wanted)
    assert (few.status, few.found) == ("warning", "119.0 GB of 120.0 GB available")
    assert few.advice == "room for building 3 of 4 ranks at once: 141.1 GB for all"
    (tmp_path / "memory.current").write_text("86000000000\n")
    none = host.memory(wanted)
    assert none.status == "fault" and none.advice.startswith("building takes 35.3 GB for each rank")
    # What has been read and written lately makes room by itself; tmpfs and the processes' own memory do not.
    stat = "anon 5000000000\nfile 81000000000\ninactive_file 60000000000\nactive_file 20000000000\nshmem 1000000000\n"
    (tmp_path / "memory.stat").write_text(stat)
    assert host.memory(wanted).found == "114.0 GB of 120.0 GB available"
    (tmp_path / "memory.max").write_text("max\n")
    assert host.memory(wanted).status == "ok"
    assert host.memory(None).status == "ok"


@pytest.mark.parametrize(
    ("total", "free", "profile", "status"),
    [
        (64 << 20, 64 << 20, True, "fault"),
        (64 << 20, 64 << 20, False, "warning"),
        (16 << 30, 1 << 20, True, "warning"),
        (16 << 30, 15 << 30, True, "ok"),
        (16 << 30, 1 << 30, True, "warning"),
        (1 << 30, 1 << 30, True, "fault"),
        (2 << 30, 2 << 30, True, "ok"),  # as the guides start the image for the CPU
    ],
)
def test_shared_memory(monkeypatch, total, free, profile, status):
    """16 recordings of ten minutes at once: 128 float32 bands 100 times a second, 7,512 bfloat16 rows of 5,120."""
    recording = 600 * 100 * 128 * 4 + 7512 * 5120 * 2
    assert 1 << 30 < 16 * recording < 2 << 30
    monkeypatch.setattr(host.shutil, "disk_usage", lambda path: Space(total, free))
    finding = host.shared_memory(profile)
    assert finding.status == status
    assert total >= 2 << 30 or "--shm-size" in finding.advice


def test_disk_for_what_is_not_built_yet(monkeypatch, tmp_path):
    monkeypatch.setattr(host.shutil, "disk_usage", lambda path: Space(10**12, 100 * 10**9))
    missing = host.disk(tmp_path / "not" / "yet", 200 * 10**9)
    assert missing.status == "fault" and "200.0 GB are needed" in missing.advice
    assert str(tmp_path) in missing.found
    assert host.disk(tmp_path, 99 * 10**9).status == "ok"
    assert host.disk(tmp_path, None).status == "ok"
    monkeypatch.setattr(host.shutil, "disk_usage", lambda path: Space(10**12, 10**6))
    assert host.disk(tmp_path, 0).status == "fault" and host.disk(tmp_path, None).status == "warning"


def test_disk_for_the_published_model_is_the_guide_s(here, capsys, monkeypatch):
    """Checkpoint, converted decoder, encoder and engines, until the build is done."""
    here.gpus(*[H100] * 4)
    here.ngc_image()
    monkeypatch.setattr(host.shutil, "disk_usage", lambda path: Space(10**12, 2 << 30))
    disk = found(here.doctor(capsys, "--profile", "4xH100-16k")[1], "disk")
    (said,) = re.findall(r"\| together \| (\d+) \|", (ROOT / "docs/deploy.md").read_text("utf-8"))
    assert disk["status"] == "fault" and disk["advice"].startswith(f"{said}.0 GB are needed")
    done = Layout(here.work, load_profile("4xH100-16k")).manifest("repository")
    done.parent.mkdir()
    done.touch()
    monkeypatch.setattr(host_memory, "memory", lambda: (2 << 30, 2 << 30))  # that of a build is not needed any more
    report = here.doctor(capsys, "--profile", "4xH100-16k")[1]
    assert found(report, "disk")["status"] == found(report, "memory")["status"] == "ok"


def test_ports_in_use_are_named_with_their_flags():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        finding = host.ports({"--grpc-port": port})
    assert finding.status == "warning" and f"--grpc-port ({port})" in finding.advice


def test_permissions(tmp_path, monkeypatch):
    assert host.permissions(tmp_path / "new").status == "ok"
    monkeypatch.setattr(host.os, "access", lambda path, mode: False)  # root may do everything
    assert host.permissions(tmp_path).status == "fault"


def test_locked_memory_counts_for_several_gpus(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64 << 10, 64 << 10))
    assert host.limits(4).status == "warning"
    assert host.limits(1).status == "ok"


def test_a_checkpoint_that_cannot_be_read_is_one_finding(here, capsys, tmp_path):
    here.gpus(*[H100] * 4)
    here.ngc_image()
    (tmp_path / "model").mkdir()
    status, report = here.doctor(capsys, "--profile", "4xH100-16k", "--checkpoint", str(tmp_path / "model"))
    assert status == 1 and report["works"] == []
    assert found(report, "checkpoint")["status"] == "fault"


def test_what_a_late_stage_would_lack_of_a_checkpoint(here, capsys, tmp_path):
    """With a profile or without; what is lacking besides it is told all the same."""
    here.gpus(*[H100] * 4)
    here.ngc_image()
    make_tiny(tmp_path / "model", audio_layers=1, max_position_embeddings=32_768)
    given = ("--profile", "4xH100-16k", "--checkpoint", str(tmp_path / "model"))
    status, report = here.doctor(capsys, *given)
    assert status == 0 and found(report, "checkpoint")["found"] == f"{tmp_path / 'model'} is whole"
    (tmp_path / "model" / "tokenizer.json").unlink()
    for flags in (given, given[2:]):
        status, report = here.doctor(capsys, *flags)
        assert status == 1 and report["works"] == []
        assert "has neither tokenizer.json nor vocab.json with merges.txt" in found(report, "checkpoint")["found"]
    (tmp_path / "model" / "model.safetensors").write_bytes(LFS_POINTER + b"v1\noid sha256:0\nsize 67000000000\n")
    (said,) = [one for one in here.doctor(capsys, *given)[1]["findings"] if one["name"] == "checkpoint"]
    assert said["status"] == "fault" and f"`git lfs pull` in {tmp_path / 'model'}" in said["found"]


def test_what_the_cpu_path_lacks(monkeypatch):
    monkeypatch.setattr(cpu, "RUNTIMES", ("torch", "no_such_module"))
    assert cpu.runtimes().found == "no_such_module not installed"
    real = cpu.importlib.util.find_spec
    monkeypatch.setattr(cpu.importlib.util, "find_spec", lambda name: None if name == "pytriton" else real(name))
    assert cpu.server().advice == cpu.INSTALL


def test_lines_are_one_a_finding_and_the_last_says_what_works(here, capsys):
    status, (*lines, last) = here.run(capsys, "--profile", "4xH100-16k")
    assert status == 1
    assert all(re.match(r"(ok|warning|fault) +\S", line) for line in lines)
    assert last == "works here: nothing, until the faults are gone"


def test_the_guide_waits_for_the_line_that_is_printed(here, capsys):
    here.gpus(*[H100] * 4)
    here.ngc_image()
    status, (*_, last) = here.run(capsys, "--profile", "4xH100-16k")
    assert status == 0
    assert re.findall(r"`(works here:[^`]*)`", (ROOT / "docs/deploy.md").read_text("utf-8")) == [last]


def test_pins_are_those_of_the_image():
    text = (ROOT / "docker/versions.env").read_text("utf-8")
    said = dict(re.findall(r"^(\w+)=(.+)$", text, re.MULTILINE))
    assert said["TRITON_IMAGE"] == gpu_image.IMAGE
    for name in ("TENSORRT_LLM_VERSION", "TENSORRT_VERSION", "CUDA_VERSION", "DRIVER_VERSION"):
        assert getattr(pins, name) == said[name]
