"""Profiles, what they refuse, and the command line of trtllm-build that comes of them."""

import argparse
import re

import pytest

from step_audio.errors import SettingsError
from step_audio_build.commands.plan import PUBLISHED, add_plan
from step_audio_build.commands.profiles_page import PAGE, fill
from step_audio_build.planning.memory_plan import plan
from step_audio_build.planning.profiles import load_profile, profile_names
from step_audio_build.tools.trtllm_build import FLAGS, LEFT_OUT, command

MACHINES = (
    "1xB200", "1xH200", "2xH100", "2xH100NVL", "4xA100", "4xH100", "4xH20", "4xH20-3e", "4xH800", "4xL40S", "8xL40S",
)  # fmt: skip
SHAPES = {"16k": (16_384, 32), "65k": (65_536, 128)}
CARDS = {  # nvidia-smi's MiB, bytes/s, compute capability, NVLink
    "L40S": (46068, 0.864e12, 89, False),
    "H100": (81559, 3.35e12, 90, True),
    "H800": (81559, 3.35e12, 90, True),
    "H20": (97871, 4.0e12, 90, True),
    "H20-3e": (143771, 4.8e12, 90, True),
    "H200": (143771, 4.8e12, 90, True),
    "H100NVL": (95830, 3.9e12, 90, True),
    "A100": (81920, 2.039e12, 80, True),
    "B200": (183359, 8.0e12, 100, True),
}
NAMES = {"H100NVL": "H100 NVL", "A100": "A100-SXM4-80GB"}  # what nvidia-smi prints of the others is the card's name
BASE = 'gpu = "H100"\ngpus = 4\nmax_seq_len = 16384\nmax_batch_size = 32\nmax_audio_seconds = 600\n'


def written(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


def test_eleven_machines_in_two_shapes():
    assert profile_names() == sorted(f"{machine}-{shape}" for machine in MACHINES for shape in SHAPES)


@pytest.mark.parametrize("name", profile_names())
def test_profile_is_what_its_name_says(name):
    count, card, shape = re.fullmatch(r"(\d)x(.+)-(\w+)", name).groups()
    profile = load_profile(name)
    assert (profile.name, profile.gpus, profile.gpu.name) == (name, int(count), NAMES.get(card, card))
    assert (profile.max_seq_len, profile.max_batch_size) == SHAPES[shape]
    assert (profile.precision, profile.kv_cache_dtype) == ("bfloat16", "bfloat16")
    mib, bandwidth, sm, nvlink = CARDS[card]
    gpu = profile.gpu
    assert (gpu.memory_bytes, gpu.bandwidth, gpu.sm, gpu.nvlink) == (mib << 20, bandwidth, sm, nvlink)


@pytest.mark.parametrize("name", profile_names())
def test_profile_fits(name):
    found = plan(load_profile(name), PUBLISHED)
    assert found.fits
    assert found.audio_seconds >= found.profile.max_audio_seconds
    assert found.kv_tokens >= found.build.max_seq_len


def test_own_file(tmp_path):
    profile = load_profile(written(tmp_path, BASE))
    assert (profile.name, profile.gpu) == ("mine", load_profile("4xH100-16k").gpu)
    assert load_profile(str(tmp_path / "mine.toml")) == profile


def test_own_card(tmp_path):
    card = '[gpu]\nname = "B1"\nmemory_mib = 1024\nbandwidth = 1e12\nsm = 90\nnvlink = false\n'
    gpu = load_profile(written(tmp_path, BASE.replace('gpu = "H100"\n', "") + card)).gpu
    assert (gpu.name, gpu.memory_bytes, gpu.bandwidth) == ("B1", 1 << 30, 1e12)


@pytest.mark.parametrize(
    "change, message",
    [
        ('kv_cache_dtype = "fp8"', 'needs precision "fp8"'),
        ('kv_cache_dtype = "fp8"\nprecision = "int8"', "turns paged context attention off"),
        (
            'kv_cache_dtype = "fp8"\nprecision = "fp8"',
            "issues/4218, https://github.com/NVIDIA/TensorRT-LLM/issues/2699",
        ),
        ("gather_generation_logits = true", "there is no gather_generation_logits: .*issues/10810"),
        ("kv_cache_host_memory_bytes = 1", "there is no kv_cache_host_memory_bytes: .*issues/8813"),
        ("enable_trt_overlap = true", "second prompt table"),
        ("max_batchsize = 3", "max_batchsize: Extra inputs are not permitted"),
        ('precision = "int2"', "precision: Input should be 'bfloat16', 'int8', 'int4', 'fp8' or 'awq'"),
        ("kv_fraction = 1.0", "kv_fraction: Input should be less than 1"),
        ("max_num_tokens = 31", "max_num_tokens: .*32"),
        ("max_num_tokens = 64\nmax_batch_size = 65", "max_num_tokens 64 is below max_batch_size 65"),
        ("max_audio_seconds = 1400", "1400 s of audio are 17640 positions, which max_seq_len 16384 has no room for"),
        ('gpu = "H2"', "gpu must be one of L40S, H100, H800, H20, H200, H20-3e, H100NVL, A100, B200"),
        ("gpu = 3", "gpu must be one of"),
        ("name = [", "is not valid TOML"),
    ],
)
def test_refused(tmp_path, change, message):
    keys = [line.split(" ")[0] for line in change.splitlines()]
    base = [line for line in BASE.splitlines() if line.split(" ")[0] not in keys]
    with pytest.raises(SettingsError, match=message) as caught:
        load_profile(written(tmp_path, "\n".join([*base, change])))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "card, message",
    [
        ('name = "B1"', "gpu: memory_bytes: .*greater than 0"),
        ('memory_mib = "much"', "gpu: memory_mib must be a number"),
        ("memory_mib = 4\nsm = 90\nnvlink = true\nbandwidth = 0.0\nname = 'B1'", "gpu: bandwidth: .*greater than 0"),
        ("memory_mib = 4\nsm = 90\nnvlink = true\nbandwidth = 1.0\nname = 'B1'\nwatts = 3", "gpu: watts: Extra inputs"),
    ],
)
def test_refused_card(tmp_path, card, message):
    with pytest.raises(SettingsError, match=message):
        load_profile(written(tmp_path, BASE.replace('gpu = "H100"\n', "") + "[gpu]\n" + card))


def test_fp8_needs_ada(tmp_path):
    ampere = '[gpu]\nname = "A100"\nmemory_mib = 81920\nbandwidth = 2e12\nsm = 80\nnvlink = true\n'
    with pytest.raises(SettingsError, match="compute capability 89, not 80"):
        load_profile(written(tmp_path, BASE.replace('gpu = "H100"\n', 'precision = "fp8"\n') + ampere))


def test_fp8_kv_cache_on_demand(tmp_path):
    choice = 'precision = "fp8"\nkv_cache_dtype = "fp8"\nfp8_kv_cache_despite_faults = true\n'
    profile = load_profile(written(tmp_path, BASE + choice))
    assert "compare the answers" in profile.warnings()[0]
    assert plan(profile, PUBLISHED).kv_tokens > 2 * plan(load_profile("4xH100-16k"), PUBLISHED).kv_tokens


def test_unknown_name_lists_the_known(tmp_path):
    with pytest.raises(SettingsError, match=r"no profile gpus; use 1xB200-16k, .*8xL40S-65k, or the path of a .toml"):
        load_profile("gpus")
    with pytest.raises(SettingsError, match="No such file"):
        load_profile(tmp_path / "none.toml")


def test_warnings(tmp_path):
    assert "issues/9680" in load_profile("4xL40S-16k").warnings()[0]
    assert "issues/1601" in load_profile("4xH100-16k").warnings()[0]
    assert load_profile("1xH200-16k").warnings() == []
    assert "at most 16384" in load_profile(written(tmp_path, BASE + "max_num_tokens = 32768")).warnings()[0]


# trtllm-build


def trtllm_build_parser():
    """Arguments of TensorRT-LLM 1.2's trtllm-build as far as they are used or could be: names, types and choices.

    After tensorrt_llm/commands/build.py @65f1d15 (parse_arguments) and tensorrt_llm/plugin/plugin.py @c20322f
    (PluginConfig's fields, cli_plugin_args, add_plugin_argument).
    """
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("checkpoint_dir", "output_dir", "input_timing_cache", "output_timing_cache"):
        parser.add_argument(f"--{name}")
    for name in ("max_batch_size", "max_input_len", "max_seq_len", "max_beam_width", "max_num_tokens", "workers"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--max_prompt_embedding_table_size", "--max_multimodal_len", type=int)
    parser.add_argument("--kv_cache_type", choices=("continuous", "paged", "disabled"))
    parser.add_argument("--logits_dtype", choices=("float16", "float32"))
    plain = ("auto", "float16", "float32", "bfloat16", "int32", "disable")
    for name in ("gpt_attention_plugin", "nccl_plugin"):
        parser.add_argument(f"--{name}", choices=plain)
    parser.add_argument("--gemm_plugin", choices=(*plain, "fp8", "nvfp4"))
    parser.add_argument("--tokens_per_block", type=int)
    parser.add_argument("--lora_plugin", choices=plain)
    modules = ("attn_qkv", "attn_q", "attn_k", "attn_v", "attn_dense", "mlp_h_to_4h", "mlp_gate", "mlp_4h_to_h")
    parser.add_argument("--lora_target_modules", nargs="+", choices=modules)
    parser.add_argument("--max_lora_rank", type=int)
    switches = ("context_fmha", "remove_input_padding", "use_paged_context_fmha", "use_fp8_context_fmha")
    for name in (*switches, "multiple_profiles", "reduce_fusion", "user_buffer", "streamingllm"):
        parser.add_argument(f"--{name}", choices=("enable", "disable"))
    for name in ("gather_context_logits", "gather_generation_logits", "gather_all_token_logits"):
        parser.add_argument(f"--{name}", action="store_true")
    return parser


ALWAYS = {  # flag -> value, and where it is said
    "max_beam_width": (1, "commands/build.py"),
    "logits_dtype": ("float32", "commands/build.py"),
    "kv_cache_type": ("paged", "commands/build.py"),
    "tokens_per_block": (32, "plugin/plugin.py"),
    "gpt_attention_plugin": ("bfloat16", "plugin/plugin.py"),
    "remove_input_padding": ("enable", "plugin/plugin.py"),
    "context_fmha": ("enable", "builder.py"),
    "use_paged_context_fmha": ("enable", "builder.py"),
    "multiple_profiles": ("disable", "plugin/plugin.py"),
    "checkpoint_dir": ("CHECKPOINT", "commands/build.py"),
    "output_dir": ("ENGINE", "commands/build.py"),
    "input_timing_cache": ("CACHE", "commands/build.py"),
    "output_timing_cache": ("CACHE", "commands/build.py"),
}
OF_THE_PROFILE = {
    "workers": (lambda p, build: p.gpus, "commands/build.py"),
    "max_batch_size": (lambda p, build: build.max_batch_size, "promptTuningBuffers.cpp"),
    "max_seq_len": (lambda p, build: p.max_seq_len, "commands/build.py"),
    "max_num_tokens": (lambda p, build: p.max_num_tokens, "commands/build.py"),
    "max_prompt_embedding_table_size": (
        lambda p, build: build.max_prompt_embedding_table_size, "promptTuningBuffers.cpp",
    ),
    "gemm_plugin": (lambda p, build: "disable" if p.precision == "fp8" else "bfloat16", "plugin/plugin.py"),
    "use_fp8_context_fmha": (lambda p, build: "enable" if p.kv_cache_dtype == "fp8" else "disable", "builder.py"),
}  # fmt: skip

VARIANTS = [
    {},
    {"precision": "int8"},
    {"precision": "awq"},
    {"precision": "fp8"},
    {"precision": "fp8", "kv_cache_dtype": "fp8", "fp8_kv_cache_despite_faults": True},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("name", profile_names())
def test_every_flag_against_its_source(name, variant):
    profile = load_profile(name).model_copy(update=variant)
    found = plan(profile, PUBLISHED)
    program, *arguments = command(profile, found, "CHECKPOINT", "ENGINE", "CACHE", profile.gpus)
    assert program == "trtllm-build"
    given = arguments[::2]
    assert len(given) == len(set(given)) == len(FLAGS)
    taken = {key: value for key, value in vars(trtllm_build_parser().parse_args(arguments)).items() if value}
    expected = {key: value for key, (value, _) in ALWAYS.items()}
    expected |= {key: value(profile, found.build) for key, (value, _) in OF_THE_PROFILE.items()}
    assert taken == expected
    assert taken["max_prompt_embedding_table_size"] % taken["max_batch_size"] == 0
    assert taken["max_prompt_embedding_table_size"] // taken["max_batch_size"] == found.table_rows


def test_adapters_are_asked_for_where_they_are_served():
    profile = load_profile("4xH100-16k").model_copy(update={"max_lora_rank": 16})
    plain, argv = (
        command(one, plan(one, PUBLISHED), "CHECKPOINT", "ENGINE", "CACHE", 4)
        for one in (load_profile("4xH100-16k"), profile)
    )
    added = ["--lora_plugin", "bfloat16", "--lora_target_modules", "attn_q", "attn_k", "attn_v", "attn_dense"]
    added += ["mlp_h_to_4h", "mlp_4h_to_h", "mlp_gate", "--max_lora_rank", "16"]
    assert argv[-len(added) :] == added and not any("lora" in word for word in plain)
    taken = vars(trtllm_build_parser().parse_args(argv[1:]))
    assert (taken["max_lora_rank"], taken["lora_plugin"], len(taken["lora_target_modules"])) == (16, "bfloat16", 7)


def test_every_flag_has_its_source():
    sources = {f"--{key}": source for key, (_, source) in {**ALWAYS, **OF_THE_PROFILE}.items()}
    for name, flag in FLAGS.items():
        assert sources[name] in flag.source, name
        assert re.search(r"@[0-9a-f]{7}", flag.source) and flag.why


def test_what_is_left_out_is_known_and_not_given():
    assert not FLAGS.keys() & LEFT_OUT.keys()
    known = trtllm_build_parser()._option_string_actions
    assert LEFT_OUT.keys() <= known.keys() and FLAGS.keys() <= known.keys()


# The page and the command


def test_page_is_up_to_date():
    """Otherwise: python -m step_audio_build.commands.profiles_page"""
    page = PAGE.read_text(encoding="utf-8")
    assert fill(page) == page
    assert page.count("<!-- begin ") == page.count("<!-- end -->") == 8


def test_page_s_own_profiles_work(tmp_path):
    texts = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(texts) == 2
    assert all(plan(load_profile(written(tmp_path, text)), PUBLISHED).fits for text in texts)


def run(*arguments):
    parser = argparse.ArgumentParser()
    add_plan(parser.add_subparsers())
    parsed = parser.parse_args(["plan", *arguments])
    return parsed.run(parsed)


def test_command_shows_all(capsys):
    assert run() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == profile_names()


def test_command_shows_one(capsys, tmp_path, checkpoint):
    assert run("--profile", "4xL40S-65k") == 0
    out = capsys.readouterr().out
    assert "instead of 128" in out and "| weights" in out and "tokens/s" in out and "issues/9680" in out
    own = written(tmp_path, BASE.replace("gpus = 4", "gpus = 1").replace("600", "60"))
    assert run("--profile", str(own), "--checkpoint", str(checkpoint)) == 0
    assert run("--profile", str(written(tmp_path, BASE.replace("gpus = 4", "gpus = 3")))) == 1
    assert "cannot be split over 3 GPUs" in capsys.readouterr().out
