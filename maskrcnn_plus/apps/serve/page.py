"""The page in the browser and the requests that it makes; its files are in `static/`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Query, Request, Response
from starlette.responses import FileResponse, RedirectResponse, StreamingResponse

from maskrcnn_plus.apps.serve.access import is_token, make_cookie
from maskrcnn_plus.apps.serve.answers import DOWNLOADS, draw_picture, select, to_outlines, write_download
from maskrcnn_plus.apps.serve.archive import zip_files
from maskrcnn_plus.apps.serve.service import Kept, Service, to_http
from maskrcnn_plus.data.synthetic_nuclei import STAINS, render_nuclei
from maskrcnn_plus.results.labels import encode_png

STATIC = Path(__file__).parent / "static"

_Kind = Literal[tuple(DOWNLOADS)]
_Score = Annotated[float, Query(ge=0, le=1)]
_Area = Annotated[int, Query(ge=0)]
_EXAMPLE_SIDE = 320
_PRIVATE = {"Cache-Control": "private, max-age=3600"}


def make_router(service: Service, title: str) -> APIRouter:
    """The routes of the page.

    Args:
        service: its images.
        title: what is served, for people.
    """
    router = APIRouter(include_in_schema=False)
    predictor, settings = service.predictor, service.settings

    @router.get("/")
    async def index() -> Response:
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    @router.get("/login")
    async def login_form() -> Response:
        return FileResponse(STATIC / "login.html", headers={"Cache-Control": "no-cache"})

    @router.post("/login")
    async def login(request: Request) -> Response:
        async with request.form(max_files=0, max_fields=1) as form:
            given = str(form.get("token", ""))
        if settings.token is None or not is_token(given, settings.token):
            return FileResponse(STATIC / "login.html", 401, headers={"Cache-Control": "no-cache"})
        answer = RedirectResponse("./", 303)
        # Without a path the cookie is for the folder of this address: other servers of the host have their own, and
        # those at its other ports another name.
        options = {"path": None, "httponly": True, "samesite": "strict", "secure": request.url.scheme == "https"}
        answer.set_cookie(*make_cookie(settings.token), **options)
        return answer

    @router.get("/page/config")
    async def config() -> dict[str, Any]:
        return {
            "title": title,
            "classes": predictor.class_names,
            "score_threshold": predictor.score_threshold or 0,
            "max_bytes": settings.max_bytes,
            "max_pixels": settings.max_pixels,
            "downloads": list(DOWNLOADS),
            "examples": list(STAINS) if any("nucle" in name.lower() for name in predictor.class_names) else [],
        }

    @router.get("/page/examples/{stain}.png")
    def example(stain: str) -> Response:
        if stain not in STAINS:
            raise HTTPException(404, "There is no such example.")
        image = render_nuclei(stain, 0, 0, _EXAMPLE_SIDE, _EXAMPLE_SIDE)[0]
        return Response(encode_png(image), media_type="image/png", headers=_PRIVATE)

    @router.post("/page/images")
    async def add(request: Request, name: str = "image") -> dict[str, Any]:
        upload, jobs = await service.submit(request, name, all_pages=True)
        keys = service.keep(upload, jobs)
        return {"images": [{"id": key, "name": Kept(job, upload).name} for key, job in zip(keys, jobs, strict=True)]}

    @router.get("/page/images/{key}")
    async def status(key: str) -> dict[str, Any]:
        kept = service.get(key)
        job, facts = kept.job, {}
        if job.state == "failed":
            facts["error"] = kept.error
        elif job.state == "waiting":
            facts["ahead"] = service.worker.num_ahead(job)
        return {"state": job.state, "tiles": job.tiles, "note": job.note, **facts}

    @router.delete("/page/images/{key}", status_code=204)
    def remove(key: str) -> None:
        service.forget(key)

    @router.get("/page/images/{key}/outlines")
    def outlines(key: str) -> dict[str, Any]:
        return to_outlines(_result(service.get(key)), predictor.class_names)

    @router.get("/page/images/{key}/picture")
    def picture(key: str) -> Response:
        kept = service.get(key)
        content = _reading(kept, draw_picture, kept.job.image, predictor, settings.max_pixels)
        return Response(content, media_type="image/jpeg", headers=_PRIVATE)

    def write(key: str, kind: str, min_score: float, min_area: int) -> tuple[str, bytes]:
        kept = service.get(key)
        found = select(_result(kept), min_score, min_area)
        options = kept.job.image, kept.upload.name, kind, predictor, service.folder, settings.max_pixels
        return _reading(kept, write_download, found, *options)

    @router.get("/page/images/{key}/download/{kind}")
    def download(key: str, kind: _Kind, min_score: _Score = 0, min_area: _Area = 0) -> Response:
        name, content = write(key, kind, min_score, min_area)
        media_type = "image/tiff" if name.endswith(".tif") else DOWNLOADS[kind]
        return Response(content, media_type=media_type, headers=_attached(name))

    @router.get("/page/download/{kind}.zip")
    def download_all(ids: str, kind: _Kind, min_score: _Score = 0, min_area: _Area = 0) -> Response:
        pieces = zip_files(ids.split(","), lambda key: write(key, kind, min_score, min_area))
        return StreamingResponse(pieces, media_type="application/zip", headers=_attached(f"{kind}.zip"))

    return router


def _attached(name: str) -> dict[str, str]:
    return {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}"}


def _result(kept: Kept) -> Any:
    if kept.job.state != "done":
        reason = f": {kept.error}" if kept.job.state == "failed" else ""
        raise HTTPException(409, f"{kept.name}: there is no result, it is {kept.job.state}{reason}")
    return kept.job.future.result()


def _reading(kept: Kept, function: Any, *args: Any) -> Any:
    """Call what reads the image again."""
    try:
        return function(*args)
    except Exception as error:  # of the decoder or the memory, too
        raise to_http(kept.upload, error, failed="") from error
