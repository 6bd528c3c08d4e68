"""The README's samples, as they stand there, against the real gateway."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.wire import Wire
from tests.running import VENDOR_SSID, Stack

SECTION = Path("README.md").read_text().split("\n## Call it from code\n")[1].split("\n## ")[0]
M1, M2 = "9876543210", "9876543211"


@dataclass(frozen=True)
class Sample:
    """A sample of the README."""

    title: str
    language: str
    code: str


SAMPLES = [Sample(*found) for found in re.findall(
    r"<details><summary>(.*?)</summary>\n\n```(\w+)\n(.*?)```\n\n</details>", SECTION, re.DOTALL,
)]  # fmt: skip
PYTHON_CLIENT = Sample(
    "gateway.client", "python", re.findall(r"^```python\n(.*?)^```$", SECTION.split("<details>")[0], re.MULTILINE | re.DOTALL)[0]
)


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def compiled(path: Path) -> list[str]:
    compiler = tool("cc")
    probe = subprocess.run([compiler, "-E", "-"], input="#include <curl/curl.h>", capture_output=True, text=True, timeout=60)
    if probe.returncode != 0:
        pytest.skip("the headers of libcurl are not installed")
    words = [compiler, "-std=c99", "-Wall", "-Wextra", "-Werror", "-o", str(path.with_suffix("")), str(path), "-lcurl"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [str(path.with_suffix(""))]


def shell(path: Path) -> list[str]:
    tool(path.read_text().split()[0])
    return [tool("sh"), str(path)]


RUN: dict[str, tuple[str, Callable[[Path], list[str]]]] = {
    "sh": ("unset.sh", shell),
    "python": ("unset_sample.py", lambda path: [sys.executable, "-W", "error", str(path)]),
    "js": ("unset.mjs", lambda path: [tool("node"), str(path)]),
    "java": ("Unset.java", lambda path: [tool("java"), str(path)]),
    "go": ("unset.go", lambda path: [tool("go"), "run", str(path)]),
    "php": ("unset.php", lambda path: [tool("php"), str(path)]),
    "ruby": ("unset.rb", lambda path: [tool("ruby"), "-W", str(path)]),
    "c": ("unset.c", compiled),
}
"""By language: the name of its file, and the words that run it."""


@pytest.fixture
def masked(stack: Stack) -> Stack:
    """The stack, with a masking between the numbers that the samples name."""
    stack.http.post(f"{stack.sandbox_url}/api/v2/Masking/unset", json={"ssid": VENDOR_SSID, "m1": M1})
    stack.set_masking(M1, M2)
    stack.clear_vendor_calls()
    return stack


def assert_ended(stack: Stack, told: str) -> None:
    """Check what the sample shows, what the vendor got and what was recorded."""
    assert "Your masking unset" in told
    (call,) = stack.vendor_calls()
    assert json.loads(call["body"]).items() >= {"ssid": VENDOR_SSID, "m1": M1, "m2": M2}.items()
    assert json.loads(call["body"]).get("expiry_duration", -1) == -1
    request_id = re.search(r"\b[0-9a-f]{32}\b", told)
    assert request_id, told
    assert [record["stage"] for record in stack.records(request_id[0])] == ["intent", "outcome"]


@pytest.mark.parametrize(
    "sample", [PYTHON_CLIENT, *(sample for sample in SAMPLES if sample.language != "http")], ids=lambda sample: sample.title
)
def test_a_sample_works(masked: Stack, tmp_path: Path, sample: Sample) -> None:
    """Copied, and run with address and key in the environment; asked again it shows what the gateway says."""
    name, words = RUN[sample.language]
    path = tmp_path / name
    path.write_text(sample.code)
    environ = {
        **os.environ,
        "GATEWAY_URL": masked.url,
        "GATEWAY_KEY": masked.key,
        "PYTHONPATH": str(Path.cwd()),
        "GOCACHE": str(tmp_path / "go"),
    }
    command = words(path)

    good = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environ, check=False)
    assert good.returncode == 0, good.stderr
    assert_ended(masked, good.stdout)

    again = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environ, check=False)
    assert again.returncode == 0, again.stderr
    assert "masking_not_found" in again.stdout


def test_the_raw_sample_works(masked: Stack) -> None:
    """Sent byte by byte as it stands; its length is right."""
    (sample,) = (sample for sample in SAMPLES if sample.language == "http")
    request = sample.code.replace("GATEWAY_HOST", masked.host).replace("GATEWAY_KEY", masked.key)
    head, _, body = request.rstrip("\n").partition("\n\n")
    with Wire(masked.host, masked.port) as wire:
        wire.send((head.replace("\n", "\r\n") + "\r\n\r\n" + body).encode())
        answer = wire.answer()

    assert answer is not None
    assert_ended(masked, answer.body.decode())


def test_each_of_the_vendors_languages_has_one() -> None:
    """Whoever copied the vendor's sample finds ours."""
    titles = " ".join(sample.title for sample in SAMPLES)

    for language in ("curl", "HTTPie", "HTTP", "Python", "JavaScript", "Java,", "Go", "PHP", "Ruby", "C: libcurl"):
        assert language in titles
    assert len(SAMPLES) == SECTION.count("<details>")
    assert {sample.language for sample in SAMPLES} - {"http"} <= RUN.keys()
