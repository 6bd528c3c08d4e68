"""config/kubernetes: manifests that Kubernetes takes, that agree with each other, with the settings and with the commands."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from gateway import config
from gateway.cli.main import make_parser
from gateway.sandbox.__main__ import _parser as sandbox_parser

ROOT = Path("config/kubernetes")
VERSIONS = ("1.30", "1.34")
KUSTOMIZATIONS = {name: yaml.safe_load((ROOT / name / "kustomization.yaml").read_text()) for name in ("base", "example")}
PATHS = {name: [ROOT / name / path for path in found["resources"] if path != "../base"] for name, found in KUSTOMIZATIONS.items()}
DOCUMENTS = {
    name: [document for path in paths for document in yaml.safe_load_all(path.read_text())] for name, paths in PATHS.items()
}
ALL = [*DOCUMENTS["base"], *DOCUMENTS["example"]]
WORKLOADS = [document for document in ALL if document["kind"] in ("Deployment", "StatefulSet")]
OURS = [workload for workload in WORKLOADS if workload["spec"]["template"]["spec"]["containers"][0]["image"] == "masking-gateway"]
VENDOR, SHARED, SEALER = "masking-gateway-vendor", "masking-gateway-shared", "masking-gateway-sealer"


def name_of(document):
    return f"{document['kind']}/{document['metadata']['name']}"


def found(kind, name):
    (one,) = [document for document in ALL if name_of(document) == f"{kind}/{name}"]
    return one


def pod_of(workload):
    return workload["spec"]["template"]["spec"]


def container_of(workload):
    (one,) = pod_of(workload)["containers"]
    return one


def secrets_of(workload):
    """Return by the folder where it is mounted, each secret."""
    targets = {mount["name"]: mount["mountPath"] for mount in container_of(workload).get("volumeMounts", [])}
    return {
        targets[volume["name"]]: source["secret"]["name"]
        for volume in pod_of(workload).get("volumes", [])
        for source in volume.get("projected", {}).get("sources", [])
    }


def selected(selector, labels):
    return selector.items() <= labels.items()


def settings(name):
    return config.parse(tomllib.loads((ROOT / name / "gateway.toml").read_text()), {})


GATEWAY, SEALER_POD, CONSOLE = (
    found("StatefulSet", "masking-gateway"),
    found("Deployment", "masking-sealer"),
    found("Deployment", "masking-console"),
)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("document", ALL, ids=name_of)
def test_kubernetes_takes_it(document, version):
    """By its own schemas, in which a field that does not exist is a fault."""
    kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("name", ["base", "example"])
def test_kustomize_builds_it(name, tmp_path):
    """By kubectl itself, where there is one; what it builds is valid too, and lacks nothing that it names."""
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl here")
    shutil.copytree(ROOT, tmp_path / "kubernetes")
    for secret in ("pseudonym_key", "signing_key"):
        (tmp_path / "kubernetes" / "example" / secret).write_text("x")
    done = subprocess.run(["kubectl", "kustomize", tmp_path / "kubernetes" / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    for document in built:
        kubernetes_validate.validate(document, VERSIONS[-1], strict=True)

    there = {name_of(document) for document in built}
    for workload in [document for document in built if document["kind"] in ("Deployment", "StatefulSet")]:
        for volume in pod_of(workload).get("volumes", []):
            if "configMap" in volume:
                assert f"ConfigMap/{volume['configMap']['name']}" in there
        if name == "example":
            assert {f"Secret/{secret}" for secret in secrets_of(workload).values()} <= there
        image = container_of(workload)["image"]
        assert re.fullmatch(r"masking-gateway:\d+\.\d+\.\d+|\S+:v?\d+\.\d+\.\d+\S*@sha256:[0-9a-f]{64}", image), image
    kinds = {name_of(document) for document in DOCUMENTS["base"] + (DOCUMENTS["example"] if name == "example" else [])}
    assert kinds <= there


def test_each_file_is_in_a_kustomization():
    """And each that a kustomization names is there, and each thing that is patched."""
    for name, kustomization in KUSTOMIZATIONS.items():
        files = {path.name for path in (ROOT / name).glob("*.yaml")} - {"kustomization.yaml"}
        assert {path.name for path in PATHS[name]} == files
        for generator in kustomization["configMapGenerator"]:
            assert all((ROOT / name / path).exists() for path in generator["files"])
        for patch in kustomization.get("patches", []):
            assert found(patch["target"]["kind"], patch["target"]["name"])
    assert len({name_of(document) for document in ALL}) == len(ALL)
    assert not any("namespace" in document["metadata"] for document in ALL)


@pytest.mark.parametrize("workload", WORKLOADS, ids=name_of)
def test_every_pod_is_confined(workload):
    """What Kubernetes calls restricted, and a root that is read-only besides."""
    pod, container = pod_of(workload), container_of(workload)
    security = pod["securityContext"]

    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] > 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert not any("hostPath" in volume for volume in pod.get("volumes", []))
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    assert "memory" in container["resources"]["limits"]
    assert "readinessProbe" in container


@pytest.mark.parametrize("workload", WORKLOADS, ids=name_of)
def test_names_agree_within_a_workload(workload):
    """Selectors, volumes, and ports that probes ask."""
    pod, container = pod_of(workload), container_of(workload)
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    volumes |= {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}
    ports = {port["name"] for port in container.get("ports", [])}

    assert selected(workload["spec"]["selector"]["matchLabels"], workload["spec"]["template"]["metadata"]["labels"])
    assert {mount["name"] for mount in container.get("volumeMounts", [])} == volumes
    assert not any("subPath" in mount for mount in container.get("volumeMounts", []))
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container.get(probe, {})
        for how in ("httpGet", "tcpSocket"):
            assert how not in asked or asked[how]["port"] in ports
    for volume in pod.get("volumes", []):
        if "persistentVolumeClaim" in volume:
            assert found("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])
        if "configMap" in volume:
            assert volume["configMap"]["name"] in [one["name"] for one in KUSTOMIZATIONS["base"]["configMapGenerator"]]
    if workload["kind"] == "StatefulSet":
        assert found("Service", workload["spec"]["serviceName"])


@pytest.mark.parametrize("service", [document for document in ALL if document["kind"] == "Service"], ids=name_of)
def test_a_service_finds_its_pods(service):
    """One workload, and by ports that it has."""
    (workload,) = [
        one for one in WORKLOADS if selected(service["spec"]["selector"], one["spec"]["template"]["metadata"]["labels"])
    ]

    assert {port["targetPort"] for port in service["spec"]["ports"]} <= {port["name"] for port in container_of(workload)["ports"]}


def test_policies_name_pods_and_ports_that_there_are():
    """And whatever is ours is denied all that is not named."""
    policies = [document for document in ALL if document["kind"] == "NetworkPolicy"]
    for policy in policies:
        picked = [
            one
            for one in WORKLOADS
            if selected(policy["spec"]["podSelector"]["matchLabels"], one["spec"]["template"]["metadata"]["labels"])
        ]
        assert picked, name_of(policy)
        for rule in policy["spec"].get("ingress", []):
            for port in rule["ports"]:
                assert all(port["port"] in {one["name"] for one in container_of(workload)["ports"]} for workload in picked)
            assert rule["from"]
        for rule in policy["spec"].get("egress", []):
            assert rule["to"]
            assert rule["ports"]
            for peer in [peer for peer in rule["to"] if peer.keys() == {"podSelector"}]:
                assert any(
                    selected(peer["podSelector"]["matchLabels"], one["spec"]["template"]["metadata"]["labels"])
                    for one in WORKLOADS
                )
    for workload in WORKLOADS:
        labels = workload["spec"]["template"]["metadata"]["labels"]
        of_it = [policy["spec"] for policy in policies if selected(policy["spec"]["podSelector"]["matchLabels"], labels)]
        assert {kind for spec in of_it for kind in spec["policyTypes"]} == {"Ingress", "Egress"}


def test_the_gateway_alone_reaches_the_vendor():
    """And the sealer its store; the console nothing but Redis."""
    outward = {
        policy["metadata"]["name"]
        for policy in ALL
        if policy["kind"] == "NetworkPolicy"
        for rule in policy["spec"].get("egress", [])
        for peer in rule["to"]
        if peer.get("ipBlock", {}).get("cidr") in ("0.0.0.0/0", "::/0")
    }

    assert outward == {"masking-gateway", "masking-sealer"}


def test_secrets_are_where_they_are_needed_and_nowhere_else():
    """As files, in the order of who may read them; none in the environment."""
    given = {workload["metadata"]["name"]: set(secrets_of(workload).values()) for workload in WORKLOADS}

    assert given == {
        "masking-gateway": {VENDOR, SHARED},
        "masking-sealer": {SHARED, SEALER},
        "masking-console": {SHARED},
        "masking-redis": set(),
        "sandbox": set(),
    }
    for workload in WORKLOADS:
        assert not any("valueFrom" in one for one in container_of(workload).get("env", []))
        assert "envFrom" not in container_of(workload)
        for volume in pod_of(workload).get("volumes", []):
            assert "projected" not in volume or volume["projected"]["defaultMode"] == 0o440
    generated = {one["name"] for one in KUSTOMIZATIONS["example"]["secretGenerator"]}
    assert generated == {VENDOR, SHARED, SEALER}
    archive = {
        workload["metadata"]["name"]: mount.get("readOnly", False)
        for workload in OURS
        for mount in container_of(workload).get("volumeMounts", [])
        if mount["name"] == "archive"
    }
    assert archive == {"masking-sealer": False, "masking-console": True}


@pytest.mark.parametrize("name", ["base", "example"])
def test_the_settings_agree_with_the_pods(name):
    """Each secret and folder is there for whoever needs it, and who ends a pod waits long enough."""
    read = settings(name)
    mounted = {
        workload["metadata"]["name"]: {one["mountPath"] for one in container_of(workload).get("volumeMounts", [])}
        for workload in OURS
    }
    container = container_of(GATEWAY)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    readiness = container["readinessProbe"]

    assert {read.server.state_dir, str(Path(read.accounts["main"].primary.ssid.target[0]).parent)} <= mounted["masking-gateway"]
    assert {read.audit.archive, str(Path(read.audit.signing_key.target[0]).parent)} <= mounted["masking-sealer"]
    assert all(str(Path(read.audit.pseudonym_key.target[0]).parent) in mounted[one] for one in mounted if one != "sandbox")
    assert ports == {"http": read.server.port, "ops": read.server.ops_port}
    assert read.server.host == read.server.ops_host == "0.0.0.0"
    assert pod_of(GATEWAY)["terminationGracePeriodSeconds"] > read.server.drain_seconds
    assert readiness["periodSeconds"] * readiness["failureThreshold"] < read.server.lame_duck_seconds
    assert readiness["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == container["startupProbe"]["httpGet"]["path"] == "/livez"
    assert GATEWAY["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"] == str(ports["ops"])
    assert read.audit.sealing == "apart"
    # What the base asks of a secret is what its first lines say that it has.
    said = (ROOT / "base" / "kustomization.yaml").read_text()
    keys = {
        Path(reference.target[0]).name
        for reference in (read.accounts["main"].primary.ssid, read.audit.pseudonym_key, read.audit.signing_key)
    }
    assert all(re.search(rf"^#   masking-gateway-\w+ +.*\b{key}\b", said, re.MULTILINE) for key in keys)


def test_the_journal_outlives_its_pod():
    """A claim for each replica, kept whatever becomes of the pod; one replica is away at most."""
    (claim,) = GATEWAY["spec"]["volumeClaimTemplates"]
    size = int(re.fullmatch(r"(\d+)Gi", claim["spec"]["resources"]["requests"]["storage"])[1]) * 2**30
    read = settings("base")
    budget = found("PodDisruptionBudget", "masking-gateway")["spec"]

    assert {one["mountPath"] for one in container_of(GATEWAY)["volumeMounts"] if one["name"] == claim["metadata"]["name"]} == {
        read.server.state_dir
    }
    assert GATEWAY["spec"]["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    assert size >= 2 * read.audit.journal_bytes_max * read.server.workers * len(read.accounts) + read.audit.disk_free_bytes_min
    assert GATEWAY["spec"]["replicas"] >= 2
    assert budget["maxUnavailable"] == 1
    assert budget["selector"] == GATEWAY["spec"]["selector"]
    assert SEALER_POD["spec"]["replicas"] == 1
    assert SEALER_POD["spec"]["strategy"] == {"type": "Recreate"}
    (beside,) = pod_of(CONSOLE)["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert selected(beside["labelSelector"]["matchLabels"], SEALER_POD["spec"]["template"]["metadata"]["labels"])


@pytest.mark.parametrize("workload", OURS, ids=name_of)
def test_its_command_is_one_of_ours(workload):
    """And it reads the settings that are mounted."""
    container = container_of(workload)
    words = container["args"]

    if words[0] == "sandbox":
        arguments = sandbox_parser().parse_args(words[1:])
        service = found("Service", "sandbox")["spec"]["ports"][0]
        assert settings("example").accounts["main"].brand == f"http://sandbox:{service['port']}"
        assert arguments.port == container["ports"][0]["containerPort"]
        assert f"ssid={arguments.ssid[0]}" in KUSTOMIZATIONS["example"]["secretGenerator"][0]["literals"]
        return
    assert make_parser(words[0]).parse_args(words).run
    assert container["env"] == [{"name": "GATEWAY_CONFIG", "value": "/etc/masking-gateway/gateway.toml"}]
    assert "/etc/masking-gateway" in {mount["mountPath"] for mount in container["volumeMounts"]}
    assert KUSTOMIZATIONS["base"]["configMapGenerator"] == [{"name": "masking-gateway", "files": ["gateway.toml"]}]
