"""The HTTP API for programs: `/v1/predict`, `/healthz`, `/metrics`."""

from __future__ import annotations

import io
import json
import time
from typing import Any, Literal

from fastapi import APIRouter, HTTPException, Query, Request, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from maskrcnn_plus.apps.serve.answers import select, to_json
from maskrcnn_plus.apps.serve.metrics import CONTENT_TYPE_LATEST
from maskrcnn_plus.apps.serve.service import Service
from maskrcnn_plus.results.geojson import write_geojson


class RLE(BaseModel):
    """A mask as COCO's compressed run-length code: `size` is [height, width]."""

    size: list[int]
    counts: str


class FoundObject(BaseModel):
    """An object: `box` is x0, y0, x1, y1 in pixels, `area` the pixels of the mask."""

    id: int
    class_: str
    category_id: int | float | str
    score: float
    box: list[float]
    area: int
    segmentation: RLE

    model_config = {"json_schema_extra": lambda schema: _rename(schema)}


class Prediction(BaseModel):
    """The objects of an image, those with the highest score first."""

    image: str
    height: int
    width: int
    seconds: float
    note: str
    objects: list[FoundObject]


def _rename(schema: dict[str, Any]) -> None:
    """`class` is no name in Python."""
    properties = schema["properties"]
    schema["properties"] = {key.rstrip("_"): value for key, value in properties.items()}
    schema["required"] = [key.rstrip("_") for key in schema["required"]]


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str


_BINARY = {"schema": {"type": "string", "format": "binary"}}
_BODY = {
    "required": True,
    "content": {
        "application/octet-stream": _BINARY,
        "multipart/form-data": {
            "schema": {"type": "object", "required": ["file"], "properties": {"file": _BINARY["schema"]}}
        },
    },
}
_RESPONSES = {
    200: {"model": Prediction, "content": {"application/geo+json": {"schema": {"type": "object"}}}},
    400: {"model": Problem, "description": "The image cannot be used"},
    401: {"model": Problem, "description": "The token is missing or wrong"},
    408: {"model": Problem, "description": "The upload stopped"},
    413: {"model": Problem, "description": "Too many bytes or pixels"},
    429: {"model": Problem, "description": "Too much is waiting; Retry-After says when to try again"},
    507: {"model": Problem, "description": "The server has no room for the upload"},
}


def make_router(service: Service) -> APIRouter:
    """The routes of the API."""
    router = APIRouter()

    @router.post("/v1/predict", responses=_RESPONSES, openapi_extra={"requestBody": _BODY})
    async def predict(
        request: Request,
        format: Literal["rle", "geojson"] = "rle",
        min_score: float = Query(0, ge=0, le=1, description="least score; the server's own is never undercut"),
        min_area: int = Query(0, ge=0, description="least area in pixels"),
        page: int | None = Query(None, ge=1, description="page of a stack, from 1"),
        name: str = Query("image", description="name of the file, where the body is the image"),
    ) -> Response:
        """Find the objects of one image: the body of the request, or the one file of a form.

        PNG, JPEG, TIFF (8, 16, 32 bits, any channels that the model takes), DICOM and more, as for tools/predict.py.
        """
        start = time.perf_counter()
        upload, (job,) = await service.submit(request, name, page)
        try:
            found = await service.wait_for(request, upload, job)
            return await run_in_threadpool(
                _answer, service, job, upload.name, found, format, min_score, min_area, start
            )
        finally:
            upload.leave()

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether images are predicted; open to all."""
        if not service.worker.is_alive:
            raise HTTPException(503, "The model is not running.")
        return {"status": "ok"}

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counts in Prometheus' text format."""
        return Response(service.metrics.to_text(), media_type=CONTENT_TYPE_LATEST)

    return router


def _answer(service, job, name, found, kind, min_score, min_area, start) -> Response:
    found, names = select(found, min_score, min_area), service.predictor.class_names
    if kind == "geojson":
        file = io.BytesIO()
        write_geojson(file, found, names, found.pixel_size)
        return Response(file.getvalue(), media_type="application/geo+json")
    facts = {"image": name, **to_json(found, names), "note": job.note, "seconds": round(time.perf_counter() - start, 3)}
    return Response(json.dumps(facts), media_type="application/json")
