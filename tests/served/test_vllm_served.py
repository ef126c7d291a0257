"""`step-audio serve --llm vllm` on vLLM itself, in float32: `make vllm`, or VLLM_PYTHON and `pytest -m vllm`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hanging import hanging
from paths import ROOT
from raw_triton import call, prompt, refusal, scalar, send, texts
from reference import Reference, sine_speech
from reference_cases import MAX_TOKENS, answers_at_once, answers_one_by_one, cases
from serve_process import ServeProcess
from server_settings import settings_for
from step_audio.config import ModelConfig, TextConfig
from step_audio_build.convert.make_tiny import make_tiny
from step_audio_client import Audio, Sampling, StepAudioClient, calls, user
from step_audio_server.processes import arguments
from step_audio_server.serve import Service
from waiting import until, wait_until

LOADING = 900  # seconds: three Pythons import torch, one after the other

pytestmark = [pytest.mark.vllm, pytest.mark.server]


def python() -> str:
    if "VLLM_PYTHON" not in os.environ:
        pytest.skip("VLLM_PYTHON names no Python that has vLLM: `make vllm` makes one, docs/engines.md")
    return os.environ["VLLM_PYTHON"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """With heads of 32 numbers: vLLM has no attention on a CPU for the smaller ones of the other tests' model."""
    directory = tmp_path_factory.mktemp("checkpoint") / "tiny"
    make_tiny(directory, hidden_size=256, dtype="float32", max_position_embeddings=32_768)
    return directory


@contextlib.contextmanager
def serving(model: Path, work_dir: Path, *flags: str) -> Iterator[ServeProcess]:
    vllm = ("--llm", "vllm", "--llm-python", python(), "--startup-timeout", str(LOADING))
    process = ServeProcess(settings_for(model, work_dir / "vllm"), *vllm, *flags)
    try:
        process.wait_for("ready: ", LOADING)
        yield process
    finally:
        process.end()


@pytest.fixture(scope="module")
def serve(model, work_dir):
    with serving(model, work_dir) as process:
        yield process


def ids(responses, index: int = 0) -> list[int]:
    return [
        token
        for response in responses
        if "output_ids" in response.outputs and response.outputs.get("sequence_index", np.array(0)).item() == index
        for token in response.outputs["output_ids"].reshape(-1).tolist()
    ]


def outputs(responses) -> dict[str, np.ndarray]:
    """Of an answer that is not streamed."""
    (found,) = (response.outputs for response in responses if response.outputs)
    return found


def ask(serve, new: int = 16, words=range(200, 230), **inputs) -> list[int]:
    return ids(call(serve.address, "tensorrt_llm", prompt(list(words), new, **inputs)))


def stop_words(*words: list[int]) -> np.ndarray:
    """As TensorRT-LLM packs them: ids, and where each word ends."""
    flat = [token for word in words for token in word]
    ends = np.cumsum([len(word) for word in words]).tolist()
    return np.array([[flat, ends + [-1] * (len(flat) - len(ends))]], np.int32)


@pytest.fixture(scope="module")
def service(model, work_dir):
    """Our own engine beside it."""
    with Service(settings_for(model, work_dir / "vllm", max_seq_len=4096)) as running:
        yield running


@pytest.fixture(scope="module")
def expected(model) -> dict[str, list[int]]:
    reference = Reference(model)
    return {case.name: reference.greedy(case.prompt, case.recordings, MAX_TOKENS).tokens for case in cases()}


def test_one_at_a_time_equals_the_reference(serve, expected):
    assert asyncio.run(answers_one_by_one(serve.address)) == expected


def test_all_at_once_equals_the_reference(serve, expected):
    assert asyncio.run(answers_at_once(serve.address, seed=1)) == expected


def test_blocks_are_known_by_the_rows_in_them(tmp_path):
    """By vLLM's own code. A row of zeros is not taken for the id 0, which has none, though vLLM calls both 0."""
    prompts = {
        "clip": ([1, 10, 11, 2], [[0.5, 1], [2, 3]]),
        "clip again": ([1, 10, 11, 2], [[0.5, 1], [2, 3]]),
        "other clip": ([1, 10, 11, 2], [[0.5, 1], [2, 4]]),
        "rows changed": ([1, 11, 10, 2], [[0.5, 1], [2, 3]]),
        "other words": ([1, 10, 11, 3], [[0.5, 1], [2, 3]]),
        "zeros": ([0, 10, 11, 2], [[0, 0], [2, 3]]),
        "zeros before": ([10, 10, 11, 2], [[0, 0], [2, 3]]),
        "the last id": ([9, 10, 11, 2], [[0, 0], [2, 3]]),
        "words alone": ([1, 9, 9, 2], []),
    }
    (tmp_path / "step_audio").mkdir()
    (tmp_path / "step_audio" / "vllm").symlink_to(ROOT / "step_audio" / "vllm")
    ran = subprocess.run(
        [python(), "-P", ROOT / "tests/support/vllm_hashes.py"], input=json.dumps(list(prompts.values())),
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path)}, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found = dict(zip(prompts, map(tuple, json.loads(ran.stdout)), strict=True))
    assert all(found.values()) and found.pop("clip again") == found["clip"]
    assert len(set(found.values())) == len(found)


def clip(seed: int, text: TextConfig) -> dict[str, np.ndarray]:
    """A prompt of the same words with a recording of its own, longer than a block of vLLM's cache is here (128)."""
    table = np.random.default_rng(seed).normal(0, 0.05, (1, 150, text.hidden_size)).astype(np.float32)
    words = [*range(300, 310), *range(text.vocab_size, text.vocab_size + 150), *range(310, 320)]
    hashes = np.array([[0] * 10 + [seed + 1] * 150 + [0] * 10], np.uint64)
    return prompt(words, 8, prompt_embedding_table=table, prompt_table_extra_ids=hashes)


def test_200_clips_with_the_same_words_are_not_mixed(serve, service, model):
    """Twice, so that what is cached is used; our own engine says what each answer is."""

    async def all_of(address: str, seeds) -> list[list[int]]:
        slots = asyncio.Semaphore(24)

        async def one(seed: int) -> list[int]:
            async with slots:
                return ids(await send(address, "tensorrt_llm", clip(seed, text)))

        return await asyncio.gather(*map(one, seeds))

    text, seeds = ModelConfig.from_directory(model).text, list(range(200))
    wanted = asyncio.run(all_of(service.address, seeds))
    assert len({tuple(tokens) for tokens in wanted}) > 50, "the model must tell the clips apart"
    assert asyncio.run(all_of(serve.address, seeds)) == wanted
    assert asyncio.run(all_of(serve.address, seeds[::-1])) == wanted[::-1]


def test_what_is_cached_is_used(serve, model):
    inputs = clip(1, ModelConfig.from_directory(model).text) | {"return_perf_metrics": scalar(True, np.bool_)}
    for _ in range(2):
        responses = call(serve.address, "tensorrt_llm", inputs)
    assert outputs(responses)["kv_cache_reused_blocks"].item() == 1


def test_ends_words_and_penalties_as_with_our_engine(serve, service):
    usual = ask(serve)
    asked = {
        "end": {"end_id": scalar(usual[5], np.int32)},
        "words": {"stop_words_list": stop_words([usual[3], usual[4]], [usual[9]])},
        "bad": {"bad_words_list": stop_words([usual[0]], [usual[1], usual[2]])},
        "min": {"end_id": scalar(usual[0], np.int32), "min_tokens": scalar(6, np.int32)},
        "repetition": {"repetition_penalty": scalar(1.3, np.float32)},
        "several": {"num_return_sequences": scalar(2, np.int32)},
    }
    assert usual == ask(service)
    for name, inputs in asked.items():
        assert ask(serve, **inputs) == ask(service, **inputs), name
    assert len(ask(serve, **asked["words"])) <= 10


def test_a_seed_draws_the_same_again(serve):
    drawn = {"temperature": scalar(1.5, np.float32), "runtime_top_p": scalar(1.0, np.float32)}
    first, again, other = (ask(serve, **drawn, seed=scalar(seed, np.uint64)) for seed in (3, 3, 4))
    assert first == again != other


def test_guides_hold_and_broken_ones_are_refused(serve):
    def guided(kind: str, guide: str) -> dict[str, np.ndarray]:
        return {"guided_decoding_guide_type": texts(kind), "guided_decoding_guide": texts(guide)}

    answered = ask(serve, 40, **guided("regex", "[ab]{3,5}"))
    assert 1 <= len(answered) <= 5, "it ends where the grammar does"
    broken = prompt([1, 2], 8, **guided("regex", "(["))
    assert "[INVALID_GUIDE guided_decoding_guide]" in refusal(serve.address, "tensorrt_llm", broken)


def test_log_probabilities(serve, service):
    inputs = {"return_log_probs": scalar(True, np.bool_), "num_top_log_probs": scalar(3, np.int32)}

    def asked(server):
        return outputs(call(server.address, "tensorrt_llm", prompt(list(range(200, 230)), 4, **inputs)))

    ours, theirs = asked(service), asked(serve)
    assert np.allclose(ours["output_log_probs"], theirs["output_log_probs"], atol=1e-3)
    assert np.array_equal(ours["top_log_prob_ids"], theirs["top_log_prob_ids"])


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"temperature": scalar(2.5, np.float32)}, "[UNSUPPORTED temperature]"),
        ({"presence_penalty": scalar(3, np.float32)}, "[UNSUPPORTED presence_penalty]"),
        ({"lora_task_id": scalar(1, np.uint64)}, "[UNSUPPORTED lora_task_id]"),
        ({"beam_width": scalar(2, np.int32)}, "[UNSUPPORTED beam_width]"),
    ],
)
def test_what_it_does_not_do_is_refused_by_name(serve, inputs, said):
    assert said in refusal(serve.address, "tensorrt_llm", prompt([1, 2, 3], 4, **inputs))


def test_a_stop_ends_an_answer_at_once(serve):
    async def stop() -> float:
        asked = asyncio.create_task(
            send(serve.address, "tensorrt_llm", prompt([1, 2, 3], 3000, streaming=scalar(True, np.bool_)), "long")
        )
        await asyncio.sleep(1)
        begun = time.monotonic()
        await send(serve.address, "tensorrt_llm", prompt([1], 1, stop=scalar(True, np.bool_)), "long")
        with pytest.raises(calls.StreamError, match="CANCELLED"):
            await asked
        return time.monotonic() - begun

    print(f"stopped within {1000 * asyncio.run(stop()):.0f} ms")


def leader(serve) -> int:
    return min(pid for pid in serve.family() if "step_audio.vllm.process" in arguments(pid))


def engine(serve, name: str = "EngineCore") -> int:
    """vLLM's own process behind it, which decides what is computed; or one that computes it."""
    (found,) = (pid for pid in serve.family() if arguments(pid)[:1] == [f"VLLM::{name}"])
    return found


@contextlib.contextmanager
def killed(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGKILL)
    yield


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    yield


def long_answers(serve, begun: Callable[[], None] | None = None) -> list[list[int]]:
    """Of several at once. `begun` is called when tokens of each have come, and more are to come."""

    async def one(client: StepAudioClient, n: int) -> list[int]:
        messages = [user(f"Go on {n}.", Audio(sine_speech(3, seed=n)))]
        greedy = Sampling(max_tokens=400, min_tokens=400, temperature=0)
        async for delta in client.generate(messages, greedy, timeout=LOADING):
            came[n] += delta.token_ids
        return came[n]

    async def all_at_once() -> list[list[int]]:
        async with StepAudioClient(serve.address, patience=LOADING) as client:
            asked = [asyncio.create_task(one(client, n)) for n in range(4)]
            if begun:
                await until(lambda: all(came.values()))
                assert not any(one.done() for one in asked)
                begun()
            return await asyncio.gather(*asked)

    came: dict[int, list[int]] = {n: [] for n in range(4)}
    return asyncio.run(all_at_once())


@pytest.fixture(scope="module")
def usual(serve) -> list[list[int]]:
    return long_answers(serve)


def status(serve, path: str) -> int:
    try:
        serve.get(path)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


@pytest.mark.parametrize(
    ("whose", "fault", "said"),
    [
        (leader, killed, "vLLM ended with status -9"),
        (engine, killed, "a process of vLLM's has ended"),
        (engine, stopped, "a process of vLLM's is stopped"),
        (engine, hanging, "vLLM's engine makes no steps"),
    ],
)
def test_a_death_or_hang_of_vllm_is_told_and_survived_by_what_was_under_way(serve, usual, whose, fault, said):
    """Each loads the model once more; they are the last ones."""

    def fail() -> None:
        stack.enter_context(fault(whose(serve)))
        # In a thread, since this one has the answers to read; and not after it, when all may be well again.
        away.append(threading.Thread(target=wait_until, args=(lambda: status(serve, "/ready") == 503, "/ready")))
        away[0].start()

    wait_until(lambda: status(serve, "/ready") == 200)
    first, away = leader(serve), []
    with contextlib.ExitStack() as stack:
        assert long_answers(serve, fail) == usual
        away[0].join()
    serve.wait_for(f"{said}: starting again")
    serve.wait_for("ready: ", LOADING)
    assert leader(serve) != first and status(serve, "/ready") == 200
    assert said in (Path(serve.settings.run_dir) / "deaths.jsonl").read_text().splitlines()[-1]


def test_two_ranks_compute_the_same_and_the_death_of_one_is_survived(model, work_dir, expected, monkeypatch):
    if (os.cpu_count() or 1) < 2:
        pytest.skip("each rank needs a core")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")  # with one NUMA node vLLM does not choose by itself
    with serving(model, work_dir, "--tp", "2") as two:
        assert asyncio.run(answers_one_by_one(two.address)) == expected
        usual = long_answers(two)
        assert long_answers(two, lambda: os.kill(engine(two, "Worker_TP1"), signal.SIGKILL)) == usual
        two.wait_for("a process of vLLM's has ended: starting again")
