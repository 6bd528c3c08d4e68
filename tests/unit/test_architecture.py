"""What the house promises about itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from gateway import config
from gateway.console import signing
from gateway.errors import Problem
from gateway.upstream import PROBLEMS

KEYS = {"issuer": "i", "audience": "a", "jwks_file": "/k"}
VENDOR = {"brand": "https://v.example", "primary": {"ssid": {"env": "A"}}}
MODULES = sorted(Path("gateway").rglob("*.py"))


def test_importing_does_nothing() -> None:
    """Importing every module opens no socket or file of its own, starts no process and reads no environment."""
    names = [".".join(path.with_suffix("").parts) for path in MODULES if path.stem not in ("__main__", "__init__")]
    program = f"""
import importlib, socket, subprocess, os, sys
def forbidden(*a, **k): raise SystemExit("touched the world while being imported")
import asyncio, ssl, uvloop, aiohttp, redis.asyncio, httpx, starlette.applications, uvicorn, structlog, rich.console, phonenumbers, uvicorn.supervisors
socket.socket.connect = forbidden; subprocess.Popen.__init__ = forbidden
for name in {names!r}: importlib.import_module(name)
print(len({names!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 25


def test_only_the_ledger_makes_an_admission() -> None:
    """The proof that a call was charged and recorded is made in one place."""
    makers = [path.as_posix() for path in MODULES if "Admission(" in path.read_text().replace("class Admission", "")]

    assert makers == ["gateway/ledger/store.py"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.as_posix())
def test_public_names_say_what_they_are(path: Path) -> None:
    """Every module, public class and public function has a docstring."""
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    todo: list[ast.AST] = list(tree.body)
    for node in todo:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path}: {node.name}"
            todo.extend(node.body if isinstance(node, ast.ClassDef) else [])


def test_the_core_reads_no_clock() -> None:
    """Time and chance are arguments: no call of theirs below the edge."""
    core = (
        "pipeline authentication validation admission audit credentials normalisation document numbers keys config errors model"
    )
    for name in core.split():
        paths = [path for path in MODULES if path.with_suffix("").parts[1] == name]
        assert paths, name
        text = "".join(path.read_text() for path in paths)
        for call in ("datetime.now", "utcnow", "time.time", "uuid4", "monotonic()"):
            assert call not in text, (name, call)


def test_every_httpx_error_has_a_row() -> None:
    """Whatever a transport may raise, now or after an upgrade, is told to the caller as something."""
    kinds = [kind for kind in vars(httpx).values() if isinstance(kind, type) and issubclass(kind, httpx.TransportError)]

    assert len(kinds) > 10
    for kind in kinds:
        assert any(issubclass(kind, mapped) for mapped, _ in PROBLEMS), kind


def test_before_the_connection_stands_means_not_made() -> None:
    """Only faults before the connection stands are classed as not made."""
    before = (httpx.PoolTimeout, httpx.ConnectTimeout, httpx.ConnectError, httpx.ProxyError, httpx.UnsupportedProtocol)
    for kind, problem in PROBLEMS:
        assert (problem.value.result == "refused") == issubclass(kind, before), kind


def test_no_two_rows_are_one() -> None:
    """Equal rows would silently become one name."""
    assert len(Problem) == len(Problem.__members__)
    codes = [problem.value.code for problem in Problem if problem.value.origin == "vendor" and problem.value.code]
    assert len(codes) == len(set(codes))


def test_every_row_is_reached() -> None:
    """Each problem is named by a test, or is one of the few that need a broken machine."""
    tests = "".join(path.read_text() for path in Path("tests").rglob("test_*.py"))
    unreached = {problem.slug for problem in Problem if problem.slug not in tests}

    assert unreached == set()


def test_config_parses_and_names_every_fault() -> None:
    """All faults at once, each with its path and what would be right, none with a secret's value."""
    with pytest.raises(config.ConfigError) as caught:
        config.parse(
            {
                "colour": 1,
                "server": {"port": "eighty", "workers": 0},
                "redis": {"url": "redis://:hunter2@host", "cluster": True, "sentinels": ["x"]},
                "accounts": {"a": {"brand": "http://v4-api.deepcall.com", "primary": {"ssid": "s3cret", "token": {"env": "T"}}}},
                "quotas": {"caller": {"rate": "1/s"}},
                "policies": {"caller": {"rate": "fast", "burst": 0}},
            },
            {},
        )
    told = "\n".join(map(str, caught.value.faults))
    for path in ("colour", "server.port", "server.workers", "redis.url", "accounts.a.brand", "accounts.a.primary.ssid", "quotas", "policies.caller.rate",
                 "policies.caller.burst"):  # fmt: skip
        assert f"{path}: " in told
    assert "hunter2" not in told
    assert "s3cret" not in told


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({"accounts": {"a": {**VENDOR, "brand": "https://[bad"}}}, "accounts.a.brand"),
        ({"redis": {"url": "redis://[bad"}}, "redis.url"),
        ({"redis": {"url": "redis://host:port"}}, "redis.url"),
        ({"redis": {"url": "redis://host/zero"}}, "redis.url"),
        ({"issuers": {"k": {**KEYS, "jwks_url": "https://[bad"}}}, "issuers.k.jwks_url"),
    ],
)
def test_an_address_that_cannot_be_taken_apart_is_a_fault(document: dict, path: str) -> None:
    """The URL library raises errors of its own for these."""
    with pytest.raises(config.ConfigError) as caught:
        config.parse({"accounts": {"a": VENDOR}, **document}, {})

    assert [fault.path for fault in caught.value.faults] == [path]


@pytest.mark.parametrize("text", ["700000/s", "7/s", "11/m", "999999/h", "1/d", "30/m"])
def test_a_rate_is_never_rounded_up(text: str) -> None:
    """No more units grow back in any window than were asked for."""
    rate = config.read_terms({"rate": text}).rate

    assert rate.worst_case(0, rate.window_seconds) <= rate.count


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({"accounts": {"a": {**VENDOR, "primary": {"ssid": {"env": "A"}, "token": {"env": "B"}}}}}, "accounts.a.primary"),
        ({"accounts": {"a": {**VENDOR, "primary": {}}}}, "accounts.a.primary"),
        ({"accounts": {"a": {**VENDOR, "secondary": {"token": {"env": "B"}}}}}, "accounts.a.secondary"),
        ({"accounts": {}}, "accounts"),
        ({"upstream": {"read_timeout_ms": 30_000}}, "upstream.read_timeout_ms"),
        ({"upstream": {"total_timeout_ms": 60_000}}, "server.drain_seconds"),
        ({"server": {"lame_duck_seconds": 9}}, "server.drain_seconds"),
        ({"audit": {"pseudonym_keys": {"k1": {"env": "K"}}}}, "audit.pseudonym_keys"),
        ({"audit": {"pseudonym_keys": {"k 0": {"env": "K"}}}}, "audit.pseudonym_keys"),
        ({"audit": {"pseudonym_keys": {"k0": "secret"}}}, "audit.pseudonym_keys"),
        ({"audit": {"sealing": "never"}}, "audit.sealing"),
        ({"issuers": {"k": {"issuer": "i", "audience": "a"}}}, "issuers.k"),
        ({"issuers": {"k": {**KEYS, "max_age_seconds": 60, "stale_seconds_max": 60}}}, "issuers.k.stale_seconds_max"),
        ({"issuers": {"k": KEYS, "l": KEYS}}, "issuers"),
        ({"workloads": {"w": {"issuer": "nobody", "subject": "s"}}}, "workloads.w.issuer"),
        ({"policies": {"p": {"by": ["caller"]}}}, "policies.p"),
        ({"policies": {"p.concurrency": {"by": ["caller"], "rate": "1/s"}}}, "policies.p.concurrency"),
        ({"policies": {"p": {"by": ["number"], "count": "new_numbers", "rate": "1/s", "burst": 3}}}, "policies.p.by"),
        ({"policies": {"sweep": {"burst": 2}}}, "policies.sweep.burst"),
        ({"policies": {"number": {"subjects": {"x": {"burst": 2}}}}}, "policies.number.subjects"),
        ({"policies": {"caller": {"subjects": {"crm/end": {"burst": 2}}}}}, "policies.caller.subjects.crm/end"),
        ({"policies": {"caller": {"accounts": ["b"]}}}, "policies.caller.accounts"),
        ({"policies": {"caller": {"services": ["oms"], "subjects": {"crm": {"burst": 2}}}}}, "policies.caller.subjects.crm"),
        ({"policies": {"account": {"subjects": {"b": {"burst": 2}}}}}, "policies.account.subjects.b"),
        (
            {"policies": {"p": {"by": ["operation"], "rate": "1/s", "subjects": {"stop": {"burst": 2}}}}},
            "policies.p.subjects.stop",
        ),
        ({"policies": {"caller": {"rate": "1/d", "burst": 1_000_000}}}, "policies.caller.burst"),
        (
            {"policies": {"caller": {"subjects": {"crm": {"rate": "1/d", "burst": 1_000_000}}}}},
            "policies.caller.subjects.crm.burst",
        ),
        ({"policies": {"account": {"hard_limit": "200/s"}}}, "policies.account"),
    ],
)
def test_contradictions_are_faults(document: dict, path: str) -> None:
    """What no single setting shows is found before the first call."""
    with pytest.raises(config.ConfigError) as caught:
        config.parse({"accounts": {"a": VENDOR}, **document}, {})

    assert [fault.path for fault in caught.value.faults] == [path]


@pytest.mark.parametrize("command", ["", "keys", "limits", "audit", "log"])
def test_a_command_loads_no_other(command: str) -> None:
    """Whoever waits for one does not wait for what serves callers to be loaded."""
    program = f"import sys; from gateway.cli.main import make_parser; make_parser({command!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert not {"aiohttp", "httpx", "starlette", "uvicorn", "jinja2", "prometheus_client"} & set(done.stdout.split())
    assert ("redis" in done.stdout.split()) == bool(command)


def test_an_address_of_ipv4_counts_by_itself() -> None:
    """Also as a listener on both families shows it; of IPv6 a whole network is one."""
    assert signing._network("::ffff:192.0.2.1") == signing._network("192.0.2.1") == "192.0.2.1"
    assert signing._network("2001:db8::1") == signing._network("2001:db8::2") == "2001:db8::/64"
