"""Who gets in, by a token and by where a request comes from; and that a browser loads nothing from elsewhere."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, RedirectResponse, Response

from maskrcnn_plus.apps.serve.service import Service

UPLOADS = ("/v1/predict", "/page/images")

_OPEN = ("/healthz", "/login", "/static/style.css", "/static/favicon.svg")
_LOCAL = ("localhost", "127.0.0.1", "::1")
_POLICY = (
    "default-src 'none'; script-src 'self'{inline}; style-src 'self'{inline}; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'self'"
)


def is_token(given: str, token: str) -> bool:
    """Compare in a time that does not depend on where they differ."""
    first, second = (hashlib.sha256(text.encode("utf-8", errors="replace")).digest() for text in (given, token))
    return hmac.compare_digest(first, second)


def make_cookie(token: str) -> tuple[str, str]:
    """Name and value of what a browser that knew the token shows from then on; the token cannot be had from it.

    Browsers show a host's cookies to all of its ports, so the name belongs to the token as well.
    """
    name, value = (hmac.new(token.encode(), part, hashlib.sha256).hexdigest() for part in (b"name", b"page"))
    return f"maskrcnn_plus_{name[:8]}", value


class Guard:
    """ASGI middleware around everything.

    Attributes:
        service: what is served.
    """

    def __init__(self, app: Any, service: Service) -> None:
        """Wrap an application.

        Args:
            app: the application.
            service: has the settings `token` and `only_local`, and the metrics that count the uploads.
        """
        self.app, self.service, self.settings, self.metrics = app, service, service.settings, service.metrics

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = _path(scope)
        policy = _POLICY.format(inline=" 'unsafe-inline'" if path == "/docs" else "")

        async def send_with_headers(message: dict) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    (b"content-security-policy", policy.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
                if scope["method"] == "POST" and path in UPLOADS:
                    self.metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        refusal = self._refuse(scope)
        await (refusal or self.app)(scope, receive, send_with_headers)

    def _refuse(self, scope: dict) -> Response | None:
        headers = {key.decode("latin-1"): value.decode("utf-8", "replace") for key, value in scope["headers"]}
        settings, path = self.settings, _path(scope)
        if settings.only_local and settings.token is None and _host(headers.get("host", "")) not in _LOCAL:
            return JSONResponse(
                {"detail": "This server answers requests to localhost only; with --token it has any name."}, 403
            )
        if scope["method"] not in ("GET", "HEAD") and headers.get("sec-fetch-site", "") in ("cross-site", "same-site"):
            return JSONResponse({"detail": "Requests from web pages of other sites are refused."}, 403)
        if settings.token is None or path in _OPEN or self._knows_token(headers):
            return None
        if path == "/" and "text/html" in headers.get("accept", ""):
            return RedirectResponse("login", 303)
        detail = "A token is needed: Authorization: Bearer TOKEN."
        return JSONResponse({"detail": detail}, 401, headers={"WWW-Authenticate": "Bearer"})

    def _knows_token(self, headers: dict[str, str]) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return is_token(given.strip(), self.settings.token)
        name, value = make_cookie(self.settings.token)
        shown = cookie_parser(headers.get("cookie", "")).get(name, "")  # whatever others' cookies are like
        return hmac.compare_digest(shown.encode(), value.encode())


def _path(scope: dict) -> str:
    """Of a request, below the application's own."""
    return scope["path"].removeprefix(scope.get("root_path", ""))


def _host(header: str) -> str:
    """The name of a Host header without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()
