"""`vllm serve`'s flags for the model and its engine: which are ours, too, and what becomes of the others."""

from __future__ import annotations

# Of the same name and meaning; more are other names of ours: `--tensor-parallel-size` of `--tp`.
SAME = ("--dtype", "--chat-template", "--lora-modules")

# What they ask for is so in any case.
ALWAYS = {
    "--trust-remote-code": "no code of a checkpoint is run, and none is needed",
    "--interleave-mm-strings": "recordings stand where the message has them",
    "--disable-log-stats": "figures are in /metrics alone",
}

_MEMORY = "use --kv-cache-tokens; on GPUs `step-audio build` decides it, see `step-audio plan`"
_PROFILE = "on GPUs a profile decides it: see `step-audio plan`"
_CHECKPOINT = "the checkpoint's directory has it"
_ADAPTERS = "--lora-modules is enough; on GPUs a profile's max_lora_rank and max_loras decide it"
_SAMPLING = "use --default-sampling"
_NO_GRAPHS = "nothing is compiled or captured while it starts: leave it out"

REFUSED = {
    "-tp": "use --tensor-parallel-size",
    "-pp": _PROFILE,
    "-q": "on a CPU use --decoder-matrices int8; on GPUs a profile decides it",
    "--quantization": "on a CPU use --decoder-matrices int8; on GPUs a profile decides it",
    "--pipeline-parallel-size": _PROFILE,
    "--data-parallel-size": "start several servers, and `step-audio gateway --triton HOST:PORT,HOST:PORT` before them",
    "--kv-cache-memory-bytes": _MEMORY,
    "--num-gpu-blocks-override": _MEMORY,
    "--kv-cache-dtype": _PROFILE,
    "--block-size": _PROFILE,
    "--cpu-offload-gb": "what does not fit is not swapped: see `step-audio plan`",
    "--swap-space": "what does not fit is not swapped: see `step-audio plan`",
    "--enforce-eager": _NO_GRAPHS,
    "--max-seq-len-to-capture": _NO_GRAPHS,
    "--compilation-config": _NO_GRAPHS,
    "--tokenizer": _CHECKPOINT,
    "--tokenizer-mode": _CHECKPOINT,
    "--hf-overrides": _CHECKPOINT,
    "--rope-scaling": _CHECKPOINT,
    "--revision": "use `step-audio build --model HF_ID@REVISION`",
    "--download-dir": "use `step-audio build --model HF_ID@REVISION`",
    "--load-format": "checkpoints are read as they are published: leave it out",
    "--generation-config": _SAMPLING,
    "--override-generation-config": _SAMPLING,
    "--seed": "use --default-sampling seed=N; without one every answer is drawn from a fresh one",
    "--scheduling-policy": "requests begin in the order in which they come: leave it out",
    "--speculative-config": "there is no draft model",
    "--enable-lora": _ADAPTERS,
    "--max-loras": _ADAPTERS,
    "--max-lora-rank": _ADAPTERS,
    "--mm-processor-kwargs": "recordings are cut into clips of 25 s, as the model was trained",
}
