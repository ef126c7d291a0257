"""Helm itself, for the tests of the chart: Helm's own Go code, which helm-python-sdk carries, in a process apart.

Apart because a Go runtime takes over signals of the process it is loaded into.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

from paths import ROOT

if importlib.util.find_spec("helm_python") is None:
    pytest.skip("pip install helm-python-sdk", allow_module_level=True)
yaml = pytest.importorskip("yaml")

CHART = ROOT / "deploy" / "helm" / "step-audio-r1"
RELEASE, NAMESPACE = "reply", "speech"


# Values that turn everything on, and everything off.
EVERYTHING: dict[str, Any] = {
    "profile": "8xL40S-65k",
    "image": {"repository": "registry.example:5000/speech/step-audio-triton", "tag": "1.2.3"},
    "imagePullSecrets": ["registry"],
    "models": {"hostPath": "/srv/models", "checkpoint": "weights/Step-Audio-R1.1"},
    "build": {"onUpgrade": True, "huggingFaceSecret": "hub", "env": [{"name": "HTTPS_PROXY", "value": "http://p:1"}]},
    "engine": {
        "extraArgs": ["--max-queue-size=64"],
        "env": [{"name": "NCCL_P2P_DISABLE", "value": "1"}],
        "resources": {"requests": {"cpu": "16"}, "limits": {"memory": "200Gi"}},
        "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L40S"},
        "affinity": {"podAntiAffinity": {}},
        "runtimeClassName": "nvidia",
        "podAnnotations": {"team": "speech"},
    },
    "autoscaling": {"enabled": True, "minReplicas": 2, "maxReplicas": 3},
    "gateway": {
        "servedModelNames": ["step-audio", "r1"],
        "extraArgs": ["--allowed-media-domains=example.org"],
        "resources": {"requests": {"cpu": "1"}},
        "service": {"type": "LoadBalancer", "port": 443, "annotations": {"cloud": "internal"}},
        "nodeSelector": {"kind": "cpu"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "podAnnotations": {"team": "speech"},
    },
    "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
    "networkPolicy": {"gatewayFrom": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]},
    "serviceAccount": {"name": "speech"},
}
LEAST: dict[str, Any] = {
    "models": {"existingClaim": "shared"},
    "build": {"enabled": False},
    "gateway": {"apiKeySecret": "", "servedModelNames": []},
    "podDisruptionBudget": {"enabled": False},
    "networkPolicy": {"enabled": False},
    "serviceAccount": {"create": False},
}
ENCRYPTED: dict[str, Any] = {
    "tls": {"gatewaySecret": "https", "engineSecret": "grpc"},
    "tracing": {"endpoint": "http://collector.monitoring:4318", "ratio": "0.1"},
    "podMonitor": {"enabled": True},
}
VLLM: dict[str, Any] = {"llm": "vllm", "models": {"checkpoint": "Step-Audio-R1.1"}}
CASES = {"defaults": {}, "everything": EVERYTHING, "least": LEAST, "encrypted": ENCRYPTED, "vllm": VLLM}


class HelmError(Exception):
    """What Helm says about a chart or its values."""


def render(values: dict[str, Any] | None = None) -> dict[str, str]:
    """Templates by their paths within the chart, rendered as `helm install reply --namespace speech` would."""
    return dict(_helm("render", json.dumps(values or {})))


def lint(values: dict[str, Any] | None = None) -> list[str]:
    """What `helm lint --strict` finds, but for its wish for an icon."""
    return list(_helm("lint", json.dumps(values or {})))


def values_of(sets: list[str]) -> dict[str, Any]:
    """Values as Helm reads them from `--set`."""
    return dict(_helm("set", json.dumps(sets)))


def documents(values: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    texts = [text for path, text in render(values).items() if not path.endswith(".txt")]
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, ten times as quick
    return [document for text in texts for document in yaml.load_all(text, loader) if document]


def one(kind: str, name: str, values: dict[str, Any] | None = None) -> dict[str, Any]:
    (found,) = [d for d in documents(values) if d["kind"] == kind and d["metadata"]["name"] == f"{RELEASE}-{name}"]
    return found


def pods(values: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Pod templates, metadata and spec, by component."""
    found = [d if d["kind"] == "Pod" else d.get("spec", {}).get("template") for d in documents(values)]
    return {pod["metadata"]["labels"]["app.kubernetes.io/component"]: pod for pod in found if pod}


def container(component: str, values: dict[str, Any] | None = None) -> dict[str, Any]:
    (only,) = pods(values)[component]["spec"]["containers"]
    return only


def flags(component: str, values: dict[str, Any] | None = None) -> dict[str, str]:
    """A container's flags; the bare ones are empty."""
    command, *given = container(component, values)["args"]
    return {"": command} | dict(flag.removeprefix("--").partition("=")[::2] for flag in given)


@cache
def _helm(command: str, values: str) -> Any:
    process = _process()
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{command} {values}\n")
    process.stdin.flush()
    answer = json.loads(process.stdout.readline())
    if "error" in answer:
        raise HelmError(answer["error"])
    return answer["said"]


@cache
def _process() -> subprocess.Popen[str]:
    """One for all tests: the library has 75 MB. It ends when its input does, with the process of the tests."""
    return subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _main() -> None:
    import helm_python

    for line in sys.stdin:
        command, _, text = line.partition(" ")
        try:
            said = {"lint": _lint, "render": _render, "set": _set}[command](helm_python, json.loads(text))
            print(json.dumps({"said": said}), flush=True)
        except helm_python.HelmError as error:
            print(json.dumps({"error": str(error)}), flush=True)


def _set(helm: Any, sets: list[str]) -> dict[str, Any]:
    return helm.parse_set_string(",".join(sets))


def _lint(helm: Any, values: dict[str, Any]) -> list[str]:
    report = helm.lint(CHART, values, strict=True, namespace=NAMESPACE)
    said = [message["error"] for message in report["messages"]] + report["errors"]
    return [line for line in said if line != "icon is recommended"]


def _render(helm: Any, values: dict[str, Any]) -> dict[str, str]:
    with helm.Chart.load(CHART) as chart:
        chart.validate_schema(values)
        rendered = chart.render(values, name=RELEASE, namespace=NAMESPACE, is_install=True)
    return {path.removeprefix("step-audio-r1/templates/"): text for path, text in rendered.items()}


if __name__ == "__main__":
    _main()
