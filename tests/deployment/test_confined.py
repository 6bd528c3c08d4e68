"""The commands of docker-compose.yml, confined as their containers are: by Linux itself, since no engine need be here."""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from gateway import embedded
from tests.running import Process, free_port, until

SERVICES = yaml.safe_load(Path("docker-compose.yml").read_text())["services"]
SCRIPT = Path(__file__).with_name("confined.sh")
UNSHARE = [
    "unshare",
    "--user",
    "--map-user=10001",
    "--map-group=10001",
    "--keep-caps",
    "--mount",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
]
GATEWAY = str(Path(sys.executable).with_name("gateway"))
PROBE = """
import json, os
def refused(path):
    try:
        open(path, "w").close()
    except OSError as error:
        return error.strerror
    os.unlink(path)
print(json.dumps({"uid": os.getuid(), "pid": os.getpid(), "status": open("/proc/self/status").read(),
    "refused": {path: refused(path + "/probe") for path in PATHS}}))
"""


def confined(mounts, words):
    """Return the words that run others confined, and their environment. `mounts`: by target, a source and "rw" or "ro"."""
    lines = "\n".join(f"{source} {target} {mode}" for target, (source, mode) in mounts.items())
    return [*UNSHARE, "sh", str(SCRIPT), *words], {
        "MOUNTS": lines,
        "HOME": "/nonexistent",
        "TMPDIR": "/run/tmp",
        "GATEWAY_CONFIG": "/run/gateway.toml",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def inside(process):
    """Return the process that is number 1 in there."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(children[0])


def stop(process):
    """Send SIGTERM to process 1, as an engine does; return the exit status."""
    os.kill(inside(process), signal.SIGTERM)
    return process.popen.wait(60)


@pytest.fixture(scope="module", autouse=True)
def possible():
    done = subprocess.run(
        [*UNSHARE, "sh", "-c", "mount -t tmpfs tmpfs /run && command -v findmnt setpriv"], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"this machine lets nobody make namespaces: {done.stderr.strip()}")


@pytest.fixture
def host(tmp_path):
    """Yield what the containers share: folders by name, a Redis, a sandbox, and the settings of docker-compose.yml for here."""
    folders = {name: tmp_path / name for name in ("state", "sealer", "archive", "made", "redis")}
    for folder in folders.values():
        folder.mkdir(mode=0o700)
    for name in ("pseudonym_key", "redis_password"):
        (folders["made"] / name).write_text(secrets.token_hex(32))
    port = free_port()
    there = ["--port", "0", "--unixsocket", str(folders["redis"] / "r.sock"), "--dir", str(folders["redis"])]
    password = (folders["made"] / "redis_password").read_text()
    durable = ["--appendonly", "yes", "--maxmemory-policy", "noeviction", "--requirepass", password]
    store = Process(tmp_path, "redis", [embedded._binary(), *there, *durable])
    sandbox = Process(tmp_path, "sandbox", [sys.executable, "-m", "gateway", "sandbox", "--port", "0", "--ssid", "sandbox-ssid"])
    try:
        text = Path("config/compose.toml").read_text()
        for written, here in {
            "redis://redis:6379": "unix:///run/redis/r.sock",
            "http://sandbox:9090": sandbox.address(),
            "port = 8080": f"port = {port}\nops_port = 0",
            '"0.0.0.0"': '"127.0.0.1"',
        }.items():
            assert written in text
            text = text.replace(written, here)
        (tmp_path / "gateway.toml").write_text(text)
        shutil.copytree("config/sandbox", tmp_path / "vendor")
        until((folders["redis"] / "r.sock").exists, what="redis listening")
        yield {"port": port, "folders": folders, "folder": tmp_path}
    finally:
        sandbox.stop()
        store.stop()


def mounts_of(name, host):
    """Return the mounts of a service, as docker-compose.yml has them, from folders of this machine."""
    found = {"/run/gateway.toml": (host["folder"] / "gateway.toml", "ro"), "/run/redis": (host["folders"]["redis"], "ro")}
    for volume in SERVICES[name]["volumes"]:
        source, target, mode = (
            volume.split(":") + ["rw"]
            if isinstance(volume, str) and volume.count(":") == 1
            else volume.split(":")
            if isinstance(volume, str)
            else [volume["source"], volume["target"], "ro" if volume.get("read_only") else "rw"]
        )
        if target == "/run/secrets/vendor":
            found[target] = (host["folder"] / "vendor", mode)
        elif not source.startswith("."):
            found[target] = (host["folders"]["made" if source == "secrets" else source], mode)
    return found


def start(name, host):
    words, environ = confined(mounts_of(name, host), [GATEWAY, *SERVICES[name]["command"]])
    return Process(host["folder"], name, words, environ)


def run(name, host, *words):
    """Run a command in a container of its own, with the mounts of a service; return what it printed."""
    words, environ = confined(mounts_of(name, host), words)
    done = subprocess.run(words, env={**os.environ, **environ}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def healthy(name, host):
    """Say whether a service's own health check passes; it need not be in the same container to ask."""
    kind, python, *words = SERVICES[name]["healthcheck"]["test"]
    assert (kind, python) == ("CMD", "python")
    words = [word.replace(":8080", f":{host['port']}") for word in words]
    built, environ = confined(mounts_of(name, host), [sys.executable, *words])
    return subprocess.run(built, env={**os.environ, **environ}, capture_output=True, timeout=60).returncode == 0


def listens(port):
    """Say whether somebody takes connections there; cheaper to ask than a health check."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_container_can_write_only_what_it_is_given(host):
    """So the tests below show something: nobody's root, no capability, a root that is read-only."""
    paths = ["/", "/run", "/var/lib", "/etc", str(Path(sys.prefix)), "/var/lib/masking-gateway", "/run/tmp"]

    told = json.loads(run("gateway", host, sys.executable, "-I", "-c", PROBE.replace("PATHS", repr(paths))))

    assert (told["uid"], told["pid"]) == (10001, 1)
    assert set(re.findall(r"^Cap\w+:\s*(\w+)$", told["status"], re.MULTILINE)) == {"0" * 16}
    assert re.search(r"^NoNewPrivs:\s*1$", told["status"], re.MULTILINE)
    assert {path for path, why in told["refused"].items() if why is None} == {"/var/lib/masking-gateway", "/run/tmp"}
    assert {why for why in told["refused"].values() if why} == {"Read-only file system"}


@pytest.mark.timeout(400)
def test_a_call_is_made_sealed_and_found(host):
    """Gateway and sealer serve as process 1, an operator reads the trail without either's secrets, and SIGTERM ends them well."""
    gateway, sealer = start("gateway", host), start("sealer", host)
    try:
        until(lambda: listens(host["port"]), seconds=90, what="the gateway listening")
        until(lambda: healthy("gateway", host), seconds=60, what="the gateway healthy")
        until(lambda: healthy("sealer", host), seconds=60, what="the sealer healthy")
        key = re.search(r"gk_\S+", run("gateway", host, GATEWAY, "keys", "issue", "crm"))[0]
        body = b'{"m1":"9876543210","m2":"9876543211","expiry_duration":-1}'
        request = urllib.request.Request(
            f"http://127.0.0.1:{host['port']}/api/v2/Masking/unset", body, {"Authorization": f"Bearer {key}"}
        )
        with pytest.raises(urllib.error.HTTPError) as refused:  # The sandbox knows of no such masking: the vendor was asked.
            urllib.request.urlopen(request, timeout=10)
        answer = json.loads(refused.value.read())
        assert (answer["error"], answer["origin"]) == ("masking_not_found", "vendor")

        search = (GATEWAY, "audit", "search", "--request-id", answer["request_id"], "--json")
        records = until(
            lambda: len(found := [json.loads(line) for line in run("console", host, *search).splitlines()]) == 2 and found,
            seconds=30,
            what="both records",
        )
        assert {record["stage"] for record in records} == {"intent", "outcome"}
        # Of the sealed trail, whose index is open elsewhere and can only be read here.
        until(
            lambda: answer["request_id"] in run("console", host, GATEWAY, "audit", "prove", answer["request_id"]),
            seconds=30,
            what="a proof",
        )
        assert not (host["folders"]["archive"] / "signing.key").exists()
        assert (host["folders"]["sealer"] / "signing.key").exists()
        assert stop(gateway) == 0
        assert stop(sealer) == 0
    finally:
        for process in (gateway, sealer):
            process.popen.kill()
            process.popen.wait()
