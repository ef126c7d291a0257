"""What the documents tell people to type: commands that parse, values and names that the chart has, objects that are
valid."""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

from document_fixture import NAMES, blocks, lines, our_commands, subcommands
from paths import ROOT
from step_audio_build.commands.plan import PUBLISHED
from step_audio_build.planning.memory_plan import plan
from step_audio_build.planning.profiles import load_profile
from step_audio_build.tools.trtllm_build import command
from step_audio_gateway.settings import GatewaySettings
from step_audio_server.commands.cli import _parser, main
from step_audio_server.settings import ServeSettings


@pytest.mark.parametrize("page", NAMES)
def test_every_command_parses(page, capsys):
    for words in lines(ROOT / page):
        for given in our_commands(words):
            given = [os.path.expandvars(word) for word in given if word != "..."]
            try:
                _parser().parse_args(given)
            except SystemExit as error:
                said = capsys.readouterr().err.strip().splitlines()[-1:]
                assert not error.code, f"step-audio {shlex.join(given)}: {said}"


@pytest.mark.parametrize("page", NAMES)
def test_every_command_and_flag_in_the_text_exists(page):
    """`step-audio convert --tp 8` within a sentence need not be complete."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text("utf-8"), flags=re.M | re.S)
    for inline in re.findall(r"`step-audio ([^`]+)`", text):
        name, *rest = inline.split()
        if name.startswith("-"):
            continue
        assert name in subcommands(), f"step-audio {name}"
        known = subcommands()[name]._option_string_actions
        for flag in (word.partition("=")[0] for word in rest if word.startswith("--")):
            assert flag in known, f"step-audio {name} {flag}"


@pytest.mark.parametrize("page", NAMES)
def test_flags_named_alone_exist(page):
    """`--max-seq-len` in a table, say."""
    ours = {flag for parser in subcommands().values() for flag in parser._option_string_actions}
    docker, helm, nvidia = (
        {"--gpus", "--shm-size", "--ulimit", "--entrypoint"},
        {"--timeout"},
        {
            "--streamingllm",
            "--backend-directory",
            "--input-data",
            "--concurrency-range",
            "--tokenizer",
            "--output-tokens-mean",
        },
    )
    benchmarks = {"--part", "--executor", "--starts", "--environments", "--tokens"}  # test_benchmarks_know_their_flags
    text = (ROOT / page).read_text("utf-8")
    named = set(re.findall(r"`(--[a-z][a-z-]+)(?:[ =][^`]*)?`", text))
    assert named <= ours | docker | helm | nvidia | benchmarks


UNITS = {"GiB": 1 << 30, "MiB": 1 << 20, "kB": 1000}


@pytest.mark.parametrize("page", NAMES)
def test_defaults_behind_flags_are_theirs(page):
    """`--max-body-bytes` (128 MiB; ...) within a sentence."""
    fields = (GatewaySettings.model_fields | ServeSettings.model_fields).items()
    ours = {"--" + name.replace("_", "-"): field.default for name, field in fields}
    text = (ROOT / page).read_text("utf-8")
    for flag, number, unit in re.findall(r"`(--[a-z][a-z-]+)`\s\(([\d.,]+)(?:\s(\w+))?[^)]*\)", text):
        assert ours[flag] == float(number.replace(",", "")) * UNITS.get(unit, 1), f"{page}: {flag}"


def plan_commands() -> list[tuple[str, ...]]:
    found = (tuple(given) for name in NAMES for words in lines(ROOT / name) for given in our_commands(words))
    return sorted({tuple(os.path.expandvars(word) for word in given) for given in found if given[0] == "plan"})


@pytest.mark.parametrize("given", plan_commands(), ids=shlex.join)
def test_plans_are_made(given, capsys):
    """A plan needs no GPU. The others need one, or a served model: tests/served/test_documents_served.py."""
    assert main(list(given)) == 0
    said = capsys.readouterr().out
    assert all(word in said.lower() for word in map(str.lower, given[1:]) if not word.startswith("--"))


@pytest.mark.parametrize("page", NAMES)
def test_benchmarks_know_their_flags(page):
    text = (ROOT / page).read_text("utf-8")
    for script, arguments in re.findall(r"`python (benchmarks/\w+\.py)([^`]*)`", text):
        source = (ROOT / script).read_text("utf-8")
        assert all(f'"{flag}"' in source for flag in re.findall(r"--[a-z-]+", arguments)), f"{script}{arguments}"


@pytest.mark.parametrize("page", NAMES)
def test_extras_are_those_of_the_package(page):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    for named in re.findall(r"pip install [^\n`]*\[([a-z,]+)\]", (ROOT / page).read_text("utf-8")):
        assert set(named.split(",")) <= set(extras)


def test_commands_are_found_wherever_they_stand():
    """That the tests above test something."""
    for line, found in (
        ("step-audio serve --profile X  # hello", ["serve", "--profile", "X"]),
        ("dc run --rm build plan --profile X", ["plan", "--profile", "X"]),
        ("docker run -v /a:/b r.example:5000/x/step-audio-triton:1-gpu serve --help", ["serve", "--help"]),
        ("kubectl exec pod -- step-audio convert --tp 8 > log", ["convert", "--tp", "8"]),
    ):
        if found[0] in subcommands():
            assert list(our_commands(shlex.split(line, comments=True))) == [found]
    assert list(our_commands(["docker", "build", "-t", "step-audio-triton:gpu", "."])) == []
    for line in ("step-audio dance", "dc run --rm build dance"):
        with pytest.raises(AssertionError, match="no such command"):
            list(our_commands(line.split()))
    deploy = [given[0] for words in lines(ROOT / "docs/deploy.md") for given in our_commands(words)]
    assert {"build", "doctor", "plan", "serve", "chat"} <= set(deploy)


@pytest.mark.parametrize("page", NAMES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text("utf-8")
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in link:
            assert ((ROOT / page).parent / link).exists(), link


def test_helm_gets_values_that_the_chart_has():
    from helm_fixture import NAMESPACE, RELEASE, render, values_of

    seen = 0
    for words in lines(ROOT / "docs/kubernetes.md"):
        if words[0] == "helm" and "deploy/helm/step-audio-r1" in words:
            assert words[2] == RELEASE and words[words.index("--namespace") + 1] == NAMESPACE
            values = values_of([words[n + 1] for n, word in enumerate(words) if word == "--set"])
            assert values and render(values)
            seen += 1
    assert seen >= 4


def test_kubectl_gets_names_that_the_chart_makes():
    from helm_fixture import RELEASE, documents

    made = {(document["kind"].lower(), document["metadata"]["name"]) for document in documents()}
    short = {"pvc": "persistentvolumeclaim"}
    pattern = rf"\b(statefulset|deployment|service|job|pvc)[/ ]({RELEASE}-\w+)"
    named = re.findall(pattern, (ROOT / "docs/kubernetes.md").read_text("utf-8"))
    assert len(named) >= 5
    assert {(short.get(kind, kind), name) for kind, name in named} <= made


def test_the_leader_worker_set_has_valid_pods():
    yaml = pytest.importorskip("yaml")
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    ((group,),) = [list(yaml.safe_load_all(text)) for text in blocks(ROOT / "docs/two-nodes.md", "yaml")]
    spec = group["spec"]["leaderWorkerTemplate"]
    assert spec["size"] == 2
    for template in (spec["leaderTemplate"], spec["workerTemplate"]):
        pod: dict[str, Any] = {"apiVersion": "v1", "kind": "Pod", **template}
        kubernetes_validate.validate(pod, "1.37", strict=True)
        assert pod["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 4}


def test_engines_by_hand_are_built_as_the_build_does():
    profile = load_profile("8xL40S-16k")
    folder = Path("/engines/two-nodes")
    ours = command(
        profile, plan(profile, PUBLISHED), folder / "checkpoint", folder / "engine", folder / "cache", profile.gpus
    )
    (theirs,) = [words for words in lines(ROOT / "docs/two-nodes.md") if words[0] == "trtllm-build"]
    wanted = _flags(ours) | {"--workers": "4"}  # GPUs of one node
    assert _flags(theirs) == {name: value for name, value in wanted.items() if "timing_cache" not in name}


def _flags(words: list[str]) -> dict[str, str]:
    return dict(zip(words[1::2], words[2::2], strict=True))
