"""The vendor's own client samples, with only host and credential replaced."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from tests.e2e.wire import Wire, post
from tests.running import UNSET, VENDOR_SSID, Stack

PANEL = "https://panel.example"


def assert_dropped_in(stack: Stack, answer: dict) -> None:
    """Check what the caller got, what the vendor got and what was recorded."""
    assert answer["status"] == "success", answer
    assert answer["message"] == "Your masking unset"
    assert answer["operation"] == "end"
    (call,) = stack.vendor_calls()
    assert json.loads(call["body"])["ssid"] == VENDOR_SSID
    assert stack.key_secret not in json.dumps(call)
    assert [record["stage"] for record in stack.records(answer["request_id"])] == ["intent", "outcome"]


def run(*words: str, stdin: str | None = None) -> str:
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def parties(stack: Stack) -> tuple[str, str]:
    m1, m2 = stack.masked()
    stack.clear_vendor_calls()
    return m1, m2


def test_curl_with_ssid(stack: Stack, parties: tuple[str, str]) -> None:
    """Curl as documented: form-urlencoded by default, the credential in the body, the mask without quotes."""
    m1, m2 = stack.fresh_numbers()
    mask = stack.set_masking(m1, m2)
    body = f'{{\n    "ssid": "{stack.key}",\n    "m1": "{m1}",\n    "m2": "{m2}",\n    "mask": {mask},\n    "expiry_duration": -1\n}}'
    stack.clear_vendor_calls()

    answer = json.loads(run("curl", "-sS", "--location", "--request", "POST", stack.url + UNSET, "--data-raw", body))

    assert_dropped_in(stack, answer)
    assert json.loads(stack.vendor_calls()[0]["body"])["mask"] == mask


def test_curl_with_user_id_and_token(stack: Stack, parties: tuple[str, str]) -> None:
    """The vendor's second credential form carries the key's id and secret."""
    body = json.dumps({"userId": stack.key_id, "token": stack.key_secret, "m1": parties[0], "m2": parties[1]})

    assert_dropped_in(stack, json.loads(run("curl", "-sS", "-X", "POST", stack.url + UNSET, "-d", body)))


def test_node_http(stack: Stack, parties: tuple[str, str]) -> None:
    """Node's http module with a length, as axios before 0.27 sends it."""
    body = json.dumps({"ssid": stack.key, "m1": parties[0], "expiry_duration": -1})
    program = f"""
      const http = require('http'); const body = {json.dumps(body)};
      const request = http.request({{host: '{stack.host}', port: {stack.port}, path: '{UNSET}', method: 'POST',
        headers: {{'Content-Type': 'application/x-www-form-urlencoded', 'Content-Length': Buffer.byteLength(body)}}}},
        answer => {{ let text = ''; answer.on('data', part => text += part); answer.on('end', () => console.log(text)); }});
      request.write(body); request.end();"""

    assert_dropped_in(stack, json.loads(run("node", "-e", program)))


def test_node_fetch(stack: Stack, parties: tuple[str, str]) -> None:
    """fetch: text/plain, keep-alive, and the key in a header."""
    body = json.dumps({"m1": parties[0], "m2": parties[1], "expiry_duration": -1})
    program = f"""fetch('{stack.url}{UNSET}', {{method: 'POST', body: {json.dumps(body)}, redirect: 'follow',
      headers: {{'X-API-Key': '{stack.key}'}}}}).then(answer => answer.text()).then(text => console.log(text))"""

    assert_dropped_in(stack, json.loads(run("node", "-e", program)))


def test_python_with_a_length(stack: Stack, parties: tuple[str, str]) -> None:
    """http.client with the payload as bytes."""
    program = f"""
import http.client, json
connection = http.client.HTTPConnection("{stack.host}", {stack.port})
payload = json.dumps({{"ssid": "{stack.key}", "m1": "{parties[0]}", "m2": "{parties[1]}"}}).encode()
connection.request("POST", "{UNSET}", payload, {{}})
print(connection.getresponse().read().decode())"""

    assert_dropped_in(stack, json.loads(run(sys.executable, "-c", program)))


def test_the_documented_python_client_is_told_its_fault(stack: Stack) -> None:
    """It sends an empty Content-Length; the answer names it, the connection is closed, nothing is run."""
    stack.clear_vendor_calls()
    program = f"""
import http.client, json
connection = http.client.HTTPConnection("{stack.host}", {stack.port})
connection.putrequest("POST", "{UNSET}"); connection.putheader("Content-Length", ""); connection.endheaders()
connection.send(b'{{"ssid":"{stack.key}","m1":"9876543210"}}')
answer = connection.getresponse(); print(json.dumps([answer.status, answer.getheader("connection"), json.loads(answer.read())]))"""

    status, connection, body = json.loads(run(sys.executable, "-c", program))

    assert (status, connection, body["error"]) == (400, "close", "length_empty")
    assert "Content-Length" in body["message"]
    assert stack.vendor_calls() == []


@pytest.mark.parametrize("headers", [
    ("User-Agent: Go-http-client/1.1", "Accept-Encoding: gzip"),
    ("User-Agent: okhttp/4.9", "Content-Type: text/plain; charset=utf-8", "Connection: Keep-Alive"),
    ("Accept: */*", "User-Agent: Ruby", "Content-Type: application/x-www-form-urlencoded"),
    ("User-Agent: HTTPie/3", "Content-Type: application/json"),
])  # fmt: skip
def test_documented_clients_on_the_wire(stack: Stack, parties: tuple[str, str], headers: tuple[str, ...]) -> None:
    """Go, OkHttp, Ruby and HTTPie, as measured on the wire."""
    body = json.dumps({"ssid": stack.key, "m1": parties[0], "m2": parties[1], "expiry_duration": -1}).encode()
    with Wire(stack.host, stack.port) as wire:
        wire.send(post(body, *headers))
        answer = wire.answer()

    assert answer is not None
    assert_dropped_in(stack, answer.json())


def test_a_chunked_body(stack: Stack, parties: tuple[str, str]) -> None:
    """A body in pieces is one body."""
    body = json.dumps({"ssid": stack.key, "m1": parties[0], "m2": parties[1]}).encode()
    with Wire(stack.host, stack.port) as wire:
        wire.send(post(b"", "Transfer-Encoding: chunked", length=False))
        for position in range(0, len(body), 7):
            piece = body[position : position + 7]
            wire.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        wire.send(b"0\r\n\r\n")
        answer = wire.answer()

    assert answer is not None
    assert_dropped_in(stack, answer.json())


def test_a_browser(stack: Stack, parties: tuple[str, str]) -> None:
    """Fetch in a browser sends Origin and reads the answer only with its permission, errors too."""
    good = json.dumps({"ssid": stack.key, "m1": parties[0], "m2": parties[1]}).encode()
    for body, status in ((good, 200), (b"{", 400), (b"{}", 401), (json.dumps({"ssid": stack.key}).encode(), 400)):
        with Wire(stack.host, stack.port) as wire:
            wire.send(post(body, f"Origin: {PANEL}", "Content-Type: text/plain;charset=UTF-8", "Sec-Fetch-Mode: cors"))
            answer = wire.answer()
        assert answer is not None
        assert answer.status == status
        assert answer.headers["access-control-allow-origin"] == PANEL
        assert "origin" in answer.headers["vary"].lower()
    with Wire(stack.host, stack.port) as wire:
        wire.send(
            f"OPTIONS {UNSET} HTTP/1.1\r\nHost: g\r\nOrigin: {PANEL}\r\nAccess-Control-Request-Method: POST\r\n\r\n".encode()
        )
        preflight = wire.answer()
    assert preflight is not None
    assert preflight.status == 204
    assert "Authorization" in preflight.headers["access-control-allow-headers"]


def test_another_origin_is_given_nothing(stack: Stack) -> None:
    """CORS is per origin; a page from elsewhere cannot read an answer."""
    with Wire(stack.host, stack.port) as wire:
        wire.send(post(b"{}", "Origin: https://evil.example"))
        answer = wire.answer()

    assert answer is not None
    assert "access-control-allow-origin" not in answer.headers


def test_a_body_without_any_length(stack: Stack) -> None:
    """The documented C client: 411, closed, and what follows is not read as a second request."""
    stack.clear_vendor_calls()
    m1, _ = stack.masked()
    hidden = post(json.dumps({"ssid": stack.key, "m1": m1}).encode())
    with Wire(stack.host, stack.port) as wire:
        wire.send(post(hidden, length=False))
        answer = wire.answer()
        closed = wire.closed()

    assert answer is not None
    assert (answer.status, answer.json()["error"], answer.headers["connection"]) == (411, "length_required", "close")
    assert closed
    assert stack.vendor_calls() == []


def test_ruby(stack: Stack, parties: tuple[str, str]) -> None:
    """Ruby's Net::HTTP as documented: no type set, so it says form-urlencoded."""
    body = json.dumps({"ssid": stack.key, "m1": parties[0], "m2": parties[1], "expiry_duration": -1})
    program = f"""
require "uri"; require "net/http"
url = URI("{stack.url}{UNSET}"); http = Net::HTTP.new(url.host, url.port)
request = Net::HTTP::Post.new(url); request.body = {json.dumps(body)}
puts http.request(request).read_body"""

    assert_dropped_in(stack, json.loads(run("ruby", "-W0", "-e", program)))


def test_php(stack: Stack, parties: tuple[str, str]) -> None:
    """PHP's own HTTP client, which asks in HTTP/1.0 or 1.1 by its version."""
    body = json.dumps({"userId": stack.key_id, "token": stack.key_secret, "m1": parties[0], "expiry_duration": -1})
    program = f"""
$context = stream_context_create(['http' => ['method' => 'POST', 'content' => '{body}',
  'header' => 'Content-Type: application/x-www-form-urlencoded']]);
echo file_get_contents('{stack.url}{UNSET}', false, $context);"""

    assert_dropped_in(stack, json.loads(run("php", "-r", program)))


@pytest.mark.parametrize(
    "headers",
    [
        ("User-Agent: axios/1.7", "Content-Type: application/x-www-form-urlencoded", "Content-Length: "),
        ("Content-Length:",),
        ("Content-Length:", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Content-Length:"),
    ],
)
def test_an_empty_length_on_the_wire(stack: Stack, headers: tuple[str, ...]) -> None:
    """Newer axios, Swift and OCaml: told what is wrong, closed, nothing is run."""
    stack.clear_vendor_calls()
    body = json.dumps({"ssid": stack.key, "m1": "9876543210", "expiry_duration": -1}).encode()
    with Wire(stack.host, stack.port) as wire:
        wire.send(post(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if len(headers) == 2 else body, *headers))
        answer = wire.answer()
        closed = wire.closed()

    assert answer is not None
    assert (answer.status, answer.headers["connection"]) == (400, "close")
    # With the encoding first, it is the pair that the parser refuses.
    assert answer.json()["error"] == ("http_malformed" if headers[0].startswith("Transfer") else "length_empty")
    assert closed
    assert stack.vendor_calls() == []


def test_the_fixed_length_of_the_raw_sample(stack: Stack) -> None:
    """The raw HTTP sample says 84 whatever its body is: a longer one is cut, refused, and its rest is not run."""
    stack.clear_vendor_calls()
    body = json.dumps({"ssid": stack.key, "m1": "9876543210", "m2": "9876543211", "expiry_duration": -1}).encode()
    assert len(body) > 84
    with Wire(stack.host, stack.port) as wire:
        wire.send(post(body, "Content-Length: 84"))
        first, second = wire.answer(), wire.answer()

    assert first is not None
    assert (first.status, first.json()["error"]) == (400, "body_malformed")
    assert second is None or second.status == 400
    assert stack.vendor_calls() == []


@pytest.mark.parametrize("number", ["+919812345678", "09812345678"])
def test_an_unquoted_number_that_is_not_json(stack: Stack, number: str) -> None:
    """The samples leave `mask` unquoted; where that cannot be read, the answer says to quote it."""
    body = b'{"ssid": "%s", "mask": %s, "expiry_duration": -1}' % (stack.key.encode(), number.encode())
    with Wire(stack.host, stack.port) as wire:
        wire.send(post(body))
        answer = wire.answer()

    assert answer is not None
    assert (answer.status, answer.json()["error"]) == (400, "body_malformed")
    assert "quotes" in answer.json()["message"]
    assert number not in answer.body.decode()


ORIGIN = f"Origin: {PANEL}"
REFUSED = {
    "404": post(b"{}", ORIGIN, path="/api/v2/Masking/unsett"),
    "405": f"GET {UNSET} HTTP/1.1\r\nHost: g\r\n{ORIGIN}\r\n\r\n".encode(),
    "408 body": post(b"{", ORIGIN, "Content-Length: 100"),
    "408 head": f"POST {UNSET} HTTP/1.1\r\nHost: g\r\n{ORIGIN}\r\nX: ".encode(),
    "411": post(b"", ORIGIN, length=False),
    "413": post(b"x" * 20_000, ORIGIN),
    "431": post(b"{}", ORIGIN, *(f"X-{number}: 1" for number in range(200))),
    "400": post(b"zz\r\n", ORIGIN, "Transfer-Encoding: chunked"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_browser_may_read_every_refusal(stack: Stack, case: str) -> None:
    """The panel's script is let read what went wrong, whoever in the gateway refused."""
    with Wire(stack.host, stack.port) as wire:
        wire.send(REFUSED[case])
        answer = wire.answer()

    assert answer is not None
    assert str(answer.status) == case[:3]
    assert answer.headers.get("access-control-allow-origin") == PANEL
