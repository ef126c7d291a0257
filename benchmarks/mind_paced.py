"""Mind-paced speaking (arXiv 2510.09592): what it does to the answers, what it gains, and what it costs.

    python benchmarks/mind_paced.py [--part accuracy|latency|reuse|table] [--llm-python FILE] 2>mind_paced.log

One run, one machine; what is compared takes turns. Ratios mean something, the absolute figures are this machine's.

accuracy    Held-out spoken sums to the trained model in the paper's four modes, greedy, unpaced, 16 at once. Its
            thoughts have some tens of tokens and its answers some ten, so think_tokens and speak_tokens are small too.
latency     Time to the answer's first text. Each question is asked in each mode in turns, all prompts in the KV cache.
            First the trained model's own thoughts, on sums of two numbers and of three: short ones all the same.
            Then long ones, of the small random model with a 6.6 s recording and the paper's 80 and 20 tokens. It never
            ends a thought, so think_before_speak there is a thought that the client library cuts off after so many
            tokens (`Thinking(budget=...)`). That goes through the pipeline twice, so it has one encoding of the
            recording too many: some tens of milliseconds. What it says makes no sense; only time counts.
            Client and server share the machine: where cores are few, the client's waits for one are in the figures.
reuse       The trained model's sums, alone and behind other sums that were spoken and answered. For each of
            Articulation's segments, blocks of 32 tokens that were found in the KV cache, over those that its prompt
            and its answer take. Formulation has computed the prompt by then; a prompt's last, partly filled block and
            the answer's can never be found, so short prompts cannot have large shares.
table       A segment asked for by a prepared prompt, whose table of embeddings is in the server's cache, and by the
            whole request again, the recording sent and featurized anew: both from a prompt in the KV cache and some 300
            tokens behind it that are not, one token asked for. Small random model, hidden 256.
            Then what the table itself costs at the published width: a random decoder of hidden 5120 and one layer gets
            a segment of a recording, and of as many positions of text instead, in turns, both in the KV cache. The
            difference is what it takes to hand the table from one step of the server to the next, to an engine that has
            no need of it by then. CPU time is of server, steps and client together.

--llm-python has the trained model served by vLLM (docs/engines.md), the random ones by our engine all the same.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from bench import RECORDING, serving, serving_random
from mind_paced_accuracy import accuracy
from mind_paced_latency import first_words, first_words_of_long_thoughts
from mind_paced_reuse import reuse
from mind_paced_table import WIDTH, published_tables, ways_to_go_on
from step_audio.command_line import count
from step_audio_client import Audio, user
from step_audio_evaluation.held_out import end_speakers, held_out
from step_audio_server.assets import asset, embedded_checkpoint

PARTS = ("accuracy", "latency", "reuse", "table")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--checkpoint", type=Path, default=embedded_checkpoint(), help="default: %(default)s")
    parser.add_argument("--llm-python", type=Path, metavar="FILE", help="serve with vLLM: as for `step-audio serve`")
    parser.add_argument("--count", type=count, default=100, help="questions of accuracy (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--think-tokens", type=count, default=12, help="of a segment (default %(default)s)")
    parser.add_argument("--speak-tokens", type=count, default=3, help="of a segment (default %(default)s)")
    parser.add_argument("--rounds", type=count, default=3, help="of latency and table (default %(default)s)")
    parser.add_argument(
        "--long-thoughts", type=count, nargs="+", default=[100, 500], help="tokens (default %(default)s)"
    )
    parser.add_argument(
        "--turns", type=int, nargs="+", default=[0, 16, 40], help="before a question of reuse (default %(default)s)"
    )
    parser.add_argument("--questions", type=count, default=8, help="of each line of reuse (default %(default)s)")
    return parser.parse_args()


def show(title: str, tables: str) -> None:
    print(f"## {title}\n\n{tables}\n", flush=True)


def main() -> None:
    options = arguments()
    pace = (options.think_tokens, options.speak_tokens)
    parts, rounds, seed = options.part, options.rounds, options.seed
    if set(parts) - {"table"}:
        # Most histories of `reuse` are to begin otherwise; a larger set holds the smaller one.
        try:
            items = held_out(["arithmetic"], max(options.count, 64), seed)
        finally:
            end_speakers()
        llm = {"llm": "vllm", "llm_python": options.llm_python} if options.llm_python else {}
        with serving(options.checkpoint, **llm) as service:
            where = service.address
            if "accuracy" in parts:
                tables = asyncio.run(accuracy(where, items[: options.count], *pace, seed))
                show("Right answers", tables)
            if "latency" in parts:
                show("First words, trained model", asyncio.run(first_words(where, items, pace, rounds)))
            if "reuse" in parts:
                tables = asyncio.run(reuse(where, items, options.turns, options.questions, pace, seed))
                show("Reused blocks of Articulation's segments", tables)
    if {"latency", "table"} & set(parts):
        with serving_random() as service:
            where = service.address
            if "latency" in parts:
                question = [user(Audio.load(asset("examples") / RECORDING), "What do you hear?")]
                tables = asyncio.run(first_words_of_long_thoughts(where, question, options.long_thoughts, rounds))
                show("First words, long thoughts", tables)
            if "table" in parts:
                show("Going on", asyncio.run(ways_to_go_on(where, rounds, seed)))
    if "table" in parts:
        wide = {"hidden_size": WIDTH, "intermediate_size": 256, "layers": 1, "heads": 40, "kv_heads": 8}
        with serving_random(**wide, max_position_embeddings=8192) as service:
            show("Tables of the published width", asyncio.run(published_tables(service, rounds, seed)))


if __name__ == "__main__":
    main()
