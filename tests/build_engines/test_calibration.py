"""The text that fp8 and awq are calibrated with: what it lacks is said before anything is built."""

import shutil

import pytest

from build_fixture import PROFILE, quiet, settings_for
from hub_fixture import hub_of
from parquet_fixture import parquet
from stand_ins import StandIns
from step_audio.errors import StepAudioError
from step_audio.safetensors import LFS_POINTER
from step_audio_build.stages import build as stages
from step_audio_build.stages import calibration
from step_audio_build.stages.calibration import DEFAULT_DATA, calibration_fault
from step_audio_build.stages.convert import ConvertStage
from step_audio_build.stages.layout import BuildJob

FP8 = PROFILE.model_copy(update={"precision": "fp8"})
TEXT = b'{"text": "Once upon a time."}\n'


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """And a home without caches."""
    for name in ("HF_DATASETS_CACHE", "HF_HUB_OFFLINE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with hub_of(tmp_path) as server:
        yield server


def folder(place, files) -> str:
    for name, content in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(place)


@pytest.mark.parametrize(
    "files",
    [
        {"news.jsonl": TEXT},
        {"data/train-00000-of-00001.parquet": parquet("text", "id"), "data/test-00000-of-00001.parquet": parquet("a")},
        {"all.csv": b'id,"text"\n1,Once\n'},
        {"all.tsv": b"id\ttext\n1\tOnce\n"},
        {"all.json": b'[{"text": "Once"}]'},
        {"all.json": b'[\n {"text": "Once"}]'},
        {"all.txt": b"Once upon a time.\n"},
        {"a.jsonl.gz": b"\x1f\x8b"},
        {"README.md": b"---\nconfigs: []\n---\n", "validation.jsonl": b"{}\n"},
        {"latest.jsonl": TEXT, ".cache/a.parquet": b""},  # "test" within a word, and what an earlier client left
    ],
)
def test_folders_that_it_reads(files, tmp_path):
    assert calibration_fault(folder(tmp_path / "news", files)) is None


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"README.md": b"news"}, "has no file that `datasets` reads: give the folder of .parquet, .arrow"),
        (
            {"train.jsonl": LFS_POINTER + b"v1\n"},
            "train.jsonl is a git-lfs pointer, not the file: run `git lfs install`",
        ),
        ({"train.jsonl": b""}, "train.jsonl is empty: bring it again"),
        (
            {"train.jsonl": b'{"article": "Once"}\n'},
            "train.jsonl has no column `text`: rename the one that has the text",
        ),
        ({"train.csv": b"id,article\n"}, "train.csv has no column `text`"),
        ({"train.parquet": parquet("article", "context")}, "train.parquet has no column `text`"),
        ({"train.parquet": parquet("text")[:-3]}, "train.parquet is no whole Parquet file: bring it again"),
        ({"train.parquet": b"<html>not found"}, "train.parquet is no whole Parquet file"),
        ({"test.jsonl": TEXT, "more.jsonl": TEXT}, "has no split `train`: give a folder with those files alone"),
    ],
)
def test_folders_that_it_does_not_read(files, said, tmp_path):
    assert said in str(calibration_fault(folder(tmp_path / "news", files)))


def test_a_folder_of_the_news_is_known_by_its_name(tmp_path):
    """The quantiser asks it for a configuration and another column."""
    place = tmp_path / "cnn_dailymail"
    data = folder(place, {"3.0.0/train-0.parquet": parquet("article", "highlights"), "1.0.0/train-0.parquet": b""})
    assert "it lacks README.md: give the folder another name, or run `hf download" in str(calibration_fault(data))
    (place / "README.md").write_text("---\nconfigs: []\n---\n")
    assert calibration_fault(data) is None
    (place / "3.0.0/train-0.parquet").write_bytes(parquet("text"))
    assert "has no column `article`" in str(calibration_fault(data))
    shutil.rmtree(place / "3.0.0")
    assert "it lacks 3.0.0/train-*.parquet" in str(calibration_fault(data))


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    data = folder(tmp_path / "news", {"train.jsonl": TEXT})
    monkeypatch.setattr(calibration, "is_lfs_pointer", refuse)
    assert f"train.jsonl cannot be read (Permission denied): chmod -R a+rX {data}" in str(calibration_fault(data))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("/nowhere/news", "there is no folder /nowhere/news"),
        ("/nowhere/cnn_dailymail", "there is no folder /nowhere/cnn_dailymail"),
        (
            "wikitext",
            "there is no folder wikitext, and of data sets elsewhere fp8 and awq can be calibrated with abisee",
        ),
        ("pileval", "give --calibration-data a folder whose files have a column `text`"),
        ("derek-thomas/ScienceQA", "takes it for questions about pictures: give it another"),
    ],
)
def test_names_that_it_does_not_know(data, said, hub):
    assert said in str(calibration_fault(data, hub.endpoint)) and not hub.requests


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "news.jsonl").write_bytes(TEXT)
    assert "is a file, and the quantiser takes a folder" in str(calibration_fault(str(tmp_path / "news.jsonl")))


def test_the_hub_is_asked_for_the_name_alone(hub, monkeypatch):
    assert calibration_fault(DEFAULT_DATA, hub.endpoint) is None
    assert [method for method, _, _ in hub.requests] == ["GET"]
    assert "abisee/cnn_dailymails is not on the hub" not in str(calibration_fault(DEFAULT_DATA, hub.endpoint))
    assert "other/cnn_dailymail is not on the hub" in str(calibration_fault("other/cnn_dailymail", hub.endpoint))
    hub.fault, hub.code = 500, ""
    assert "the Hugging Face hub answered 500; where it can, run `hf download" in str(
        calibration_fault(DEFAULT_DATA, hub.endpoint)
    )
    hub.fault = None
    monkeypatch.setattr(calibration.os, "access", lambda path, mode: False)
    assert "home/datasets is not writable by user" in str(calibration_fault(DEFAULT_DATA, hub.endpoint))


def test_without_network_it_must_be_here(hub, tmp_path):
    said = str(calibration_fault(DEFAULT_DATA, "http://127.0.0.1:9"))
    assert "the Hugging Face hub cannot be reached" in said and "give --calibration-data DIR/cnn_dailymail" in said
    folder(tmp_path / "home/datasets/abisee___cnn_dailymail", {"3.0.0/0.0.0/96df5e/cnn_dailymail-train.arrow": b"rows"})
    assert calibration_fault(DEFAULT_DATA, "http://127.0.0.1:9") is None


@pytest.mark.build  # one stage of it runs, torch and all
def test_a_build_says_it_first(tiny, tmp_path, monkeypatch):
    """Also a dry run, and neither of a build that reads it no more, or never."""
    machine = StandIns(tmp_path / "machine", monkeypatch)
    given = {"profile": FP8, "quantize_script": machine.programs / "quantize.py", "calibration_data": "/nowhere/news"}
    settings = settings_for(tiny, tmp_path / "work", **given)
    _, lacking = stages.describe(settings)
    assert [fault for fault in lacking if "there is no folder /nowhere/news" in fault] and len(lacking) == 1
    with pytest.raises(StepAudioError, match="there is no folder /nowhere/news"):
        stages.build(settings, quiet)
    assert not (tmp_path / "work").exists() and not machine.calls("quantize.py")
    assert stages.describe(settings_for(tiny, tmp_path / "work", calibration_data="/nowhere/news"))[1] == []
    assert stages.describe(settings, first="encoder")[1] == []
    ConvertStage(BuildJob(settings, quiet)).run()
    assert stages.describe(settings)[1] == []


def test_what_the_quantiser_imports_is_looked_for(tiny, tmp_path, monkeypatch):
    machine = StandIns(tmp_path / "machine", monkeypatch)
    shutil.rmtree(machine.modules / "modelopt")
    stages_to_convert = settings_for(tiny, tmp_path / "work", profile=FP8)
    with pytest.raises(StepAudioError, match="modelopt not found: build inside the image"):
        stages.build(stages_to_convert, quiet, last="convert")
