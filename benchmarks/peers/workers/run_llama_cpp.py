"""llama.cpp's library on a GGUF file: all that is under way goes into one batch, as its server does it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import llama_cpp as llama
from protocol import Answer, Closed, PeerCell, answer_cells, now

BATCH = 2048  # tokens of one call, at most: its server's own choice


class Slot:
    """One of the context's sequences, and the request that has it: what is still to be computed of it."""

    def __init__(self, sequence: int, number: int, ids: list[int], sampler: Any):
        self.sequence, self.number, self.waiting, self.sampler = sequence, number, ids, sampler
        self.position = 0


def load(given: argparse.Namespace) -> Callable[[PeerCell], Iterator[Answer]]:
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(given.model.encode(), llama.llama_model_default_params())
    settings = llama.llama_context_default_params()
    settings.n_seq_max = given.concurrency
    settings.n_ctx = given.concurrency * (-(-given.positions // 256) * 256)
    settings.n_batch = BATCH
    settings.n_threads = settings.n_threads_batch = given.threads
    if given.exact:
        settings.type_k = settings.type_v = llama.GGML_TYPE_F32
        settings.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it computes in float16
    context = llama.llama_init_from_model(model, settings)
    batch = llama.llama_batch_init(BATCH, 0, 1)

    def sampler(cell: PeerCell, request: dict[str, Any]) -> Any:
        chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        if cell.greedy:
            parts = [llama.llama_sampler_init_greedy()]
        else:
            wanted = cell.sampling
            parts = [
                llama.llama_sampler_init_penalties(given.positions, wanted["repetition_penalty"], 0.0, 0.0),
                llama.llama_sampler_init_top_k(wanted["top_k"]),
                llama.llama_sampler_init_top_p(wanted["top_p"], 1),
                llama.llama_sampler_init_temp(wanted["temperature"]),
                llama.llama_sampler_init_dist(request["seed"]),
            ]
        for part in parts:
            llama.llama_sampler_chain_add(chain, part)
        for token in request["ids"]:
            llama.llama_sampler_accept(chain, token)
        return chain

    def run(cell: PeerCell) -> Iterator[Answer]:
        slots: dict[int, Slot] = {}
        free = list(range(given.concurrency))

        def start(number: int, request: dict[str, Any]) -> None:
            slots[number] = Slot(free.pop(), number, list(request["ids"]), sampler(cell, request))

        def end(slot: Slot) -> None:
            llama.llama_sampler_free(slot.sampler)
            llama.llama_memory_seq_rm(llama.llama_get_memory(context), slot.sequence, -1, -1)
            free.append(slot.sequence)
            del slots[slot.number]

        loop = Closed(cell, start)
        while slots:
            count, drawing = 0, []
            for slot in sorted(slots.values(), key=lambda one: len(one.waiting)):  # answers before prompts
                taken = slot.waiting[: BATCH - count]
                slot.waiting = slot.waiting[len(taken) :]
                for token in taken:
                    batch.token[count], batch.pos[count] = token, slot.position
                    batch.n_seq_id[count], batch.seq_id[count][0] = 1, slot.sequence
                    batch.logits[count] = False
                    count, slot.position = count + 1, slot.position + 1
                if taken and not slot.waiting:
                    batch.logits[count - 1] = True
                    drawing.append((slot, count - 1))
            batch.n_tokens = count
            if llama.llama_decode(context, batch):
                raise RuntimeError("llama_decode has failed")
            drawn = [(slot, llama.llama_sampler_sample(slot.sampler, context, row)) for slot, row in drawing]
            when = now()
            for slot, token in drawn:
                slot.waiting = [token]
                if loop.answers[slot.number].count + 1 == cell.tokens:
                    end(slot)  # before the next one is started, which takes its place
                loop.take(slot.number, [token], when)
        yield from loop.answers.values()

    return run


if __name__ == "__main__":
    answer_cells(["llama-cpp-python"], load)
