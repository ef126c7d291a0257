"""The repository's ensembles hold together: every tensor from one place, of one type and shape, under one meaning."""

import pytest

from repository_fixture import CONTINUE, ENSEMBLE, ENSEMBLES, LLM, PROMPT, TEXT, declared, wiring_faults

GUIDE = {"guided_decoding_guide_type", "guided_decoding_guide"}

# The ensemble


def steps(configs, ensemble=ENSEMBLE):
    return configs[ensemble].ensemble_scheduling.step


def test_the_ensemble_holds_together(configs):
    assert wiring_faults(configs) == []
    assert {step.model_name for step in steps(configs)} == set(configs) - ENSEMBLES - {"tokenizer"}


def test_the_prompt_s_ensemble_is_the_other_one_up_to_the_llm(configs):
    assert wiring_faults(configs, PROMPT) == []
    before = [step.model_name for step in steps(configs)][:-1]
    assert [step.model_name for step in steps(configs, PROMPT)] == [name for name in before if name != "lease"]
    outputs, llm, builder = (
        declared(configs[PROMPT].output), declared(configs[LLM].input), declared(configs["prompt_builder"].input)
    )  # fmt: skip
    assert (
        set(outputs)
        == {"frames", "audio_index", "content_hash", "audio_report", "prompt_vocab_size"}
        | {name for name in steps(configs)[-1].input_map if f"_{name}" == steps(configs)[-1].input_map[name]}
        - {"input_lengths", "request_output_len", "prompt_embedding_table"}
        - GUIDE
    )
    assert outputs.pop("audio_report") == declared(configs["audio_featurizer"].output)["audio_report"]
    for name, (kind, *_) in outputs.items():
        assert kind == (llm | builder)[name][0], name


def test_the_one_that_continues_is_the_other_one_from_the_encoder_on(configs):
    """The prompt's outputs are its inputs, the rest are the whole pipeline's own."""
    assert wiring_faults(configs, CONTINUE) == []
    assert [step.model_name for step in steps(configs, CONTINUE)] == [step.model_name for step in steps(configs)][-3:]
    made, whole, mine = (
        declared(tensors) for tensors in (configs[PROMPT].output, configs[ENSEMBLE].input, configs[CONTINUE].input)
    )
    assert configs[CONTINUE].output == configs[ENSEMBLE].output
    assert set(mine) - set(whole) - set(made) == {"mel", "input_lengths"}
    of_the_prompt = {"messages", "audio", "tools", "add_generation_prompt", "continue_final_message", "suffix_ids"}
    assert set(whole) - set(mine) == of_the_prompt
    assert set(made) - set(mine) == {
        "prompt_vocab_size", "audio_index", "audio_report",
    }  # for who prepares another prompt  # fmt: skip
    assert all(mine[name] == kind for name, kind in (made | whole).items() if name in mine)
    assert all(tensor.optional for tensor in configs[CONTINUE].input)


def test_the_one_for_text_is_the_whole_one_without_what_is_about_recordings(configs):
    """The same inputs and outputs, and the same way through the steps that are left."""
    assert wiring_faults(configs, TEXT) == []
    whole, text = (declared(configs[name].input) for name in (ENSEMBLE, TEXT))
    assert text == {name: kind for name, kind in whole.items() if name != "audio"}
    assert configs[TEXT].output == configs[ENSEMBLE].output
    kept = [step for step in steps(configs) if step.model_name not in ("audio_featurizer", "audio_encoder")]
    gone = {value for step in steps(configs) if step not in kept for value in step.output_map.values()}
    for mine, theirs in zip(steps(configs, TEXT), kept, strict=True):
        assert mine.model_name == theirs.model_name and mine.output_map == theirs.output_map
        assert mine.input_map == {name: value for name, value in theirs.input_map.items() if value not in gone}


def test_no_ensemble_takes_or_gives_the_prompt_table(configs):
    for name in ENSEMBLES:
        assert "prompt_embedding_table" not in declared(configs[name].input) | declared(configs[name].output)


@pytest.mark.parametrize("fault", ["twice", "never", "type", "dims", "unused", "required"])
def test_the_checker_finds(configs, fault):
    broken = {name: type(config).FromString(config.SerializeToString()) for name, config in configs.items()}
    featurizer, _, _, encoder, llm = steps(broken)
    match fault:
        case "twice":
            featurizer.output_map["frames"] = "_mel"
        case "never":
            llm.input_map["end_id"] = "_nothing"
        case "type":
            llm.input_map["end_id"] = "temperature"
        case "dims":
            broken[LLM].input[0].dims.append(-1)
        case "unused":
            del llm.input_map["seed"]
        case "required":
            del encoder.input_map["input_lengths"]
    assert wiring_faults(broken)


def test_shared_names_mean_the_llm_s(configs):
    """A control or output of the ensemble that the LLM has too: the same type and dims, passed on under its name."""
    llm = steps(configs)[-1]
    assert llm.model_name == LLM
    filled_in = {"request_output_len", "end_id", "stop_words_list"} | GUIDE  # prompt_builder's, from the request's
    for mine, theirs, mapping in (
        (configs[ENSEMBLE].input, configs[LLM].input, llm.input_map),
        (configs[ENSEMBLE].output, configs[LLM].output, llm.output_map),
    ):
        theirs = declared(theirs)
        for name, (kind, dims, _) in declared(mine).items():
            if name in theirs:
                assert (kind, dims) == theirs[name][:2], name
                assert mapping[name] == (f"_{name}" if name in filled_in and mapping is llm.input_map else name)
    assert set(declared(configs[ENSEMBLE].output)) <= set(declared(configs[LLM].output))
    assert all(tensor.optional for tensor in configs[ENSEMBLE].input)


@pytest.mark.parametrize("ensemble", [ENSEMBLE, CONTINUE, TEXT])
def test_nothing_stands_behind_the_llm(configs, ensemble):
    every = steps(configs, ensemble)
    out_of_llm = {tensor for step in every if step.model_name == LLM for tensor in step.output_map.values()}
    for step in every:
        assert not out_of_llm & set(step.input_map.values()), step.model_name


def test_one_step_after_the_other(configs):
    """tritonserver 2.51 crashed once while two of a request ran: the likely cause, though not proven."""
    by_name = {step.model_name: step for step in steps(configs)}
    for first, then in (("prompt_builder", "lease"), ("lease", "audio_encoder"), ("audio_encoder", "tensorrt_llm")):
        assert {*by_name[first].output_map.values()} & {*by_name[then].input_map.values()}
