"""Adapters on the real server: an answer is that of a checkpoint with its adapter merged, by another implementation."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal

import numpy as np
import pytest

from lazy import Lazy
from lora_fixture import merged, save_adapter
from raw_triton import prompt, refusal, scalar
from reference import Reference, sine_speech
from server_settings import settings_for
from step_audio_client import Audio, RequestError, Sampling, StepAudioClient, user
from step_audio_server.commands.cli import main
from step_audio_server.processes import children
from step_audio_server.serve import Service
from waiting import wait_until

load_file, save_file = Lazy("safetensors.torch:load_file"), Lazy("safetensors.torch:save_file")

GREEDY = Sampling(max_tokens=12, temperature=0)
SPEECH = sine_speech(2.5, seed=3)
QUESTIONS = {
    "<|BOT|>human\nhello<|EOT|>": [user("hello")],
    "<|BOT|>human\n<audio_patch>Who speaks?<|EOT|>": [user(Audio(SPEECH), "Who speaks?")],
}
GENERATION = "<|BOT|>assistant\n<think>\n"
ADAPTERS = ("terse", "medical")


@pytest.fixture(scope="module")
def folders(checkpoint, tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    state = {name: tensor for file in checkpoint.glob("*.safetensors") for name, tensor in load_file(file).items()}
    return {
        name: save_adapter(root / name, state, rank=4 + 4 * seed, seed=seed, strength=1.0)
        for seed, name in enumerate(ADAPTERS)
    }


@pytest.fixture(scope="module")
def expected(checkpoint, reference, folders, tmp_path_factory):
    """(adapter, its number among the questions) -> ids"""
    models = {None: reference}
    for name, folder in folders.items():
        directory = tmp_path_factory.mktemp("merged") / name
        shutil.copytree(checkpoint, directory)
        shards = {file: load_file(file) for file in directory.glob("*.safetensors")}
        changed = merged({name: tensor for shard in shards.values() for name, tensor in shard.items()}, folder)
        for file, shard in shards.items():
            save_file({name: changed.get(name, tensor) for name, tensor in shard.items()}, file)
        models[name] = Reference(directory)
    answers = {
        (name, i): model.greedy(text + GENERATION, [SPEECH] * text.count("<audio_patch>"), 12)
        for name, model in models.items()
        for i, text in enumerate(QUESTIONS)
    }
    assert all(answer.margin > 1e-3 for answer in answers.values())
    return {key: answer.tokens for key, answer in answers.items()}


@pytest.fixture(scope="module")
def adapted(checkpoint, work_dir, folders):
    given = [f"{name}={folder}" for name, folder in folders.items()]
    with Service(settings_for(checkpoint, work_dir, max_seq_len=4096, lora_modules=given)) as running:
        yield running


def all_answers(service, expected):
    async def run():
        async with StepAudioClient(service.address) as client:
            messages = list(QUESTIONS.values())
            asked = [client.complete(messages[i], GREEDY, adapter=name) for name, i in expected]
            return [answer.token_ids for answer in await asyncio.gather(*asked)]

    return dict(zip(expected, asyncio.run(asyncio.wait_for(run(), 120)), strict=True))


def test_each_answer_is_its_adapter_s(adapted, expected):
    assert len({tuple(ids) for ids in expected.values()}) == len(expected)
    assert all_answers(adapted, expected) == expected  # all at once, in one batch


def test_a_server_started_again_has_them(adapted, expected):
    os.kill(min(children(adapted.server.process.pid)), signal.SIGKILL)
    wait_until(lambda: adapted.server.fault() is not None, "the death")
    adapted.kill()
    adapted.start()
    assert all_answers(adapted, expected) == expected


def test_eval_asks_the_adapter(adapted, tmp_path, capsys):
    def evaluated(*flags: str) -> tuple[int, str]:
        common = ["eval", "--url", adapted.address, "--tasks", "text_only", "--per-task", "1", "--max-tokens", "8"]
        return main([*common, *flags]), capsys.readouterr().err

    answers = {}
    for name in ("terse", "medical", None):
        output = tmp_path / str(name)
        assert evaluated("--output", str(output), *(["--adapter", name] if name else []))[0] == 0
        assert json.loads((output / "settings.json").read_text()).get("adapter") == name
        assert (f"- adapter: {name}" in (output / "report.md").read_text()) == (name is not None)
        (answer,) = (output / "answers.jsonl").read_text().splitlines()
        answers[name] = tuple(json.loads(answer)["token_ids"])
    assert len(set(answers.values())) == 3
    status, said = evaluated("--output", str(tmp_path / "terse"), "--adapter", "medical")
    assert status == 1 and "holds answers with adapter 'terse', not 'medical'" in said
    status, said = evaluated("--output", str(tmp_path / "curt"), "--adapter", "curt")
    assert status == 1 and "there is no adapter 'curt' here, but terse, medical" in said
    assert not (tmp_path / "curt").exists()


def test_what_is_not_served(adapted):
    async def run():
        async with StepAudioClient(adapted.address) as client:
            await client.complete([user("hello")], GREEDY, adapter="curt")

    with pytest.raises(RequestError, match="there is no adapter 'curt' here, but terse, medical"):
        asyncio.run(run())
    raw = prompt([1, 2], 2, lora_task_id=scalar(5, np.uint64))
    assert "LoRA task 5 not found in cache" in refusal(adapted.address, "tensorrt_llm", raw)
