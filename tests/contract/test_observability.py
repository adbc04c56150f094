"""The dashboard and the alert rules ask for what the processes show."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import uuid
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from gateway.http_server import show_own_expiry
from gateway.settings import Settings
from gateway.token_setup import set_up_tokens
from mesh.metrics import Metrics
from stack.ports import Ports, metrics_of
from stack.replicas import SERVICE_KINDS
from tests.contract.test_gateway_real import Client, new_sale
from tests.support.certificates import Peers
from tests.support.servers import MeshStack, metrics_text

FOLDER = Path(__file__).resolve().parents[2] / "observability"
_PROMTOOL = os.environ.get("PROMTOOL") or shutil.which("promtool")


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard_expressions() -> list[str]:
    panels = json.loads((FOLDER / "grafana" / "flashsale.json").read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def metrics_in(expression: str) -> set[str]:
    """The names of metrics in an expression, which all begin as ours do: what is left without labels."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\"[^\"]*\"|(?:by|without) \([^)]*\)", " ", expression)
    return set(re.findall(r"\b(?:flashsale|gateway|grpc|process|up)\w*", bare))


async def _of_a_gateway_with_keys(folder: Path) -> str:
    """What a gateway with a certificate, whose tokens are signed with keys, shows of both; that of the stack has a
    secret, and speaks HTTP."""
    nobody, metrics = "127.0.0.1:1", Metrics()
    own = Peers(folder).certify("gateway")
    tls = {"tls_certificate": str(own.certificate), "tls_key": str(own.key)}
    settings = Settings(nobody, nobody, nobody, jwks_url=f"http://{nobody}/keys", **tls)  # type: ignore[arg-type]
    await set_up_tokens(settings, metrics)
    show_own_expiry(settings, metrics)
    # As it is read: in a thread that has no event loop.
    return (await asyncio.to_thread(metrics.text)).decode()


async def test_every_metric_that_is_asked_for_is_shown_by_some_process(mesh_stack: MeshStack, tmp_path: Path) -> None:
    texts = await asyncio.gather(*(asyncio.to_thread(metrics_text, mesh_stack, kind) for kind in SERVICE_KINDS))
    texts.append(await _of_a_gateway_with_keys(tmp_path))
    shown = set(re.findall(r"^# HELP (\S+)", "\n".join(texts), re.M)) | {"up"}
    for name in list(shown):
        shown |= {f"{name}_bucket", f"{name}_count", f"{name}_sum"}
    expressions = [rule["expr"] for rule in rules()] + dashboard_expressions()
    asked = set().union(*map(metrics_in, expressions))
    assert len(asked) > 20
    assert asked <= shown


def selectors(expression: str) -> set[tuple[str, str, str, str]]:
    """Metric, label, operator and value of everything that an expression picks by a label."""
    return {
        (metric, *picked)
        for metric, labels in re.findall(r"\b(\w+)\{([^}]*)\}", expression)
        for picked in re.findall(r"(\w+)\s*(=~|!~|!=|=)\s*\"([^\"]*)\"", labels)
    }


def grouped_by(expression: str) -> set[str]:
    """The labels by which it keeps things apart."""
    return {label.strip() for labels in re.findall(r"\bby \(([^)]*)\)", expression) for label in labels.split(",")}


async def test_every_label_that_is_asked_for_is_one_that_is_shown(mesh_stack: MeshStack) -> None:
    shown: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
    user = f"observed-{uuid.uuid4().hex[:8]}"
    client, sale = Client(mesh_stack), await new_sale(mesh_stack, [user])
    _, bought = await client.buy(sale, user)
    _, settled = await client.send("GET", f"/v1/purchases/{bought['purchase_id']}?wait=30", user)
    assert settled["state"] == "CONFIRMED"
    texts = await asyncio.gather(*(asyncio.to_thread(metrics_text, mesh_stack, kind) for kind in SERVICE_KINDS))
    for text in texts:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                shown[sample.name].append(sample.labels)
    expressions = [rule["expr"] for rule in rules()] + dashboard_expressions()
    for metric, label, operator, value in set().union(*map(selectors, expressions)):
        if metric not in shown:
            # Nothing of the kind has happened yet.
            assert metric in {"flashsale_recalibrations_total", "flashsale_calls_shed_total"}, metric
            continue
        assert all(label in labels for labels in shown[metric]), (metric, label)
        if operator == "=" and label in ("state", "queue", "route"):
            assert any(labels[label] == value for labels in shown[metric]), (metric, label, value)
    known = {label for samples in shown.values() for labels in samples for label in labels}
    # What Prometheus adds by itself, and labels of what has not happened.
    assert set().union(*map(grouped_by, expressions)) <= known | {"job", "instance", "kind", "reason"}


def test_every_process_of_the_stack_is_asked() -> None:
    jobs = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    told = {job["job_name"]: job["static_configs"][0]["targets"] for job in jobs}
    ports = Ports.from_environment({})
    assert told == {kind: [ports.address(metrics_of(kind))] for kind in SERVICE_KINDS}


def test_every_alert_says_what_to_do_and_is_tried() -> None:
    tried = {
        each["alertname"]
        for test in yaml.safe_load((FOLDER / "alerts_test.yml").read_text())["tests"]
        for each in test["alert_rule_test"]
        if each.get("exp_alerts")
    }
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"].keys() == {"summary", "action"}
    assert {rule["alert"] for rule in rules()} == tried


@pytest.mark.skipif(_PROMTOOL is None, reason="promtool is not installed (Debian: prometheus; or set PROMTOOL)")
@pytest.mark.parametrize("arguments", [("check", "config", "prometheus.yml"), ("test", "rules", "alerts_test.yml")])
def test_prometheus_itself_takes_them(arguments: tuple[str, ...]) -> None:
    assert _PROMTOOL is not None
    done = subprocess.run([_PROMTOOL, *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(_PROMTOOL is None, reason="promtool is not installed (Debian: prometheus; or set PROMTOOL)")
def test_prometheus_itself_reads_the_dashboards_expressions(tmp_path: Path) -> None:
    assert _PROMTOOL is not None
    expressions = [each.replace("$__rate_interval", "1m") for each in dashboard_expressions()]
    rules_of_them = [{"record": f"panel:{number}", "expr": each} for number, each in enumerate(expressions)]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules_of_them}]}))
    done = subprocess.run([_PROMTOOL, "check", "rules", str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
