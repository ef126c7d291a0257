"""Grafana's board and the alert rules, held against what is exported, and run by Prometheus' own tool."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from paths import ROOT
from step_audio import counters
from step_audio.steps.trtllm.metrics import FAMILIES
from step_audio_gateway.metrics import OF_CLIENT, REFUSALS, Metrics

DASHBOARD = ROOT / "docker/grafana/dashboards/step-audio.json"
ALERTS = ROOT / "deploy/helm/step-audio-r1/files/alerts.yaml"

# tritonserver's own, CPU and GPU build alike (server docs/user_guide/metrics.md @r26.07).
TRITON_METRICS = {
    "nv_inference_request_success",
    "nv_inference_request_failure",
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_request_duration_us",
    "nv_inference_queue_duration_us",
    "nv_inference_compute_input_duration_us",
    "nv_inference_compute_infer_duration_us",
    "nv_inference_compute_output_duration_us",
    "nv_inference_pending_request_count",
}


def exported() -> set[str]:
    """The names of all series: of the gateway, TensorRT-LLM's backend, our counters, tritonserver and Prometheus."""
    names = {*TRITON_METRICS, *FAMILIES, *counters.FAMILIES, "up"}
    for family in Metrics().registry.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        names |= {family.name + suffix for suffix in suffixes}
    return names


def selectors(expression: str) -> list:
    """Every `name{label="value"}` of a PromQL expression, which must parse."""
    parser = pytest.importorskip("promql_parser")
    found = []

    def walk(node) -> None:
        if isinstance(node, parser.VectorSelector):
            found.append(node)
        for name in ("lhs", "rhs", "expr", "args", "vector_selector", "param"):
            below = getattr(node, name, None)
            for child in below if isinstance(below, list) else [below]:
                if child is not None and type(child).__module__ == type(node).__module__:
                    walk(child)

    walk(parser.parse(expression.replace("$__rate_interval", "5m")))
    return found


def on_the_board() -> list[str]:
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def rules() -> list[dict]:
    return [rule for group in yaml.safe_load(ALERTS.read_text("utf-8"))["groups"] for rule in group["rules"]]


def asked_for(expressions: list[str]) -> set[str]:
    for expression in expressions:
        assert selectors(expression), expression
    return {selector.name for expression in expressions for selector in selectors(expression)}


def test_board_and_alerts_ask_for_what_is_exported():
    asked = asked_for(on_the_board() + [rule["expr"] for rule in rules()])
    assert asked <= exported(), asked - exported()


def test_every_counter_is_on_the_board():
    counted = {*counters.FAMILIES, *(name + "_total" for name in OF_CLIENT), "step_audio_refused_total"}
    shown = asked_for(on_the_board())
    assert counted <= shown, counted - shown
    assert {"step_audio_time_to_first_token_seconds_bucket", "nv_trt_llm_kv_cache_block_metrics"} <= shown


def test_labels_are_those_that_there_are():
    """Grouped by, or selected by value."""
    named = {family.name: {family.label} for family in counters.FAMILIES.values()}
    for expression in on_the_board() + [rule["expr"] for rule in rules()]:
        for labels, name in re.findall(r"by \(([\w, ]+)\) \(increase\((\w+)\[", expression):
            assert set(labels.split(", ")) - {"instance"} <= named[name], expression
        for reasons in re.findall(r'step_audio_refused_total\{reason=~"([^"]*)"', expression):
            assert set(reasons.split("|")) <= REFUSALS.keys()
    scraped = yaml.safe_load((ROOT / "docker/prometheus.yml").read_text("utf-8"))["scrape_configs"]
    assert {job["job_name"] for job in scraped} == set(re.findall(r'job="([\w-]+)"', ALERTS.read_text("utf-8")))


def test_rules_do_what_they_say(tmp_path):
    """By Prometheus' own tool, where it is installed."""
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("apt-get install prometheus")
    shutil.copy(ALERTS, tmp_path)
    shutil.copy(Path(__file__).with_name("alerts_test.yaml"), tmp_path)
    for command in (["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"]):
        done = subprocess.run([promtool, *command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tried():
    tried = yaml.safe_load(Path(__file__).with_name("alerts_test.yaml").read_text("utf-8"))["tests"]
    fires = {case["alertname"] for test in tried for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert fires == {rule["alert"] for rule in rules()}


def test_dashboard_asks_for_labels_that_there_are():
    from step_audio.engine.engine import EngineStats
    from step_audio.steps.trtllm.metrics import readings

    blocks = {name: 1 for name in EngineStats.__dataclass_fields__}
    labels = {(reading.family, reading.label, reading.value_of) for reading in readings(EngineStats(**blocks))}
    text = (DASHBOARD.read_text("utf-8") + ALERTS.read_text("utf-8")).replace('\\"', '"')
    asked = re.findall(r'(nv_trt_llm_\w+)\{(\w+)="(\w+)"\}', text)
    assert asked and set(asked) <= labels
    kinds = set(re.findall(r'step_audio_tokens_total\{kind="(\w+)"\}', text))
    assert kinds <= {"prompt", "audio", "completion", "reasoning"}
    models = set(re.findall(r'model=~"([\w|]+)"', text))
    for model in {name for several in models for name in several.split("|")}:
        assert (ROOT / "model_repository" / model).is_dir()


def test_dashboard_has_room_for_every_panel():
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    cells = [(p["gridPos"]["x"] + x, p["gridPos"]["y"] + y) for p in panels for x in range(8) for y in range(8)]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    titles = {panel["title"] for panel in panels}
    assert {"Time to first token", "Inter-token latency", "Queue", "KV cache", "Audio seconds per second"} <= titles
