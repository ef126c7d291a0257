"""The tables of docs/profiles.md. Writes them anew: `python -m step_audio_build.commands.profiles_page`."""

from __future__ import annotations

import re
from pathlib import Path

from step_audio.markdown import markdown_table
from step_audio_build.commands.plan import PUBLISHED
from step_audio_build.planning.memory_plan import MemoryPlan, decode_bound, plan
from step_audio_build.planning.profiles import REFUSED, Profile, load_profile, profile_names
from step_audio_build.planning.vllm_plan import VllmPlan, plan_vllm
from step_audio_build.tools import trtllm_build

PAGE = Path(__file__).parents[3] / "docs" / "profiles.md"
MINUTES = (1, 5, 10, 30, 85)
PRECISIONS = ("bfloat16", "int8", "fp8", "int4", "awq")
EXAMPLE = "4xH100-16k"


def blocks() -> dict[str, str]:
    """Name of each generated part of the page -> its text."""
    plans = [plan(load_profile(name), PUBLISHED) for name in profile_names()]
    return {
        "profiles": _profiles(plans),
        "memory": _memory(plans),
        "vllm": _vllm([plan_vllm(one.profile, PUBLISHED) for one in plans]),
        "audio": _audio([one.profile for one in plans if one.profile.name.endswith("-65k")]),
        "precision": _precision(load_profile("4xL40S-16k")),
        "flags": _flags(load_profile(EXAMPLE)),
        "left out": _two_columns("not given", {f"`{name}`": why for name, why in trtllm_build.LEFT_OUT.items()}),
        "refused": _two_columns("no such setting", {f"`{name}`": why for name, why in REFUSED.items()}),
    }


def fill(page: str) -> str:
    """The page with all generated parts as they are now. Raises KeyError for a part that is not known."""
    text = blocks()
    return re.sub(
        r"(<!-- begin (.+?) -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}{text[found[2]]}\n{found[3]}",
        page,
        flags=re.DOTALL,
    )


def _profiles(plans: list[MemoryPlan]) -> str:
    names = (
        "sequences",
        "tokens each",
        "audio each, s",
        "KV cache, tokens",
        "of full length",
        "tokens/s",
        "full tables",
    )
    rows: list[tuple[str, ...]] = [("profile", *names)]
    for one in plans:
        rows.append(
            (
                one.profile.name,
                f"{one.build.max_batch_size}",
                f"{one.build.max_seq_len:,}",
                f"{one.audio_seconds:,}",
                f"{one.kv_tokens:,}",
                f"{one.full_requests:.1f}",
                f"{decode_bound(one, PUBLISHED):.0f}",
                f"{decode_bound(one, PUBLISHED, sequences=one.build.max_batch_size, rows=one.table_rows):.0f}",
            )
        )
    return markdown_table(rows)


def _memory(plans: list[MemoryPlan]) -> str:
    names = ("weights", "prompt table", "activations", "encoder", "assumed", "KV cache", "tables", "left", "total")
    rows: list[tuple[str, ...]] = [("profile", *names)]
    for one in plans:
        before = (one.weights, one.prompt_table, one.activations, one.encoder, one.runtime)
        sizes = (*before, one.kv_cache, one.table_copies, one.free, one.profile.gpu.memory_bytes)
        rows.append((one.profile.name, *(f"{size / 1e9:.1f}" for size in sizes)))
    return markdown_table(rows)


def _vllm(plans: list[VllmPlan]) -> str:
    names = (
        "share",
        "weights",
        "step",
        "KV cache",
        "all of full length",
        "tokens",
        "of full length",
        "encoder",
        "left",
    )
    rows: list[tuple[str, ...]] = [("profile", *names)]
    for one in plans:
        sizes = (one.weights, one.step + one.communication, one.kv_tokens * one.kv_per_token, one.kv_wanted)
        rows.append(
            (
                one.profile.name,
                f"{one.utilization:g}",
                *(f"{size / 1e9:.1f}" for size in sizes),
                f"{one.kv_tokens:,}",
                f"{one.full_requests:.1f}",
                f"{one.encoder / 1e9:.1f}",
                f"{one.free / 1e9:.1f}",
            )
        )
    return markdown_table(rows)


def _audio(profiles: list[Profile]) -> str:
    rows: list[tuple[str, ...]] = [("profile", *(f"{minutes} min" for minutes in MINUTES))]
    for profile in profiles:
        longer = [
            plan(profile.model_copy(update={"max_audio_seconds": 60.0 * minutes}), PUBLISHED) for minutes in MINUTES
        ]
        rows.append((profile.name, *(f"{one.build.max_batch_size}" if one.fits else "none" for one in longer)))
    return markdown_table(rows)


def _precision(profile: Profile) -> str:
    rows = [(f"{profile.name}", "weights, GB", "KV cache, tokens", "tokens/s")]
    for precision in PRECISIONS:
        one = plan(profile.model_copy(update={"precision": precision}), PUBLISHED)
        bound = decode_bound(one, PUBLISHED)
        rows.append((f"`{precision}`", f"{one.weights / 1e9:.2f}", f"{one.kv_tokens:,}", f"{bound:.0f}"))
    return markdown_table(rows)


def _flags(profile: Profile) -> str:
    found = plan(profile, PUBLISHED)
    paths = (Path("CHECKPOINT"), Path("ENGINE"), Path("CACHE"))
    job = trtllm_build.TrtllmBuildJob(profile, found, *paths, workers=profile.gpus)
    rows = [("flag", "value", "why", "source")]
    for name, flag in trtllm_build.FLAGS.items():
        rows.append((f"`{name}`", f"`{flag.value(job)}`", flag.why, flag.source))
    return markdown_table(rows, numbers=False)


def _two_columns(heading: str, lines: dict[str, str]) -> str:
    return markdown_table([(heading, "why"), *lines.items()], numbers=False)


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
