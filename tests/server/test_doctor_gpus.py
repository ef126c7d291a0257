"""`step-audio doctor` about drivers, cards and the links between them."""

from __future__ import annotations

import re

import pytest

from dockerfile import ROOT
from doctor_fixture import H100, HEAD, L40S, NVLINKED, TWO_SOCKETS, found
from step_audio.errors import ArtefactError
from step_audio_build.planning.gpus import FoundGpu, require, visible_gpus
from step_audio_build.planning.profiles import load_profile
from step_audio_server.doctor import gpu, pins

GEFORCE = "NVIDIA GeForce RTX 4090, 8.9, 24564, 590.44.01"
USABLE, UNUSABLE = "CUDA Driver OK", "CUDA Driver UNAVAILABLE (cuInit(0) returned 803)"


@pytest.mark.parametrize(
    ("card", "driver", "entrypoint", "status", "advice"),
    [
        (H100, "590.44.01", None, "ok", ""),
        (H100, "595.1", USABLE, "ok", ""),
        (H100, "580.95.05", USABLE, "ok", ""),
        (H100, "580.95.05", None, "warning", "start through /opt/nvidia/nvidia_entrypoint.sh"),
        (H100, "575.57.08", USABLE, "ok", ""),
        (H100, "535.183.06", USABLE, "ok", ""),
        (H100, "570.133.20", None, "fault", "start through /opt/nvidia/nvidia_entrypoint.sh"),
        (H100, "550.54.14", UNUSABLE, "fault", "update to 590.44.01"),
        (H100, "560.35.03", USABLE, "fault", "R535, R550, R570, R575, R580; update it"),
        (H100, "525.85.12", None, "fault", "update it"),
        (GEFORCE, "580.95.05", None, "warning", "update it if the server does not start"),
        (GEFORCE, "570.133.20", USABLE, "fault", "wants 590.44.01 or later; update it"),
    ],
)
def test_drivers_are_judged_by_what_the_image_supports(here, monkeypatch, card, driver, entrypoint, status, advice):
    """NVIDIA's entrypoint says what it found by an exported variable."""
    monkeypatch.delenv("_CUDA_COMPAT_STATUS", raising=False)
    if entrypoint is not None:
        monkeypatch.setenv("_CUDA_COMPAT_STATUS", entrypoint)
    here.gpus(card.replace("590.44.01", driver))
    finding = gpu.driver(visible_gpus())
    assert finding.status == status and advice in finding.advice
    assert entrypoint != UNUSABLE or UNUSABLE in finding.found


@pytest.mark.parametrize(
    ("cuda", "entrypoint", "status"),
    [
        ("13.1", None, "ok"),
        ("13.2", None, "ok"),
        ("13.0", None, "warning"),
        ("12.9", None, "fault"),
        ("12.9", USABLE, "ok"),
    ],
)
def test_what_the_driver_can_run(here, monkeypatch, cuda, entrypoint, status):
    monkeypatch.delenv("_CUDA_COMPAT_STATUS", raising=False)
    if entrypoint is not None:
        monkeypatch.setenv("_CUDA_COMPAT_STATUS", entrypoint)
    here.gpus(H100, head=HEAD.replace("13.1", cuda))
    assert gpu.cuda().status == status


def test_the_guide_s_table_of_drivers_is_what_is_judged_by():
    page = (ROOT / "docs/deploy.md").read_text("utf-8")
    lines = [line.split("|")[1:3] for line in page.splitlines() if re.match(r"\| (R5|590)", line)]
    runs = [branch for names, said in lines if "runs, by forward" in said for branch in re.findall(r"R(\d+)", names)]
    assert sorted(map(int, runs)) == list(pins.COMPATIBLE_BRANCHES)
    assert lines[0][0].strip() == f"{pins.DRIVER_VERSION} and later"


def test_gpus_that_are_not_whole_or_not_free(here):
    here.gpus(f"{H100}, Enabled", f"{H100}, Disabled", L40S)
    assert [finding.status for finding in gpu.load(visible_gpus())] == ["fault"]
    with pytest.raises(
        ArtefactError, match=r"GPU 0 is divided \(MIG\), .* nvidia-smi -i 0 -mig 0, on the machine itself"
    ):
        require(load_profile("1xH200-16k"))
    here.gpus(f"{H100}, [N/A]", H100, load="70000")
    busy = gpu.load(visible_gpus())
    assert [(finding.name, finding.status) for finding in busy] == [("GPU 0", "warning"), ("GPU 1", "warning")]
    assert "73.4 GB" in busy[0].found


def test_links_of_the_ranks_alone_count():
    assert gpu.topology(NVLINKED, range(4)) == {"NV18"}
    assert gpu.topology(TWO_SOCKETS, range(4)) == {"PIX", "SYS"}
    assert gpu.topology(TWO_SOCKETS, [0, 1]) == gpu.topology(TWO_SOCKETS, [3, 2]) == {"PIX"}
    assert gpu.topology("\t\x1b[4mGPU0\tCPU Affinity\x1b[0m\nGPU0\t X \t0-15\n", [0]) == set()


def test_links_that_a_profile_counts_on(here):
    here.gpus(*[H100] * 4, topology=TWO_SOCKETS)
    assert "nvlink -s" in gpu.links(visible_gpus(), load_profile("4xH100-16k")).advice
    assert "NCCL_P2P_DISABLE=1" in gpu.links(visible_gpus(), load_profile("4xL40S-16k")).advice
    here.gpus(*[L40S] * 4, topology=TWO_SOCKETS.replace("SYS", "NODE"))
    assert gpu.links(visible_gpus(), load_profile("4xL40S-16k")).status == "ok"


@pytest.mark.parametrize(
    ("named", "indices"),
    [
        ("2,3", [2, 3]),
        ("3, 0", [3, 0]),
        ("GPU-c,GPU-aa", [2, 0]),
        ("GPU-a", []),  # two begin so
        ("1,7,2", [1]),  # what stands behind one that there is not is hidden
        ("1,1", [1]),
        ("", []),
        ("-1", []),
    ],
)
def test_only_the_visible_gpus_count(here, monkeypatch, named, indices):
    """As CUDA reads the variable, by number or by UUID."""
    here.gpus(*[H100] * 4, topology=TWO_SOCKETS, uuids=["GPU-aa1", "GPU-ab2", "GPU-c3", "GPU-d4"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    visible = visible_gpus()
    assert [one.index for one in visible] == indices
    if indices == [2, 3]:
        assert gpu.links(visible, None).found == "PCIe (PIX)", "not those of GPUs that are hidden"
        here.load(*["70000"] * 2, *["4"] * 2)
        assert [one.status for one in gpu.load(visible)] == ["ok"]


def test_parts_of_gpus_and_none_at_all_are_told(here, capsys, monkeypatch):
    here.gpus(*[H100] * 4)
    here.ngc_image()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-3c2b0a2e-6a56-5a2c-9d1c-0d6f0c9a8b77")
    with pytest.raises(ArtefactError, match=r"names MIG-3c2b.*, a part of a GPU \(MIG\), and ranks need whole ones"):
        visible_gpus()
    for named, said in (("MIG-3c2b", "part of a GPU"), ("9", "CUDA_VISIBLE_DEVICES=9 leaves none")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        status, report = here.doctor(capsys, "--profile", "4xH100-16k")
        assert status == 1 and said in found(report, "GPUs")["found"]
        assert found(report, "GPUs")["advice"] == "name whole GPUs of this machine in CUDA_VISIBLE_DEVICES, or unset it"


@pytest.mark.parametrize(
    ("name", "sm", "mib", "profiles"),
    [
        ("NVIDIA H200", 90, 143771, ["1xH200-16k", "1xH200-65k"]),
        ("NVIDIA B200", 100, 183359, ["1xB200-16k", "1xB200-65k"]),
        ("NVIDIA H20", 90, 97871, ["4xH20-16k", "4xH20-65k"]),
        ("NVIDIA H20-3e", 90, 143771, ["4xH20-3e-16k", "4xH20-3e-65k"]),
        ("NVIDIA H100 NVL", 90, 95830, ["2xH100NVL-16k", "2xH100NVL-65k"]),
        ("NVIDIA A100-SXM4-80GB", 80, 81920, ["4xA100-16k", "4xA100-65k"]),
        ("NVIDIA A100-SXM4-40GB", 80, 40960, []),
        ("NVIDIA H200 NVL", 90, 143771, ["1xH200-16k", "1xH200-65k"]),
        ("NVIDIA H100 PCIe", 90, 81559, []),  # 2.0 TB/s, and no NVLink
        ("NVIDIA H800 PCIe", 90, 81559, []),
        ("NVIDIA A100 80GB PCIe", 80, 81920, []),
    ],
)
def test_cards_are_told_apart_by_name(name, sm, mib, profiles):
    assert gpu.suitable([FoundGpu(name, sm, mib << 20, "590.44.01")] * 4) == profiles


@pytest.mark.parametrize(("mib", "fits"), [(81_559, True), (79_000, True), (76_000, False), (95_830, False)])
def test_a_card_of_the_name_with_another_memory(mib, fits):
    """A profile of 80 GB would leave a seventh of 94 GB unused."""
    cards = [FoundGpu("NVIDIA H100 80GB HBM3", 90, mib << 20, "590.44.01")] * 4
    assert ("4xH100-16k" in gpu.suitable(cards)) == fits
