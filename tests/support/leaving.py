"""Leaves answers in the middle, in many ways, each in a loop of its own: `python -X dev leaving.py ADDRESS [WAY]`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sys

from fake_triton import TOKENIZER
from step_audio_client import ChatOptions, Sampling, StepAudioClient, user

QUESTION = [user("x")]
held = []  # until the loop has ended


class Enough(Exception):
    pass


async def read(client):
    async for _ in client.generate(QUESTION, Sampling(max_tokens=50)):
        pass


async def leave(client):
    async for _ in client.generate(QUESTION):
        break


async def leave_chat(client):
    async for _ in client.chat(QUESTION, ChatOptions()):
        break


async def leave_and_close(client):
    await leave(client)
    await client.close()


async def leave_by_an_error(client):
    with contextlib.suppress(Enough):
        async for _ in client.generate(QUESTION):
            raise Enough


async def keep(client):
    held.append(client.generate(QUESTION))
    await anext(held[-1])


async def keep_chats(client):
    for _ in range(5):
        held.append(client.chat(QUESTION, ChatOptions()))
        await anext(held[-1])


async def forget(client):
    stream = client.generate(QUESTION)
    await anext(stream)
    del stream
    gc.collect()
    await asyncio.sleep(0.05)


async def forget_all(client):
    held.append(client.generate(QUESTION))
    await anext(held[-1])
    del client
    gc.collect()


async def cancel(client, after=0.1):
    task = asyncio.create_task(read(client))
    await asyncio.sleep(after)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def be_cancelled_at_the_end(client):
    for _ in range(5):
        held.append(asyncio.create_task(read(client)))
    await asyncio.sleep(0.1)


async def cancel_before_anything_came(client):
    await cancel(client, after=0)


async def run_out_of_time(client):
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.1):
            await read(client)


async def close_under_a_reader(client):
    task = asyncio.create_task(read(client))
    await asyncio.sleep(0.1)
    await client.close()
    await asyncio.gather(task, return_exceptions=True)


async def close_twice(client):
    stream = client.generate(QUESTION)
    await anext(stream)
    await asyncio.gather(stream.aclose(), client.close())


WAYS = {name: way for name, way in list(globals().items()) if asyncio.iscoroutinefunction(way) and name != "read"}


async def go(way, address):
    asyncio.get_running_loop().slow_callback_duration = 60  # a busy machine is none of our business
    await way(StepAudioClient(address, TOKENIZER))


def main(address: str, *names: str) -> None:
    for name in names or WAYS:
        print(name, file=sys.stderr if names else sys.stdout, flush=True)
        asyncio.run(go(WAYS[name], address), debug=True)
        held.clear()
        gc.collect()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    main(*sys.argv[1:])
