"""docker-compose.yml and the image: what is promised of every container, without an engine to run one."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import redis
import yaml

from gateway import config, embedded
from gateway.cli.main import make_parser
from gateway.sandbox.__main__ import _parser as sandbox_parser
from tests.running import Process, until

COMPOSE = yaml.safe_load(Path("docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if service["image"].startswith("masking-gateway")]
SETTINGS = config.parse(tomllib.loads(Path("config/compose.toml").read_text()), {})
CREDENTIAL = "/run/secrets/vendor"
VENDOR_FOLDER = r"\$\{MASKING_VENDOR_DIR:-(.*)\}"
PINNED = r"\S+:v?\d+\.\d+\.\d+\S*@sha256:[0-9a-f]{64}"


def mounts(name):
    """Return what a service has from outside: source, target, whether it may be written."""
    found = []
    for volume in SERVICES[name].get("volumes", []):
        if isinstance(volume, str):
            source, target, *options = volume.split(":")
            found.append((source, target, "ro" not in options))
        else:
            found.append((volume["source"], volume["target"], not volume.get("read_only", False)))
    return found


def test_it_is_a_compose_file():
    """By the specification's own schema."""
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_docker_reads_it():
    """By compose itself, where it is installed."""
    try:
        done = subprocess.run(["docker", "compose", "version"], capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no docker here")
    if done.returncode:
        pytest.skip("docker has no compose here")
    done = subprocess.run(["docker", "compose", "config", "--format", "json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["services"].keys() == SERVICES.keys()


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_confined(name):
    """Nothing of it can be written but what it is given, and it can become nothing else."""
    service = SERVICES[name]
    limits = service["deploy"]["resources"]["limits"]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"[1-9]\d*:\d+", service["user"])
    assert {"cpus", "memory", "pids"} == limits.keys()
    assert not {"privileged", "cap_add", "pid", "ipc", "devices"} & service.keys()
    assert not any(source.startswith("/") for source, _, _ in mounts(name))
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert "test" in service["healthcheck"] or service["restart"] == "no"
    assert re.fullmatch(PINNED, service["image"]) or name in OURS


def test_the_image_is_built_once():
    """Its other services run what one of them builds."""
    assert [name for name in SERVICES if "build" in SERVICES[name]] == ["secrets"]
    assert {SERVICES[name]["image"] for name in OURS} == {"masking-gateway:local"}


def test_the_credential_is_in_the_gateway_alone():
    """So is nothing else that another has no use for."""
    assert [name for name in SERVICES if CREDENTIAL in [target for _, target, _ in mounts(name)]] == ["gateway"]
    assert "secrets" not in COMPOSE
    assert [name for name in SERVICES if "sealer" in [source for source, _, _ in mounts(name)]] == ["sealer"]
    assert {name: writable for name in SERVICES for source, _, writable in mounts(name) if source == "archive"} == {
        "sealer": True,
        "console": False,
    }
    assert {name: writable for name in SERVICES for source, _, writable in mounts(name) if source == "secrets"} == {
        "secrets": True,
        "gateway": False,
        "sealer": False,
        "console": False,
    }
    for name in SERVICES:
        told = json.dumps(SERVICES[name].get("environment", {})).lower()
        assert not re.search('ssid|token|password"|secret_', told), name


def test_only_the_gateway_reaches_out():
    """Every other network is internal, or gives no way back."""
    networks = COMPOSE["networks"]
    open_ones = {name for name, settings in networks.items() if not settings.get("internal")} - {"pages"}

    assert open_ones == {"vendor"}
    assert networks["pages"]["driver_opts"] == {"com.docker.network.bridge.enable_ip_masquerade": "false"}
    assert [name for name in SERVICES if "vendor" in SERVICES[name].get("networks", [])] == ["gateway"]
    assert {name for name in SERVICES if "store" in SERVICES[name].get("networks", [])} == {
        "redis",
        "gateway",
        "sealer",
        "console",
    }
    assert SERVICES["secrets"]["network_mode"] == "none"
    assert all(SERVICES[name].get("networks") or SERVICES[name].get("network_mode") == "none" for name in SERVICES)


def test_everything_named_exists():
    """Files, volumes, networks, secrets, services."""
    for name, service in SERVICES.items():
        for source, target, writable in mounts(name):
            if target == CREDENTIAL:
                assert not writable
                assert list(Path(re.fullmatch(VENDOR_FOLDER, source)[1]).iterdir()) == [Path("config/sandbox/ssid")]
            elif source.startswith("."):
                assert not writable
                assert Path(source).exists(), source
            else:
                assert source in COMPOSE["volumes"]
        assert set(service.get("networks", [])) <= COMPOSE["networks"].keys()
        assert set(service.get("depends_on", {})) <= SERVICES.keys()
    used = {source for name in SERVICES for source, _, _ in mounts(name)}
    assert COMPOSE["volumes"].keys() <= used


@pytest.mark.parametrize("name", [name for name in OURS if "entrypoint" not in SERVICES[name]])
def test_its_command_is_one_of_ours(name):
    """And is told settings that it has."""
    words = SERVICES[name]["command"]

    if words[0] == "sandbox":
        arguments = sandbox_parser().parse_args(words[1:])
        assert SETTINGS.accounts["main"].brand == f"http://{name}:{arguments.port}"
        assert [Path("config/sandbox/ssid").read_text().strip()] == arguments.ssid
        return
    assert make_parser(words[0]).parse_args(words).run
    assert ("./config/compose.toml", SERVICES[name]["environment"]["GATEWAY_CONFIG"], False) in mounts(name)


def test_the_settings_agree_with_the_containers():
    """Each secret and folder they name is there for whoever needs it."""
    targets = {name: {target: writable for _, target, writable in mounts(name)} for name in OURS}
    made = {SETTINGS.audit.pseudonym_key.target[0], SETTINGS.redis.password.target[0]}

    assert SETTINGS.accounts["main"].primary.ssid.target == (f"{CREDENTIAL}/ssid",)
    assert {str(Path(path).parent) for path in made} == {"/run/made"}
    assert all("/run/made" in targets[name] for name in ("gateway", "sealer", "console"))
    assert targets["gateway"][SETTINGS.server.state_dir] is True
    assert targets["sealer"][SETTINGS.audit.archive] is True
    assert targets["console"][SETTINGS.audit.archive] is False
    assert SETTINGS.audit.sealing == "apart"
    assert SETTINGS.audit.strict
    assert f":{SETTINGS.server.port}" in SERVICES["gateway"]["ports"][0]
    assert int(SERVICES["gateway"]["stop_grace_period"].rstrip("s")) > SETTINGS.server.drain_seconds


def test_prometheus_finds_the_gateway_and_grafana_prometheus():
    """By the names and ports, and in the folders, that their own files have."""
    (job,) = yaml.safe_load(Path("config/prometheus/prometheus.yml").read_text())["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    (source,) = yaml.safe_load(Path("config/grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    (shown,) = yaml.safe_load(Path("config/grafana/provisioning/dashboards/masking-gateway.yml").read_text())["providers"]

    assert (found["names"], found["port"]) == (["gateway"], SETTINGS.server.ops_port)
    assert SETTINGS.server.ops_host == SETTINGS.server.host == "0.0.0.0"
    assert source["url"] == "http://prometheus:9090"
    assert shown["options"]["path"] in [target for _, target, _ in mounts("grafana")]
    for one, other in (("prometheus", "gateway"), ("grafana", "prometheus")):
        assert set(SERVICES[one]["networks"]) & set(SERVICES[other]["networks"]) & {"watch"}


def test_secrets_are_made_once(tmp_path):
    """By the very program in the file; a second start changes none."""
    shared, auth = tmp_path / "shared", tmp_path / "redis"
    shared.mkdir()
    auth.mkdir()
    program = SERVICES["secrets"]["command"][0]

    def made():
        subprocess.run([sys.executable, "-c", program, shared, auth], check=True)
        return {path.name: path.read_text() for folder in (shared, auth) for path in folder.iterdir()}

    first = made()
    assert made() == first
    assert first.keys() == {Path(path).name for path in ("pseudonym_key", "redis_password", "auth.conf")}
    assert first["auth.conf"] == f"requirepass {first['redis_password']}\n"
    assert len(first["pseudonym_key"]) == 64 and first["pseudonym_key"] != first["redis_password"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in shared.iterdir())


def test_redis_takes_what_it_is_told(tmp_path):
    """The options of the file, by a real server, with the password it is given."""
    _, path, *options = SERVICES["redis"]["command"]
    assert path == "/run/auth/auth.conf"
    (tmp_path / "auth.conf").write_text("requirepass 0123456789abcdef\n")
    here = ["--port", "0", "--unixsocket", str(tmp_path / "r.sock"), "--dir", str(tmp_path)]
    server = Process(tmp_path, "redis", [embedded._binary(), str(tmp_path / "auth.conf"), *options, *here])
    try:
        until((tmp_path / "r.sock").exists, what="redis listening")
        with redis.Redis(unix_socket_path=str(tmp_path / "r.sock"), password="0123456789abcdef") as client:
            kept = client.config_get("*")
    finally:
        server.stop()

    assert kept["appendonly"] == "yes"
    assert kept["appendfsync"] == "always"
    assert kept["maxmemory-policy"] == "noeviction"
    assert int(kept["maxmemory"]) == 512 * 1024 * 1024


def test_the_image_has_what_it_is_to_have():
    """Nothing unpinned, nobody's root, and no more than it needs."""
    text = Path("Dockerfile").read_text()
    last = text[text.rindex("\nFROM ") :]

    assert "USER 10001:10001" in last
    assert re.search(rf"^ARG PYTHON_IMAGE={PINNED}$", text, re.MULTILINE)
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == ["${PYTHON_IMAGE}"] * 2
    assert all("--require-hashes" in line for line in re.findall(r"install[^\n]*-r [^\n]*", text))
    assert "PIP_ONLY_BINARY=:all:" in text
    assert "apt-get" not in text
    assert re.search(r'ENTRYPOINT \["gateway"\]\nCMD \["serve"\]', last)
    for folder in (SETTINGS.server.state_dir, SETTINGS.audit.archive, "/var/lib/masking-secrets", "/var/lib/masking-redis"):
        assert folder in last


def test_the_context_of_the_build_is_what_it_copies():
    """A secret beside the sources cannot get into a layer."""
    kept = {line[1:] for line in Path(".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        word
        for words in re.findall(r"^COPY (?!--from)(.*)$", Path("Dockerfile").read_text(), re.MULTILINE)
        for word in words.split()[:-1]
    }

    assert kept == copied


def test_every_dependency_is_pinned():
    """Those of each extra that the image has too."""
    project = tomllib.loads(Path("pyproject.toml").read_text())
    wanted = [
        *project["project"]["dependencies"],
        *(one for extra in project["project"]["optional-dependencies"].values() for one in extra),
    ]
    pinned = re.findall(r"^([a-z0-9.-]+)==", Path("config/requirements.txt").read_text(), re.MULTILINE)
    build = re.findall(r"^([a-z0-9.-]+)==", Path("config/requirements-build.txt").read_text(), re.MULTILINE)

    assert {re.match(r"[A-Za-z0-9.-]+", one)[0].lower() for one in wanted} <= set(pinned)
    assert {re.match(r"[A-Za-z0-9.-]+", one)[0] for one in project["build-system"]["requires"]} <= set(build)
