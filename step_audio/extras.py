"""Which of the package's optional parts (extras of pyproject.toml) brings a module that is missing."""

from __future__ import annotations

from pathlib import Path

# Module -> the smallest extra that brings it.
EXTRAS = {
    "huggingface_hub": "build",
    "onnx": "build",
    "onnxscript": "build",
    "torch": "build",
    "espeakng_loader": "cpu",
    "onnxruntime": "cpu",
    "openvino": "cpu",
    "pytriton": "cpu",
    "silero_vad": "cpu",
    "xgrammar": "cpu",
    "hibari": "voice",
    "opentelemetry": "trace",
    "matplotlib": "train",
    "transformers": "train",
    "sounddevice": "talk",
    "tensorrt": "gpu",
    "tensorrt_llm": "gpu",
}
WITHIN = ("build", "cpu", "train")  # each holds those before it
_CLONE = (Path(__file__).parents[1] / "pyproject.toml").is_file()


def install(extra: str) -> str:
    """The command that adds an extra to this installation: "pip install -e '.[cpu]'" in a clone."""
    return f"pip install -e '.[{extra}]'" if _CLONE else f"pip install 'step-audio-triton[{extra}]'"


def install_for(module: str, needed: str | None = None) -> str:
    """The command that brings a missing module, "a.b" as well as "a".

    `needed`: the extra that brings all that is needed. Where it has this module, too, it is named, lest another one is
    missing next.
    """
    extra = EXTRAS.get(module.partition(".")[0])
    if extra in WITHIN and needed in WITHIN:
        extra = max(extra, needed, key=WITHIN.index)
    return install(extra) if extra else f"pip install {module.partition('.')[0]}"
