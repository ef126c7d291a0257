"""Compose file: valid by its own tools, and held against what the code takes."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from importlib.resources import files

import pytest
import yaml

import dockerfile
from dockerfile import ROOT, executable, pins
from step_audio_build.commands.build import add_build
from step_audio_build.planning.profiles import load_profile
from step_audio_server.doctor.command import add_doctor

DOCKER = ROOT / "docker"
GPU, CPU, VLLM = DOCKER / "Dockerfile", DOCKER / "Dockerfile.cpu", DOCKER / "Dockerfile.vllm"


# Compose


def compose() -> dict:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text("utf-8"))


def test_compose_file_is_one():
    """By the compose specification's own schema."""
    jsonschema = pytest.importorskip("jsonschema")
    pytest.importorskip("check_jsonschema")
    schema = json.loads((files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text("utf-8"))
    jsonschema.validate(compose(), schema)


def test_compose_variables_are_pinned_or_have_a_default():
    text = (DOCKER / "compose.yaml").read_text("utf-8")
    said = pins()
    for name, rule in re.findall(r"\$\{(\w+)([^}]*)\}", text):
        assert rule.startswith(":-") != rule.startswith(":?"), name
        assert rule.startswith(":-") or name in said, name
    documented = (DOCKER / "README.md").read_text("utf-8")
    for name in {name for name, rule in re.findall(r"\$\{(\w+)([^}]*)\}", text) if rule.startswith(":-")}:
        assert f"`{name}`" in documented, f"{name} is not in docker/README.md"


@pytest.mark.processes
def test_compose_file_with_its_variables_filled_in(tmp_path):
    """By podman-compose, which asks podman for nothing but its version here."""
    pytest.importorskip("podman_compose")
    executable(tmp_path / "podman", "#!/bin/sh\necho podman version 5.4.0\n")
    command = [sys.executable, "-m", "podman_compose", "-f", DOCKER / "compose.yaml"]
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "PROFILE": "2xH100-16k",
        "GPUS": "2",
        "WEIGHTS": "/data/weights",
    }
    done = subprocess.run(
        [*command, "--env-file", DOCKER / "versions.env", "--profile", "build", "config"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    filled = yaml.safe_load(done.stdout)["services"]
    for name in ("serve", "build"):
        assert filled[name]["command"][:3] == [name, "--profile", "2xH100-16k"]
        assert filled[name]["deploy"]["resources"]["reservations"]["devices"][0]["count"] == "2"
        assert "/data/weights:/weights:ro" in filled[name]["volumes"]
        assert f"TRITON_IMAGE={pins()['TRITON_IMAGE']}" in filled[name]["build"]["args"]
    unpinned = subprocess.run([*command, "config"], env=environment, capture_output=True, text=True)
    assert unpinned.returncode and "add --env-file docker/versions.env" in unpinned.stderr


def test_compose_commands_are_understood():
    """Each service's command line, by the program's own parser."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    add_build(commands)
    add_doctor(commands)
    for path in (GPU, CPU, VLLM):
        assert json.loads(dockerfile.values(path, "CMD")[-1])[0] in ("doctor", "serve")
    parser.parse_args(compose()["services"]["build"]["command"])
    parser.parse_args(json.loads(dockerfile.values(GPU, "CMD")[-1]))
    parser.parse_args(json.loads(dockerfile.values(VLLM, "CMD")[-1]))


def test_compose_publishes_the_gateway_alone():
    services = compose()["services"]
    for name in ("serve", "build", "vllm", "cpu"):
        inside = [port.rsplit(":", 1)[1] for port in services[name].get("ports", [])]
        assert inside == ([] if name == "build" else ["9999"])
        assert not any(port.startswith("0.0.0.0") for port in services[name].get("ports", []))
    assert "${ADDRESS:-127.0.0.1}" in services["serve"]["ports"][0]


def test_compose_gives_what_a_large_model_needs():
    services = compose()["services"]
    for name in ("serve", "build", "vllm"):
        (device,) = services[name]["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
        assert services[name]["ulimits"]["memlock"] == -1
        assert services[name]["shm_size"] == "${SHM_SIZE:-16gb}"
    assert services["serve"]["healthcheck"]["start_period"] == "30m"
    assert services["serve"]["stop_grace_period"] == "2m"
    default = re.search(r"\$\{PROFILE:-([\w-]+)\}", (DOCKER / "compose.yaml").read_text("utf-8"))
    assert device["count"] == f"${{GPUS:-{load_profile(default[1]).gpus}}}"


def test_optional_services_are_not_started_unasked():
    services = compose()["services"]
    assert [name for name, service in services.items() if "profiles" not in service] == ["serve"]


def test_prometheus_reads_what_is_on_the_server_s_loopback():
    read = yaml.safe_load((DOCKER / "prometheus.yml").read_text("utf-8"))
    targets = [target for job in read["scrape_configs"] for target in job["static_configs"][0]["targets"]]
    assert targets == ["127.0.0.1:9999", "127.0.0.1:8002"]
    assert compose()["services"]["prometheus"]["network_mode"] == "service:serve"
    (source,) = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://serve:9090"
