"""`gateway demo`: everything on this machine, one masking set and unset, and what that left behind."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import httpx

from gateway import embedded
from gateway.model import UNSET_PATH
from gateway.processes import Child, ProcessError, command
from gateway.vault import make_secret_file

_SET_PATH: Final = "/api/v2/Masking/set"
_VENDOR_SSID: Final = "demo-vendor-session"

_CONFIG: Final = """\
# Written by `gateway demo`; used by `gateway keys` and `gateway audit` beside it.
[server]
port = {port}
ops_port = 0
state_dir = {folder}
lame_duck_seconds = 0
[accounts.demo]
brand = "{brand}"
[accounts.demo.primary]
ssid = {{ env = "DEMO_VENDOR_SSID" }}
[audit]
pseudonym_key = {{ file = {pseudonym_key} }}
"""


def config_path(environ: Mapping[str, str]) -> Path:
    """Return where the demo keeps its settings."""
    return _folder(environ) / "gateway.toml"


def running(environ: Mapping[str, str]) -> bool:
    """Say whether a demo is running on this state folder."""
    return config_path(environ).exists() and embedded.answers(_folder(environ))


def run(arguments: argparse.Namespace) -> int:
    """Start everything, make one call, and stay until Ctrl-C, or end at once with `--once`."""
    folder = _folder(os.environ)
    embedded.make_folder(folder)
    with ExitStack() as stack:
        for number in (signal.SIGTERM, signal.SIGINT):  # The second is ignored where a shell started us in the background.
            signal.signal(number, signal.default_int_handler)
        try:
            sandbox = Child(stack, "sandbox", folder, ["sandbox", "--port", "0", "--ssid", _VENDOR_SSID], {})
            brand = sandbox.wait_for_address()
            if not os.environ.get("GATEWAY_REDIS_URL"):
                # Held here, not by the gateway: the commands that read keys and records share it.
                store = embedded.start(folder)
                stack.callback(store.close)
            _write_config(folder, arguments.port, brand)
            gateway = Child(
                stack, "gateway", folder, ["serve", "--config", str(config_path(os.environ))], {"DEMO_VENDOR_SSID": _VENDOR_SSID}
            )
            address = gateway.wait_for_address()
            key = _command(["keys", "issue", "demo", "--note", "made by gateway demo", "--json"])[0]["key"]
            good = _round_trip(brand, address, key)
            if arguments.once or not good:
                return 0 if good else 1
            print("\nRunning until Ctrl-C.")
            while gateway.alive() and sandbox.alive():
                time.sleep(0.2)
            print(f"gateway: a process ended by itself; its last words are in {folder}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\nstopping")
            return 0
        except ProcessError as error:
            print(f"gateway: {error}", file=sys.stderr)
            return 1


def _write_config(folder: Path, port: int, brand: str) -> None:
    pseudonym_key = folder / "pseudonym.key"
    make_secret_file(pseudonym_key)
    text = _CONFIG.format(port=port, folder=json.dumps(str(folder)), brand=brand, pseudonym_key=json.dumps(str(pseudonym_key)))
    config_path(os.environ).write_text(text)


def _round_trip(brand: str, address: str, key: str) -> bool:
    """Make one call, print what went in, what came out and what was recorded; say whether all of it was right."""
    with httpx.Client(timeout=10, trust_env=False) as client:
        made = client.post(brand + _SET_PATH, json={"ssid": _VENDOR_SSID, "m1": "9876543210", "m2": "9876543211"})
        mask = made.json().get("mask")
        if made.json().get("status") != "success":
            # A demo that was killed left this pair masked: its end is what the call below is for.
            mask = None
        print(f"vendor    a masking between 9876543210 and 9876543211 is set, mask {mask or 'from before'}")
        body = {"m1": "9876543210", "m2": "9876543211", "expiry_duration": -1}
        # Another masking, for the line to try next.
        client.post(brand + _SET_PATH, json={"ssid": _VENDOR_SSID, "m1": "9876543212", "m2": "9876543213"})
        answer = client.post(address + UNSET_PATH, json=body, headers={"Authorization": f"Bearer {key}"})
    print(f"request   POST {address}{UNSET_PATH}")
    print(f"          Authorization: Bearer {key[:19]}…")
    print(f"          {json.dumps(body)}")
    print(f"answer    {answer.status_code} {answer.text}")
    records = _records(answer.headers.get("x-request-id", ""))
    for record in records:
        print(f"record    {json.dumps(record)}")
    sys.stdout.flush()  # The command below writes to the same place.
    _command(["audit", "tail", "--count", "2"], show=True)
    print("try       " + _curl(address, key))
    good = answer.status_code == 200 and [record["stage"] for record in records] == ["intent", "outcome"]
    if not good:
        print("gateway: the round trip did not succeed; the answer and the records above say where", file=sys.stderr)
    return good


def _records(request_id: str) -> list[dict[str, Any]]:
    """Return the call's records; the outcome is written just after the answer is sent."""
    deadline = time.monotonic() + 5
    records: list[dict[str, Any]] = []
    while len(records) < 2 and time.monotonic() < deadline:
        records = _command(["audit", "search", "--request-id", request_id, "--json"], may_fail=True)
    return records


def _curl(address: str, key: str) -> str:
    return (
        f"curl -sS {address}{UNSET_PATH} -H 'Authorization: Bearer {key}' "
        """-d '{"m1":"9876543212","m2":"9876543213","expiry_duration":-1}'"""
    )


def _command(words: list[str], *, show: bool = False, may_fail: bool = False) -> list[dict[str, Any]]:
    done = command(words, {"GATEWAY_CONFIG": str(config_path(os.environ))}, show=show)
    if done.returncode != 0 and not may_fail:
        raise ProcessError(f"`gateway {' '.join(words[:2])}` failed: {(done.stderr or '').strip()}")
    return [] if show else [json.loads(line) for line in done.stdout.splitlines()]


def _folder(environ: Mapping[str, str]) -> Path:
    return embedded.state_folder("", environ) / "demo"
