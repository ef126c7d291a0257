"""What a request asks for and the small trained model does, asked by OpenAI's own package."""

from __future__ import annotations

import pytest

HELLO = [{"role": "user", "content": "What is three plus four?"}]


@pytest.mark.parametrize("thinking", [{"mode": "on"}, {"mode": "off"}, {"budget_tokens": 5}])
def test_the_model_cannot_end_an_answer_that_ignores_eos(client, thinking):
    def ask(**extra):
        body = {"thinking": thinking, **extra}
        return client.chat.completions.create(model="", messages=HELLO, max_tokens=200, temperature=0, extra_body=body)

    usual, long = ask(), ask(ignore_eos=True)
    assert usual.usage.completion_tokens < 200 and usual.choices[0].finish_reason == "stop"
    assert long.usage.completion_tokens == 200 and long.choices[0].finish_reason == "length"


def test_bad_words_are_not_written(client):
    def ask(**extra):
        reply = client.chat.completions.create(
            model="", messages=HELLO, max_tokens=60, temperature=0, extra_body={"thinking": {"mode": "off"}} | extra
        )
        return reply.choices[0].message.content

    usual = ask()
    word = max(usual.split(), key=len)
    assert word not in ask(bad_words=[word])
