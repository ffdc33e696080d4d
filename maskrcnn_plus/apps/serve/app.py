"""The application, and the server that runs it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from fastapi.openapi.docs import get_swagger_ui_html
from fastapi_offline import FastAPIOffline
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from maskrcnn_plus import __version__
from maskrcnn_plus.apps.serve import api, page
from maskrcnn_plus.apps.serve.access import Guard
from maskrcnn_plus.apps.serve.service import Service
from maskrcnn_plus.apps.serve.settings import Settings
from maskrcnn_plus.inference.predictor import Predictor

_TIDY_SECONDS = 60


def create_app(predictor: Predictor, settings: Settings | None = None, title: str = "maskrcnn_plus") -> Guard:
    """The page and the API as an ASGI application, for any server of such.

    The model runs in a thread from the application's start to its end (ASGI's lifespan), so there must be one process
    (`workers=1`) for each copy of the model.

    Args:
        predictor: the model; used by that thread alone.
        settings: limits and the token.
        title: what is served, for people.

    Raises:
        ValueError: a setting is out of range.
    """
    service = Service(predictor, settings or Settings())

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        service.start()
        tidying = asyncio.create_task(_tidy(service))
        try:
            yield
        finally:
            tidying.cancel()
            with suppress(asyncio.CancelledError):
                await tidying
            await asyncio.to_thread(service.close)

    options = {"servers": [{"url": "."}], "redirect_slashes": False}  # redirections would leave the path of a proxy
    app = FastAPIOffline(None, None, title="maskrcnn_plus", version=__version__, lifespan=lifespan, **options)
    app.add_api_route("/docs", _show_openapi, include_in_schema=False)
    app.include_router(api.make_router(service))
    app.include_router(page.make_router(service, title))
    app.mount("/static", StaticFiles(directory=page.STATIC), name="static")
    return Guard(GZipMiddleware(app, minimum_size=2048, compresslevel=4), service)


async def _show_openapi() -> Response:
    """The OpenAPI page; as on all pages, addresses are relative."""
    files = "static-offline-docs/swagger-ui"
    return get_swagger_ui_html(
        openapi_url="openapi.json",
        title="maskrcnn_plus: HTTP API",
        swagger_js_url=f"{files}-bundle.js",
        swagger_css_url=f"{files}.css",
        swagger_favicon_url="static/favicon.svg",
    )


async def _tidy(service: Service) -> None:
    """Forget the page's images that nobody looks at."""
    while True:
        await asyncio.sleep(_TIDY_SECONDS)
        await asyncio.to_thread(service.forget_old)


def serve(
    predictor: Predictor,
    settings: Settings | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    title: str = "maskrcnn_plus",
    on_start: Callable[[str], None] = print,
) -> None:
    """Serve until the process is interrupted or told to end.

    Args:
        predictor: the model.
        settings: limits and the token.
        host: address to listen at.
        port: of it; 0 takes a free one.
        title: what is served, for people.
        on_start: is told the address.

    Raises:
        ValueError: a setting is out of range.
        OSError: the port is taken, or not ours to take.
    """
    import uvicorn

    app = create_app(predictor, settings, title)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise OSError(
                f"{host}:{port} cannot be listened at ({error.strerror}): choose another --port or --host"
            ) from error
        name = f"[{host}]" if ":" in host else host
        on_start(f"http://{name}:{listener.getsockname()[1]}")
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_graceful_shutdown=3, lifespan="on", server_header=False
        )
        uvicorn.Server(config).run(sockets=[listener])
