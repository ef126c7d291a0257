"""The Helm chart's objects, rendered by Helm and held against Kubernetes' schemas and each other."""

from __future__ import annotations

import json
import re

import pytest

from helm_fixture import (
    CASES,
    CHART,
    ENCRYPTED,
    EVERYTHING,
    LEAST,
    HelmError,
    container,
    documents,
    lint,
    one,
    pods,
    render,
    yaml,
)
from paths import ROOT
from step_audio_build.commands.plan import PUBLISHED
from step_audio_build.convert.convert_decoder import rank_tensors


@pytest.mark.parametrize("case", CASES)
def test_helm_finds_nothing_to_complain_about(case):
    assert lint(CASES[case]) == []


@pytest.mark.parametrize("version", ["1.30", "1.33", "1.37"])
@pytest.mark.parametrize("case", CASES)
def test_every_object_is_what_kubernetes_expects(case, version):
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    kinds = set()
    for document in documents(CASES[case]):
        kinds.add(document["kind"])
        if document["kind"] not in ("PodMonitor", "PrometheusRule"):  # not Kubernetes' own: tested below
            kubernetes_validate.validate(document, version, strict=True)
    assert {"StatefulSet", "Deployment", "Service", "Pod"} <= kinds
    if case == "everything":
        assert kinds >= {"Job", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"}
        assert kinds >= {"PodMonitor", "PrometheusRule"}


@pytest.mark.parametrize("case", CASES)
def test_objects_find_each_other(case):
    found = documents(CASES[case])
    names = [(d["kind"], d["metadata"]["name"]) for d in found]
    assert len(set(names)) == len(names)
    labels = [pod["metadata"]["labels"] for pod in pods(CASES[case]).values()]
    ports = {p["name"] for pod in pods(CASES[case]).values() for p in pod["spec"]["containers"][0].get("ports", [])}
    for document in found:
        spec = document.get("spec", {})
        selector = spec.get("selector") or spec.get("podSelector")
        if not selector:
            continue
        wanted = selector.get("matchLabels", selector).items()
        assert sum(wanted <= pod.items() for pod in labels) == 1, document["metadata"]["name"]
        if document["kind"] == "Service":
            assert {port["targetPort"] for port in spec["ports"]} <= ports
        if document["kind"] == "PodMonitor":
            (endpoint,) = spec["podMetricsEndpoints"]
            assert endpoint["port"] in ports and endpoint["path"] == "/metrics" and endpoint["interval"] == "15s"
    accounts = {pod["spec"]["serviceAccountName"] for name, pod in pods(CASES[case]).items() if name != "build"}
    made = {d["metadata"]["name"] for d in found if d["kind"] == "ServiceAccount"}
    assert accounts == (made or {"default"})


@pytest.mark.parametrize("case", CASES)
def test_no_pod_is_root_or_holds_a_token(case):
    for pod in pods(CASES[case]).values():
        spec = pod["spec"]
        assert spec["securityContext"] | {"runAsNonRoot": True, "runAsUser": 1000} == spec["securityContext"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        for part in spec["containers"]:
            assert part["securityContext"]["allowPrivilegeEscalation"] is False
            assert part["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        mounted = {mount["name"] for part in spec["containers"] for mount in part.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in spec.get("volumes", [])}


def test_images_and_versions_are_those_of_the_one_place_for_them():
    text = (ROOT / "docker/versions.env").read_text()
    versions = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    version = versions["STEP_AUDIO_VERSION"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == version
    images = {name: container(name)["image"] for name in pods()}
    assert images == {
        "engine": f"step-audio-triton:{version}-gpu",
        "build": f"step-audio-triton:{version}-gpu",
        "gateway": f"step-audio-triton:{version}-cpu",
        "test": f"step-audio-triton:{version}-cpu",
    }
    assert container("engine", EVERYTHING)["image"] == "registry.example:5000/speech/step-audio-triton:1.2.3-gpu"


def test_the_job_runs_before_the_engines_and_keeps_the_weights():
    claim, job = one("PersistentVolumeClaim", "models"), one("Job", "build")
    hooks = [entry["metadata"]["annotations"] for entry in (claim, job)]
    assert [hook["helm.sh/hook"] for hook in hooks] == ["pre-install", "pre-install"]
    assert int(hooks[0]["helm.sh/hook-weight"]) < int(hooks[1]["helm.sh/hook-weight"])
    assert hooks[0]["helm.sh/hook-delete-policy"] == "hook-failed"  # without a policy, reinstalling deletes the claim
    assert one("Job", "build", EVERYTHING)["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert "lookup" in (CHART / "templates/models.yaml").read_text()  # and creating it twice would fail
    kinds = [document["kind"] for document in documents(LEAST)]
    assert "PersistentVolumeClaim" not in kinds and "Job" not in kinds


def test_the_volume_holds_all_that_is_built():
    shapes = rank_tensors(PUBLISHED.text, 4)
    converted = 4 * sum(2 * int(_product(tensor.shape)) for tensor in shapes)
    assert converted == 70_543_908_864  # docs/deploy.md says 71 GB
    size = one("PersistentVolumeClaim", "models")["spec"]["resources"]["requests"]["storage"]
    checkpoint, encoder = 66_974_067_200, (4 + 2) * 654_999_808  # ONNX in float32, TensorRT plan in bfloat16
    assert int(size.removesuffix("Gi")) * 2**30 > checkpoint + 2 * converted + encoder


def _product(shape: tuple[int, ...]) -> int:
    return shape[0] * _product(shape[1:]) if shape else 1


def test_the_kubelet_asks_where_it_can():
    """Its gRPC probes know no TLS."""
    for values, probe in (({}, "grpc"), (ENCRYPTED, "httpGet")):
        engine = container("engine", values)
        assert all(probe in engine[name] for name in ("startupProbe", "readinessProbe"))
    assert container("engine", ENCRYPTED)["readinessProbe"]["httpGet"] == {"path": "/v2/health/ready", "port": 8000}
    gateway = [container("gateway", values)["livenessProbe"]["httpGet"]["scheme"] for values in ({}, ENCRYPTED)]
    assert gateway == ["HTTP", "HTTPS"]
    (monitor,) = (d for d in documents(ENCRYPTED) if d["kind"] == "PodMonitor" and "gateway" in d["metadata"]["name"])
    assert monitor["spec"]["podMetricsEndpoints"][0]["scheme"] == "https"


def test_engines_may_speak_to_the_collector_alone():
    spec = one("NetworkPolicy", "engine", ENCRYPTED)["spec"]
    collector, names = spec["egress"]
    labels = collector["to"][0]["namespaceSelector"]["matchLabels"]
    assert labels == {"kubernetes.io/metadata.name": "monitoring"}
    assert {port["port"] for port in names["ports"]} == {53}


def test_alerts_know_what_is_scraped_by_its_job():
    """Whatever the release is called."""
    (rule,) = (d for d in documents(EVERYTHING) if d["kind"] == "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((CHART / "files/alerts.yaml").read_text())
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    monitors = [d["spec"]["podMetricsEndpoints"][0] for d in documents(EVERYTHING) if d["kind"] == "PodMonitor"]
    jobs = {relabeling["replacement"] for endpoint in monitors for relabeling in endpoint["relabelings"]}
    assert jobs == {"step-audio-engine", "step-audio-gateway"}


def test_only_the_gateway_reaches_the_engines():
    spec = one("NetworkPolicy", "engine")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"] and not spec.get("egress")
    rules = {rule["ports"][0]["port"]: rule["from"] for rule in spec["ingress"]}
    assert rules.keys() == {"grpc", "metrics"}
    (peer,) = rules["grpc"]
    assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "gateway"
    assert all(port.keys() == {"port"} for rule in spec["ingress"] for port in rule["ports"])


def test_wrong_values_are_refused():
    for values, said in (
        ({"profil": "4xH100-16k"}, "profil"),
        ({"profile": "4xH100"}, "/profile"),
        ({"engine": {"replicas": -1}}, "/engine/replicas"),
        ({"engine": {"env": [{"nam": "A"}]}}, "/engine/env/0"),
        ({"models": {"download": "stepfun-ai/Step-Audio-R1.1"}}, "/models/download"),
        ({"models": {"download": "stepfun-ai/Step-Audio-R1.1@8abb296"}}, "/models/download"),
        ({"models": {"existingClaim": "a", "hostPath": "/b"}}, "not"),
        ({"podSecurityContext": {"runAsNonRoot": False}}, "/podSecurityContext/runAsNonRoot"),
        ({"autoscaling": {"kvCacheUse": "80%"}}, "/autoscaling/kvCacheUse"),
    ):
        with pytest.raises(HelmError, match=re.escape(said)):
            render(values)


def test_every_value_is_explained_described_and_used():
    templates = "".join(path.read_text() for path in (CHART / "templates").rglob("*.*"))
    schema = json.loads((CHART / "values.schema.json").read_text())
    above, path = "", []
    for line in (CHART / "values.yaml").read_text().splitlines():
        key = re.match(r"( *)(\w+):( .+)?$", line)
        if key:
            depth = len(key[1]) // 2
            path = [*path[:depth], key[2]]
            leaf = key[3] is not None
            assert above.strip().startswith("#") or not leaf, f"{'.'.join(path)} has no comment"
            described = schema
            for name in path:
                described = described.get("properties", {}).get(name, {})
            if path[0] != "podSecurityContext" and leaf:
                assert described.get("description"), f"{'.'.join(path)} is not in the schema"
                assert f".Values.{'.'.join(path)}" in templates, f"{'.'.join(path)} is used nowhere"
        above = line
