"""The page that proves the trail: what it says of one that is sound, altered, cut, or signed by somebody else."""

from __future__ import annotations

import html
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.trail.archive import CHECKPOINT, PUBLIC_KEY
from gateway.trail.note import Signer
from tests.console.running import Console, Visitor
from tests.running import until


@pytest.fixture
def sealed(begin: Callable[..., Console]) -> Console:
    """A console beside a sealed trail of its own."""
    console = begin()
    console.fill(calls=200)
    console.cli("audit", "seal", "--once")
    return console


def archive(console: Console) -> Path:
    return console.folder / "state" / "archive"


def review(visitor: Visitor, **form: str) -> dict:
    """Have the trail verified, and return what the page says of it."""
    sent = visitor.send_form("/integrity/verify", {"csrf": visitor.csrf(), **form})
    assert sent.status_code == 303, sent.text

    def ended() -> dict | None:
        found = visitor.get("/integrity.json").json()["review"]
        return found if found["ended_at"] is not None else None

    return until(ended, what="the end of the review")


def test_a_sound_trail(sealed: Console) -> None:
    """An auditor may ask, and that stands in the trail; the checkpoint and the result are what the command says."""
    visitor = sealed.browser("auditor")
    shown = visitor.get("/integrity.json").json()
    found = review(visitor)
    page = html.unescape(visitor.get("/integrity").text)

    assert (shown["sealed"], shown["review"], shown["checkpoint"]["fault"]) == (True, None, "")
    assert (found["verdict"], found["records"], found["who"]) == ("sound", shown["checkpoint"]["records"], "console:an-auditor")
    assert shown["checkpoint"]["note"] == (archive(sealed) / CHECKPOINT).read_text()
    assert shown["checkpoint"]["root"] in page and "sound" in page
    assert "console.public_key" in page, "whose key is believed is said"
    assert [record["operator"] for record in sealed.records() if record.get("change") == "trail.review_began"] == [
        "console:an-auditor"
    ]
    assert '"verdict": "sound"' in sealed.cli("audit", "verify", "--json").stdout


@pytest.mark.parametrize("kind", ["altered", "incomplete"])
def test_a_trail_that_was_changed(sealed: Console, kind: str) -> None:
    """The row at fault is named; what stands in it is shown as text."""
    (segment,) = archive(sealed).glob("*.jsonl")
    lines = segment.read_bytes().split(b"\n")
    if kind == "altered":
        lines[7] = lines[7].replace(b'"writer":"', b'"writer":"<b>x</b>')
    else:
        del lines[7]
    segment.write_bytes(b"\n".join(lines))
    visitor = sealed.browser("auditor")
    found = review(visitor)
    page = visitor.get("/integrity").text

    assert found["verdict"] == kind
    assert found["findings"][0]["row"] == 7
    assert html.escape(found["findings"][0]["message"], quote=True).replace("&#x27;", "&#39;") in page
    assert "<b>x" not in page


def test_a_trail_that_somebody_else_signed(sealed: Console) -> None:
    """By a key that is kept elsewhere, an archive written anew does not hold, whatever key stands in it."""
    kept = Signer.generate("masking-gateway")
    stranger = sealed.folder / "kept.pub"
    stranger.write_text(f"{kept.public}\n")
    sealed.config.write_text(sealed.config.read_text().replace("[console]", f'[console]\npublic_key = "{stranger}"'))
    sealed.process.stop()
    sealed.start()
    visitor = sealed.browser("auditor")

    assert "does not hold" in visitor.get("/integrity").text
    assert review(visitor)["verdict"] == "altered"


def test_records_that_were_cut_off_with_their_checkpoint(sealed: Console) -> None:
    """A checkpoint that was kept shows that the trail was put back to an earlier state."""
    visitor = sealed.browser("auditor")
    before = sealed.folder / "before"
    shutil.copytree(archive(sealed), before)
    sealed.cli("keys", "issue", "later")
    sealed.cli("audit", "seal", "--once")
    kept = visitor.get("/integrity.json").json()["checkpoint"]["note"]
    shutil.rmtree(archive(sealed))
    shutil.copytree(before, archive(sealed))

    assert review(visitor)["verdict"] == "sound"
    assert review(visitor, older=kept.replace("\n", "\r\n"))["verdict"] == "incomplete"
    assert "was put back" in visitor.get("/integrity").text
    assert review(visitor, older="no note")["verdict"] == "altered"


def test_without_an_archive_or_its_key(begin: Callable[..., Console]) -> None:
    """What is missing is said, and nothing is begun."""
    console = begin()
    visitor = console.browser("auditor")
    assert "There is no sealed trail on this machine" in visitor.get("/integrity").text
    assert visitor.send_form("/integrity/verify", {"csrf": visitor.csrf()}).status_code == 400

    console.cli("audit", "seal", "--once")
    (archive(console) / PUBLIC_KEY).unlink()
    assert "does not hold" in visitor.get("/integrity").text
    answer = visitor.send_form("/integrity/verify", {"csrf": visitor.csrf()})
    assert answer.status_code == 400
    assert PUBLIC_KEY in answer.text
    assert visitor.get("/integrity.json").json()["review"] is None


def test_a_review_whose_process_dies(sealed: Console) -> None:
    """It ends, and says so; while one is under way no other begins, and other pages are served."""
    (segment,) = archive(sealed).glob("*.jsonl")
    whole = segment.read_bytes()
    visitor = sealed.browser("auditor")
    segment.unlink()
    segment.write_bytes(whole * 400)
    form = {"csrf": visitor.csrf()}
    assert visitor.send_form("/integrity/verify", form).status_code == 303
    pid = until(lambda: reviewing(sealed), what="the review's process")
    sealed_by = pid[0]
    os.kill(sealed_by, signal.SIGSTOP)
    assert visitor.send_form("/integrity/verify", form).headers["location"] == "/integrity"
    assert "under way already" in visitor.get("/integrity").text
    assert visitor.get("/callers").status_code == 200
    os.kill(sealed_by, signal.SIGKILL)
    until(lambda: visitor.get("/integrity.json").json()["review"]["ended_at"], what="its end")

    assert "ended without a result" in visitor.get("/integrity").text
    segment.write_bytes(whole)
    assert review(visitor)["verdict"] == "sound"


def reviewing(console: Console) -> list[int]:
    children = Path(f"/proc/{console.process.pid}/task/{console.process.pid}/children")
    if not children.exists():
        pytest.skip("needs /proc")
    return [
        int(pid) for pid in children.read_text().split() if re.search(rb"spawn_main", Path(f"/proc/{pid}/cmdline").read_bytes())
    ]
