"""transformers' `generate` on a Hugging Face folder: as many prompts at once as there are, padded to one length."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
from protocol import Answer, PeerCell, answer_cells, in_bfloat16, now
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer


class Times(BaseStreamer):  # type: ignore[misc]
    """When which tokens came, of all the batch."""

    def __init__(self, answers: list[Answer]):
        self._answers, self._prompt = answers, True

    def put(self, value: torch.Tensor) -> None:
        if self._prompt:
            self._prompt = False
            return
        when = now()
        for answer, token in zip(self._answers, value.reshape(-1).tolist(), strict=True):
            answer.take([token], when)

    def end(self) -> None:
        pass


def load(given: argparse.Namespace) -> Callable[[PeerCell], Iterator[Answer]]:
    torch.set_num_threads(given.threads)
    kind = torch.bfloat16 if in_bfloat16(given) else torch.float32
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=kind)

    def run(cell: PeerCell) -> Iterator[Answer]:
        for begin in range(0, len(cell.requests), cell.concurrency):
            asked = cell.requests[begin : begin + cell.concurrency]
            answers = [Answer(now()) for _ in asked]
            longest = max(len(request["ids"]) for request in asked)
            gaps = [longest - len(request["ids"]) for request in asked]
            ids = [[0] * gap + request["ids"] for gap, request in zip(gaps, asked, strict=True)]
            mask = [[0] * gap + [1] * (longest - gap) for gap in gaps]
            torch.manual_seed(asked[0]["seed"])
            with torch.inference_mode():
                model.generate(
                    input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), streamer=Times(answers),
                    max_new_tokens=cell.tokens, eos_token_id=None, pad_token_id=0,
                    **({"do_sample": False} if cell.greedy else {"do_sample": True, **cell.sampling}),
                )  # fmt: skip
            yield from answers

    return run


if __name__ == "__main__":
    answer_cells(["transformers", "torch"], load)
