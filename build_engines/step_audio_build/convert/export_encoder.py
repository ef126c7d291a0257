"""Published checkpoint -> ONNX of the audio encoder and adaptor, dynamic in batch and time.

torch is loaded for an export alone: a server whose encoder is there already starts without it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from step_audio.checkpoint import Checkpoint, encoder_tensors
from step_audio.config import ModelConfig
from step_audio_build.artefacts.manifest import (
    Identity,
    Manifest,
    OutputFile,
    combine_hashes,
    read_manifest,
    require_same,
    sha256_file,
    source_files,
    sync_directory,
    tool_versions,
    write_atomically,
)

if TYPE_CHECKING:
    import torch

    from step_audio.encoder import AudioEncoder
    from step_audio.mel import LengthRule

FORMAT = 1  # of the exported graph; raise it when the same checkpoint would give another one
OPSET = 18
MIN_FRAMES = 3  # of one sample of audio
EXTERNAL_BYTES = 1_500_000_000  # beyond it weights go to a file beside the model: protobuf ends at 2 GB


def export_encoder(
    checkpoint_dir: str | Path | Checkpoint, output_path: str | Path, length_rule: LengthRule = "L"
) -> Manifest:
    """Write `output_path`, its `.data` file when the model is large, and `<stem>.manifest.json`.

    Inputs: `mel` float32 [B, n_mels, T], T from 3 to 2 * n_audio_ctx, and `frames` int64 [B]; output: `embeddings`
    float32 [B, tok, llm_dim], as AudioEncoder.forward says. The model's metadata has `length_rule` and
    `tensors_sha256`. Does nothing when it is there already. Raises CheckpointError, and ArtefactError when the path
    holds another build.
    """
    checkpoint = checkpoint_dir if isinstance(checkpoint_dir, Checkpoint) else Checkpoint(checkpoint_dir)
    config = ModelConfig.from_directory(checkpoint.directory)
    checkpoint.verify(config)
    names = list(encoder_tensors(config.audio))
    identity = Identity(
        kind="encoder",
        format=FORMAT,
        source=source_files(checkpoint, names),
        settings={"length_rule": length_rule, "opset": OPSET},
    )
    path = Path(output_path)
    manifest_path = path.with_suffix(".manifest.json")
    if manifest := read_manifest(manifest_path):
        require_same(manifest.identity, identity, path)
        manifest.check(path.parent)
        return manifest

    from step_audio.encoder import load_encoder

    digest = combine_hashes((name, hashlib.sha256(checkpoint.read(name).data).hexdigest()) for name in names)
    encoder = load_encoder(checkpoint, config.audio, length_rule)
    program = _export(encoder, 2 * config.audio.n_audio_ctx)
    program.model.metadata_props.update(length_rule=length_rule, tensors_sha256=digest)
    # A model names its data file, so both get their final names in a directory of their own and move from there.
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    weight_bytes = sum(weight.nbytes for weight in encoder.parameters())
    program.save(partial / path.name, external_data=weight_bytes > EXTERNAL_BYTES)
    outputs = []
    for file in sorted(partial.iterdir(), reverse=True):  # the data before the model that needs it
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
        outputs.append(OutputFile(name=file.name, size=file.stat().st_size, sha256=sha256_file(file)))
        os.replace(file, path.parent / file.name)
    partial.rmdir()
    sync_directory(path.parent)
    manifest = Manifest(
        identity=identity,
        tensors_sha256=digest,
        tools=tool_versions("torch", "onnx", "onnxscript"),
        outputs=outputs,
    )
    write_atomically(manifest_path, manifest.model_dump_json(indent=1) + "\n")
    return manifest


def _export(model: AudioEncoder, max_frames: int) -> torch.onnx.ONNXProgram:
    import torch

    batch, time = torch.export.Dim("batch", min=1), torch.export.Dim("time", min=MIN_FRAMES, max=max_frames)
    n_mels = model.encoder.conv1.in_channels
    # Any size but 0 and 1, which the exporter would take for constants.
    example = (torch.zeros(2, n_mels, 40), torch.tensor([40, 30]))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it mentions optional packages that are not needed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own insides
        program = torch.onnx.export(
            model,
            example,
            input_names=["mel", "frames"],
            output_names=["embeddings"],
            dynamic_shapes={"mel": {0: batch, 2: time}, "frames": {0: batch}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # as the older exporter's is
    return program
