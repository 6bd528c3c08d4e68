"""The commands, as a person runs them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.e2e.test_main_job import assert_refused
from tests.running import VENDOR_SSID, Process, Stack, free_port, until


def gateway(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    return subprocess.run(
        [sys.executable, "-m", "gateway", *words], capture_output=True, text=True, timeout=90, env={**clean, **environ}
    )


def test_the_demo_makes_its_round_trip(tmp_path: Path) -> None:
    """One command: request, answer, two records, the line to try next; 0, and nothing left running. Twice."""
    for _ in range(2):
        done = gateway("demo", "--once", "--port", str(free_port()), GATEWAY_STATE_DIR=str(tmp_path / "s"), COLUMNS="200")

        assert done.returncode == 0, done.stderr
        assert '"message":"Your masking unset"' in done.stdout
        stages = [json.loads(line.split(None, 1)[1])["stage"] for line in done.stdout.splitlines() if line.startswith("record")]
        assert stages == ["intent", "outcome"]
        assert "try       curl " in done.stdout
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(tmp_path) not in left


def test_the_demo_stays_and_its_line_works(tmp_path: Path) -> None:
    """It stays until Ctrl-C; what it says to try succeeds; `keys` and `audit` find it by themselves."""
    environ = {"GATEWAY_STATE_DIR": str(tmp_path / "s"), "PYTHONUNBUFFERED": "1"}
    process = Process(tmp_path, "demo", [sys.executable, "-m", "gateway", "demo", "--port", str(free_port())], environ)
    try:
        until(lambda: "Ctrl-C" in process.output() or not process.alive(), seconds=60, what="the demo staying")
        line = re.search(r"^try +(curl .*)$", process.output(), re.MULTILINE)
        assert line, process.output()
        answer = subprocess.run(line[1], shell=True, capture_output=True, text=True, timeout=20)
        assert json.loads(answer.stdout)["status"] == "success"
        listed = gateway("keys", "list", "--json", **environ)
        assert json.loads(listed.stdout.splitlines()[0])["service"] == "demo"
        found = gateway("audit", "search", "--number", "+91 98765 43212", "--json", **environ)
        until(lambda: len(found.stdout.splitlines()) >= 1)
    finally:
        process.signal(signal.SIGINT)
    assert process.popen.wait(timeout=60) == 0


def test_what_stops_a_demo_is_said_in_one_line(tmp_path: Path) -> None:
    """A port in use and a folder that cannot be written: the reason and the fix."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        in_use = gateway("demo", "--once", "--port", str(taken.getsockname()[1]), GATEWAY_STATE_DIR=str(tmp_path / "s"))
    blocked = tmp_path / "file"
    blocked.write_text("")
    unwritable = gateway("demo", "--once", GATEWAY_STATE_DIR=str(blocked / "s"))

    assert in_use.returncode == 1
    assert in_use.stderr.count("\n") == 1
    assert "pass --port N" in in_use.stderr
    assert unwritable.returncode != 0
    assert unwritable.stderr.count("\n") == 1
    assert "GATEWAY_STATE_DIR" in unwritable.stderr


def test_serve_says_a_taken_port_and_a_missing_secret(tmp_path: Path, stack: Stack) -> None:
    """Before anything is started."""
    taken = stack.cli("serve", "--port", str(stack.port), check=False)
    missing = stack.cli("serve", "--port", "0", check=False, environ={"VENDOR_SSID": ""})

    assert taken.returncode == 2
    assert "pass --port N" in taken.stderr
    assert missing.returncode == 2
    assert "accounts.test.primary.ssid: environment variable VENDOR_SSID is empty or not set" in missing.stderr


def test_serve_without_a_redis_configured_starts_one(tmp_path: Path, stack: Stack) -> None:
    """`serve` alone is a whole gateway on one machine, and leaves nothing running."""
    config = tmp_path / "g.toml"
    config.write_text(f"""
[server]
ops_port = 0
state_dir = "{tmp_path / "s"}"
lame_duck_seconds = 0
[accounts.main]
brand = "{stack.sandbox_url}"
[accounts.main.primary]
ssid = {{ env = "VENDOR_SSID" }}
""")
    words = [sys.executable, "-m", "gateway", "serve", "--config", str(config), "--port", "0"]
    process = Process(tmp_path, "serve", words, {"VENDOR_SSID": VENDOR_SSID})
    url = process.address()
    key = json.loads(gateway("keys", "issue", "crm", "--json", "--config", str(config), VENDOR_SSID=VENDOR_SSID).stdout)["key"]
    m1, m2 = stack.masked()

    answer = stack.http.post(url + "/api/v2/Masking/unset", json={"m1": m1, "m2": m2}, headers={"X-API-Key": key})
    assert answer.status_code == 200
    assert process.stop() == 0
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(tmp_path) not in left
    # What was recorded is on disk: the commands start the server for themselves.
    found = gateway("audit", "search", "--number", m1, "--json", "--config", str(config), VENDOR_SSID=VENDOR_SSID)
    assert [json.loads(line)["stage"] for line in found.stdout.splitlines()] == ["intent", "outcome"]


def test_check_tells_every_fault_with_its_line(tmp_path: Path) -> None:
    """Settings, in one run."""
    config = tmp_path / "g.toml"
    config.write_text(
        '[server]\nport = 99999\ncolour = "red"\n\n[accounts.main]\nbrand = "ftp://x"\n\n[policies.caller]\nrate = "fast"\nburst = 1\n'
    )

    done = gateway("check", "--config", str(config))

    assert done.returncode == 1
    assert "server.port (line 2): must be a whole number from 0 to 65535" in done.stdout
    assert "server.colour (line 3): is not a setting" in done.stdout
    assert "accounts.main.brand (line 6)" in done.stdout
    assert "policies.caller.rate (line 9)" in done.stdout
    assert "4 faults" in done.stdout


def test_check_asks_redis_and_the_vendor(start: Callable[..., Stack]) -> None:
    """Sound when all is well; a Redis that may lose records, and what cannot be reached, are told."""
    stack = start()
    assert stack.cli("check").stdout.strip() == "all is well"
    with stack.redis.client() as client:
        client.config_set("appendonly", "no")
        client.config_set("maxmemory-policy", "allkeys-lru")
    weak = stack.cli("check", check=False)
    strict = stack.config.read_text().replace("[audit]", "[audit]\nstrict = true")
    stack.config.write_text(strict)
    refused = stack.cli("serve", "--port", "0", check=False)
    stack.redis.kill()
    stack.sandbox.stop()
    gone = stack.cli("check", check=False)
    offline = stack.cli("check", "--offline", environ={"PSEUDONYM_KEY": "short"}, check=False)

    assert weak.returncode == 0
    assert "'appendonly' is 'no'" in weak.stdout
    assert "'maxmemory-policy' is 'allkeys-lru'" in weak.stdout
    assert refused.returncode == 2
    assert "appendonly" in refused.stderr
    assert gone.returncode == 1
    assert "redis (line" in gone.stdout
    assert "accounts.test.brand (line" in gone.stdout
    assert "audit.pseudonym_key (line" in offline.stdout


def test_a_command_without_redis_says_so_in_one_line(start: Callable[..., Stack]) -> None:
    """No traceback and no address with a user in it: the reason, and where to look."""
    stack = start()
    stack.redis.kill()
    for words in (("audit", "tail"), ("audit", "search", "--json"), ("keys", "list"), ("keys", "issue", "crm", "--json")):
        done = stack.cli(*words, check=False)

        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert "Redis does not answer" in done.stderr


def test_keys_are_shown_once_and_listed_without_secret(stack: Stack) -> None:
    """The table names state and scopes; the secret stands in no later output and in no Redis key."""
    _, key_id, secret = stack.issue("archive", "--scope", "end", "--expires", "90d", "--note", "ticket [red]4711[/red]")

    listed = stack.cli("keys", "list").stdout
    (entry,) = [json.loads(line) for line in stack.cli("keys", "list", "--json").stdout.splitlines() if key_id in line]

    assert secret not in listed
    assert "[red]4711[/red]" in listed
    assert (entry["state"], entry["scopes"]) == ("live", ["end"])
    assert 89 * 86400 < entry["expires_at"] - time.time() < 91 * 86400
    with stack.redis.client() as client:
        assert secret not in repr(client.hgetall("gw:{:keys}:keys"))
    assert stack.cli("keys", "revoke", key_id).stdout == f"revoked {key_id} of archive; no calls under it are still under way\n"
    assert stack.cli("keys", "revoke", "nobody", check=False).returncode == 2


def test_the_search_combines_what_is_asked(stack: Stack) -> None:
    """By number in any format, service, decision, problem, code, time and request id; 1 when nothing fits."""
    other, other_id, _ = stack.issue("billing")
    m1, m2 = stack.masked()
    good = stack.unset(m1=m1, m2=m2).json()["request_id"]
    missing = stack.unset(m1=m1, m2=m2, key=other).json()["request_id"]
    bad = stack.unset(m1=m1, m2=m1, key=other).json()["request_id"]
    stack.records(bad)

    def search(*words: str) -> list[str]:
        done = stack.cli("audit", "search", "--json", *words, check=False)
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert done.returncode == (0 if rows else 1), done.stderr
        return [row["request_id"] for row in rows]

    assert search("--number", f"+91 {m1[:5]}-{m1[5:]}") == [good, good, missing, missing]
    assert search("--number", m1, "--service", "billing", "--code", "1012") == [missing]
    assert search("--service", "billing", "--decision", "denied") == [bad]
    assert search("--problem", "numbers_equal", "--key-id", other_id) == [bad]
    assert search("--request-id", good, "--result", "answered") == [good]
    assert search("--request-id", good, "--since", "1h", "--until", "2999-01-01") == [good, good]
    assert search("--request-id", good, "--until", "2000-01-01T00:00:00Z") == []
    assert stack.cli("audit", "search", "--number", "abc", check=False).returncode == 2
    assert stack.cli("audit", "search", "--since", "yesterday", check=False).returncode == 2
    table = stack.cli("audit", "tail", "-n", "1", "--service", "billing").stdout
    assert bad in table
    assert "numbers_equal" in table


def test_tail_follows(stack: Stack, tmp_path: Path) -> None:
    """New records appear as they are written."""
    words = [sys.executable, "-m", "gateway", "audit", "tail", "-f", "-n", "1", "--json", "--config", str(stack.config)]
    process = Process(tmp_path, "tail", words, {"VENDOR_SSID": VENDOR_SSID, **stack._environ})
    try:
        stack.records(stack.unset(m1="12").json()["request_id"])
        until(lambda: process.out.read_text(), what="the first record")
        request_id = stack.unset(m1="13").json()["request_id"]
        until(lambda: request_id in process.out.read_text(), what="the new record")
    finally:
        process.popen.kill()
        process.popen.wait()


def test_secrets_from_file_and_command(start: Callable[..., Stack], tmp_path: Path) -> None:
    """UserId and token, one from a file with a line end, one from a command; never both forms together."""
    path = tmp_path / "user"
    path.write_text("sandbox-user\n")
    stack = start(credential=f'user_id = {{ file = "{path}" }}\ntoken = {{ command = ["printf", "sandbox-token"] }}')
    m1, m2 = stack.masked()

    assert stack.unset(m1=m1, m2=m2).status_code == 200
    sent = json.loads(stack.vendor_calls()[-1]["body"])
    assert (sent["userId"], sent["token"], "ssid" in sent) == ("sandbox-user", "sandbox-token", False)


def test_validation_settings(start: Callable[..., Stack]) -> None:
    """Unknown fields dropped, both expiry fields refused, another home region, numbers in one form."""
    stack = start(
        validation='unknown_fields = "drop"\nboth_expiry_fields = "refuse"\ndefault_region = "GB"',
        upstream='number_format = "e164"',
    )

    assert_refused(stack.unset(m1="02079460000", expiry_duration=1, expiry_time=1893456000), 400, "expiry_conflict")
    stack.unset(m1="020 7946 0000", colour="red")
    assert json.loads(stack.vendor_calls()[-1]["body"]) == {"ssid": VENDOR_SSID, "m1": "+442079460000"}
