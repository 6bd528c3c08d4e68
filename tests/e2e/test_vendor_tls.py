"""What can be wrong with the vendor's TLS: each cause has its own name, and no call is made."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.e2e.scripted import SUCCESS, Line, ScriptedVendor, answered
from tests.e2e.test_main_job import assert_refused
from tests.running import Stack

FAULTS = {
    "expired": "upstream_tls_expired",
    "not-yet-valid": "upstream_tls_expired",
    "another-host": "upstream_tls_wrong_host",
    "another-address": "upstream_tls_wrong_host",
    "no-host": "upstream_tls_wrong_host",
    "unknown-issuer": "upstream_tls_untrusted",
    "unknown-chain": "upstream_tls_untrusted",
    "self-signed": "upstream_tls_untrusted",
    "not-for-servers": "upstream_tls_failed",
    "no-tls": "upstream_tls_failed",
    "old-protocol": "upstream_tls_failed",
    "other-ciphers": "upstream_tls_failed",
    "hangs-up": "upstream_unreachable",
    "resets": "upstream_unreachable",
    "stalls": "upstream_unreachable",
}


def serving(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def day(days: int) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)


def made(folder: Path, issuer: trustme.CA | None, usage: x509.ObjectIdentifier | None = None, begins: int = -1) -> ssl.SSLContext:
    """Return a context with a certificate for 127.0.0.1 that trustme does not make; `issuer` None: by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "vendor")])
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name if issuer is None else issuer._certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(day(begins))
        .not_valid_after(day(begins + 30))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
    )
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
    certificate = builder.sign(key if issuer is None else issuer._private_key, hashes.SHA256())
    path = folder / f"{certificate.serial_number}.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


def answer(line: Line) -> None:
    """Answer every request."""
    while line.request():
        line.send(answered())


def speak_plainly(line: Line) -> None:
    """Take TLS's first words for a bad request, as a plain HTTP server does."""
    line.socket.recv(65_536)
    line.send(answered(b"", status=b"400 Bad Request"))


def hang_up(line: Line) -> None:
    """Hang up on TLS's first words."""
    line.socket.recv(65_536)


def reset(line: Line) -> None:
    """Reset the connection on TLS's first words."""
    line.socket.recv(65_536)
    line.reset()


def break_off(line: Line) -> None:
    """Read a request, and answer it with what is no TLS any more."""
    line.request()
    raw = socket.socket(fileno=line.socket.detach())
    raw.sendall(answered())
    raw.close()


@pytest.fixture(scope="module")
def vendors() -> dict[str, ScriptedVendor]:
    return {}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, vendors: dict[str, ScriptedVendor]) -> Iterator[Stack]:
    """A gateway with an account for each vendor, which share one authority."""
    folder = tmp_path_factory.mktemp("tls")
    ours, theirs = trustme.CA(), trustme.CA()
    authority = folder / "ca.pem"
    ours.cert_pem.write_to_path(str(authority))
    old, other = serving(ours.issue_cert("127.0.0.1")), serving(ours.issue_cert("127.0.0.1"))
    old.minimum_version, old.maximum_version = ssl.TLSVersion.MINIMUM_SUPPORTED, ssl.TLSVersion.TLSv1_2
    old.set_ciphers("AES128-SHA:@SECLEVEL=0")
    other.maximum_version = ssl.TLSVersion.TLSv1_2
    other.set_ciphers("ECDHE-ECDSA-AES128-SHA:ECDHE-RSA-AES128-SHA")
    contexts = {
        "good": serving(ours.issue_cert("127.0.0.1")),
        "by-name": serving(ours.issue_cert("localhost")),
        "breaks-off": serving(ours.issue_cert("127.0.0.1")),
        "expired": serving(ours.issue_cert("127.0.0.1", not_after=datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))),
        "not-yet-valid": made(folder, ours, begins=5),
        "another-host": serving(ours.issue_cert("other.example")),
        "another-address": serving(ours.issue_cert("127.0.0.2")),
        "no-host": serving(ours.issue_cert(common_name="127.0.0.1")),
        "unknown-issuer": serving(theirs.issue_cert("127.0.0.1")),
        "unknown-chain": serving(theirs.create_child_ca().issue_cert("127.0.0.1")),
        "self-signed": made(folder, None),
        "not-for-servers": made(folder, ours, x509.ExtendedKeyUsageOID.CLIENT_AUTH),
        "old-protocol": old,
        "other-ciphers": other,
    }
    scripts = {
        "breaks-off": break_off,
        "no-tls": speak_plainly,
        "hangs-up": hang_up,
        "resets": reset,
        "stalls": Line.wait_until_closed,
    }
    with ExitStack() as running:
        for name in (*contexts, *scripts):
            if name not in vendors:
                vendors[name] = running.enter_context(ScriptedVendor(scripts.get(name, answer), contexts.get(name)))
        hosts = {"by-name": "localhost", "another-host": "localhost"}
        accounts = "".join(
            f'[accounts.{name}]\nbrand = "https://{hosts.get(name, "127.0.0.1")}:{vendor.port}"\n'
            f'[accounts.{name}.primary]\nssid = {{ env = "VENDOR_SSID" }}\n'
            for name, vendor in vendors.items()
        )
        upstream = f'ca_file = "{authority}"\nconnect_timeout_ms = 2000\nretries = 0'
        yield running.enter_context(Stack(folder / "stack", upstream=upstream, more=accounts))


@pytest.mark.parametrize("vendor", ["good", "by-name"])
def test_a_good_certificate_is_taken(stack: Stack, vendors: dict[str, ScriptedVendor], vendor: str) -> None:
    """Of a name and of an address."""
    told = stack.unset(m1="9876543210", headers={"X-Gateway-Account": vendor})

    assert told.status_code == 200, told.text
    assert len(vendors[vendor].requests) == 1


@pytest.mark.parametrize("vendor", FAULTS)
def test_each_fault_of_tls_has_its_name(stack: Stack, vendors: dict[str, ScriptedVendor], vendor: str) -> None:
    """The vendor sees no byte of the call, the trail says that it was not made, and who has to act is told."""
    told = stack.unset(m1="9876543210", headers={"X-Gateway-Account": vendor})

    body = assert_refused(told, 502, FAULTS[vendor])
    assert "the call was not made" in body["message"]
    assert body["retryable"] is (FAULTS[vendor] == "upstream_unreachable")
    assert body["retryable"] or "operators" in body["message"]
    outcome = stack.records(body["request_id"], vendor)[-1]
    assert (outcome["stage"], outcome["result"], outcome["problem"]) == ("outcome", "refused", FAULTS[vendor])
    assert vendors[vendor].requests == []
    assert vendors[vendor].connections >= 1


def test_tls_that_breaks_after_the_request_leaves_it_unknown(stack: Stack, vendors: dict[str, ScriptedVendor]) -> None:
    """The vendor has read the call: nobody may say that it was not made."""
    told = stack.unset(m1="9876543210", headers={"X-Gateway-Account": "breaks-off"})

    body = assert_refused(told, 502, "upstream_broken")
    assert stack.records(body["request_id"], "breaks-off")[-1]["result"] == "unknown"
    assert len(vendors["breaks-off"].requests) == 1
    assert SUCCESS.decode() not in told.text
