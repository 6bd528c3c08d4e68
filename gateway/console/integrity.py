"""What proves that nothing was altered or removed: the last checkpoint, and the whole trail verified against it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from gateway.audit import unix_seconds
from gateway.console.pages import sentence
from gateway.console.signed import believed_key, read_signed
from gateway.console.verifier import Review
from gateway.console.visit import Go, View, Visit
from gateway.trail.archive import segments

_LATE_SECONDS: Final = 60.0
"""A sealer signs every few seconds while there is something to seal, and writers write every 30 s."""
_UNDER_WAY: Final = "A review is under way already; this is it."
_VERDICTS: Final = ("sound", "altered", "incomplete")


async def integrity(visit: Visit) -> View:
    """Show what was signed last, and how far the review under way is, or what the last one found."""
    review = visit.verifier.review
    data = {
        "sealed": visit.opened.reader is not None,
        "checkpoint": _checkpoint(visit) if visit.opened.reader is not None else None,
        "review": None if review is None else _told(review),
    }
    return View("integrity.html", "Integrity", data)


async def verify(visit: Visit) -> Go:
    """Begin to verify the whole trail. Changes nothing, so whoever may look may do it; who did is recorded."""
    folder = visit.opened.sealed.folder
    if visit.verifier.is_busy:
        return Go("/integrity", _UNDER_WAY)
    key, own = believed_key(visit.opened.settings, folder)
    older = visit.form.get("older", "").replace("\r\n", "\n")
    await visit.record("trail.review_began")
    begun = visit.verifier.begin(visit.who, folder, key, by_own_key=own, older=older if older.strip() else None)
    return Go("/integrity", "The review has begun." if begun else _UNDER_WAY)


def _checkpoint(visit: Visit) -> dict[str, Any]:
    """Return what was signed last, and whether the signature holds."""
    folder = visit.opened.sealed.folder
    files = [path.stat().st_size for _, path in segments(folder)]
    told: dict[str, Any] = {"segments": len(files), "bytes": sum(files), "note": "", "fault": ""}
    signed = read_signed(visit.opened.settings, folder)
    found = signed.checkpoint
    if signed.fault or found is None:
        return {**told, "fault": sentence(signed.told)}
    at = unix_seconds(found.at)
    age = visit.now - at
    return {
        **told, "note": signed.note, "signer": str(signed.key), "by_own_key": signed.by_own_key, "origin": found.origin,
        "records": found.size, "root": found.root.hex(), "at": at, "age_seconds": age, "late": age > _LATE_SECONDS,
        "writers": len(found.tips),
    }  # fmt: skip


def _told(review: Review) -> dict[str, Any]:
    told = asdict(review)
    report = told.pop("report")
    if review.report is None:
        return {**told, "verdict": None, "findings": []}
    return {
        **told,
        "verdict": _VERDICTS[review.report.status],
        "records": report["records"],
        "writers": report["writers"],
        "checkpoint_at": report["checkpoint"]["at"] if report["checkpoint"] else None,
        "counts": report["counts"],
        "findings": report["findings"],
    }
