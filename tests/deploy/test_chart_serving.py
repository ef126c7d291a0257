"""What the Helm chart's pods do: their commands, as the commands understand them, and what they find of each other."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dockerfile
import gateway_fixture
from fake_triton import TOKENIZER, message, script, serving
from helm_fixture import (
    CASES,
    CHART,
    ENCRYPTED,
    EVERYTHING,
    LEAST,
    NAMESPACE,
    VLLM,
    HelmError,
    container,
    documents,
    flags,
    one,
    pods,
    render,
    yaml,
)
from paths import ROOT
from step_audio.steps.trtllm.metrics import FAMILIES
from step_audio_build.planning.profiles import load_profile, profile_names
from step_audio_build.stages.layout import BuildJob, BuildSettings
from step_audio_client import StepAudioClient, user, wire
from step_audio_gateway import command as gateway_command
from step_audio_gateway.settings import GatewaySettings
from step_audio_server.commands.cli import _parser
from step_audio_server.settings import ServeSettings


def test_profiles_are_those_that_there_are_and_their_gpus_are_asked_for():
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert schema["properties"]["profile"]["enum"] == profile_names()
    for name in ("4xH100-16k", "8xL40S-65k", "1xH200-65k", "2xH100-16k"):
        for component in ("engine", "build"):
            part = container(component, {"profile": name})
            assert part["resources"]["limits"]["nvidia.com/gpu"] == load_profile(name).gpus
            assert flags(component, {"profile": name})["profile"] == name
    limits = container("engine", EVERYTHING)["resources"]
    assert limits == {"requests": {"cpu": "16"}, "limits": {"memory": "200Gi", "nvidia.com/gpu": 8}}


@pytest.mark.parametrize("minutes", [30, 45])
def test_a_starting_engine_has_its_time(minutes):
    values = {"engine": {"startupMinutes": minutes}}
    part = container("engine", values)
    probe = part["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == minutes * 60
    assert "livenessProbe" not in part  # it would end a pod whose server is being restarted
    assert serve_settings(values).startup_timeout == minutes * 60


def serve_settings(values: dict[str, Any] | None = None) -> ServeSettings:
    """The engine container's, from its flags and its environment, as `step-audio serve` reads them."""
    part = container("engine", values)
    environment = {entry["name"]: entry["value"] for entry in part["env"]}
    with pytest.MonkeyPatch.context() as patched:
        for name, value in environment.items():
            patched.setenv(name, value)
        read, _ = gateway_command.serve_settings(_parser().parse_args(part["args"]), ServeSettings)
    given = {name.replace("-", "_") for name in flags("engine", values)}
    assert {name for name in environment if name.startswith("STEP_AUDIO_")} == {
        f"STEP_AUDIO_{name.upper()}" for name in read.keys() - given
    }
    return ServeSettings.create(**read)


def test_the_engine_listens_for_others_and_lets_answers_end():
    settings = serve_settings()
    assert settings.triton_host == "0.0.0.0" and "headless" in flags("engine")
    ports = {port["name"]: port["containerPort"] for port in container("engine")["ports"]}
    assert ports == {"grpc": settings.grpc_port, "metrics": settings.metrics_port}
    grace = pods()["engine"]["spec"]["terminationGracePeriodSeconds"]
    assert settings.drain_timeout == grace - 20
    assert serve_settings({"engine": {"terminationGracePeriodSeconds": 5}}).drain_timeout == 0


def test_vllm_has_its_own_image_and_nothing_is_built_for_it():
    settings = serve_settings(VLLM)
    assert (settings.llm, settings.profile) == ("vllm", "4xH100-16k")
    assert settings.llm_python == Path(dockerfile.values(ROOT / "docker/Dockerfile.vllm", "CMD")[-1].split('"')[-2])
    assert container("engine", VLLM)["image"].endswith("-vllm") and container("engine")["image"].endswith("-gpu")
    assert "build" in pods() and "build" not in pods(VLLM)
    with pytest.raises(HelmError, match=r"llm: vllm needs models\.checkpoint"):
        documents({"llm": "vllm"})


def test_shared_memory_is_memory_and_each_server_has_its_own_files():
    volumes = {volume["name"]: volume for volume in pods()["engine"]["spec"]["volumes"]}
    paths = {mount["mountPath"]: mount["name"] for mount in container("engine")["volumeMounts"]}
    assert volumes[paths["/dev/shm"]]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
    assert volumes[paths[str(serve_settings().run_dir)]] == {"name": "run", "emptyDir": {}}


@pytest.mark.parametrize("case", CASES)
def test_containers_run_commands_that_there_are(case):
    for component in {"engine", "build", "gateway"} & pods(CASES[case]).keys():
        part = container(component, CASES[case])
        # On GPUs none, so that the image's entrypoint comes before it.
        assert part.get("command") == (["step-audio"] if part["image"].endswith("-cpu") else None)
        _parser().parse_args(part["args"])


async def test_triton_answers_the_kubelets_probe(service):
    """grpc.health.v1.Health/Check: an empty request, and field 1 of the response is 1, SERVING."""
    async with wire.channel(service.address) as channel:
        assert await channel.unary_unary("/grpc.health.v1.Health/Check")(b"") == b"\x08\x01"


def test_the_engine_reads_what_the_job_wrote():
    for values in ({}, {"models": {"download": "org/name@a/branch/of/it"}}, EVERYTHING):
        build, serve = flags("build", values), flags("engine", values)
        assert (build["profile"], build["work-dir"]) == (serve["profile"], serve["work-dir"])
        settings = BuildSettings.create(
            profile=load_profile(build["profile"]),
            work_dir=build["work-dir"],
            model=build.get("model"),
            checkpoint=build.get("checkpoint"),
        )
        assert str(BuildJob(settings, print).checkpoint) == serve["checkpoint"]
    assert [volume for volume in pods()["engine"]["spec"]["volumes"] if volume["name"] == "models"] == [
        volume for volume in pods()["build"]["spec"]["volumes"] if volume["name"] == "models"
    ]


def test_the_gateway_knows_every_engine_pod_by_its_own_name():
    for values, pods_there_may_be in (
        ({}, 1),
        ({"engine": {"replicas": 3}}, 3),
        ({"engine": {"replicas": 0}}, 1),
        (EVERYTHING, 3),
    ):
        given = flags("gateway", values)
        triton = GatewaySettings.create(triton=given["triton"]).triton
        engine, service = one("StatefulSet", "engine", values), one("Service", "engine", values)
        assert service["spec"]["clusterIP"] == "None"
        assert engine["spec"]["serviceName"] == service["metadata"]["name"]
        port = service["spec"]["ports"][0]["port"]
        name, domain = engine["metadata"]["name"], f"{service['metadata']['name']}.{NAMESPACE}.svc.cluster.local"
        assert triton == tuple(f"{name}-{n}.{domain}:{port}" for n in range(pods_there_may_be))
        assert len(set(triton)) == pods_there_may_be
    assert "replicas" not in one("StatefulSet", "engine", EVERYTHING)["spec"]  # the autoscaler's


def test_engines_and_gateway_trust_each_other():
    """Each flag names a file of the secret that is mounted there."""
    for component, expected in (
        ("engine", {"grpc-server-cert": "tls.crt", "grpc-server-key": "tls.key", "grpc-root-cert": "ca.crt"}),
        ("gateway", {"triton-cert": "tls.crt", "triton-key": "tls.key", "triton-ca": "ca.crt"}),
    ):
        given = flags(component, ENCRYPTED)
        (folder,) = (
            m["mountPath"] for m in container(component, ENCRYPTED)["volumeMounts"] if m["name"] == "engine-tls"
        )
        assert {name: given[name] for name in expected} == {name: f"{folder}/{file}" for name, file in expected.items()}
        (volume,) = (v for v in pods(ENCRYPTED)[component]["spec"]["volumes"] if v["name"] == "engine-tls")
        assert volume["secret"] == {"secretName": "grpc"}
    addresses = flags("gateway", ENCRYPTED)["triton"]
    assert addresses == f"grpcs://{flags('engine', ENCRYPTED)['grpc-server-name']}:8001"


def test_traces_go_where_the_values_say():
    for component in ("engine", "gateway"):
        environment = {entry["name"]: entry["value"] for entry in container(component, ENCRYPTED)["env"]}
        assert environment["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector.monitoring:4318"
        assert environment["OTEL_TRACES_SAMPLER_ARG"] == "0.1"
        assert "OTEL_EXPORTER_OTLP_ENDPOINT" not in str(container(component))


async def test_names_of_pods_that_are_not_there_are_passed_over():
    """What the list of all pods that there may ever be relies on: a name that does not resolve costs no answer."""
    async with (
        serving(script(message(5, final=True))) as ((_, address, _),),
        StepAudioClient(["reply-engine-1.nowhere.invalid:8001", address], TOKENIZER) as client,
    ):
        for _ in range(4):
            assert (await client.complete([user("x")])).token_ids == [5]
        assert [client._pipeline._servers.route()[0].address for _ in range(4)] == [address] * 4


def test_the_gateway_has_a_lock_unless_told_otherwise():
    assert flags("gateway")["api-key-file"] == "/run/secrets/step-audio/api-keys"
    assert "WARNING" not in render()["NOTES.txt"]
    assert "api-key-file" not in flags("gateway", LEAST)
    assert "everybody who reaches the gateway" in render(LEAST)["NOTES.txt"]


def test_the_autoscaler_asks_for_what_the_adapter_offers():
    values = yaml.safe_load((CHART / "prometheus-adapter-values.yaml").read_text())
    rules = {rule["name"]["as"]: rule for rule in values["rules"]["custom"]}
    spec = one("HorizontalPodAutoscaler", "engine", EVERYTHING)["spec"]
    assert {metric["pods"]["metric"]["name"] for metric in spec["metrics"]} == rules.keys()
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 3)
    assert spec["scaleTargetRef"]["name"] == one("StatefulSet", "engine", EVERYTHING)["metadata"]["name"]
    triton = {"nv_inference_compute_infer_duration_us", "nv_inference_queue_duration_us"}  # docs/user_guide/metrics.md
    for rule in rules.values():
        query = rule["metricsQuery"].replace("<<.LabelMatchers>>", 'pod=~"a|b"').replace("<<.GroupBy>>", "pod")
        assert "<<" not in query and set(re.findall(r"nv_\w+", query)) <= triton | FAMILIES.keys()
        parser = pytest.importorskip("promql_parser", reason="pip install promql-parser")
        parser.parse(query)
        parser.parse(rule["seriesQuery"])


def ask(url: str, keys: str = "") -> subprocess.CompletedProcess[str]:
    """What the pod of `helm test` runs."""
    (script,) = container("test")["args"]
    environment = {"PATH": os.environ["PATH"], "GATEWAY": url, "API_KEYS": keys}
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.processes
def test_helm_test_asks_a_real_gateway():
    with gateway_fixture.listening(gateway_fixture.FakeClient(), api_key=("secret",)) as url:
        good = ask(url, "# the first one\n\nsecret\nother\n")
        assert (good.returncode, good.stderr) == (0, "")
        assert "It says four." in good.stdout and good.stdout.endswith("6 tokens\n")
        bad = ask(url, "wrong")
        assert bad.returncode == 1 and "answered 401" in bad.stderr
    down = ask(url)
    assert down.returncode == 1 and down.stderr.startswith("no answer: ")
