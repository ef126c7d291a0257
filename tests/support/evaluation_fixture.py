"""Questions, answers, and a client that knows some."""

from step_audio_evaluation.items import Item

SETTINGS = {"model": "stub", "seed": 0, "sampling": {"temperature": 0.0}}


def item(id_="q-0", text="What is 2+3?", expected="5", **more) -> Item:
    return Item(id_, "sums", ({"role": "user", "content": text},), (), more.pop("kind", "number"), expected, **more)


GOOD = {"audio": "clips/a.wav", "question": "Which?", "choices": ["dog", "cat"], "answer": "cat"}
