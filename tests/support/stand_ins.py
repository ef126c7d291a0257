"""Stand-ins for the programs and modules of a GPU machine: small executables on PATH, packages on PYTHONPATH.

Each notes how it was called and does what the real one leaves behind, or fails as a test tells it to.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

H100 = "NVIDIA H100 80GB HBM3, 9.0, 81559, 590.44.01"  # as nvidia-smi prints it

PREAMBLE = """
import json, os, sys, time
from pathlib import Path
ROOT = Path({root!r})

def behaviour(name):
    return json.loads((ROOT / "behaviour.json").read_text()).get(name, {{}})

def note(name, **what):
    with (ROOT / "calls.jsonl").open("a") as file:
        file.write(json.dumps({{"name": name, **what}}) + "\\n")

def obey(name):
    "What every program may be told: print, hang, end with a status."
    told = behaviour(name)
    if "print" in told:
        print(told["print"], flush=True)
    if told.get("hang"):
        (ROOT / f"{{name}}.pid").write_text(str(os.getpid()))
        time.sleep(60)
    if told.get("status"):
        sys.exit(told["status"])
    return told
"""

PROGRAMS = {
    "nvidia-smi": """
        told = obey("nvidia-smi")
        print("\\n".join(told["gpus"]))
    """,
    "trtllm-build": """
        flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
        output = Path(flags["--output_dir"])
        output.mkdir(exist_ok=True)
        print("[TRT-LLM] [I] Compute capability: (9, 0)", flush=True)
        ranks = sorted(Path(flags["--checkpoint_dir"]).glob("rank*.safetensors"))
        (output / "rank0.engine").write_bytes(b"half of it")
        told = obey("trtllm-build")
        if "workers" in told:  # all of them fail as NVIDIA's do, by a signal's number or with a sentence
            import traceback
            from concurrent.futures import ProcessPoolExecutor, as_completed
            from multiprocessing import get_context

            def build(rank):
                if isinstance(told["workers"], int):
                    os.kill(os.getpid(), told["workers"])
                raise RuntimeError(told["workers"])

            exceptions = []
            with ProcessPoolExecutor(int(flags["--workers"]), get_context("fork")) as pool:
                for future in as_completed([pool.submit(build, n) for n, _ in enumerate(ranks)]):
                    try:
                        future.result()
                    except Exception as exception:
                        traceback.print_exc()
                        exceptions.append(exception)
            assert exceptions == [  # this line of it says "exception" in the traceback, too
            ], "Engine building failed, please check error log."
        for n, rank in enumerate(ranks[: told.get("ranks")]):
            (output / f"rank{n}.engine").write_bytes(b"engine of " + rank.read_bytes()[:64])
        limits = {name: int(flags["--" + name]) for name in (
            "max_batch_size", "max_seq_len", "max_num_tokens", "max_prompt_embedding_table_size")}
        limits["plugin_config"] = {"tokens_per_block": int(flags["--tokens_per_block"])}
        config = {"version": "1.2.1", "build_config": limits | told.get("build_config", {})}
        (output / "config.json").write_text(json.dumps(config))
        times = Path(flags["--output_timing_cache"])
        times.unlink(missing_ok=True)
        times.write_bytes(b"times")
    """,
    "mpirun": """
        import runpy
        obey("mpirun")
        if "RANKS_ELSEWHERE" in os.environ:
            (ROOT / "mpirun.done").touch()
            sys.exit(0)
        import torch  # once for all ranks
        words = sys.argv[1:]
        count = int(words[words.index("-n") + 1])
        python, m, module, *arguments = words[words.index("-n") + 2 :]
        assert (python, m) == (sys.executable, "-m")
        for rank in reversed(range(count)):
            if not os.fork():
                os.environ["OMPI_COMM_WORLD_RANK"] = str(rank)
                sys.argv[1:] = arguments
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            if status := os.waitstatus_to_exitcode(os.wait()[1]):
                sys.exit(status)
    """,
    "quantize.py": """
        flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
        assert (Path(flags["--model_dir"]) / "config.json").is_file() and "mpt" not in flags["--model_dir"]
        obey("quantize.py")
        output = Path(flags["--output_dir"])
        (output / "config.json").write_text(json.dumps({"quantization": {"quant_algo": flags["--qformat"]}}))
        for rank in range(int(flags["--tp_size"])):
            (output / f"rank{rank}.safetensors").write_bytes(b"quantised")
    """,
}

MODULES = {
    # What encoder_plan.py calls of TensorRT's Python API. A plan is the path of its ONNX file.
    "tensorrt": """
        class Names:
            def __init__(self, kind): self.kind = kind
            def __getattr__(self, name): return f"{self.kind}.{name}"
        BuilderFlag, MemoryPoolType = Names("BuilderFlag"), Names("MemoryPoolType")

        class Logger:
            INFO = "INFO"
            def __init__(self, level): pass

        class Network:
            pass

        class Profile:
            def set_shape(self, name, least, usual, largest):
                note("tensorrt", shape=[name, list(least), list(usual), list(largest)])

        class Cache:
            def __init__(self, data): self.data = data
            def serialize(self): return self.data + b"+"

        class Config:
            def set_memory_pool_limit(self, pool, size): note("tensorrt", pool=pool, size=size)
            def set_flag(self, flag): note("tensorrt", set=flag)
            def clear_flag(self, flag): note("tensorrt", clear=flag)
            def add_optimization_profile(self, profile): return behaviour("tensorrt").get("profile", 0)
            def create_timing_cache(self, data): return Cache(data)
            def set_timing_cache(self, cache, ignore_mismatch):
                note("tensorrt", cache=cache.data.decode())
                return not (cache.data and behaviour("tensorrt").get("other_device"))

        class Builder:
            def __init__(self, logger): pass
            def create_network(self, flags): return Network()
            def create_builder_config(self): return Config()
            def create_optimization_profile(self): return Profile()
            def build_serialized_network(self, network, config):
                obey("tensorrt")
                return None if behaviour("tensorrt").get("no_plan") else network.path.encode()

        class OnnxParser:
            def __init__(self, network, logger):
                self.network, self.errors = network, behaviour("tensorrt").get("errors", [])
            num_errors = property(lambda self: len(self.errors))
            def get_error(self, n): return self.errors[n]
            def parse_from_file(self, path):
                self.network.path = path
                return not self.errors
    """,
    # What the quantiser imports.
    "modelopt": "",
    "datasets": "",
    "accelerate": "",
    # What check_engine.py calls of TensorRT-LLM's runtime; the tokens are the test's.
    "tensorrt_llm": """
        def mpi_rank(): return int(os.environ.get("OMPI_COMM_WORLD_RANK", 0))
    """,
    "tensorrt_llm.runtime": """
        import torch

        class ModelRunnerCpp:
            @classmethod
            def from_dir(cls, engine_dir, *, rank, **settings):
                obey("tensorrt_llm")
                assert sorted(path.name for path in Path(engine_dir).glob("rank*.engine"))
                note("tensorrt_llm", engine=engine_dir, rank=rank, **settings)
                runner = cls()
                runner.rank, runner.asked = rank, 0
                return runner

            def generate(self, prompts, *, max_new_tokens, end_id, pad_id, top_k, prompt_table, prompt_tasks,
                         return_dict, output_sequence_lengths):
                assert top_k == 1 and return_dict and output_sequence_lengths and pad_id == end_id
                [prompt] = prompts
                told = behaviour("tensorrt_llm")
                name = "text"
                if prompt_table is not None:
                    name = "audio"
                    assert prompt_table.ndim == 3 and prompt_table.dtype == torch.bfloat16 and prompt_tasks == "0"
                if self.rank:
                    return []
                self.asked += 1
                tokens = (told["again"] if self.asked > 3 and "again" in told else told["tokens"])[name]
                whole = prompt.tolist() + tokens[:max_new_tokens]
                padded = whole + [end_id] * (4096 - len(whole))
                return {"output_ids": torch.tensor([[padded]]), "sequence_lengths": torch.tensor([[len(whole)]])}
    """,
}

# In place of the module that runs a plan on a GPU: the plan's ONNX file on ONNX Runtime, off by as much as is asked.
TENSORRT_ENCODER = """
class TensorRTEncoderEngine:
    def __init__(self, path):
        from step_audio.steps.encoder_engine import OnnxEncoderEngine
        self.onnx = OnnxEncoderEngine(Path(Path(path).read_bytes().decode()))
    def run(self, features, frames):
        import numpy as np
        out = self.onnx.run(features, frames)
        note("encoder", clips=len(features))
        error = behaviour("encoder").get("error", 0.0)
        return out + error * np.random.default_rng(0).standard_normal(out.shape).astype(np.float32)
"""
SITECUSTOMIZE = """
import sys, types
sys.modules["step_audio.steps.tensorrt_encoder"] = module = types.ModuleType("tensorrt_encoder")
exec({code!r}, vars(module))
"""

VERSIONS = {"tensorrt": "10.14.1.48", "tensorrt_llm": "1.2.1", "nvidia_modelopt": "0.37.0"}


class StandIns:
    """All of the above in `root`, first on PATH and PYTHONPATH while the test runs."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch):
        self.root = root
        self.programs, self.modules = root / "bin", root / "modules"
        self.programs.mkdir(parents=True)
        self.modules.mkdir()
        self.preamble = PREAMBLE.format(root=str(root))
        (root / "behaviour.json").write_text("{}")
        for name, body in PROGRAMS.items():
            self.add_program(name, body)
        for name, body in MODULES.items():
            self._add_module(name, body)
        self.tensorrt_encoder = self.preamble + TENSORRT_ENCODER
        (self.modules / "sitecustomize.py").write_text(SITECUSTOMIZE.format(code=self.tensorrt_encoder))
        for name, version in VERSIONS.items():
            self.set_version(name, version)
        self.tell("nvidia-smi", gpus=[H100] * 4)
        monkeypatch.setenv("PATH", f"{self.programs}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("PYTHONPATH", str(self.modules))
        monkeypatch.syspath_prepend(self.modules)
        for name in MODULES:  # another test's
            monkeypatch.setitem(sys.modules, name, None)  # to be without it when the test has ended
            del sys.modules[name]
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def add_program(self, name: str, body: str) -> None:
        """`body`: Python, with `note`, `obey` and `behaviour` at hand; the call has been noted."""
        path = self.programs / name
        called = f"note({name!r}, argv=sys.argv[1:])\n"
        path.write_text(f"#!{sys.executable}\n{self.preamble}{called}{textwrap.dedent(body)}")
        path.chmod(0o755)

    def _add_module(self, name: str, body: str) -> None:
        path = self.modules / Path(*name.split(".")) / "__init__.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.preamble + textwrap.dedent(body))

    def set_version(self, distribution: str, version: str) -> None:
        for old in self.modules.glob(f"{distribution}-*.dist-info"):
            (old / "METADATA").unlink()
            old.rmdir()
        folder = self.modules / f"{distribution}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")

    def tell(self, program: str, **behaviour: Any) -> None:
        """What it does from now on, instead of what it was told before."""
        told = json.loads((self.root / "behaviour.json").read_text())
        (self.root / "behaviour.json").write_text(json.dumps(told | {program: behaviour}))

    def remove(self, program: str) -> None:
        (self.programs / program).unlink()

    def calls(self, name: str | None = None) -> list[dict[str, Any]]:
        """In order, of one stand-in or of all."""
        file = self.root / "calls.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [call for call in map(json.loads, lines) if name in (None, call["name"])]

    def forget_calls(self) -> None:
        (self.root / "calls.jsonl").unlink(missing_ok=True)
