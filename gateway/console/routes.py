"""The table of routes: what there is, and who may have it. What is not here is not there."""

from __future__ import annotations

from typing import Final

from gateway.console import audit, callers, integrity, limits, oidc, overview, signing, story, trial
from gateway.console.visit import Route

ROUTES: Final[tuple[Route, ...]] = (
    Route("GET", "/sign-in", None, signing.sign_in_page),
    Route("POST", "/sign-in", None, signing.sign_in),
    Route("GET", "/sign-in/oidc", None, oidc.start, twin=False),
    Route("GET", oidc.RETURN, None, oidc.returned, twin=False),
    Route("POST", "/sign-out", "auditor", signing.sign_out),
    Route("GET", "/overview", "auditor", overview.overview),
    Route("GET", "/audit", "auditor", audit.page, outlives_redis=True),
    Route("POST", "/audit", "auditor", audit.search),
    Route("GET", "/audit.{format}", "auditor", audit.download, twin=False),
    Route("GET", "/audit/{record:path}.proof", "auditor", story.proof, twin=False, outlives_redis=True),
    Route("GET", "/audit/{record:path}", "auditor", story.page, outlives_redis=True),
    Route("GET", "/limits", "auditor", limits.limits),
    Route("GET", "/limits/{account}/{policy}", "auditor", limits.limit),
    Route("GET", "/limits/{account}/{policy}/replay", "auditor", trial.trial),
    Route("GET", "/limits/{account}/{policy}/change", "operator", limits.change_page),
    Route("POST", "/limits/{account}/{policy}/confirm", "operator", limits.confirm_page),
    Route("POST", "/limits/{account}/{policy}/change", "operator", limits.change),
    Route("GET", "/limits/{account}/{policy}/reset", "operator", limits.reset_page),
    Route("POST", "/limits/{account}/{policy}/reset", "operator", limits.reset),
    Route("GET", "/callers", "auditor", callers.callers),
    Route("GET", "/callers/{key}", "auditor", callers.caller),
    Route("GET", "/callers/{key}/revoke", "operator", callers.revoke_page),
    Route("POST", "/callers/{key}/revoke", "operator", callers.revoke),
    Route("GET", "/callers/{key}/extend", "operator", callers.extend_page),
    Route("POST", "/callers/{key}/extend", "operator", callers.extend),
    Route("GET", "/integrity", "auditor", integrity.integrity),
    Route("POST", "/integrity/verify", "auditor", integrity.verify),
)
"""Each GET is had as JSON too, at its path with `.json`, but for what is a file."""

_NAMES: Final = {
    "/overview": "Overview",
    "/audit": "Audit",
    "/limits": "Limits",
    "/callers": "Callers",
    "/integrity": "Integrity",
}
NAVIGATION: Final = tuple((path, name) for path, name in _NAMES.items() if any(route.path == path for route in ROUTES))
