"""Perplexity of a setting against dense attention, on documents.

Owns the measures and their record. Must not parse arguments or draw.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.accuracy.documents import Document
from benchmarks.accuracy.settings import Setting
from benchmarks.accuracy.smollm2 import SmolLM2
from benchmarks.accuracy.sparse import Backend, SparseAttention, open_layers
from prism_gen.runtime import load_bundle
from prism_gen.runtime.masked import dense_attention

Emit = Callable[[dict[str, Any]], None]


def evaluate(
    model: SmolLM2,
    documents: Sequence[Document],
    settings: Sequence[Setting],
    *,
    backend: Backend,
    bundle: Path | None,
    at_once: int,
    emit: Emit,
) -> None:
    """Emits one record per setting and document, and first one per document for dense attention.

    at_once: documents in one batch; they have one length.
    """
    kernels = None if bundle is None else load_bundle(bundle)
    for first in range(0, len(documents), at_once):
        batch = documents[first : first + at_once]
        ids = torch.stack([document.ids for document in batch]).to(model.device)
        dense, seconds = _timed_nll(model, ids, _dense)
        for document, nll in zip(batch, dense, strict=True):
            emit({"what": "dense", "document": document.name, **_likelihood(document, nll), "seconds": seconds})
        for setting in settings:
            selections = setting.of_layers(model.spec.num_layers)
            attention = SparseAttention(open_layers(model.spec, selections, backend, kernels), backend)
            sparse, seconds = _timed_nll(model, ids, attention)
            density = torch.stack([record.density for record in attention.records])  # [layers, batch, heads]
            mass = torch.stack([record.mass for record in attention.records])
            for index, document in enumerate(batch):
                emit(
                    {
                        "what": "sparse",
                        "setting": setting.name,
                        "document": document.name,
                        "backend": backend,
                        "increase_percent": round(_increase_percent(sparse[index], dense[index]), 3),
                        "density": round(float(density[:, index].mean()), 4),
                        "mass": round(float(mass[:, index].mean()), 4),
                        **_likelihood(document, sparse[index]),
                        "seconds": seconds,
                        "density_of_layers": _rounded(density[:, index].mean(-1)),
                        "mass_of_layers": _rounded(mass[:, index].mean(-1)),
                        **setting.record(),
                    }
                )


def _dense(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return dense_attention(q, k, v, softmax_scale=q.shape[-1] ** -0.5)


def _timed_nll(model: SmolLM2, ids: Tensor, attention: Any) -> tuple[Tensor, float]:
    start = time.perf_counter()
    with torch.inference_mode():
        nll = model.nll(ids, attention).cpu()  # waits for the device
    return nll, round((time.perf_counter() - start) / len(ids), 2)


def _increase_percent(sparse: Tensor, dense: Tensor) -> float:
    """Perplexity over dense's, less 1, in percent."""
    return 100 * (float((sparse.double() - dense.double()).mean().exp()) - 1)


def _likelihood(document: Document, nll: Tensor) -> dict[str, float]:
    """Perplexity, and of a needle task the NLL of the tokens that are asked for."""
    found = {"perplexity": round(float(nll.double().mean().exp()), 4)}
    if document.answers is not None:
        found["needle_nll"] = round(float(nll[document.answers[1:]].mean()), 4)
    return found


def _rounded(values: Tensor) -> list[float]:
    return [round(x, 4) for x in values.tolist()]
