"""The application: finds who asks, lets them do what the table of routes allows them, and answers as a page or as JSON."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from importlib import resources
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, quote, urlsplit

import msgspec
from jinja2 import Environment
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route as StarletteRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway import __version__, addresses
from gateway.config import Settings
from gateway.console.oidc import SIGN_IN_SECONDS
from gateway.console.pages import make_templates
from gateway.console.routes import NAVIGATION, ROUTES
from gateway.console.sessions import Recent, Session, Sessions, known_id
from gateway.console.signing import HOME
from gateway.console.verifier import Verifier
from gateway.console.visit import Download, Go, Missing, Route, View, Visit
from gateway.errors import Refusal
from gateway.opened import Opened, SecretUnreadable, UsageError, opening
from gateway.telemetry import Logger
from gateway.trail.archive import ArchiveError
from gateway.trail.index import BrokenIndex

_BODY_MAX: Final = 65_536
_PAGE_SECONDS: Final = 25.0
_SESSION_SECONDS: Final = 3.0
"""How long pages that can do without Redis wait for it."""
_COOKIE: Final = "console"
_LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")
_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; form-action 'self'; "
        "frame-ancestors 'none'; base-uri 'none'"
    ),
    "x-content-type-options": "nosniff",
    # Not `no-referrer`: browsers would then send `Origin: null` with our own forms. Other sites see nothing either way.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
_HSTS: Final = "max-age=31536000"


class _Denied(Exception):
    """An answer in place of the page that was asked for."""

    def __init__(self, status: int, title: str, message: str) -> None:
        super().__init__(message)
        self.status, self.title, self.message = status, title, message


@dataclass(frozen=True, slots=True)
class _Asked:
    """One request, as far as it is known before anything is opened."""

    request: Request
    as_json: bool
    identity: str
    """What the browser's cookie holds; empty: none."""


class _Desk:
    """Answers requests by the table of routes."""

    def __init__(self, settings: Settings, folder: Path, log: Logger, port: int) -> None:
        self._settings = settings
        self._folder = folder
        self._log = log
        self._public = urlsplit(settings.console.public_url)
        self._hosts = (self._public.netloc,) if self._public.netloc else tuple(f"{host}:{port}" for host in _LOOPBACK)
        self.secure = self._public.scheme == "https"
        self._cookie = f"__Host-{_COOKIE}" if self.secure else _COOKIE
        self._under_way = f"{self._cookie}-sign-in"
        files = (resources.files("gateway.console") / "static").iterdir()
        self._files = {file.name: file.read_bytes() for file in files}
        self._digest = sha256(b"".join(self._files[name] for name in sorted(self._files))).hexdigest()[:12]
        self._templates: Environment = make_templates()
        self._recent = Recent(settings.console)
        self._verifier = Verifier()

    def routes(self) -> list[StarletteRoute]:
        """Return the table of routes as Starlette wants it, the twins in JSON first: `{key}` would take `.json` too."""
        twins = [
            StarletteRoute(f"{route.path}.json", self._endpoint(route, as_json=True), methods=["GET"])
            for route in ROUTES
            if route.method == "GET" and route.twin
        ]
        pages = [StarletteRoute(route.path, self._endpoint(route, as_json=False), methods=[route.method]) for route in ROUTES]
        return [
            StarletteRoute("/", _home, methods=["GET"]),
            StarletteRoute("/livez", _live, methods=["GET"]),
            StarletteRoute("/static/{digest}/{name}", self._static, methods=["GET"]),
            *twins,
            *pages,
        ]

    def is_known(self, host: str) -> bool:
        """Say whether a request was made for this console, and not for another name that was made to point here."""
        return host.lower() in self._hosts

    async def failed(self, request: Request, error: Exception) -> Response:
        """Answer what no route answers, or what nobody foresaw."""
        if isinstance(error, HTTPException):
            told = "There is no such page." if error.status_code == 404 else "That cannot be done with this page."
            return await self._told(request, _Denied(error.status_code, "Not found" if error.status_code == 404 else "No", told))
        self._log.error("console.failed", error=type(error).__name__)
        return await self._told(request, _Denied(500, "Failed", "Something went wrong here, and the log says what kind it was."))

    async def _static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._files:
            raise HTTPException(404)
        kept = "public, max-age=31536000, immutable" if request.path_params["digest"] == self._digest else "no-store"
        return Response(self._files[name], headers={"cache-control": kept}, media_type=_TYPES[Path(name).suffix])

    def _endpoint(self, route: Route, *, as_json: bool) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            asked = _Asked(request, as_json, known_id(request.cookies.get(self._cookie, "")))
            try:
                async with asyncio.timeout(_PAGE_SECONDS):
                    return await self._answer(route, asked)
            except (Refusal, TimeoutError):
                away = "Redis does not answer, so nothing can be shown or changed now. Calls may go on without it; see /readyz."
                return self._page(asked, None, _denied_view(_Denied(503, "Redis is away", away)), "")
            except SecretUnreadable as error:
                return self._page(asked, None, _denied_view(_Denied(503, "Not to be had", f"{error}.")), "")
            except ClientDisconnect:
                return Response(status_code=400)
            except Exception as error:
                return await self.failed(request, error)

        return answer

    async def _answer(self, route: Route, asked: _Asked) -> Response:
        # Before anything is opened for it: whoever sends it slowly holds nothing but its own connection.
        form = {}
        if asked.request.method == "POST":
            try:
                self._check_origin(asked.request)
                form = await _form(asked.request)
            except _Denied as denied:
                return self._page(asked, None, _denied_view(denied), "")
        async with opening(self._settings, self._folder) as opened:
            session, away = await self._signed_in(route, opened, asked.identity)
            try:
                made = await self._made(route, asked, opened, session, form, redis_away=away)
            except (_Denied, Missing, UsageError, ArchiveError, BrokenIndex, OSError) as error:
                made = _denied_view(_as_denied(error))
            if isinstance(made, Go):
                return await self._go(opened, asked, made)
            if isinstance(made, Download):
                return self._sent(made)
            notice = await self._notice(opened, asked) if session is not None and not asked.as_json and not away else ""
            return self._page(asked, session, made, notice)

    async def _made(
        self,
        route: Route,
        asked: _Asked,
        opened: Opened,
        session: Session | None,
        form: Mapping[str, str],
        *,
        redis_away: bool,
    ) -> View | Go | Download:
        """Return what a page makes, for who may have it. Raises: _Denied, and what pages raise."""
        request = asked.request
        if route.role is not None:
            if session is None:
                return _to_sign_in(asked)
            if not session.may(route.role):
                raise _Denied(403, "Not for your role", f"This needs the role {route.role}; yours is {session.role}.")
            if request.method == "POST" and not _same(form.get("csrf", ""), session.csrf):
                raise _Denied(403, "This form is no longer good", "Go back, load the page again, and send it once more.")
        query, source = dict(request.query_params), self._source(request)
        under_way = request.cookies.get(self._under_way, "")
        visit = Visit(
            opened, session, request.path_params, query, form, source, time.time(), self._verifier, redis_away, under_way
        )
        return await route.page(visit)

    async def _signed_in(self, route: Route, opened: Opened, identity: str) -> tuple[Session | None, bool]:
        """Return who is signed in, and whether that is what was known before Redis went away."""
        try:
            async with asyncio.timeout(_SESSION_SECONDS if route.outlives_redis else None):
                session = await self._session(opened, identity)
        except (Refusal, TimeoutError):
            if route.outlives_redis and (known := self._recent.find(identity, time.time())) is not None:
                return known, True
            raise
        self._recent.note(identity, session, time.time())
        return session, False

    async def _session(self, opened: Opened, identity: str) -> Session | None:
        if not identity:
            return None
        async with opened.client() as client:
            return await Sessions(client, self._settings.console).find(identity, time.time())

    async def _notice(self, opened: Opened, asked: _Asked) -> str:
        async with opened.client() as client:
            return await Sessions(client, self._settings.console).take_notice(asked.identity)

    async def _go(self, opened: Opened, asked: _Asked, go: Go) -> Response:
        answer: Response = RedirectResponse(go.path, 303)
        if go.from_here:
            answer = self._page(asked, None, View("onward.html", "Signed in", {"onward": go.path}), "")
        async with opened.client() as client:
            sessions = Sessions(client, self._settings.console)
            if go.notice:
                await sessions.leave_notice(asked.identity, go.notice)
            if (go.begins is not None or go.ends) and asked.identity:
                self._recent.note(asked.identity, None, time.time())
                await sessions.end(asked.identity)
        same: dict[str, Any] = {"path": "/", "secure": self.secure, "httponly": True, "samesite": "strict"}
        if go.under_way is not None:
            # Lax: it is to come along when the other site sends the browser back.
            answer.set_cookie(self._under_way, go.under_way, max_age=SIGN_IN_SECONDS, **{**same, "samesite": "lax"})
        if go.begins is not None:
            answer.set_cookie(self._cookie, go.begins, **same)
            if self._under_way in asked.request.cookies:
                answer.delete_cookie(self._under_way, **same)
        elif go.ends:
            answer.delete_cookie(self._cookie, **same)
        return answer

    def _sent(self, download: Download) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            async with opening(self._settings, self._folder) as opened:
                async for part in download.parts(opened):
                    yield part

        told = {"content-disposition": f'attachment; filename="{download.name}"'}
        return StreamingResponse(parts(), media_type=download.media_type, headers=told)

    def _check_origin(self, request: Request) -> None:
        """Let nobody but our own pages send forms, whatever the browser knows of cookies. Raises: _Denied."""
        scheme = self._public.scheme or "http"
        origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "same-origin")
        if origin != f"{scheme}://{request.headers.get('host', '').lower()}" or site != "same-origin":
            raise _Denied(403, "Not from here", "This was sent by another site's page, or by no page, and nothing was done.")

    def _source(self, request: Request) -> str:
        forwarded = ",".join(request.headers.getlist("x-forwarded-for"))
        connected = request.client.host if request.client is not None else ""
        return addresses.source(connected, forwarded, self._settings.server.trusted_proxies)

    async def _told(self, request: Request, denied: _Denied) -> Response:
        as_json = request.url.path.endswith(".json")
        return self._page(_Asked(request, as_json, ""), None, _denied_view(denied), "")

    def _page(self, asked: _Asked, session: Session | None, view: View, notice: str) -> Response:
        if asked.as_json:
            return Response(msgspec.json.encode(view.data), view.status, media_type="application/json")
        page = self._templates.get_template(view.template).render(
            **view.data,
            title=view.title,
            session=session,
            notice=notice,
            navigation=NAVIGATION,
            path=asked.request.url.path,
            static=f"/static/{self._digest}",
            version=__version__,
            now=time.time(),
        )
        return Response(page, view.status, media_type="text/html; charset=utf-8")


class _Guarded:
    """The application behind what holds for every answer, also for those of no page."""

    def __init__(self, app: ASGIApp, desk: _Desk) -> None:
        self._app = app
        self._desk = desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
                if self._desk.secure:
                    headers["strict-transport-security"] = _HSTS
            await send(message)

        request = Request(scope)
        if request.url.path != "/livez" and not self._desk.is_known(request.headers.get("host", "")):
            told = "There is no such host here; set console.public_url to the address that browsers use.\n"
            await PlainTextResponse(told, 421)(scope, receive, send_guarded)
            return
        await self._app(scope, receive, send_guarded)


def create_console(settings: Settings, folder: Path, log: Logger, port: int) -> ASGIApp:
    """Return the console. `folder`: for state; `port`: that it is served on."""
    desk = _Desk(settings, folder, log, port)
    app = Starlette(routes=desk.routes(), exception_handlers={HTTPException: desk.failed})
    app.router.redirect_slashes = False
    return _Guarded(app, desk)


async def _home(_: Request) -> Response:
    return RedirectResponse(HOME, 303)


async def _live(_: Request) -> Response:
    return PlainTextResponse("alive\n")


def _to_sign_in(asked: _Asked) -> Go:
    url = asked.request.url
    if asked.as_json or asked.request.method != "GET":
        raise _Denied(401, "Not signed in", "Sign in first; a session ends after a while without use.")
    wanted = url.path + (f"?{url.query}" if url.query else "")
    return Go(f"/sign-in?next={quote(wanted, safe='')}" if wanted != HOME else "/sign-in")


async def _form(request: Request) -> dict[str, str]:
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise _Denied(415, "No form", "Send a form, as a browser does.")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _BODY_MAX:
            raise _Denied(413, "Too long", "The form is longer than anything that is asked for here.")
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=100))
    except ValueError:
        raise _Denied(400, "No form", "Send a form, as a browser does.") from None


def _as_denied(error: Exception) -> _Denied:
    """Return what a page could not be made for, as an answer. Raises: TimeoutError, of Redis."""
    match error:
        case _Denied():
            return error
        case Missing():
            return _Denied(404, "Not found", str(error))
        case UsageError():
            return _Denied(400, "This cannot be done", f"{error}.")
        case TimeoutError():
            raise error
        case OSError():
            return _Denied(503, "The sealed trail cannot be read", f"{error.strerror or type(error).__name__}.")
        case _:
            return _Denied(503, "The sealed trail cannot be read", f"{error}.")


def _denied_view(denied: _Denied) -> View:
    data: Mapping[str, Any] = {"status": denied.status, "problem": denied.title, "message": denied.message}
    return View("denied.html", denied.title, data, denied.status)


def _same(given: str, expected: str) -> bool:
    return compare_digest(given.encode(), expected.encode())
