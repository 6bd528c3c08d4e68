"""What Prometheus reads of a running gateway: what it says is so, for all workers, and bounded; alerts and dashboard ask for it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import promql_parser as promql
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from gateway.cli.main import make_parser
from gateway.metrics import ALARMS, FAMILIES
from tests.chaos.processes import descendants
from tests.running import UNSET, Stack, free_port, until

PROMETHEUS = Path("config/prometheus")
DASHBOARD = json.loads(Path("config/grafana/dashboards/masking-gateway.json").read_text())
ALERTS = [rule for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
SEALED = 'sealing = "serve"'
SCRAPED = {"job", "instance"}
"""Labels that Prometheus itself gives."""

Samples = dict[str, dict[frozenset[tuple[str, str]], float]]


def samples(text: str) -> Samples:
    found: Samples = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name][frozenset(sample.labels.items())] = sample.value
    return found


def total(stack: Stack, name: str, **labels: str) -> float:
    """Return the sum of a metric's samples that have these labels."""
    return sum(value for found, value in samples(stack.metrics())[name].items() if labels.items() <= dict(found).items())


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two workers to whom everything has happened that puts a sample into a metric, as far as one gateway can see it all."""
    quotas = '[policies.caller]\nrate = "1/d"\nburst = 6\n[policies.watched]\nby = ["caller"]\nrate = "1/d"\nburst = 1\nmode = "shadow"'
    issuer = '[issuers.cluster]\nissuer = "https://i.example"\naudience = "a"\njwks_file = "/nowhere"'
    folder = tmp_path_factory.mktemp("metrics")
    with Stack(folder, workers=2, audit=SEALED, quotas=quotas, more=issuer, secondary='ssid = { env = "VENDOR_SSID" }') as stack:
        stack.issue("ending", "--expires", "3d")
        m1, m2 = stack.masked()
        for _ in range(2):
            stack.unset(m1=m1, m2=m2, expiry_duration=5, headers={"Idempotency-Key": "once"})
        for _ in range(8):
            stack.unset(m1=stack.fresh_numbers()[0])
        stack.unset(m1=m1, key="gk_live_nobody00")
        with socket.create_connection((stack.host, stack.port)) as connection:
            connection.sendall(b"NONSENSE\r\n\r\n")
            connection.recv(1000)
        # A worker tells of the others what they last wrote down: whichever is asked must have seen it all.
        until(lambda: all(total(stack, "gateway_requests_total") == 11 for _ in range(12)), what="one view")
        seen_last = ("http_refused_total", "checkpoint_records", "key_ends_in_seconds", "limit_used_ratio")
        for name in (f"gateway_{name}" for name in seen_last):
            until(lambda: all(samples(stack.metrics())[name] for _ in range(12)), what=f"one view of {name}")  # noqa: B023 - asked at once
        yield stack


def test_requests_are_counted_by_how_they_ended(start: Callable[..., Stack]) -> None:
    """Each once, whatever became of it; also one that was tried twice, and one that was answered again."""
    stack = start(quotas='[policies.caller]\nrate = "1/d"\nburst = 4')
    m1, m2 = stack.masked()
    for _ in range(2):
        assert stack.unset(m1=m1, m2=m2, expiry_duration=-1, headers={"Idempotency-Key": "k"}).status_code == 200
    assert stack.unset(m1=m1, m2=m2).status_code == 404
    stack.fault(answer="stalled")
    assert stack.unset(m1=m1, m2=m2, expiry_duration=-1).status_code == 504
    stack.no_faults()
    while stack.unset(m1=m1, m2=m2).status_code != 429:
        pass
    assert stack.unset(b"{", key=stack.key).status_code == 400
    assert stack.unset(m1=m1, key="gk_live_aaaaaaaaaa_" + "b" * 40).status_code == 401

    found = samples(stack.metrics())
    ends = {
        (row["service"], row["operation"], row["decision"], row["result"], row["status"], row["problem"]): value
        for row, value in ((dict(labels), value) for labels, value in found["gateway_requests_total"].items())
    }
    assert ends["crm", "end", "allowed", "answered", "200", "none"] == 1
    assert ends["crm", "end", "allowed", "refused", "200", "answer_replayed"] == 1
    assert ends["crm", "end", "allowed", "unknown", "504", "upstream_timeout"] == 1
    assert ends["crm", "end", "denied", "refused", "429", "quota_exceeded"] == 1
    assert {service for service, *_ in ends} == {"crm", "none"}
    requests = sum(ends.values())
    assert sum(found["gateway_request_duration_seconds_count"].values()) == requests
    assert total(stack, "gateway_request_duration_seconds_bucket", result="unknown", le="+Inf") == 1
    # The answer that did not come took as long as is waited for.
    assert total(stack, "gateway_request_duration_seconds_bucket", result="unknown", le="1.0") == 0
    assert (
        total(stack, "gateway_upstream_requests_total")
        == len(stack.vendor_calls())
        == total(stack, "gateway_upstream_duration_seconds_count")
    )
    assert total(stack, "gateway_upstream_requests_total", result="upstream_timeout") == 1 + total(stack, "gateway_retries_total")
    assert total(stack, "gateway_limit_admitted_total", policy="caller") == 4
    assert total(stack, "gateway_limit_refused_total", policy="caller", mode="deny") == 1
    until(lambda: total(stack, "gateway_limit_used_ratio", policy="caller") == 1, what="a burst in use")
    assert total(stack, "gateway_requests_under_way") == 0


def test_what_is_under_way_and_waits(start: Callable[..., Stack]) -> None:
    """Gauges rise with what they tell of, and fall with it."""
    stack = start(upstream="connections_max = 1\npool_timeout_ms = 9000", read_ms=2900)
    stack.fault(answer="slow", delay_ms=2500)
    m1, _ = stack.fresh_numbers()
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(stack.unset, m1=m1) for _ in range(2)]
        until(lambda: total(stack, "gateway_requests_under_way") == 2, what="two under way")
        until(lambda: total(stack, "gateway_upstream_calls", state="waiting") == 1, what="one waiting")
        assert total(stack, "gateway_upstream_calls", state="under_way") == total(stack, "gateway_upstream_places") == 1
        assert [call.result().status_code for call in calls] == [404, 404]
    assert total(stack, "gateway_requests_under_way") == total(stack, "gateway_upstream_calls") == 0


def test_whichever_worker_is_asked_tells_for_all_also_for_a_killed_one(start: Callable[..., Stack]) -> None:
    """Counts stay when a worker is killed, and go on rising; what only it saw of how things stand is gone."""
    stack = start(workers=2)

    def call(_: int) -> int:
        body = {"m1": stack.fresh_numbers()[0]}
        return httpx.post(stack.url + UNSET, json=body, headers={"X-API-Key": stack.key}, trust_env=False, timeout=30).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(call, range(60))) == {404}
    views = [(("gateway_requests_total"), 60.0), ("gateway_request_duration_seconds_count", 60.0), ("gateway_workers", 2.0)]
    for name, value in views:
        until(lambda: {total(stack, name) for _ in range(12)} == {value}, seconds=60.0, what=f"one view of {name}")  # noqa: B023 - asked at once
    memory, newest = total(stack, "process_resident_memory_bytes"), total(stack, "process_start_time_seconds")

    os.kill(descendants(stack.gateway.pid, "spawn_main")[0], signal.SIGKILL)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(call, range(40))) == {404}
    until(
        lambda: {total(stack, "gateway_requests_total") for _ in range(12)} == {100.0},
        seconds=60.0,
        what="the killed one's counts",
    )
    until(lambda: total(stack, "process_start_time_seconds") > newest, seconds=60.0, what="another worker's view")
    # For a moment there are three: what the killed one saw last is believed until it is old.
    until(lambda: total(stack, "gateway_workers") == 2, seconds=60.0, what="the killed one's view being gone")
    assert 0.5 * memory < total(stack, "process_resident_memory_bytes") < 1.5 * memory
    assert {total(stack, "gateway_requests_total") for _ in range(12)} == {100.0}


def test_operators_have_a_port_of_their_own(start: Callable[..., Stack]) -> None:
    """Callers' port has no metrics, operators' port takes no calls; health is to be had on both."""
    stack = start()

    assert stack.http.get(stack.url + "/metrics").json()["error"] == "not_found"
    assert stack.http.post(stack.ops_url + UNSET, json={}).json()["error"] == "not_found"
    assert stack.http.get(stack.ops_url + "/openapi.json").status_code == 404
    for url in (stack.url, stack.ops_url):
        assert stack.http.get(url + "/livez").json() == {"status": "ok"}
        assert stack.http.get(url + "/readyz").status_code == 200
    assert stack.http.post(stack.ops_url + "/metrics").status_code == 405
    assert f'"ops":"{stack.ops_url}"' in stack.gateway_log()


def test_the_port_of_operators_can_be_left_out_and_must_be_free(start: Callable[..., Stack]) -> None:
    """0 is none; one that is taken, or is the callers' own, is said before anything is started."""
    stack = start()
    port, other = free_port(), stack.ops_url.rpartition(":")[2]

    without = stack.spawn_gateway("--ops-port", "0", name="without")
    assert httpx.get(without.address() + "/livez", trust_env=False, timeout=30).status_code == 200
    assert '"ops"' not in without.output()
    taken = stack.cli("serve", "--port", "0", "--ops-port", other, check=False)
    same = stack.cli("serve", "--port", str(port), "--ops-port", str(port), check=False)
    without.stop()

    assert (taken.returncode, same.returncode) == (2, 2)
    assert (
        f"cannot listen on 127.0.0.1:{other} (Address already in use): stop what uses it, or set server.ops_port" in taken.stderr
    )
    assert same.stderr == "gateway: server.ops_port: must not be the port of callers; pass --ops-port N, or 0 for none\n"
    assert make_parser("serve").parse_args(["serve", "--ops-port", "1"]).ops_port == 1


def test_redis_away_journal_and_trail(start: Callable[..., Stack]) -> None:
    """An outage is told with what waits for its end, and ends."""
    stack = start(audit=SEALED)
    stack.unset(m1=stack.fresh_numbers()[0])
    until(lambda: total(stack, "gateway_checkpoint_records") >= 2, what="a checkpoint")
    until(lambda: total(stack, "gateway_trail_unsealed_records") == 0, what="all sealed")
    assert total(stack, "gateway_journal_segments") == total(stack, "gateway_processes") == 1
    assert total(stack, "gateway_redis_round_trip_seconds_count") > 3
    began = total(stack, "gateway_checkpoint_timestamp_seconds")

    stack.redis.kill()
    for _ in range(5):
        assert stack.unset(m1=stack.fresh_numbers()[0]).status_code == 404
    assert total(stack, "gateway_degraded") == total(stack, "gateway_redis_outages_total") == 1
    assert total(stack, "gateway_degraded_calls_total") == 5
    assert total(stack, "gateway_trail_waiting_records") >= 10
    assert total(stack, "gateway_trail_unsealed_records") >= 10
    assert 0 < total(stack, "gateway_journal_used_ratio") < 0.001
    assert total(stack, "gateway_checkpoint_timestamp_seconds") >= began
    stack.redis.start()
    until(lambda: total(stack, "gateway_degraded") == 0, what="Redis being back")
    until(lambda: total(stack, "gateway_trail_waiting_records") == 0, what="nothing waiting")
    until(lambda: total(stack, "gateway_checkpoint_timestamp_seconds") > began, what="sealing going on")


def test_a_credential_that_is_exchanged_and_one_that_is_gone(start: Callable[..., Stack], tmp_path: Path) -> None:
    """When it was loaded, and whether it can be read again."""
    secret = tmp_path / "ssid"
    secret.write_text("vendor-session-id-5e2b9c")
    stack = start(credential=f'ssid = {{ file = "{secret}" }}', rejections=1)
    loaded = total(stack, "gateway_credential_loaded_timestamp_seconds", slot="primary")

    secret.write_text("another")
    until(lambda: total(stack, "gateway_credential_loaded_timestamp_seconds", slot="primary") > loaded, what="the new one")
    stack.unset(m1=stack.fresh_numbers()[0])
    assert total(stack, "gateway_credential_rejected", slot="primary") == 1
    assert total(stack, "gateway_alarms_total", event="credential.rejected") == 1
    secret.unlink()
    until(lambda: total(stack, "gateway_credential_unreadable", slot="primary") == 1, what="its absence")


def test_nothing_a_caller_writes_is_told(busy: Stack) -> None:
    """No number, key or request id stands in any label."""
    body = {"m1": "9876501234", "colour": "magenta-5551"}
    busy.unset(body, headers={"X-Request-Id": "caller-made-this", "X-Gateway-Account": "made-up", "X-API-Key": "gk_live_x"})
    text = busy.metrics()

    for told in ("9876501234", "magenta", "caller-made-this", "made-up", "gk_", busy.key_secret):
        assert told not in text


@pytest.fixture(scope="module")
def told(busy: Stack) -> str:
    """What is told while all of it is recent: what was used of limits is forgotten after half a minute."""
    return busy.metrics()


def test_what_is_exported_is_what_is_declared(told: str) -> None:
    """Every family is there with its type, and its samples have its labels; nearly all have some here."""
    text = told
    found = {family.name: family for family in text_string_to_metric_families(text)}

    assert {name: family.type for name, family in found.items()} == {family.name: family.kind for family in FAMILIES}
    empty = set()
    for family in FAMILIES:
        labels = {frozenset(sample.labels) - {"le"} for sample in found[family.name].samples}
        assert labels <= {frozenset(family.labels)}, family.name
        empty |= set() if labels else {family.name}
    assert empty == set()
    assert len(text) < 60_000


def selectors(tree: Any) -> Iterator[promql.VectorSelector]:
    """Yield everything that an expression asks for."""
    found: list[promql.VectorSelector] = []

    def enter(node: Any) -> bool:
        found.append(node.vector_selector if isinstance(node, promql.MatrixSelector) else node)
        return True

    promql.walk(tree, enter)
    yield from (node for node in found if isinstance(node, promql.VectorSelector))


def asked() -> list[tuple[str, str]]:
    """Return where each expression stands, and it, as Prometheus would get it."""
    found = [(rule["alert"], rule["expr"]) for rule in ALERTS]
    for panel in DASHBOARD["panels"]:
        found += [(f"panel {panel['title']}", target["expr"]) for target in panel.get("targets", ())]
    for variable in DASHBOARD["templating"]["list"]:
        metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"]).groups()
        found.append((f"variable {variable['name']}", f"count by ({label}) ({metric})"))
    return [(where, expression.replace("$__rate_interval", "5m")) for where, expression in found]


@pytest.mark.parametrize(("where", "expression"), asked(), ids=lambda text: text[:40])
def test_alerts_and_dashboard_ask_for_what_there_is(told: str, where: str, expression: str) -> None:
    """Each metric they name is exported, with the labels they match and group by."""
    exported = {name: {label for labels in found for label, _ in labels} for name, found in samples(told).items()}
    exported["up"] = set()
    tree = promql.parse(expression)
    grouped = {label for group in re.findall(r"\bby \(([^)]*)\)", expression) for label in re.split(r",\s*", group) if label}

    names = set()
    known = set(SCRAPED)
    for selector in selectors(tree):
        assert selector.name in exported, selector.name
        labels = exported[selector.name] | SCRAPED
        assert {matcher.name for matcher in selector.matchers.matchers} <= labels, selector
        names.add(selector.name)
        known |= labels
    assert names
    assert grouped <= known, grouped - known


def test_alerts_say_what_is_wrong_and_what_to_do() -> None:
    """Each is tried by a test of its own, has both texts, and fills in labels that it has."""
    tried = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
    told = {test["alertname"] for one in tried for test in one["alert_rule_test"] if test.get("exp_alerts")}
    silent = {test["alertname"] for one in tried for test in one["alert_rule_test"] if not test.get("exp_alerts")}

    assert told == silent == {rule["alert"] for rule in ALERTS}
    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("page", "ticket")
        texts = rule["annotations"]
        assert set(texts) == {"summary", "action"} and all(len(text) > 20 for text in texts.values())
        grouped = {label for group in re.findall(r"\bby \(([^)]*)\)", rule["expr"]) for label in re.split(r",\s*", group)}
        assert set(re.findall(r"\$labels\.(\w+)", " ".join(texts.values()))) <= grouped | SCRAPED


def test_commands_that_alerts_name_are_commands() -> None:
    """What somebody is told to type is taken."""
    for rule in ALERTS:
        for line in re.findall(r"`gateway ([^`]+)`", rule["annotations"]["action"]):
            words = re.sub(r"\{\{[^}]*\}\}", "x", line).split()
            if words[:2] == ["limits", "set"]:
                continue  # Its beginning alone is named.
            assert make_parser(words[0]).parse_args(words).run


def test_the_dashboard_is_whole() -> None:
    """Grafana takes it by its id, no two panels lie on one another, and each asks the datasource that is provisioned."""
    provisioned = yaml.safe_load(Path("config/grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    places = set()

    assert (DASHBOARD["uid"], DASHBOARD["schemaVersion"] >= 39) == ("masking-gateway", True)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & places, panel["title"]
        places |= cells
        if panel["type"] != "row":
            assert panel["targets"]
            for one in (panel, *panel["targets"]):
                assert one["datasource"]["uid"] in {source["uid"] for source in provisioned}
    shown = " ".join(expression for where, expression in asked() if where.startswith("panel"))
    unseen = {family.name for family in FAMILIES if family.name not in shown}
    assert unseen == {"process_virtual_memory_bytes"}


def test_every_alarm_of_the_log_is_counted_from_0() -> None:
    """What begins at 1 does not rise, and no alert would see it."""
    source = "\n".join(path.read_text() for path in Path("gateway").rglob("*.py"))

    assert set(re.findall(r'\b_?alarm\(\s*"([a-z_.]+)"', source)) == set(ALARMS)


def promtool(*words: str, given: str | None = None) -> None:
    program = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed: it comes with Prometheus (Debian: prometheus); PROMTOOL may name it")
    done = subprocess.run([program, *words], input=given, capture_output=True, text=True, timeout=60, cwd=PROMETHEUS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_its_settings() -> None:
    """By Prometheus' own tool."""
    promtool("check", "config", "prometheus.yml")


def test_alerts_are_told_when_they_should() -> None:
    """By Prometheus' own tool, alert by alert: when, with which words, and when not."""
    promtool("test", "rules", "alerts_test.yml")


def test_metrics_are_as_prometheus_wants_them(busy: Stack) -> None:
    """Format and names, by Prometheus' own tool."""
    promtool("check", "metrics", given=busy.metrics())
