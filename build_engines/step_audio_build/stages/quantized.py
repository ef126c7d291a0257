"""TensorRT-LLM checkpoints whose weights are not bfloat16.

int8 and int4 are weight-only: `trtllm-build` quantises plain weights while it loads them when config.json asks for it
(tensorrt_llm/models/modeling_utils.py@01ea6d7, `preprocess_weights`), so one key differs and the rank files are linked.
fp8 and awq need statistics of activations, which NVIDIA's `quantize.py` collects
(examples/quantization/quantize.py@059c97c) from text; audio positions are not part of it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from step_audio.checkpoint import Checkpoint, decoder_tensors
from step_audio.errors import ArtefactError
from step_audio_build.artefacts.artefact import as_source, finish, finished, fresh_partial, publish
from step_audio_build.artefacts.manifest import Identity, Manifest, read_manifest, source_files, to_json
from step_audio_build.convert.decoder_only import write_decoder_only
from step_audio_build.planning.gpus import installed_version
from step_audio_build.stages.layout import DTYPE, BuildJob
from step_audio_build.tools import subprocess_runner

FORMAT = 1
WEIGHT_ONLY = {"int8": "W8A16", "int4": "W4A16"}
CALIBRATED = {"fp8": ["--qformat", "fp8"], "awq": ["--qformat", "int4_awq", "--awq_block_size", "128"]}
# Stated so that another release's defaults do not slip in: 512 is quantize.py's own, and for AWQ it takes no more than
# 32 (tensorrt_llm/quantization/quantize_by_modelopt.py@042c510, quantize_and_export).
CALIBRATION_SAMPLES = {"fp8": 512, "awq": 32}

# The image's own Python. Ours has packages of its own before the image's (docker/Dockerfile), and the quantiser needs
# none of them: what transformers and datasets ask for are releases that suit TensorRT-LLM.
IMAGE_PYTHON = Path("/opt/venv-tritonserver/bin/python3")


def weight_only(job: BuildJob, plain: Manifest) -> Manifest:
    """The checkpoint beside the plain one, on the same bytes. Raises ArtefactError."""
    target, identity = job.layout.decoder, identity_of(job, plain)
    if manifest := finished(target / "manifest.json", identity, target):
        return manifest
    partial = fresh_partial(target)
    config = json.loads((job.layout.plain_decoder / "config.json").read_text(encoding="utf-8"))
    config["quantization"]["quant_algo"] = WEIGHT_ONLY[job.profile.precision]
    (partial / "config.json").write_text(to_json(config))
    for output in plain.outputs:
        if output.name != "config.json":
            os.link(job.layout.plain_decoder / output.name, partial / output.name)
    publish(partial, target)
    names = [path.name for path in target.iterdir()]
    return finish(target / "manifest.json", identity, target, names, {}, plain.tensors_sha256)


def calibrated(job: BuildJob) -> Manifest:
    """Run NVIDIA's quantiser on the decoder as a Qwen2 model. Raises ArtefactError with what it says."""
    target, identity = job.layout.decoder, identity_of(job, None)
    if manifest := finished(target / "manifest.json", identity, target):
        return manifest
    if not job.settings.quantize_script.is_file():
        raise ArtefactError(f"{job.settings.quantize_script} is not there; name NVIDIA's with --quantize-script")
    job.echo(f"convert: the decoder as a Qwen2 model in {job.layout.decoder_only}")
    write_decoder_only(job.checkpoint, job.layout.decoder_only)
    partial = fresh_partial(target)
    subprocess_runner.run(
        quantize_command(job, partial), job.layout.log("quantize"), job.echo, directory=job.layout.work
    )
    missing = [name for name in rank_names(job.profile.gpus) if not (partial / name).is_file()]
    if missing:
        raise ArtefactError(f"quantize.py left no {', '.join(missing)}; log: {job.layout.log('quantize')}")
    publish(partial, target)
    tools = {name: installed_version(name) for name in ("tensorrt_llm", "modelopt")}
    return finish(target / "manifest.json", identity, target, [p.name for p in target.iterdir()], tools)


def quantize_command(job: BuildJob, output: Path) -> list[str]:
    """`quantize.py` and its arguments, to be run in the work directory. Device, seed and lengths stay at its defaults.

    The model by its name there: a path with "mpt", "vila" or "llava-onevision-qwen2" anywhere in it, as /prompts has,
    would be another model's to it (get_hf_config and get_model of quantize_by_modelopt.py @585c756, which it calls).
    """
    # Outside the image TensorRT-LLM, if it is there at all, is beside us.
    python = str(IMAGE_PYTHON) if IMAGE_PYTHON.is_file() else sys.executable
    command = [python, str(job.settings.quantize_script.absolute())]
    command += ["--model_dir", f"./{job.layout.decoder_only.name}"]
    command += ["--dtype", DTYPE, *CALIBRATED[job.profile.precision]]
    command += ["--calib_size", str(CALIBRATION_SAMPLES[job.profile.precision])]
    command += ["--calib_dataset", job.settings.calibration_data]
    if job.profile.kv_cache_dtype == "fp8":
        command += ["--kv_cache_dtype", "fp8"]
    return [*command, "--tp_size", str(job.profile.gpus), "--output_dir", str(output)]


def identity_of(job: BuildJob, plain: Manifest | None) -> Identity:
    """`plain`: the manifest of the bfloat16 checkpoint, for weight-only precisions."""
    profile = job.profile
    settings: dict[str, Any] = {"tp": profile.gpus, "dtype": DTYPE, "precision": profile.precision}
    if plain is not None:
        return Identity(kind="decoder", format=FORMAT, source=[as_source("decoder", plain)], settings=settings)
    settings |= {
        "kv_cache_dtype": profile.kv_cache_dtype,
        "calibration": f"{CALIBRATION_SAMPLES[profile.precision]} of {job.settings.calibration_data}",
    }
    checkpoint = Checkpoint(job.checkpoint)
    source = source_files(checkpoint, decoder_tensors(job.model.text))
    return Identity(kind="decoder", format=FORMAT, source=source, settings=settings)


def is_finished(job: BuildJob) -> bool:
    """Raises ArtefactError where the directory holds another build."""
    plain = None
    if job.profile.precision in WEIGHT_ONLY:
        plain = read_manifest(job.layout.plain_decoder / "manifest.json")
        if plain is None:
            return False
    return finished(job.layout.decoder / "manifest.json", identity_of(job, plain), job.layout.decoder) is not None


def rank_names(gpus: int, suffix: str = ".safetensors") -> list[str]:
    return [f"rank{rank}{suffix}" for rank in range(gpus)]
