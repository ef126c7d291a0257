"""Adapters in the engine: as if merged into the weights, each request by its own."""

from dataclasses import replace

import numpy as np
import pytest

from engine_fixture import HIDDEN, ask, batch, hugging_face, options, prompt, submit, write_engine
from lazy import Lazy
from lora_fixture import merged, save_adapter
from step_audio.config import TextConfig
from step_audio.engine import Engine
from step_audio.engine.executor import TokenEmbedding
from step_audio.engine.trtllm_checkpoint import load_engine
from step_audio.errors import InvalidRequest, NotServing
from step_audio.lora import Dimensions, LoraTensors, unpack
from step_audio_build.convert.peft_adapter import PeftAdapter

OpenVinoExecutor = Lazy("step_audio.engine.openvino_executor:OpenVinoExecutor")
TorchExecutor = Lazy("step_audio.engine.torch_executor:TorchExecutor")

RANK = 8
LORA = {"plugin_config": {"tokens_per_block": 32, "lora_plugin": "float32"}, "lora_config": {"max_lora_rank": RANK}}
ONE, TWO, OTHERS = 11, 12, 2**40  # task ids
IDS = prompt(70)


def text_config() -> TextConfig:
    theirs = hugging_face().config
    return TextConfig(
        hidden_size=HIDDEN,
        intermediate_size=theirs.intermediate_size,
        num_hidden_layers=theirs.num_hidden_layers,
        num_attention_heads=theirs.num_attention_heads,
        num_key_value_heads=theirs.num_key_value_heads,
        head_dim=HIDDEN // theirs.num_attention_heads,
        vocab_size=theirs.vocab_size,
        max_position_embeddings=theirs.max_position_embeddings,
        rms_norm_eps=1e-5,
        rope_theta=1e6,
        dtype="float32",
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of two adapters: of all modules, and of some, by another scale."""
    state, root = hugging_face().state_dict(), tmp_path_factory.mktemp("adapters")
    some = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
    return {
        ONE: save_adapter(root / "one", state, rank=4, seed=1),
        TWO: save_adapter(root / "two", state, RANK, seed=2, modules=some, use_rslora=True),
    }


@pytest.fixture(scope="module")
def tensors(folders):
    return {task: PeftAdapter.open(folder, text_config()).lora_tensors("float32") for task, folder in folders.items()}


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    return load_engine(write_engine(tmp_path_factory.mktemp("adapted"), tp=2, build=LORA))


@pytest.fixture(scope="module")
def expected(tmp_path_factory, folders):
    """Task id -> the answer of a checkpoint with that adapter merged into it, sharded over two ranks."""
    answers = {}
    for task in (None, ONE, TWO):
        changed = merged(hugging_face().state_dict(), folders[task]) if task else None
        directory = write_engine(tmp_path_factory.mktemp("merged"), tp=2, changed=changed)
        engine = Engine(options(executor="torch"), load_engine(directory))
        answers[task] = ask(engine, IDS, 24).tokens()
        engine.shutdown()
    assert len({tuple(answer) for answer in answers.values()}) == 3
    return answers


@pytest.fixture(params=["openvino", "torch"])
def engine(request, adapted):
    engine = Engine(options(executor=request.param, max_loras=2), adapted)
    yield engine
    engine.shutdown()


def test_an_adapter_is_as_good_as_merged(engine, tensors, expected):
    for task in (ONE, TWO):
        assert ask(engine, IDS, 24, lora_task_id=task, lora=tensors[task]).tokens() == expected[task]
    for task in (None, ONE, TWO):  # cached by now, and the blocks of the prompt known
        assert ask(engine, IDS, 24, lora_task_id=task).tokens() == expected[task]


def test_several_adapters_in_one_batch_are_not_mixed(engine, tensors, expected):
    tasks = [ONE, None, TWO, ONE, TWO, None]
    running = [
        submit(engine, str(i), IDS, 24, lora_task_id=task, lora=tensors.get(task)) for i, task in enumerate(tasks)
    ]
    assert [answer.wait().tokens() for answer in running] == [expected[task] for task in tasks]


def test_blocks_are_shared_within_an_adapter_alone(engine, tensors):
    def reused(task):
        return ask(engine, IDS, 2, lora_task_id=task, lora=tensors.get(task)).last.stats.reused_blocks

    assert [reused(task) for task in (None, ONE, TWO)] == [0, 0, 0]
    assert [reused(task) for task in (None, ONE, TWO)] == [2, 2, 2]


def test_what_an_engine_does_not_take(engine, tensors):
    asked = {"lora_task_id": ONE}
    with pytest.raises(NotServing, match="LoRA task 11 not found in cache"):
        ask(engine, IDS, 2, **asked)
    with pytest.raises(InvalidRequest, match="lora_task_id must be set"):
        ask(engine, IDS, 2, lora=tensors[ONE])
    for task in (ONE, TWO):
        ask(engine, IDS, 2, lora_task_id=task, lora=tensors[task])
    with pytest.raises(InvalidRequest, match="no room for another adapter"):
        ask(engine, IDS, 2, lora_task_id=OTHERS, lora=tensors[ONE])
    assert ask(engine, IDS, 2, **asked).last.final


def test_what_is_no_adapter_is_refused_and_leaves_its_place(engine, tensors, expected):
    broken = LoraTensors(tensors[ONE].weights * np.nan, tensors[ONE].config)
    answers = [submit(engine, str(i), IDS, 4, lora_task_id=OTHERS, lora=broken) for i in range(2)]
    for answer in answers:
        assert isinstance(answer.wait().last.error, InvalidRequest) and "NaN" in str(answer.last.error)
    for task in (ONE, TWO):
        assert ask(engine, IDS, 24, lora_task_id=task, lora=tensors[task]).tokens() == expected[task]


def test_an_engine_without_adapters_takes_none(start, tensors):
    with pytest.raises(InvalidRequest, match="needs adapters"):
        ask(start(), IDS, 2, lora_task_id=ONE, lora=tensors[ONE])


@pytest.mark.parametrize(
    ("change", "said"),
    {
        "module": (lambda weights, config: (weights, np.where(config == config[0, 0], 99, config)), "lora module 99"),
        "layer": (lambda weights, config: (weights, config + np.array([0, 2, 0])), "layerId to be in the range"),
        "rank": (lambda weights, config: (weights, config + np.array([0, 0, 5])), r"Invalid low_rank \(9\)"),
        "width": (lambda weights, config: (weights[:, :100], config), "has to few values"),
        "rows": (lambda weights, config: (weights[:-1], config), "same size"),
        "dora": (lambda weights, config: (weights, np.c_[config, config[:, 0]]), "Invalid shape"),
        "nan": (lambda weights, config: (weights * np.nan, config), "NaN"),
    }.values(),
)
def test_tensors_that_do_not_fit(tensors, change, said):
    weights, config = change(tensors[ONE].weights, tensors[ONE].config)
    with pytest.raises(InvalidRequest, match=said):
        unpack(LoraTensors(weights, config.astype(np.int32)), Dimensions.of(text_config()), RANK)


def test_openvino_equals_torch_with_adapters(adapted, tensors):
    spec, weights = adapted
    embed = TokenEmbedding(weights)
    ours = OpenVinoExecutor(spec, weights, 10, "f32", 1, adapters=2)
    theirs = TorchExecutor(spec, weights, 10, "f32", 1)
    for place, task in enumerate((ONE, TWO)):
        factors = unpack(tensors[task], spec.dimensions, spec.max_lora_rank)
        for executor in (ours, theirs):
            executor.load_adapter(place, factors)
    a, b, c = prompt(60), prompt(40), prompt(30)
    for step in ([("a", 0, a[:50]), ("b", 0, b), ("c", 0, c[:29])], [("a", 50, a[50:]), ("c", 29, c[29:])]):
        adapters = np.array([{"a": 1, "b": -1, "c": 0}[name] for name, *_ in step], np.int32)
        asked = replace(batch(embed, *step), adapters=adapters)
        got, expected = (executor.forward(asked).copy() for executor in (ours, theirs))
        assert np.abs(got - expected).max() < 1e-3
    assert np.abs(got - theirs.forward(replace(asked, adapters=None))).max() > 0.1
