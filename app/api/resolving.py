"""What a job is really to work on: names become exact refs, and what cannot work is refused before it is queued."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from app.api.checking import compressing, fitting, optimizing, quantizing, searching, teaching
from app.api.checking.targets import check_target
from app.api.queues import choose_queue
from app.domain.compression import check_int8
from app.domain.records import Dataset, Version, parse_ref
from app.domain.specs import (
    MENU,
    ConvertSpec,
    EvaluateSpec,
    ModelSpec,
    OptimizeSpec,
    PruneSpec,
    QuantizeSpec,
    SearchSpec,
    ShareSpec,
    Spec,
)
from app.errors import Conflict, Problem, Unprocessable
from app.storage.catalog import Catalog

CONVERTIBLE = frozenset({"torch", "onnx", "torchscript"})


class Resolved(NamedTuple):
    """spec: with every ref exact; model, dataset: those refs; warnings: what may not go as hoped."""

    spec: dict[str, Any]
    model: str | None
    dataset: str | None
    queue: str
    warnings: tuple[str, ...] = ()


def resolve(spec: Spec, catalog: Catalog) -> Resolved:
    """Raises NotFound, Conflict and Unprocessable: what the job would otherwise fail with."""
    assert isinstance(spec, ModelSpec | SearchSpec)
    if spec.wants_dataset() and spec.dataset is None:
        raise Unprocessable(
            _wants_dataset(spec),
            code="dataset_missing",
            hint="name a data set: POST /v1/datasets uploads one",
            errors=[{"loc": ["dataset"], "msg": "is required"}],
        )
    if isinstance(spec, SearchSpec):
        return _resolve_search(spec, catalog)
    version = _pick(spec.model, spec.needs, catalog, spec.model_dump()["kind"], suits=partial(_suits, spec))
    dataset = _dataset(spec.dataset, catalog) if spec.dataset else None
    stored = teaching.exact(spec.model_dump(mode="json"), catalog)
    if dataset is not None:
        fitting.check(version, dataset)
    if isinstance(spec, PruneSpec | ShareSpec) and spec.layers:
        _check_layers(spec.layers, version)
    baseline = None
    if isinstance(spec, EvaluateSpec) and spec.baseline:
        baseline = _pick(spec.baseline, "any", catalog, "evaluate")
        stored["baseline"] = baseline.ref
        if dataset is not None:
            fitting.check(baseline, dataset)
            optimizing.check_same_order(version, baseline)
    workers = catalog.takers()
    if isinstance(spec, ConvertSpec):
        check_int8(version.ref, version.parent, version.details.get("quantized"), spec.precision, spec.target)
        _check_shapes_named(spec, version)
        _check_buckets(spec, version)
        check_target(spec.target, workers, [spec.precision])
    warnings = _warnings(spec, version, dataset, catalog)
    formats = {found.format for found in (version, baseline) if found is not None}
    queue = choose_queue(spec, workers, formats)
    return Resolved(stored, version.ref, dataset.ref if dataset else None, queue, warnings)


def _resolve_search(spec: SearchSpec, catalog: Catalog) -> Resolved:
    """With `estimator`, `model` is what the winner will be called: there need be none of that name yet."""
    workers = catalog.takers()
    dataset = _dataset(str(spec.dataset), catalog)
    if spec.estimator is not None:
        if spec.model and parse_ref(spec.model)[1] is not None:
            raise Unprocessable(
                f"`model` is what the winner will be called, and its number will be the next free one: {spec.model}",
                code="bad_model",
                hint=f"say {parse_ref(spec.model)[0]!r}",
                errors=[{"loc": ["model"], "msg": "is a name without a number here"}],
            )
        warnings = tuple(searching.check(spec, None, dataset, catalog))
        return Resolved(spec.model_dump(mode="json"), None, dataset.ref, choose_queue(spec, workers), warnings)
    first = searching.first_kind(spec)
    told = f"a search whose chain begins with {first}"
    version = _pick(str(spec.model), MENU[first].needs, catalog, told, suits=partial(_suits, spec))
    fitting.check(version, dataset)
    warnings = _warnings(spec, version, dataset, catalog)
    links = searching.links_of(spec)
    if isinstance(links[0], PruneSpec | ShareSpec) and links[0].layers:
        _check_layers(links[0].layers, version)
    quantized = bool(version.details.get("quantized")) or any(isinstance(link, QuantizeSpec) for link in links)
    for link in links:
        if isinstance(link, ConvertSpec) and link.precision == "int8" and not quantized:
            raise Unprocessable(
                "the chain ends in an int8 engine, and nothing in it quantizes",
                code="not_quantized",
                hint="put a link of kind 'quantize' before it",
                errors=[{"loc": ["chain", len(links) - 1, "precision"], "msg": "needs a quantized network"}],
            )
    stored = teaching.exact(spec.model_dump(mode="json"), catalog)
    return Resolved(stored, version.ref, dataset.ref, choose_queue(spec, workers), warnings)


def _warnings(spec: Spec, version: Version | None, dataset: Dataset | None, catalog: Catalog) -> tuple[str, ...]:
    """Runs the checks of the spec's kind. Raises what they raise."""
    found = teaching.check(spec, version, dataset, catalog)
    if isinstance(spec, PruneSpec | ShareSpec):
        found += compressing.check(spec, version, dataset, catalog)
    elif isinstance(spec, QuantizeSpec):
        found += quantizing.check(spec, version, dataset, catalog)
    elif isinstance(spec, SearchSpec):
        found += searching.check(spec, version, dataset, catalog)
    elif isinstance(spec, OptimizeSpec | EvaluateSpec):
        found += optimizing.check(spec, version, dataset, catalog)
    return tuple(found)


def usable(version: Version, needs: str) -> bool:
    """Whether a kind of job that `needs` something can start from this version."""
    if needs == "trainable":
        return version.trainable
    return version.format in CONVERTIBLE if needs == "convertible" else True


def _suits(spec: Spec, version: Version) -> bool:
    """Whether a job can use a version that its kind could start from: of several, the newest such one is meant."""
    quantized = bool(version.details.get("quantized"))
    if isinstance(spec, ConvertSpec):
        return quantized == (spec.precision == "int8")
    return not (quantized and isinstance(spec, QuantizeSpec | OptimizeSpec | SearchSpec))


def _pick(
    ref: str, needs: str, catalog: Catalog, kind: str, *, suits: Callable[[Version], bool] = lambda version: True
) -> Version:
    """A version by its ref; by a name the newest that can be used, rather one that `suits`."""
    name, number = parse_ref(ref)
    if number is not None:
        version = catalog.version(name, number)
        if not usable(version, needs):
            raise _unusable(version, needs, kind)
        return version
    versions = catalog.versions(name)
    found = [version for version in reversed(versions) if usable(version, needs)]
    if not found:
        raise _unusable(versions[-1], needs, kind)
    return next(filter(suits, found), found[0])


def _unusable(version: Version, needs: str, kind: str) -> Problem:
    if needs == "trainable":
        # An import's notes say why; those of other jobs are about what they did.
        told = f" ({'; '.join(version.notes[:2])})" if version.notes and version.parent is None else ""
        return Conflict(
            f"{version.ref} is {_told_format(version)}, which {kind} cannot start from{told}",
            code="not_trainable",
            hint="use a version of format torch: upload weights with an `architecture`, or a network as a graph",
        )
    parent = f": {version.parent} is what it was made from" if version.parent else ""
    return Conflict(
        f"{version.ref} is {_told_format(version)}, and cannot be converted",
        code="not_convertible",
        hint=f"convert a version of format torch, onnx or torchscript{parent}",
    )


def _told_format(version: Version) -> str:
    return f"an engine of {version.format}" if version.is_engine else f"of format {version.format}"


def _dataset(ref: str, catalog: Catalog) -> Dataset:
    name, number = parse_ref(ref)
    return catalog.dataset(name, number)


def _wants_dataset(spec: Spec) -> str:
    if not isinstance(spec, PruneSpec) or spec.finetune is not None:
        return "fine-tuning needs a data set" if isinstance(spec, PruneSpec) else f"{_kind(spec)} needs a data set"
    return f"{'the importance taylor' if spec.importance == 'taylor' else 'sensitivity'} needs a data set"


def _kind(spec: Spec) -> str:
    return str(getattr(spec, "kind", "this"))


def _check_layers(layers: list[str], version: Version) -> None:
    known = list(version.metrics.layer_sparsity)
    missing = [layer for layer in layers if layer not in known]
    if known and missing:
        listed = ", ".join(known[:20]) + (f", … ({len(known)} in all)" if len(known) > 20 else "")
        raise Unprocessable(
            f"{version.ref} has no prunable layer {missing[0]!r}",
            code="unknown_layer",
            hint=f"it has: {listed}",
            errors=[
                {"loc": ["layers", i], "msg": f"there is no layer {layer!r}"}
                for i, layer in enumerate(layers)
                if layer in missing
            ][:50],
        )


def _check_shapes_named(spec: ConvertSpec, version: Version) -> None:
    known = [t.name for t in version.signature.inputs]
    for name in spec.shapes or {}:
        if name not in known:
            raise Unprocessable(
                f"`shapes` names the input {name!r}, and {version.ref} has {', '.join(map(repr, known))}",
                code="bad_shapes",
                errors=[{"loc": ["shapes", name], "msg": "there is no such input"}],
            )


def _check_buckets(spec: ConvertSpec, version: Version) -> None:
    if spec.buckets is not None and not version.signature.batched:
        raise Unprocessable(
            f"{version.ref} answers one request at a time: there are no batches to have `buckets` of",
            code="not_batched",
            errors=[{"loc": ["buckets"], "msg": "the model has no batch dimension"}],
        )
