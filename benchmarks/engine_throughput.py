"""Tokens per second and time to the first token of the CPU engine, at 1, 8 and 32 requests at once.

A random Qwen2 decoder is made in memory, with the full vocabulary, which is what sampling and the last layer cost
by. Every request has its own prompt, part of it audio embeddings, so that nothing is reused. One request alone reads
all matrices for each of its tokens: what that takes of the memory's bandwidth is shown, and what the memory gives.

    python benchmarks/engine_throughput.py --executor openvino torch --precision bf16
    python benchmarks/engine_throughput.py --executor openvino --matrices stored int8 --hidden 1024 --layers 12
"""

from __future__ import annotations

import argparse
import itertools
import os
import threading
import time
from typing import get_args

import numpy as np

from step_audio.arrays import AnyArray
from step_audio.engine import Engine, EngineOptions, GenerationRequest, SamplingParams, SequenceOutput
from step_audio.engine.options import ExecutorName
from step_audio.engine.trtllm_checkpoint import EngineSpec, LayerWeights, Weights

SAMPLING = {
    "greedy": SamplingParams(),
    "sampled": SamplingParams(temperature=0.7, top_p=0.9, top_k=50, repetition_penalty=1.05),
}


def random_model(hidden: int, layers: int, vocab: int) -> tuple[EngineSpec, Weights]:
    """bfloat16, heads of 64, twice as many query as key heads."""
    rng = np.random.default_rng(0)
    heads, kv_heads, inner = hidden // 64, hidden // 128, hidden * 4

    def bf16(array: AnyArray) -> AnyArray:
        return (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)

    def matrix(rows: int, columns: int) -> AnyArray:
        return bf16(rng.standard_normal((rows, columns), np.float32) * columns**-0.5)

    spec = EngineSpec(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=inner,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=64,
        norm_epsilon=1e-5,
        rotary_base=1e6,
        dtype="bfloat16",
        max_batch_size=32,
        max_seq_len=1024,
        max_num_tokens=1024,
        max_prompt_embedding_table_size=32 * 512,
        tokens_per_block=32,
    )
    qkv = (heads + 2 * kv_heads) * 64

    def layer() -> LayerWeights:
        return LayerWeights(
            input_layernorm=bf16(np.ones(hidden)),
            qkv=matrix(qkv, hidden),
            qkv_bias=bf16(rng.standard_normal(qkv)),
            dense=matrix(hidden, heads * 64),
            post_layernorm=bf16(np.ones(hidden)),
            fc=matrix(inner, hidden),
            gate=matrix(inner, hidden),
            proj=matrix(hidden, inner),
        )

    return spec, Weights(
        vocab_embedding=matrix(vocab, hidden),
        layers=[layer() for _ in range(layers)],
        ln_f=bf16(np.ones(hidden)),
        lm_head=matrix(vocab, hidden),
    )


def memory_bandwidth() -> float:
    """GB/s that all processors together read, of arrays too large for any cache; the best of five."""
    parts = [np.ones(1 << 25, np.float32) for _ in range(os.cpu_count() or 1)]
    best = 0.0
    for _ in range(5):
        threads = [threading.Thread(target=part.max) for part in parts]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        best = max(best, sum(part.nbytes for part in parts) / (time.perf_counter() - begin) / 1e9)
    return best


def matrices_gb(weights: Weights, matrices: str) -> float:
    """What a step reads of them; scales left out."""
    values: int = sum(array.size for layer in weights.layers for array in vars(layer).values()) + weights.lm_head.size
    return values * (1 if matrices == "int8" else 2) / 1e9


def measure(engine: Engine, concurrency: int, sampling: SamplingParams, prompt: int, new: int) -> tuple[float, float]:
    """Tokens per second over the whole run, and the median time to the first token in milliseconds."""
    rng = np.random.default_rng()
    vocab, hidden = engine.spec.vocab_size, engine.spec.hidden_size
    waits: list[float] = []
    left = threading.Semaphore(0)

    def on_output(output: SequenceOutput) -> None:
        if output.final:
            assert output.stats is not None
            waits.append((output.stats.first_token_ns - output.stats.arrival_ns) / 1e6)
            left.release()

    audio = prompt // 2
    requests = []
    for index in range(concurrency):
        ids = rng.integers(0, vocab, prompt).astype(np.int32)
        ids[8 : 8 + audio] = np.arange(vocab, vocab + audio)
        requests.append(
            GenerationRequest(
                f"{index}",
                ids,
                new,
                on_output,
                sampling,
                prompt_table=rng.standard_normal((audio, hidden), np.float32),
                extra_ids=np.where(ids >= vocab, rng.integers(1, 2**63), 0).astype(np.uint64),
            )
        )
    begin = time.perf_counter()
    for request in requests:
        engine.submit(request)
    for _ in requests:
        left.acquire()
    return concurrency * new / (time.perf_counter() - begin), float(np.median(waits))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executor", nargs="+", default=["openvino", "torch"], choices=get_args(ExecutorName))
    parser.add_argument("--precision", default="bf16", choices=["bf16", "f32"])
    parser.add_argument("--matrices", nargs="+", default=["stored"], choices=["stored", "int8"])
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=158_720)
    parser.add_argument("--prompt", type=int, default=100, help="positions")
    parser.add_argument("--new", type=int, default=128, help="tokens to generate")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    args = parser.parse_args()

    model = random_model(args.hidden, args.layers, args.vocab)
    print(f"hidden {args.hidden}, {args.layers} layers, vocabulary {args.vocab}, {args.precision}")
    print(f"memory: {memory_bandwidth():.1f} GB/s")
    print(
        f"{'executor':10} {'matrices':8} {'sampling':8} {'at once':>7} {'tokens/s':>9} {'first token':>12} {'start':>7}"
    )
    for executor, matrices in itertools.product(args.executor, args.matrices):
        begin = time.perf_counter()
        options = EngineOptions(
            "in memory", executor=executor, precision=args.precision, threads=args.threads, matrices=matrices
        )
        engine = Engine(options, model)
        start = time.perf_counter() - begin
        measure(engine, 2, SAMPLING["sampled"], args.prompt, 8)
        for name, sampling in SAMPLING.items():
            for concurrency in args.concurrency:
                rate, wait = measure(engine, concurrency, sampling, args.prompt, args.new)
                read = f"{rate * matrices_gb(model[1], matrices):5.1f} GB/s" if concurrency == 1 else ""
                label = f"{executor:10} {matrices:8} {name:8} {concurrency:7}"
                print(f"{label} {rate:9.0f} {wait:9.0f} ms {start:5.1f} s {read}", flush=True)
        engine.shutdown()


if __name__ == "__main__":
    main()
