"""Everything that takes, offers or explains the sampling parameters follows their one list."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re

import numpy as np
import pytest

from paths import ROOT
from repository_fixture import CONTINUE, ENSEMBLE, LLM, TEXT, build, declared, parse, wiring_faults
from step_audio.engine.request import SamplingParams
from step_audio.errors import InvalidRequest
from step_audio.sampling_parameters import PARAMETERS, Box, SamplingParameters, Slider, offered
from step_audio.steps.trtllm.request import REQUIRED, SUPPORTED
from step_audio_build.planning.profiles import load_profile
from step_audio_client import Sampling
from step_audio_evaluation.presets import PRESETS
from step_audio_gateway.page import PLAYGROUND, offers_module
from step_audio_gateway.published import REFUSED
from step_audio_gateway.schemas import ChatRequest
from step_audio_server.commands.arguments import SAMPLING_NAMES, add_sampling, sampling_given
from step_audio_server.commands.cli import _parser
from trtllm_interface import INPUTS, table

BY_NAME = {one.name: one for one in PARAMETERS}
TYPES = {np.float32: "TYPE_FP32", np.int32: "TYPE_INT32", np.uint64: "TYPE_UINT64", np.bool_: "TYPE_BOOL"}
NOT_DRAWN_WITH = {"max_tokens", "logprobs", "top_logprobs"}  # the engine has them outside SamplingParams


def a_value(one):
    """That asks for something, and is no default."""
    return {int: 7, float: 0.25, bool: True}[one.kind]


def test_names_aliases_and_inputs_are_unique():
    names = [name for one in PARAMETERS for name in (one.name, *one.aliases)]
    assert len(set(names)) == len(names) and len({one.input for one in PARAMETERS}) == len(PARAMETERS)
    for one in PARAMETERS:
        assert one.text and (one.at_least is None or one.above is None)
        assert one.default is None or type(one.default) is one.kind


# The client library


def test_the_client_library_adds_nothing_of_its_own():
    assert [f.name for f in dataclasses.fields(Sampling)] == [f.name for f in dataclasses.fields(SamplingParameters)]


@pytest.mark.parametrize("one", PARAMETERS, ids=lambda one: one.name)
def test_each_travels_as_its_input(one):
    """Alone: but for the seed, and what always goes along with a temperature."""
    (array,) = [a for name, a in Sampling(**{one.name: a_value(one)}).inputs().items() if name == one.input]
    assert (array.dtype, array.shape, array.item()) == (one.dtype, (1, 1), a_value(one))


# Triton's models


@pytest.mark.parametrize("profile", [None, "4xH100-16k"])
def test_the_ensembles_and_the_llm_have_their_inputs(tmp_path, profile):
    repository = build(tmp_path, profile=profile and load_profile(profile))
    configs = parse(repository)
    taken = [one for one in PARAMETERS if one.nvidia or profile is None]
    told = json.loads((repository.parent / "serving_info.json").read_text("utf-8"))
    assert told["sampling_parameters"] == [one.name for one in taken]
    for name in (ENSEMBLE, CONTINUE, TEXT):
        inputs, (*_, llm) = declared(configs[name].input), configs[name].ensemble_scheduling.step
        assert wiring_faults(configs, name) == []
        for one in PARAMETERS:
            assert (one.input in inputs) == (one in taken) == (one.input in llm.input_map), (name, one.name)
    for name in (ENSEMBLE, CONTINUE, TEXT, LLM):
        inputs = declared(configs[name].input)
        assert {one.name: inputs[one.input][:2] for one in taken} == {
            one.name: (TYPES[one.dtype], [1]) for one in taken
        }, name


@pytest.mark.parametrize("profile", [None, "4xH100-16k"])
def test_what_a_parameter_brings_comes_out_where_it_is_taken(tmp_path, profile):
    configs = parse(build(tmp_path, profile=profile and load_profile(profile)))
    for one in PARAMETERS:
        for output in one.outputs:
            here = one.nvidia or profile is None
            for name in (ENSEMBLE, CONTINUE, TEXT, LLM):
                outputs = declared(configs[name].output)
                expected = (TYPES[output.dtype], [-1] * output.rank, False) if here else None
                assert outputs.get(output.name) == expected, (name, output.name)


def test_the_llm_has_no_other_inputs_than_nvidia_s_and_the_list_s(tmp_path):
    nvidia, here = table(INPUTS), declared(parse(build(tmp_path))[LLM].input)
    assert set(here) - set(nvidia) == {one.input for one in PARAMETERS if not one.nvidia}
    for one in PARAMETERS:
        if one.nvidia:
            assert nvidia[one.input] == (TYPES[one.dtype], [1], True), one.name
        else:
            assert one.input not in nvidia, one.name


# The CPU's engine


def test_the_engine_draws_with_each():
    assert {f.name for f in dataclasses.fields(SamplingParams)} == set(BY_NAME) - NOT_DRAWN_WITH
    assert {one.input for one in PARAMETERS} <= SUPPORTED and BY_NAME["max_tokens"].input in REQUIRED


@pytest.mark.parametrize("one", [p for p in PARAMETERS if p.name not in NOT_DRAWN_WITH], ids=lambda one: one.name)
def test_what_the_http_door_lets_in_the_engine_takes(one):
    for bound in (one.at_least, one.at_most):
        if bound is not None and one.name != "seed" and one.asks(bound):  # a negative seed is taken modulo 2^64
            assert getattr(SamplingParams(**{one.name: one.kind(bound)}), one.name) == bound
    with pytest.raises(InvalidRequest, match=f"^{one.name} "):
        SamplingParams(**{one.name: float("nan")})


# The HTTP door


def test_the_request_has_each_with_its_bounds():
    fields = ChatRequest.model_json_schema()["properties"]
    for one in offered("http"):
        for name in (one.name, *one.aliases):
            field = fields[name]
            (kind,) = [choice for choice in field["anyOf"] if choice["type"] != "null"]
            assert field["description"] == one.text and field["default"] == one.default, name
            assert kind["type"] == {int: "integer", float: "number"}[one.kind], name
            assert [kind.get(key) for key in ("minimum", "exclusiveMinimum", "maximum")] == [
                one.at_least, one.above, one.at_most
            ], name  # fmt: skip


def test_none_is_offered_and_refused():
    assert not set(REFUSED) & {name for one in PARAMETERS for name in (one.name, *one.aliases)}


# The command


def test_the_flags_are_the_list_s():
    parser = argparse.ArgumentParser()
    add_sampling(parser, temperature=0)
    (group,) = [group for group in parser._action_groups if group.title == "sampling"]
    flags = {action.dest: action for action in group._group_actions}
    assert set(flags) == {one.name for one in offered("command")} == set(SAMPLING_NAMES)
    for name, action in flags.items():
        one = BY_NAME[name]
        assert action.option_strings == [f"--{name.replace('_', '-')}"] and action.type is one.kind
        default = 0 if name == "temperature" else one.default
        assert action.help == one.text + (f" (default {default:g})" if default is not None else "")


@pytest.mark.parametrize("one", offered("command"), ids=lambda one: one.name)
def test_each_flag_reaches_the_client_library(one):
    flag = f"--{one.name.replace('_', '-')}"
    for words in (["chat"], ["eval", "--output", "x"]):
        arguments = _parser().parse_args([*words, flag, str(a_value(one))])
        assert sampling_given(arguments) == {one.name: a_value(one)}
        assert getattr(Sampling(**sampling_given(arguments)), one.name) == a_value(one)


def test_presets_name_parameters():
    for name, preset in PRESETS.items():
        assert set(preset) <= {one.name for one in offered("command")}, name


# The page


def test_the_page_has_the_list_s_controls():
    (text,) = re.findall(r"^export const SAMPLING = (.*);$", offers_module(), re.M)
    controls = {control["name"]: control for control in json.loads(text)}
    assert list(controls) == [one.name for one in PARAMETERS if one.control]
    for name, control in controls.items():
        one = BY_NAME[name]
        assert one in offered("http") and control["max"] <= one.at_most
        match one.control:
            case Slider(step):
                assert (control["type"], control["step"]) == ("range", step)
                assert control["min"] <= control["value"] <= control["max"]
                assert not one.asks(control["value"]) or control["value"] == one.default
            case Box(placeholder):
                assert (control["type"], control["placeholder"], "value" in control) == ("number", placeholder, False)
        assert ChatRequest.model_validate({"messages": [{"role": "user", "content": "hello"}], name: control["min"]}), (
            name
        )


def test_the_page_names_no_parameter_itself():
    for file in PLAYGROUND.iterdir():
        if file.suffix in (".js", ".html"):
            words = set(re.findall(r"\w+", file.read_text("utf-8")))
            assert not words & {one.name for one in PARAMETERS if one.control}, file.name


# The documents


def test_the_documents_name_each():
    page = (ROOT / "docs/reference/requests.md").read_text("utf-8")
    for one in PARAMETERS:
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{one.name}`")]
        assert one.text in row and f"`{one.input}`" in row and ("CPU only" in row) is not one.nvidia
