"""The assembled model repository: TensorRT-LLM 1.2.1's interface to the letter."""

import json
import os
import stat
from pathlib import Path

import pytest
from tritonclient.grpc import model_config_pb2

from repository_fixture import ENSEMBLES, LLM, build, declared, parse, wiring_faults
from step_audio.errors import ArtefactError
from step_audio.lora import task_id
from step_audio.sampling_parameters import PARAMETERS
from step_audio.steps.runtime import Runtime
from step_audio_build.planning.profiles import load_profile, profile_names
from step_audio_server.assets import asset
from step_audio_server.repository.assembly import assemble_backends
from step_audio_server.repository.sampling_inputs import TYPES
from step_audio_server.repository.template import fill, keys
from trtllm_interface import INPUTS, table

KIND = model_config_pb2.ModelInstanceGroup
REQUIRED = {"input_lengths", "request_output_len"}
CPU_OUTPUTS = {
    output.name: (TYPES[output.dtype], [-1] * output.rank, False) for one in PARAMETERS for output in one.outputs
}
CPU_INPUTS = {one.input: (TYPES[one.dtype], [1], True) for one in PARAMETERS if not one.nvidia}
RAGGED = {
    "input_ids", "encoder_input_features", "stop_words_list", "bad_words_list", "embedding_bias",
    "prompt_embedding_table", "prompt_table_extra_ids",
}  # fmt: skip
OUTPUTS = """
output_ids INT32 -1,-1 | sequence_length INT32 -1 | cum_log_probs FP32 -1 | output_log_probs FP32 -1,-1
context_logits LOGITS -1,-1 | generation_logits LOGITS -1,-1,-1 | batch_index INT32 1 | sequence_index INT32 1
context_phase_params UINT8 -1 | kv_cache_alloc_new_blocks INT32 1 | kv_cache_reused_blocks INT32 1
kv_cache_alloc_total_blocks INT32 1 | arrival_time_ns INT64 1 | first_scheduled_time_ns INT64 1
first_token_time_ns INT64 1 | last_token_time_ns INT64 1 | acceptance_rate FP32 1 | total_accepted_draft_tokens INT32 1
total_draft_tokens INT32 1 | num_input_tokens INT32 1 | num_output_tokens INT32 1
"""


# Its parameters, in the file's order.
PARAMETERS = """
max_beam_width FORCE_CPU_ONLY_INPUT_TENSORS gpt_model_type gpt_model_path encoder_model_path
max_tokens_in_paged_kv_cache max_attention_window_size sink_token_length batch_scheduler_policy
kv_cache_free_gpu_mem_fraction cross_kv_cache_fraction kv_cache_host_memory_bytes kv_cache_onboard_blocks
enable_trt_overlap exclude_input_in_output cancellation_check_period_ms stats_check_period_ms iter_stats_max_iterations
request_stats_max_iterations enable_kv_cache_reuse normalize_log_probs enable_chunked_context gpu_device_ids
participant_ids num_nodes lora_cache_optimal_adapter_size lora_cache_max_adapter_size lora_cache_gpu_memory_fraction
lora_cache_host_memory_bytes lora_prefetch_dir decoding_mode executor_worker_path lookahead_window_size
lookahead_ngram_size lookahead_verification_set_size medusa_choices eagle_choices gpu_weights_percent
enable_context_fmha_fp32_acc multi_block_mode cuda_graph_mode cuda_graph_cache_size speculative_decoding_fast_logits
tokenizer_dir guided_decoding_backend xgrammar_tokenizer_info_path
"""
# Those that are not in our file, and why. Others that we have no value for are empty in it, which is as good as absent
# to the C++ backend.
LEFT_OUT = {
    # model_instance_state.cc @0c8de69 takes any string, and batch_manager/peftCacheManager.cpp reads what it names.
    "lora_prefetch_dir": "an empty string is a directory, not the absence of one",
}
OURS = {"max_queue_size", "decoder_matrices", "max_loras", "vllm_options"}  # the first: of NVIDIA's batcher's block


def parameters(config) -> dict[str, str]:
    return {key: value.string_value for key, value in config.parameters.items()}


# The templates


def test_fill_escapes_and_spells():
    filled = fill(
        'a: "${path}" b: ${flag} c: ${n} d: ${off}', {"path": 'x"\\', "flag": True, "n": 3, "off": False}, "m"
    )
    assert filled == 'a: "x\\"\\\\" b: true c: 3 d: false'


def test_fill_refuses_what_does_not_fit():
    with pytest.raises(ArtefactError, match="that model: the template has no typo"):
        fill("${a}", {"a": 1, "typo": 2}, "that model")
    with pytest.raises(ArtefactError, match="that model: no value for b, c"):
        fill("${a} ${c} ${b}", {"a": 1}, "that model")
    assert fill("${a}", {"a": "${b}"}, "m") == "${b}"  # a value is no template


def test_every_placeholder_is_filled(repository):
    for config in repository.glob("*/config.pbtxt"):
        assert not keys(config.read_text()), config


# The LLM's interface


def test_llm_inputs(llm):
    expected = table(INPUTS)
    assert len(expected) == 62
    assert declared(llm.input) == expected | CPU_INPUTS
    assert {t.name for t in llm.input if not t.optional} == REQUIRED
    assert {t.name for t in llm.input if t.allow_ragged_batch} >= RAGGED


def test_llm_outputs(llm):
    expected = table(OUTPUTS)
    assert len(expected) == 21
    assert declared(llm.output) == expected | CPU_OUTPUTS


@pytest.mark.parametrize(("dtype", "kind"), [("float32", "FP32"), ("bfloat16", "BF16"), ("float16", "FP16")])
def test_the_table_s_type_is_the_engine_s(tmp_path, dtype, kind):
    configs = parse(build(tmp_path, dtype))
    assert declared(configs[LLM].input) == table(INPUTS, f"TYPE_{kind}") | CPU_INPUTS
    assert declared(configs["audio_encoder"].output)["prompt_embedding_table"][0] == f"TYPE_{kind}"


def test_llm_queue_and_parameters(tmp_path):
    configs = parse(
        build(tmp_path, max_batch_size=7, max_queue_size=11, max_seq_len=1000, kv_cache_reuse=False,
              batch_scheduler_policy="guaranteed_no_evict")
    )  # fmt: skip
    llm = configs[LLM]
    assert (llm.backend, llm.max_batch_size) == ("tensorrtllm", 7)
    assert llm.model_transaction_policy.decoupled
    assert llm.max_batch_size == 7 and not llm.HasField("dynamic_batching")  # it stalls bursts for 500 ms
    assert parameters(llm)["max_queue_size"] == "11"
    expected = {
        "gpt_model_type": "inflight_fused_batching",
        "gpt_model_path": str(tmp_path / "engine"),
        "max_beam_width": "1",
        "batch_scheduler_policy": "guaranteed_no_evict",
        "max_tokens_in_paged_kv_cache": "4000",
        "kv_cache_host_memory_bytes": "0",
        "enable_kv_cache_reuse": "false",
        "enable_chunked_context": "true",
        "exclude_input_in_output": "true",
        "normalize_log_probs": "false",
        "decoder_matrices": "stored",
        "tokenizer_dir": "",
        "guided_decoding_backend": "xgrammar",
        "xgrammar_tokenizer_info_path": str(tmp_path / "xgrammar_tokenizer_info.json"),
    }
    assert {key: value for key, value in parameters(llm).items() if key in expected} == expected
    assert parameters(parse(build(tmp_path / "on"))[LLM])["enable_kv_cache_reuse"] == "true"


@pytest.mark.parametrize("name", profile_names())
def test_on_the_gpus_of_a_profile(tmp_path, name):
    profile = load_profile(name)
    limits = {"max_batch_size": profile.max_batch_size, "max_seq_len": profile.max_seq_len}
    repository = build(tmp_path, profile=profile, encoder="encoder.plan", max_queue_size=100, **limits)
    configs = parse(repository)
    llm = configs[LLM]
    assert declared(llm.input) == table(INPUTS) and declared(llm.output) == table(OUTPUTS)
    assert not any(wiring_faults(configs, name) for name in ENSEMBLES)
    assert (llm.backend, llm.max_batch_size) == ("tensorrtllm", profile.max_batch_size)
    assert llm.model_transaction_policy.decoupled
    assert llm.dynamic_batching.default_queue_policy.max_queue_size == 100
    assert not llm.dynamic_batching.preferred_batch_size and not llm.dynamic_batching.max_queue_delay_microseconds
    assert [(group.count, group.kind) for group in llm.instance_group] == [(1, KIND.KIND_CPU)]  # as NVIDIA's own
    expected = {
        "max_beam_width": "1",
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
        "gpt_model_type": "inflight_fused_batching",
        "gpt_model_path": str(tmp_path / "engine"),
        "vllm_options": "",
        "max_tokens_in_paged_kv_cache": "",
        "batch_scheduler_policy": "max_utilization",
        "kv_cache_free_gpu_mem_fraction": "0.85",
        "kv_cache_host_memory_bytes": "0",
        "exclude_input_in_output": "true",
        "cancellation_check_period_ms": "100",
        "stats_check_period_ms": "50",
        "enable_kv_cache_reuse": "true",
        "normalize_log_probs": "false",
        "enable_chunked_context": "true",
        "executor_worker_path": "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker",
        "decoder_matrices": "stored",
        "tokenizer_dir": "",
        "guided_decoding_backend": "xgrammar",
        "xgrammar_tokenizer_info_path": str(tmp_path / "xgrammar_tokenizer_info.json"),
        "max_queue_size": "100",
        "max_loras": "0",
    }
    assert parameters(llm) == dict.fromkeys(set(PARAMETERS.split()) - set(LEFT_OUT), "") | expected
    assert 0 < float(parameters(llm)["kv_cache_free_gpu_mem_fraction"]) < 1
    (placed,) = configs["audio_encoder"].instance_group
    assert (placed.count, placed.kind, list(placed.gpus)) == (1, KIND.KIND_GPU, [0])
    for other in set(configs) - ENSEMBLES - {LLM, "audio_encoder"}:
        assert [group.kind for group in configs[other].instance_group] == [KIND.KIND_CPU], other
    assert Runtime.load(tmp_path / "server-8001" / "runtime.json").encoder_file == tmp_path / "encoder.plan"


def test_adapters_on_a_cpu(tmp_path):
    repository = build(tmp_path, lora_modules=["terse=/adapters/terse", "medical=m"])
    assert parameters(parse(repository)[LLM])["max_loras"] == "2"
    told = json.loads((repository.parent / "serving_info.json").read_text())["adapters"]
    assert told == {name: task_id(name) for name in ("terse", "medical")} and told["terse"] == 290_934_522


def test_adapters_on_gpus(tmp_path):
    """One of rank 16 in the caches of a rank of one GPU, by hand: slots as wide as A and B of k (64 and 32)."""
    profile = load_profile("1xH200-16k").model_copy(update={"max_lora_rank": 16, "max_loras": 3})
    filled = parameters(parse(build(tmp_path, profile=profile, lora_modules=["a=a", "b=b", "c=c", "d=d"]))[LLM])
    slots = 16 * (2 + 1 + 1 + 2 + 3 * 2)  # 64 + 64, 64 + 32 twice, 64 + 64; 64 + 96 three times, of slots of 96
    assert filled["lora_cache_host_memory_bytes"] == str(5 * 2 * 96 * slots)
    assert filled["lora_cache_optimal_adapter_size"] == filled["lora_cache_max_adapter_size"] == "16"
    assert 0 < float(filled["lora_cache_gpu_memory_fraction"]) < 0.01 and not filled["max_loras"]


def test_on_a_cpu_all_runs_there(configs):
    for name in set(configs) - ENSEMBLES:
        assert [group.kind for group in configs[name].instance_group] == [KIND.KIND_CPU], name


def test_llm_parameters_are_nvidia_s(llm):
    assert len(PARAMETERS.split()) == 46 and set(LEFT_OUT) < set(PARAMETERS.split())
    assert set(parameters(llm)) == set(PARAMETERS.split()) - set(LEFT_OUT) | OURS


def test_paths_survive_escaping(repository, configs):
    work = repository.parent
    for name in ("audio_featurizer", "prompt_builder", "audio_encoder"):
        assert Path(parameters(configs[name])["runtime_file"]) == work / "runtime.json"
    files = parameters(configs["tokenizer"])
    assert Path(files["serving_info_file"]) == work / "serving_info.json"
    assert Path(files["tokenizer_json_file"]) == work.parent / "tokenizer.json"
    assert parameters(configs[LLM])["gpt_model_path"] == str(work.parent / "engine")
    assert Runtime.load(work / "runtime.json").tokenizer_file == work.parent / "tokenizer.json"


# The folders


def test_assembled_again_nothing_old_is_left(tmp_path):
    repository = build(tmp_path)
    (repository / "old_model").mkdir()
    assert build(tmp_path) == repository
    assert {folder.name for folder in repository.iterdir()} == {f.name for f in asset("model_repository").iterdir()}
    for folder in repository.iterdir():
        assert (folder / "1").is_dir()
        assert not list(folder.rglob("__pycache__"))


def test_the_edges_are_thin():
    files = [*asset("model_repository").rglob("model.py"), *asset("backends").rglob("model.py")]
    assert len(files) == 6
    for file in files:
        assert len(file.read_text().splitlines()) < 150, file


def test_backends_are_copies(tmp_path):
    """tritonserver resolves links and refuses a library outside the backend directory."""
    server, stub = tmp_path / "server", tmp_path / "stub"
    (server / "python").mkdir(parents=True)
    (server / "python" / "libtriton_python.so").write_bytes(b"library")
    stub.write_bytes(b"stub")
    for _ in range(2):  # the second time over the first
        backends = assemble_backends(tmp_path, server, stub)
    assert {path.relative_to(backends).as_posix() for path in backends.rglob("*") if path.is_file()} == {
        "python/libtriton_python.so", "python/triton_python_backend_stub", "tensorrtllm/model.py",
    }  # fmt: skip
    assert not any(path.is_symlink() for path in backends.rglob("*"))
    assert os.stat(backends / "python" / "triton_python_backend_stub").st_mode & stat.S_IXUSR
