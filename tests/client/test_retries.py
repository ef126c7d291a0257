"""What is done about a failure: by its code, by whether anything has come, and by how many servers there are."""

from __future__ import annotations

import grpc
import pytest

import fake_triton
from fake_triton import TOKENIZER, Fake, message, refusal, script, serving
from step_audio.errors import Code
from step_audio_client import RequestError, Sampling, StepAudioClient, failover, user
from step_audio_client.tokens import TokenRequest

GREEDY = Sampling(max_tokens=10, temperature=0)

RAISED, OTHER, SAME = "raised", "another server", "the same server"
# Nothing has come, one server and two; something has come, one server and two.
TABLE = dict.fromkeys(Code, (RAISED, RAISED, RAISED, RAISED)) | {
    Code.QUEUE_FULL: (RAISED, OTHER, SAME, OTHER),
    Code.UNAVAILABLE: (SAME, OTHER, SAME, OTHER),
    Code.SERVER_LOST: (SAME, OTHER, SAME, OTHER),
}


@pytest.mark.parametrize("code", Code)
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("servers", [1, 2])
async def test_what_is_done(code, begun, servers, monkeypatch):
    monkeypatch.setattr(failover, "PAUSES", (0.01,))
    expected = TABLE[code][2 * begun + servers - 1]
    fails = [script(*([message(5)] if begun else []), refusal(code))]

    def first():
        return (fails.pop() if fails else script(message(6, final=True)))()

    async with serving(*[first, script(message(7, final=True))][:servers]) as started:
        client = StepAudioClient([address for _, address, _ in started], TOKENIZER)
        await client.serving_info()
        run = client._pipeline.run()
        run.route = list(client._pipeline._servers.all)
        tokens = client._pipeline.tokens(run, TokenRequest([user("x")], GREEDY), set(), 100, 32)
        try:
            ids = [token async for part in tokens for token in part.token_ids]
        except RequestError as error:
            assert expected == RAISED and error.code is code and str(error) == "so it is"
        else:
            assert ids == [5] * begun + [{OTHER: 7, SAME: 6}[expected]]
        await client.close()


@pytest.mark.parametrize("status", ["CANCELLED", "ABORTED", "DATA_LOSS", "UNAVAILABLE"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_call_that_ends_with_its_server_is_made_again(status, streamed, monkeypatch):
    """Of a server alone, before anything has come."""
    monkeypatch.setattr(failover, "PAUSES", (0.01,))
    to_end = []

    class Ending(Fake):
        async def ModelInfer(self, request, context):
            if request.model_name != "lease" and to_end and not streamed:
                await context.abort(to_end.pop(), "")
            return await super().ModelInfer(request, context)

        async def ModelStreamInfer(self, requests, context):
            if to_end and streamed:
                await requests.__anext__()
                await context.abort(to_end.pop(), "")
            async for part in super().ModelStreamInfer(requests, context):
                yield part

    monkeypatch.setattr(fake_triton, "Fake", Ending)
    async with serving(script(message(6, final=True))) as [(_, address, _)], StepAudioClient(address) as client:
        await client.serving_info()
        to_end.append(grpc.StatusCode[status])
        assert await client._pipeline.ask(client._pipeline.run(), "tokenizer", {}, "serving_info")
        assert (await client.complete([user("x")])).token_ids == [6] and not to_end
