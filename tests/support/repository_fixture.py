"""A model repository put together, and read as Triton reads it."""

from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from model_fixture import model
from step_audio.artefacts import Artefacts
from step_audio_server.repository.assembly import assemble
from step_audio_server.settings import ServeSettings

ENSEMBLE, PROMPT, CONTINUE, LLM = "step_audio_r1", "step_audio_prompt", "step_audio_continue", "tensorrt_llm"
TEXT = "step_audio_text"
ENSEMBLES = {ENSEMBLE, PROMPT, CONTINUE, TEXT}


def declared(tensors) -> dict[str, tuple[str, list[int], bool]]:
    def scalar(tensor) -> bool:
        return tensor.HasField("reshape") and not tensor.reshape.shape

    return {t.name: (model_config_pb2.DataType.Name(t.data_type), list(t.dims), scalar(t)) for t in tensors}


def settings(work: Path, **values) -> ServeSettings:
    return ServeSettings.create(checkpoint=work / "Step-Audio-R1.1", work_dir=work, **values)


def build(work: Path, dtype: str = "bfloat16", profile=None, encoder: str = "encoder.onnx", **values) -> Path:
    work.mkdir(exist_ok=True)
    files = ("engine", encoder, "tokenizer.json", "xgrammar_tokenizer_info.json")
    artefacts = Artefacts(*(work / name for name in files), dtype, 4096, 32)
    return assemble(settings(work, **values), model(), artefacts, profile)


def parse(repository: Path) -> dict[str, model_config_pb2.ModelConfig]:
    return {
        folder.name: text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
        for folder in repository.iterdir()
    }


def wiring_faults(configs, name=ENSEMBLE) -> list[str]:
    """What tritonserver would refuse, or worse accept: tensors made twice or never, types and dims that differ."""
    ensemble, faults = configs[name], []
    made = {name: ("the request", value) for name, value in declared(ensemble.input).items()}
    for step in ensemble.ensemble_scheduling.step:
        for name, tensor in step.output_map.items():
            if tensor in made:
                faults.append(f"{tensor} is made twice")
            made[tensor] = (step.model_name, declared(configs[step.model_name].output)[name])
    used = set()
    for step in ensemble.ensemble_scheduling.step:
        inputs = declared(configs[step.model_name].input)
        faults += [f"{step.model_name} lacks {t.name}" for t in configs[step.model_name].input
                   if not t.optional and t.name not in step.input_map]  # fmt: skip
        for name, tensor in step.input_map.items():
            used.add(tensor)
            if tensor not in made:
                faults.append(f"{tensor} is never made")
            elif not fits(made[tensor][1], inputs[name]):
                faults.append(f"{tensor}: {made[tensor]} does not fit {step.model_name}'s {name}, {inputs[name]}")
    for name, value in declared(ensemble.output).items():
        used.add(name)
        if name not in made or made[name][0] == "the request" or not fits(made[name][1], value):
            faults.append(f"output {name} is not made as declared")
    return faults + [f"{name} is for nothing" for name in made if name not in used]


def fits(made, wanted) -> bool:
    (kind, dims, _), (wanted_kind, wanted_dims, _) = made, wanted
    return kind == wanted_kind and len(dims) == len(wanted_dims) and all(
        -1 in (a, b) or a == b for a, b in zip(dims, wanted_dims, strict=True)
    )  # fmt: skip
