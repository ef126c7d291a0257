"""vLLM behind a socket: `python -m step_audio.vllm.process OPTIONS`, in vLLM's environment.

A prompt is its ids and, where it has recordings, the rows of the prompt table in the places of the ids from the
vocabulary's size on. vLLM takes both side by side (`EmbedsInput` with `is_token_ids`), and embeds the ids itself.

Prefix caching: vLLM's key of a block is a hash of its ids and, of a prompt that has embeddings, SHA-256 of the block's
embeddings (vllm/v1/core/kv_cache_utils.py, `_gen_prompt_embeds_extra_hash_keys`, 0.32.0). So clips cannot be mixed, as
long as what stands in the places of the ids is never the row of a table: it is infinity, which no table may hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import vllm
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError
from vllm.inputs.engine import embeds_input, tokens_input
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.loggers import StatLoggerBase

from step_audio.vllm.options import VllmOptions
from step_audio.vllm.protocol import HEAD, Arrays, Message, ProtocolError, pack, reachable, sizes_of, unpack
from step_audio.vllm.pulse import PERIOD, Pulse, Work, keep

STATS_PERIOD = 0.05  # seconds
MAX_LOGPROBS = 20
SEEDS = 1 << 64  # a larger one would take the engine down
ANY_JSON = "{}"
ROW_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

log = logging.getLogger("step_audio.vllm")


class Stats(StatLoggerBase):  # type: ignore[misc]
    """vLLM's latest figures of itself; there is one in the process."""

    latest: ClassVar[dict[str, float]] = {}
    blocks = 0
    reused = 0  # positions, ever
    made = 0  # steps, ever: of prompts' parts, too, after which no token comes

    def __init__(self, vllm_config: Any, engine_index: int = 0):
        self.steps = 0
        self.config = vllm_config

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        if scheduler_stats is None:
            return
        self.steps += 1
        Stats.made += 1
        Stats.reused += scheduler_stats.prefix_cache_stats.hits
        Stats.latest = {
            "running": scheduler_stats.num_running_reqs,
            "waiting": scheduler_stats.num_waiting_reqs,
            "usage": scheduler_stats.kv_cache_usage,
            "steps": self.steps,
            "context": 0 if iteration_stats is None else len(iteration_stats.time_to_first_tokens_iter),
            "blocks": self.config.cache_config.num_gpu_blocks or 0,
            "reused": Stats.reused,
        }

    def log_engine_initialized(self) -> None:
        pass


def prompt_of(arrays: Arrays, options: VllmOptions) -> Any:
    """As vLLM takes it."""
    ids = torch.frombuffer(arrays["ids"], dtype=torch.int32)
    if "table" not in arrays:
        return tokens_input(ids.tolist())
    kind = ROW_TYPES[options.dtype]
    table = torch.frombuffer(arrays["table"], dtype=kind).view(-1, options.hidden_size)
    is_token = ids < options.vocab_size
    rows = torch.full((len(ids), options.hidden_size), torch.inf, dtype=kind)
    rows[~is_token] = table[ids[~is_token].long() - options.vocab_size]
    # Of an id that has a row nothing but its place is looked at, and the penalties count it.
    known = torch.where(is_token, ids, options.vocab_size - 1)
    return embeds_input(rows, prompt_token_ids=known.tolist(), is_token_ids=is_token.tolist())


class Client:
    """One connection of the stub's: its requests end with it."""

    def __init__(self, engine: AsyncLLM, options: VllmOptions, writer: asyncio.StreamWriter, dead: asyncio.Event):
        self._engine, self._options, self._writer, self._dead = engine, options, writer, dead
        self._tasks: dict[str, set[asyncio.Task[None]]] = {}

    def send(self, message: Message) -> None:
        self._writer.writelines(pack(message))

    def take(self, message: Message, arrays: Arrays) -> None:
        match message["do"]:
            case "generate":
                self._generate(message, arrays)
            case "cancel":
                for task in self._tasks.get(message["request"], ()):
                    task.cancel()
            case other:
                raise ProtocolError(f"{other!r} is not to be done")

    def close(self) -> None:
        for tasks in self._tasks.values():
            for task in tasks:
                task.cancel()

    def _generate(self, message: Message, arrays: Arrays) -> None:
        request = message["request"]
        try:
            prompt = prompt_of(arrays, self._options)
        except Exception as error:
            self._failed(request, 0, error)
            return
        tasks = self._tasks[request] = set()

        def ended(task: asyncio.Task[None], index: int) -> None:
            tasks.discard(task)
            if not tasks:
                self._tasks.pop(request, None)
            if task.cancelled() and not self._writer.is_closing():  # perhaps before its first step
                self.send({"do": "tokens", "request": request, "index": index, "tokens": [], "finished": "cancelled"})

        for index in range(message["answers"]):
            task = asyncio.create_task(self._answer(message, index, prompt))
            tasks.add(task)
            task.add_done_callback(partial(ended, index=index))

    async def _answer(self, message: Message, index: int, prompt: Any) -> None:
        request = message["request"]
        try:
            answer = VllmAnswer(message, index, self._options)
            outputs = self._engine.generate(prompt, answer.params, f"{request}.{index}")
            async with contextlib.aclosing(outputs):
                async for output in outputs:
                    said = answer.take(output)
                    self.send({"do": "tokens", "request": request, "index": index, **said})
                    if "finished" in said:
                        return
        except EngineDeadError:
            self._dead.set()
        except Exception as error:
            self._failed(request, index, error)

    def _failed(self, request: str, index: int, error: Exception) -> None:
        known = isinstance(error, VLLMClientError | ValueError)
        if not known:
            log.error("request %s failed", request, exc_info=error)
        text = str(error.args[0]) if known and error.args else ""
        self.send({"do": "failed", "request": request, "index": index, "text": text, "by_request": known})


class VllmAnswer:
    """One answer to a request: how it is drawn, and where its tokens end."""

    def __init__(self, message: Message, index: int, options: VllmOptions):
        self._end_id: int | None = message["end_id"]
        self._ends: list[int] = [] if self._end_id is None else [self._end_id]
        self._words: list[list[int]] = message["stop_words"]
        self._top: int = message["top_log_probs"]
        self._log_probs: bool = message["log_probs"]
        self._tail: list[int] = []  # as many of the last tokens as the longest word has
        self._count = 0
        guide = None
        if kind := message.get("guide_kind"):
            name = {"json": "json", "json_schema": "json", "regex": "regex", "ebnf_grammar": "grammar"}[kind]
            guide = StructuredOutputsParams(**{name: ANY_JSON if kind == "json" else message["guide"]})
            # Where the grammar ends one of these is all that may follow, and in it there is none of them.
            self._ends = list(dict.fromkeys([*self._ends, *options.stop_ids]))
        sampling = message["sampling"]
        logprobs = self._top if self._top else (0 if self._log_probs else None)
        self.params = SamplingParams(
            **{**sampling, "seed": (sampling["seed"] + index) % SEEDS},
            max_tokens=message["max_tokens"],
            stop_token_ids=self._ends,
            ignore_eos=True,
            logprobs=logprobs,
            detokenize=False,
            structured_outputs=guide,
            output_kind=RequestOutputKind.DELTA,
        )
        if message["bad_words"]:  # ids: vLLM's own parameter takes text
            self.params._bad_words_token_ids = message["bad_words"]

    def take(self, output: Any) -> Message:
        """What is said of it. `finished`, once it has ended: by vLLM, or by a stop word."""
        (completion,) = output.outputs
        tokens, finished = list(completion.token_ids), None
        if completion.finish_reason is not None:
            finished = "length" if completion.finish_reason == "length" else "stop"
            if finished == "stop" and tokens and self._is_end(tokens[-1]):
                tokens.pop()
        for place, token in enumerate(tokens):
            if self._ends_word(token):
                tokens, finished = tokens[: place + 1], "stop"
                break
        said: Message = {"tokens": tokens}
        if self._log_probs or self._top:
            said |= self._probabilities(tokens, completion.logprobs or [])
        if finished:
            said["finished"] = finished
        first = self._count == 0 and bool(tokens)
        self._count += len(tokens)
        if first or finished:
            said["stats"] = self._stats(output)
        return said

    def _is_end(self, token: int) -> bool:
        """It is no part of the answer, as a stop word is."""
        return token == self._end_id or (token in self._ends and [token] not in self._words)

    def _ends_word(self, token: int) -> bool:
        if not self._words:
            return False
        longest = max(map(len, self._words))
        self._tail = [*self._tail, token][-longest:]
        return any(self._tail[-len(word) :] == word for word in self._words)

    def _probabilities(self, tokens: list[int], logprobs: list[Any]) -> Message:
        said: Message = {"log_probs": [float(one[token].logprob) for token, one in zip(tokens, logprobs, strict=False)]}
        if self._top:
            said["top"] = [
                sorted(
                    ([token, float(one.logprob)] for token, one in place.items() if (one.rank or 0) <= self._top),
                    key=lambda pair: -pair[1],
                )
                for place in logprobs[: len(tokens)]
            ]
        return said

    def _stats(self, output: Any) -> Message:
        times = output.metrics
        return {
            "output": self._count,
            "cached": output.num_cached_tokens or 0,
            "scheduled": int(times.scheduled_ts * 1e9) if times else 0,
            "first": int(times.first_token_ts * 1e9) if times else 0,
            "last": int(times.last_token_ts * 1e9) if times else 0,
        }


async def _messages(reader: asyncio.StreamReader) -> AsyncIterator[tuple[Message, Arrays]]:
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            header, body = sizes_of(await reader.readexactly(HEAD.size))
            yield unpack(await reader.readexactly(header), bytearray(await reader.readexactly(body)))


def engine_args(options: VllmOptions) -> AsyncEngineArgs:
    on_cpu = vllm.platforms.current_platform.is_cpu()
    return AsyncEngineArgs(
        model=options.model,
        dtype=options.dtype,
        tensor_parallel_size=options.tensor_parallel_size,
        max_model_len=options.max_seq_len,
        max_num_seqs=options.max_batch_size,
        max_num_batched_tokens=options.max_num_tokens,
        enable_chunked_prefill=options.enable_chunked_prefill,
        enable_prefix_caching=options.enable_prefix_caching,
        enable_prompt_embeds=True,
        kv_cache_memory_bytes=options.kv_cache_bytes or (options.cpu_kv_cache_bytes if on_cpu else None),
        gpu_memory_utilization=options.gpu_memory_utilization,
        max_logprobs=MAX_LOGPROBS,
        enforce_eager=on_cpu,  # compiling would take minutes there
        generation_config="vllm",
        structured_outputs_config={"backend": "xgrammar"},
        seed=0,
    )


async def serve(options: VllmOptions) -> None:
    """Until SIGTERM, or until the engine is dead."""
    stopping, dead = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    path = Path(options.socket)
    path.unlink(missing_ok=True)
    if vllm.platforms.current_platform.is_cpu():
        os.environ["TORCHDYNAMO_DISABLE"] = "1"  # else the first request for log-probabilities waits for a compiler
    engine = AsyncLLM.from_engine_args(engine_args(options), stat_loggers=[Stats])

    await _warm_up(engine)
    pulse, work = Pulse(), Work(os.getpid())

    def progress() -> object:
        return Stats.made, work.done() if vllm.platforms.current_platform.is_cpu() else 0

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = Client(engine, options, writer, dead)
        cache = engine.vllm_config.cache_config
        hello = {"do": "hello", "version": vllm.__version__, "block_size": cache.block_size}
        client.send({**hello, "silent": pulse.silent})
        shown = [asyncio.create_task(_show(client)), asyncio.create_task(_tell(client, pulse))]
        try:
            async for message, arrays in _messages(reader):
                client.take(message, arrays)
        except ProtocolError as error:
            log.error("a connection is given up: %s", error)
        finally:
            for task in shown:
                task.cancel()
            client.close()
            writer.close()

    with reachable(path) as name, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        server = await asyncio.start_unix_server(connected, sock=listener, limit=1 << 20)
        print("vLLM is ready", file=sys.stderr, flush=True)
        waiting = [asyncio.create_task(event.wait()) for event in (stopping, dead)]
        busy = engine.output_processor.has_unfinished_requests
        beating = asyncio.create_task(keep(pulse, progress, busy, partial(_ask, engine)))
        await asyncio.wait([*waiting, asyncio.create_task(_watch(engine, dead))], return_when=asyncio.FIRST_COMPLETED)
        beating.cancel()
        server.close()
        path.unlink(missing_ok=True)
    if dead.is_set():
        log.error("vLLM's engine is dead")
        os._exit(1)  # what it has left running ends with its session
    engine.shutdown()


async def _warm_up(engine: AsyncLLM) -> None:
    """What is compiled when it is first asked for holds up everybody: that is now."""
    params = SamplingParams(max_tokens=2, temperature=1.0, top_p=0.9, logprobs=1, ignore_eos=True, detokenize=False)
    async for _ in engine.generate(tokens_input([0]), params, "warm-up"):
        pass


async def _watch(engine: AsyncLLM, dead: asyncio.Event) -> None:
    """Ends when the engine is dead, requests or none."""
    while not engine.errored:
        await asyncio.sleep(0.1)
    dead.set()


async def _ask(engine: AsyncLLM) -> None:
    """One token, through all that computes tokens."""
    params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True, detokenize=False)
    async for _ in engine.generate(tokens_input([0]), params, f"pulse-{time.monotonic_ns()}"):
        pass


async def _tell(client: Client, pulse: Pulse) -> None:
    while True:
        await asyncio.sleep(PERIOD)
        client.send({"do": "pulse", "silent": pulse.silent})


async def _show(client: Client) -> None:
    last: dict[str, float] = {}
    while True:
        if Stats.latest != last:
            last = Stats.latest
            client.send({"do": "stats", "at": time.monotonic_ns(), **last})
        await asyncio.sleep(STATS_PERIOD)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(serve(VllmOptions.read(sys.argv[1])))
