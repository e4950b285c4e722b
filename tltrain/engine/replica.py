"""A process with the model behind Ray Serve, which gathers requests into batches. Needs the extra `serve`."""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from ray import serve
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from torch import Tensor

from tltrain.data.transforms import evaluation_transform
from tltrain.inference.finished import open_model
from tltrain.inference.requests import Request, ServeOptions, answer, decode_upload, top_of

DECODERS = 4
"""Images that are decoded at a time: one of the largest may take hundreds of megabytes."""


class Replica:
    """Answers HTTP requests with what the model says."""

    def __init__(self, model_uri: str, options: ServeOptions, threads: int, python_path: str) -> None:
        """Open the model that stands at `model_uri`. threads: with which torch computes on a CPU."""
        if python_path not in sys.path:  # a factory of the user's own may stand there
            sys.path.insert(0, python_path)
        torch.set_num_threads(threads)
        self._model, self._limits = open_model(model_uri), options.limits
        self._transform = evaluation_transform(self._model.network.preprocessing)
        self._decoders = ThreadPoolExecutor(DECODERS, "decode")
        self._computer = ThreadPoolExecutor(1, "compute")
        batches: Any = self._classify_batch
        batches.set_max_batch_size(options.max_batch_size)
        batches.set_batch_wait_timeout_s(options.max_wait_s)
        self._health = {"status": "ok", "model": self._model.place.name, "classes": len(self._model.classes)}

    async def __call__(self, http: HttpRequest) -> JSONResponse:
        """Answer one request."""
        request = Request(http.method, http.url.path, http.headers, http.stream())
        answered = await answer(request, self._limits, self._health, self._classify)
        return JSONResponse(answered.body, answered.status, dict(answered.headers))

    async def _classify(self, content: bytes) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        image = await loop.run_in_executor(self._decoders, decode_upload, content, self._transform, self._limits)
        batches: Any = self._classify_batch
        return await batches(image)

    @serve.batch
    async def _classify_batch(self, images: list[Tensor]) -> list[dict[str, Any]]:
        return await asyncio.get_running_loop().run_in_executor(self._computer, self._compute, images)

    def _compute(self, images: list[Tensor]) -> list[dict[str, Any]]:
        return top_of(self._model.rank(torch.stack(images)), self._model.classes)
