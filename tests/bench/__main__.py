"""`python -m tests.bench`: what one call costs here, beside named peers, all in one run.

(a) the vendor called directly, (b) the obvious Starlette + httpx.AsyncClient + redis-py gateway, (c) this gateway,
(d) nginx + Lua doing the same job, where nginx and its Lua module are installed, (e) this gateway with two workers. The
figures of one machine say little; the ratios to (b) and (d) in one run do. Rounds are interleaved, so that a noisy neighbour disturbs every peer alike.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from gateway.ledger.store import _ADMIT
from tests.running import Process, Redis, free_port, until

HERE = Path(__file__).parent
KEY = "bench-key-0123456789abcdef"
ENVIRON = {"BENCH_SSID": "bench-vendor-session", "BENCH_PSEUDONYM_KEY": "bench-pseudonym-key-0123456789abcdef", "BENCH_KEY": KEY}
LIMITS = "\n".join(f'[policies.{name}]\nrate = "1000000/s"\nburst = 1000000' for name in ("caller", "number", "account"))
LIMITS += '\n[policies.sweep]\nmode = "off"\n[policies.repeat]\nmode = "off"'  # The peers have no such thing.
NAMES = {
    "vendor": "(a) vendor alone",
    "baseline": "(b) Starlette + httpx.AsyncClient + redis-py",
    "gateway": "(c) this gateway",
    "nginx": "(d) nginx + Lua",
    "workers": "(e) this gateway, 2 workers",
}


@dataclass
class Peer:
    """Something that answers calls."""

    name: str
    pid: int
    port: int
    key: str


def listening(port: int, process: Process) -> None:
    def up() -> bool:
        assert process.alive(), process.output()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    until(up, what=f"{process.name} listening")


def cpu_seconds(pid: int) -> float:
    """Return the CPU time a process and its children have used."""
    ticks, todo = 0, [pid]
    while todo:
        current = todo.pop()
        try:
            fields = Path(f"/proc/{current}/stat").read_text().rpartition(")")[2].split()
            children = Path(f"/proc/{current}/task/{current}/children").read_text().split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
        todo.extend(map(int, children))
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def started(folder: Path, name: str, words: list[str], port: int, environ: dict[str, str] | None = None) -> Iterator[Process]:
    process = Process(folder, name, words, environ)
    try:
        listening(port, process)
        yield process
    finally:
        process.stop()


def peers(stack: ExitStack, folder: Path, wanted: list[str]) -> list[Peer]:
    redis = stack.enter_context(Redis(folder / "redis"))
    vendor_port = free_port()
    vendor = stack.enter_context(
        started(folder, "vendor", [sys.executable, "-m", "tests.bench.vendor", str(vendor_port)], vendor_port)
    )
    found = []
    if "vendor" in wanted:
        found.append(Peer("vendor", vendor.pid, vendor_port, KEY))
    if "baseline" in wanted:
        port = free_port()
        words = [sys.executable, "-m", "uvicorn", "tests.bench.baseline:app", "--port", str(port), "--loop", "uvloop", "--http", "httptools",
                 "--no-access-log", "--log-level", "error", "--backlog", "2048"]  # fmt: skip
        environ = {**ENVIRON, "BENCH_REDIS": redis.url, "BENCH_VENDOR": f"http://127.0.0.1:{vendor_port}"}
        found.append(Peer("baseline", stack.enter_context(started(folder, "baseline", words, port, environ)).pid, port, KEY))
    if "gateway" in wanted:
        found.append(_gateway(stack, folder, redis, vendor_port, "gateway", 1))
    if "workers" in wanted:
        found.append(_gateway(stack, folder, redis, vendor_port, "workers", 2))
    if "nginx" in wanted:
        nginx = _nginx(stack, folder, redis, vendor_port)
        found.extend([nginx] if nginx else [])
    return found


def _gateway(stack: ExitStack, folder: Path, redis: Redis, vendor_port: int, name: str, workers: int) -> Peer:
    folder = folder / name
    folder.mkdir()
    config = folder / "gateway.toml"
    config.write_text(f"""
[server]
ops_port = 0
state_dir = "{folder / "state"}"
lame_duck_seconds = 0
[redis]
url = "{redis.url}"
[upstream]
connections_max = 1024
[accounts.bench]
brand = "http://127.0.0.1:{vendor_port}"
[accounts.bench.primary]
ssid = {{ env = "BENCH_SSID" }}
{LIMITS}
[audit]
pseudonym_key = {{ env = "BENCH_PSEUDONYM_KEY" }}
""")
    command = [sys.executable, "-m", "gateway"]
    made = subprocess.run(
        [*command, "keys", "issue", "bench", "--json", "--config", str(config)],
        capture_output=True,
        check=True,
        env={**os.environ, **ENVIRON},
    )
    port = free_port()
    words = [*command, "serve", "--config", str(config), "--port", str(port), "--workers", str(workers)]
    process = stack.enter_context(started(folder, name, words, port, ENVIRON))
    return Peer(name, process.pid, port, json.loads(made.stdout)["key"])


def _nginx(stack: ExitStack, folder: Path, redis: Redis, vendor_port: int) -> Peer | None:
    modules = [Path("/usr/lib/nginx/modules") / f"ngx_http_{name}_module.so" for name in ("ndk", "lua")]
    modules[0] = modules[0].with_name("ndk_http_module.so")
    if shutil.which("nginx") is None or not all(module.exists() for module in modules):
        print("nginx with its Lua module is not installed; peer (d) is left out", file=sys.stderr)
        return None
    port = free_port()
    script = _ADMIT.text
    values = {
        "USER": "user root;" if os.getuid() == 0 else "",  # or its worker could not reach the private socket
        "FOLDER": folder, "MODULES": "\n".join(f"load_module {module};" for module in modules), "VENDOR": f"127.0.0.1:{vendor_port}", "PORT": port,
        "DIGEST": hashlib.sha256(KEY.encode()).hexdigest(), "SSID": ENVIRON["BENCH_SSID"], "PSEUDONYM_KEY": ENVIRON["BENCH_PSEUDONYM_KEY"],
        "REDIS": redis.socket,
    }  # fmt: skip
    text = (HERE / "nginx.conf").read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    (folder / "nginx.conf").write_text(text)
    (folder / "admit.lua").write_text(script)
    shutil.copy(HERE / "nginx.lua", folder / "gateway.lua")
    process = stack.enter_context(started(folder, "nginx", ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")], port))
    return Peer("nginx", process.pid, port, KEY)


def measure(peer: Peer, seconds: float, concurrency: int) -> dict[str, Any]:
    words = [sys.executable, "-m", "tests.bench.load", "127.0.0.1", str(peer.port), peer.key, str(seconds), str(concurrency)]
    before = cpu_seconds(peer.pid)
    figures: dict[str, Any] = json.loads(subprocess.run(words, capture_output=True, check=True, text=True).stdout)
    time.sleep(0.05)  # What is written after the last answer belongs to it.
    figures["cpu_us"] = (cpu_seconds(peer.pid) - before) / figures["requests"] * 1e6
    figures["per_second"] = figures["requests"] / figures["seconds"]
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=4.0, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", default="1,32,256")
    parser.add_argument("--only", default="vendor,baseline,gateway,nginx,workers")
    arguments = parser.parse_args()
    results: dict[tuple[str, int], list[dict[str, Any]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gwb")))
        found = peers(stack, folder, arguments.only.split(","))
        levels = [int(text) for text in arguments.concurrency.split(",")]
        for peer in found:
            measure(peer, 1.0, 32)
        for _ in range(arguments.rounds):
            for level in levels:
                for peer in found:
                    results.setdefault((peer.name, level), []).append(measure(peer, arguments.seconds, level))
    rows = [_row(name, level, rounds) for (name, level), rounds in results.items()]
    for row in rows:
        beside = {other["peer"]: other["cpu_us"] for other in rows if other["concurrency"] == row["concurrency"]}
        row["times_less_than_baseline"] = round(beside["baseline"] / row["cpu_us"], 2) if "baseline" in beside else None
        row["times_nginx"] = round(row["cpu_us"] / beside["nginx"], 2) if "nginx" in beside else None
    if arguments.json:
        print(json.dumps({"machine": machine(), "rows": rows}, indent=1))
    else:
        _table(rows)
    return 1 if any(row["failures"] for row in rows if row["peer"] == "gateway") else 0


def _row(name: str, level: int, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    figures = {figure: median(one[figure] for one in rounds) for figure in ("cpu_us", "per_second", "p50_ms", "p99_ms")}
    return {"peer": name, "concurrency": level, **figures, "failures": sum(one["failures"] for one in rounds)}


def _table(rows: list[dict[str, Any]]) -> None:
    print(machine())
    print(
        "| peer | callers | CPU µs/request | times less CPU than (b) | times the CPU of (d) | requests/s | p50 ms | p99 ms | failures |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for row in sorted(rows, key=lambda row: (row["concurrency"], row["peer"] != "vendor", list(NAMES).index(row["peer"]))):
        ratios = f"{row['times_less_than_baseline'] or '–'} | {row['times_nginx'] or '–'}"
        print(f"| {NAMES[row['peer']]} | {row['concurrency']} | {row['cpu_us']:.0f} | {ratios} | {row['per_second']:.0f} "
              f"| {row['p50_ms']:.2f} | {row['p99_ms']:.2f} | {row['failures']} |")  # fmt: skip


def machine() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    except OSError:
        model = platform.machine()
    return f"{model}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


if __name__ == "__main__":
    sys.exit(main())
