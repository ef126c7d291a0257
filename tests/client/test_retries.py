"""What is done about a failure: by its code, by whether anything has come, and by how many servers there are."""

from __future__ import annotations

import pytest

from fake_triton import TOKENIZER, message, refusal, script, serving
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
        tokens = client._pipeline.tokens(run, TokenRequest([user("x")], GREEDY), set(), 100)
        try:
            ids = [token async for part in tokens for token in part.token_ids]
        except RequestError as error:
            assert expected == RAISED and error.code is code and str(error) == "so it is"
        else:
            assert ids == [5] * begun + [{OTHER: 7, SAME: 6}[expected]]
        await client.close()
