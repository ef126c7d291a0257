"""The client library against a small gRPC server that behaves as tritonserver does, well and badly."""

import asyncio
import json
from collections import defaultdict

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2_grpc

from fake_triton import (
    EOT,
    TOKENIZER,
    Fake,
    for_ever,
    message,
    refusal,
    script,
    served,
    serving,
    stops,
)
from step_audio.errors import Code
from step_audio_client import (
    Audio,
    AudioReport,
    ChatOptions,
    RequestError,
    Sampling,
    StepAudioClient,
    UnsupportedParameter,
    calls,
    user,
)
from step_audio_client.messages import split_audio
from step_audio_server.launch.ports import free_ports
from waiting import until

# Messages


def test_user(tmp_path):
    (tmp_path / "clip.wav").write_bytes(b"RIFF")
    assert user("hello") == {"role": "user", "content": [{"type": "text", "text": "hello"}]}
    content = user(Audio(b"1"), "and", tmp_path / "clip.wav")["content"]
    assert content == [
        {"type": "audio", "audio": Audio(b"1")},
        {"type": "text", "text": "and"},
        {"type": "audio", "audio": Audio(b"RIFF")},
    ]


def test_split_audio():
    """Bytes travel beside the messages, in the order of their places; everything else is left as it is."""
    messages = [
        {"role": "system", "content": "听"},
        user(Audio(b"1"), "then", Audio(b"2")),
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
        user(Audio(b"3")),
        {"role": "user", "content": [{"type": "audio"}]},
    ]
    text, audio = split_audio(messages)
    assert audio == [b"1", b"2", b"3"]
    place = {"type": "audio"}
    assert json.loads(text) == [
        messages[0],
        {"role": "user", "content": [place, {"type": "text", "text": "then"}, place]},
        messages[2],
        {"role": "user", "content": [place]},
        {"role": "user", "content": [place]},
    ]
    assert "听" in text
    assert messages[1]["content"][0]["audio"] == Audio(b"1"), "the caller's messages are left alone"


# Sampling


def sent(sampling: Sampling) -> dict:
    inputs = sampling.inputs()
    assert all(array.shape == (1, 1) for array in inputs.values())
    return {name: array.item() for name, array in inputs.items()}


def test_greedy_is_said_so_that_every_engine_is_greedy():
    assert sent(Sampling(temperature=0, top_p=0.5, top_k=9, min_p=0.1, seed=3)) == {"runtime_top_k": 1}


def test_a_temperature_never_travels_alone():
    """The engine would ignore it, and be greedy."""
    assert sent(Sampling(temperature=0.5, seed=3)) == {"temperature": 0.5, "runtime_top_p": 1.0, "seed": 3}
    assert sent(Sampling(temperature=0.5, top_p=0.25, top_k=40, seed=3)) == {
        "temperature": 0.5, "runtime_top_p": 0.25, "runtime_top_k": 40, "seed": 3,
    }  # fmt: skip


def test_no_seed_is_a_fresh_one():
    """To the engine it would be seed 0, the same answer for everybody."""
    assert sent(Sampling())["seed"] != sent(Sampling())["seed"]


def test_every_control_travels_under_its_name_and_type():
    inputs = Sampling(max_tokens=5, min_tokens=2, min_p=0.125, repetition_penalty=1.5, presence_penalty=0.5,
                      frequency_penalty=0.25, seed=2**64 - 1, logprobs=True).inputs()  # fmt: skip
    assert {name: (array.dtype, array.item()) for name, array in inputs.items()} == {
        "temperature": (np.float32, pytest.approx(0.7)),
        "runtime_top_p": (np.float32, 1.0),
        "request_output_len": (np.int32, 5),
        "min_p": (np.float32, 0.125),
        "min_tokens": (np.int32, 2),
        "repetition_penalty": (np.float32, 1.5),
        "presence_penalty": (np.float32, 0.5),
        "frequency_penalty": (np.float32, 0.25),
        "seed": (np.uint64, 2**64 - 1),
        "return_log_probs": (np.bool_, True),
    }


def test_what_asks_for_nothing_does_not_travel():
    assert sent(Sampling(top_k=0, min_p=0, min_tokens=0, seed=3)) == sent(Sampling(seed=3))
    assert sent(Sampling(top_k=-1, seed=3)) == sent(Sampling(seed=3))


@pytest.mark.parametrize(("name", "value"), [("seed", -1), ("seed", 2**64), ("max_tokens", 2**31), ("top_k", -(2**40))])
def test_a_number_that_does_not_fit_is_not_wrapped_round(name, value):
    with pytest.raises(RequestError, match=rf"{value} is out of range"):
        Sampling(**{name: value}).inputs()


# A server


async def test_an_answer():
    ids = TOKENIZER.encode("Hi 你好")
    parts = [message(token) for token in ids[:-1]]
    async with served(script(*parts, message(ids[-1]), message(final=True, empty=True)), tokenizer=None) as (
        fake,
        client,
    ):
        whole = await client.complete([user(Audio(b"RIFF"), "x")], Sampling(max_tokens=50), request_id="mine")
        await client.complete([user("x")])
    assert (whole.text, whole.token_ids, whole.finish_reason) == ("Hi 你好", ids, "stop")
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (10, len(ids))
    (_, name, inputs), (_, second, _) = [entry for entry in fake.seen if entry[0] == "generate"]
    assert name == "mine" and len(second) == 32
    assert inputs["audio"].tolist() == [[b"RIFF"]]
    assert (inputs["streaming"].item(), inputs["request_output_len"].item()) == (True, 50)
    assert json.loads(inputs["messages"].item())[0]["content"][0] == {"type": "audio"}
    asked = [entry[1] for entry in fake.seen if entry[0] == "asked"]
    assert sorted(asked) == ["serving_info", "tokenizer_json"], "asked once"
    assert not stops(fake)


async def test_what_is_amiss_with_recordings_comes_with_the_answer():
    ids = TOKENIZER.encode("so\n</think>\nHi.")
    async with served(script(message(*ids), message(final=True, empty=True))) as (fake, client):
        fake.audio_report = np.array([[[0, 0.25, 0], [0, 0, 1]]], np.float32)
        messages = [user(Audio(b"1"), Audio(b"2", channel=1), Audio(b"3"))]
        # Ended early, too, where no final response is read.
        for options in (ChatOptions(), ChatOptions(stop=("i",))):
            *_, last = [delta async for delta in client.chat(messages, options)]
            assert last.audio == (AudioReport(1, 0.25, False), AudioReport(2, 0, True))
        *before, last = [delta async for delta in client.generate(messages)]
        whole = await client.complete(messages)
        assert last.audio == whole.audio == (AudioReport(1, 0.25, False), AudioReport(2, 0, True))
        assert not any(delta.audio for delta in before) and (await client.complete([user("x")])).audio == ()
        *before, last = [delta async for delta in client.chat([user("x")])]
        assert last.audio == () and not any(delta.audio for delta in before)
    (_, _, inputs), *_ = [entry for entry in fake.seen if entry[0] == "generate"]
    parts = json.loads(inputs["messages"].item())[0]["content"]
    assert parts == [{"type": "audio"}, {"type": "audio", "channel": 1}, {"type": "audio"}]


@pytest.mark.parametrize(
    ("ids", "limit", "room", "reason"),
    [
        ([5, 6], 3, 90, "stop"),
        ([5, 6, 7], 3, 90, "length"),
        ([5, 6, EOT], 3, 90, "stop"),
        ([5, 6], None, 2, "length"),
        ([5, 6], 50, 2, "length"),
    ],
)
async def test_finish_reason(ids, limit, room, reason):
    async with served(script(message(*ids, final=True, prompt=100 - room))) as (_, client):
        assert (await client.complete([user("x")], Sampling(max_tokens=limit))).finish_reason == reason


async def test_stop_tokens_are_ids_and_no_text():
    async with served(script(message(*TOKENIZER.encode("yes"), EOT, final=True))) as (_, client):
        whole = await client.complete([user("x")])
    assert whole.text == "yes" and whole.token_ids[-1] == EOT


async def test_characters_are_never_split():
    ids = TOKENIZER.encode("🙂")
    assert len(ids) > 1
    async with served(script(*map(message, ids), message(final=True))) as (_, client):
        texts = [delta.text async for delta in client.generate([user("x")])]
    assert "".join(texts) == "🙂" and "\ufffd" not in "".join(texts)


async def test_an_error_after_tokens():
    bad = refusal(Code.INVALID_REQUEST, "it broke")
    async with served(script(message(5), bad)) as (fake, client):
        stream = client.generate([user("x")])
        assert (await anext(stream)).token_ids == [5]
        with pytest.raises(RequestError, match=r"^it broke$"):
            await anext(stream)
    assert not stops(fake)


async def test_streams_that_end_without_a_final_response():
    """As when the server dies, and each time it is back."""
    async with served(script(message(5))) as (_, client):
        with pytest.raises(RequestError, match="has failed twice with this request in hand"):
            await client.complete([user("x")])


async def leave_by_break(client, fake):
    async for _ in client.generate([user("x")], request_id="mine"):
        break


async def leave_by_aclose(client, fake):
    stream = client.generate([user("x")], request_id="mine")
    await anext(stream)
    await stream.aclose()


async def leave_by_cancelling(client, fake):
    task = asyncio.create_task(client.complete([user("x")], request_id="mine"))
    await until(lambda: fake.leases and "generate" in [what for what, *_ in fake.seen])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def leave_by_deadline(client, fake):
    with pytest.raises(RequestError, match="longer than the timeout"):
        await client.complete([user("x")], request_id="mine", timeout=2)


@pytest.mark.parametrize(
    "leave",
    [leave_by_break, leave_by_aclose, leave_by_cancelling, pytest.param(leave_by_deadline, marks=pytest.mark.long)],
)
async def test_leaving_early_stops_the_server(leave):
    """By the lease, and the LLM, under the same id, before `close` returns. What is cancelled crashes tritonserver: so
    the call is read to its end."""
    async with serving(script(message(5), then=for_ever)) as [(fake, address, _)]:
        async with StepAudioClient(address, TOKENIZER) as client:
            await leave(client, fake)
        assert all(entry in fake.seen for entry in [("left", "lease:mine"), ("stop", "mine", True), ("ended",)])
    assert {*stops(fake)} == {("stop", "mine", True)}


class HeardAtLast(asyncio.Event):
    """A stop that comes before the LLM has the request is lost."""

    lost = 3

    def set(self):
        self.lost -= 1
        if self.lost < 0:
            super().set()


async def test_a_stop_that_is_lost_is_sent_again():
    async with served(script(message(5), then=for_ever)) as (fake, client):
        fake.stopped = defaultdict(HeardAtLast)
        answer = asyncio.create_task(client.complete([user("x")], request_id="mine"))
        await until(lambda: "generate" in [what for what, *_ in fake.seen])
        await client.stop("mine")
        assert (await answer).token_ids == [5]
    assert {*stops(fake)} == {("stop", "mine", True)} and len(stops(fake)) >= 4


class Deaf(asyncio.Event):
    def set(self):
        pass


async def test_a_server_that_does_not_stop_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(calls, "ENDING", 0.3)
    async with serving(script(message(5), then=for_ever)) as [(fake, address, _)]:
        fake.stopped = defaultdict(Deaf)
        async with StepAudioClient(address, TOKENIZER) as client:
            await leave_by_break(client, fake)
        await until(lambda: ("cancelled", "mine") in fake.seen)


async def test_leaving_at_the_last_delta_is_not_early():
    """Everything is here: nothing to stop, and a stream that is cancelled as it ends would trip tritonserver."""
    slow_end = script(message(5), message(6, final=True), then=lambda: asyncio.sleep(0.1))
    async with served(slow_end) as (fake, client):
        async for delta in client.generate([user("x")]):
            if delta.finish_reason:
                break
        await until(lambda: ("ended",) in fake.seen)
    assert not stops(fake) and ("cancelled",) not in {entry[:1] for entry in fake.seen}


async def test_a_deadline_after_the_answer_harms_nothing(monkeypatch):
    monkeypatch.setattr(calls, "ENDING", 0.3)
    async with served(script(message(5, final=True), then=for_ever)) as (_, client):
        assert (await client.complete([user("x")], timeout=2)).token_ids == [5]


async def test_no_server():
    (port,) = free_ports(1)
    async with StepAudioClient(f"127.0.0.1:{port}", TOKENIZER) as client:
        assert not await client.ready()
        with pytest.raises(RequestError, match=f"^no server answers at 127.0.0.1:{port}$"):
            await client.complete([user("x")])


async def test_a_server_that_dies_midway():
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Fake(script(message(5), then=for_ever)), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with StepAudioClient(f"127.0.0.1:{port}", TOKENIZER, patience=0.2) as client:
        stream = client.generate([user("x")])
        await anext(stream)
        await server.stop(0)
        with pytest.raises(RequestError):
            await anext(stream)


async def test_what_the_served_llm_does_not_take_is_refused_by_name():
    async with served(script(message(5), message(final=True, empty=True))) as (fake, client):
        fake.parameters.remove("min_p")
        for sampling in (Sampling(min_p=0), Sampling(min_p=0.5, temperature=0)):  # these ask for nothing
            assert (await client.complete([user("hi")], sampling)).token_ids == [5]
        with pytest.raises(UnsupportedParameter, match=r"^min_p is not supported") as caught:
            await client.complete([user("hi")], Sampling(min_p=0.1))
        assert caught.value.param == "min_p"
        assert sum(what == "generate" for what, *_ in fake.seen) == 2


# Adapters


async def test_an_adapter_by_its_name():
    async with served(script(message(5), message(final=True))) as (fake, client):
        options = ChatOptions(adapter="terse")
        _ = [delta async for delta in client.chat([user("hello")], options)]
        _ = [delta async for delta in client.continue_raw([5, 6], options)]
        await client.complete([user("hello")], adapter="terse")
        await client.complete([user("hello")])
    sent = [inputs.get("lora_task_id") for kind, _, inputs in (e for e in fake.seen if e[0] == "generate")]
    assert [one if one is None else one.item() for one in sent] == [7, 7, 7, None]
    assert sent[0].dtype == np.uint64 and sent[0].shape == (1, 1)


async def test_an_adapter_that_is_not_served():
    async with served(script(message(final=True))) as (fake, client):
        with pytest.raises(RequestError, match="there is no adapter 'curt' here, but terse") as caught:
            await client.complete([user("hello")], adapter="curt")
    assert caught.value.param == "adapter" and not [e for e in fake.seen if e[0] == "generate"]
