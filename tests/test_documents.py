"""What the documents tell people to type: commands that parse, values and names that the chart has, objects that are
valid."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paths import ROOT
from step_audio_build.commands.plan import PUBLISHED
from step_audio_build.planning.memory_plan import plan
from step_audio_build.planning.profiles import load_profile
from step_audio_build.tools.trtllm_build import command
from step_audio_server.commands.cli import _parser

PAGES = [ROOT / "README.md", ROOT / "docker/README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
ENDS = ("|", "&&", "||", ";", "&", ">", "2>")  # of a command within a line
# What stands before the command where a container runs it: our image, or a service of docker/compose.yaml.
IN_CONTAINER = re.compile(r"(?:\S+/)?step-audio-triton:\S+|build|serve|cpu")


def blocks(page: Path, *languages: str) -> Iterator[str]:
    for language, text in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S):
        if language in languages:
            yield text


def lines(page: Path) -> Iterator[list[str]]:
    """Shell lines of the page, in words; comments left out, lines that go on joined, here-documents skipped."""
    for block in blocks(page, "", "sh", "bash", "console"):
        block = re.sub(r"<<'?(\w+)'?\n.*?^\1$", "\n", block, flags=re.M | re.S)
        for line in block.replace("\\\n", " ").splitlines():
            try:
                words = shlex.split(line.removeprefix("$ "), comments=True)
            except ValueError:  # not a command: a drawing, an excerpt
                continue
            if words:
                yield words


def subcommands() -> dict[str, argparse.ArgumentParser]:
    (action,) = [a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return action.choices


def our_commands(words: list[str]) -> Iterator[list[str]]:
    """What follows `step-audio`, in the shell, in a container or as one's command."""
    for n, word in enumerate(words):
        rest = words[n + 1 :]
        end = next((m for m, later in enumerate(rest) if later in ENDS), len(rest))
        begins = word == "step-audio" or ("run" in words[:n] and IN_CONTAINER.fullmatch(word))
        if begins and end and not rest[0].startswith("-"):
            assert rest[0] in subcommands(), f"no such command: {shlex.join(words)}"
            yield rest[:end]
            return


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
