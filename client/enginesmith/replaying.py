"""A version's recipe done again to another checkpoint of the same architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .errors import ApiError, EnginesmithError, OtherNetwork
from .jobs import Jobs
from .models import Models, split_ref
from .records import Job, Record, Version

MOST_DIFFERENCES = 8


def replay(models: Models, jobs: Jobs, ref: str, on: str, dataset: str | None, follow: Callable[[Job], Job]) -> Version:
    """Submits the specs that made `ref` to `on`, one after the other. Raises OtherNetwork, EnginesmithError."""
    recipe = models.recipe(ref)
    if not recipe.get("complete", True):
        raise EnginesmithError(f"the recipe of {recipe.model} is not whole: {recipe.missing} was deleted")
    if not recipe.chain or recipe.root == recipe.model:
        raise EnginesmithError(f"{recipe.model} was made from no other version: there is nothing to do again")
    start = fitting(models, models.version(recipe.root), on)
    # A teacher that the chain itself has made is the one that it makes now.
    became = {recipe.root: start.ref}
    at = start.ref
    for spec, made in zip(recipe.chain, recipe.get("made") or [None] * len(recipe.chain), strict=True):
        ended = follow(jobs.submit(**_asked(spec, at, dataset, became)))
        found = (ended.result or Record()).get("model")
        if not found:
            raise EnginesmithError(f"job {ended.id} ({ended.kind}) made no version, and the chain goes on from one")
        at = str(found)
        if made:
            became[made] = at
    return models.version(at)


def fitting(models: Models, root: Version, on: str) -> Version:
    """The version that `on` means: itself, or of a bare name the newest of the root's architecture that was uploaded.
    What jobs have made of it is passed over: a recipe done again to its own result would be another recipe. Raises
    OtherNetwork that says what differs, EnginesmithError where none was uploaded."""
    name, number = split_ref(on)
    if number is not None:
        found = models.version(on)
        _check(models, root, found)
        return found
    versions = [Version(v) for v in sorted(models.get(name)["versions"], key=lambda v: v["version"], reverse=True)]
    uploads = [version for version in versions if version.get("parent") is None]
    if not uploads:
        raise EnginesmithError(f"{name} has no uploaded version any more: say which one, such as {versions[0].ref}")
    for version in uploads:
        if not _differences(models, root, version, look=False):
            return version
    closest = next((v for v in uploads if v.format == root.format), uploads[0])
    _check(models, root, closest)
    return closest


def _check(models: Models, root: Version, found: Version) -> None:
    differences = list(_differences(models, root, found))
    if differences:
        more = [f"… and {len(differences) - MOST_DIFFERENCES} more"] if len(differences) > MOST_DIFFERENCES else []
        raise OtherNetwork(
            f"{found.ref} is another network than {root.ref}, which the recipe starts from:",
            differences[:MOST_DIFFERENCES] + more,
        )


def _differences(models: Models, root: Version, found: Version, *, look: bool = True) -> list[str]:
    """What tells two versions' networks apart. look: fetch both architectures to say what it is."""
    if root.format != found.format:
        return [f"it is of format {found.format}, and {root.ref} is of format {root.format}"]
    ours, theirs = root.get("architecture"), found.get("architecture")
    if ours and ours == theirs:
        return []
    if ours is None and theirs is None:  # a format without one: what can be seen from outside
        return list(differing(_outside(root), _outside(found)))
    told = list(differing(_outside(root), _outside(found)))
    if look:
        try:
            one, other = models.architecture(root), models.architecture(found)
        except ApiError:
            return [*told, "its architecture is another"]
        if one is not None and other is not None:
            return told + list(differing(one, other))  # nothing at all, where only the order of fields differs
    return told or ["its architecture is another"]


def _outside(version: Version) -> dict[str, Any]:
    signature: Mapping[str, Any] = version.get("signature") or {}
    tensors = {
        f"{way} {t.get('name')}": f"{t.get('dtype')} {list(t.get('shape') or ())}"
        for way in ("input", "output")
        for t in signature.get(f"{way}s") or ()
    }
    return {**tensors, "parameters": version.get("parameters")}


def differing(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """A line for each place at which two JSON values differ."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in dict.fromkeys((*one, *other)):
            inner = f"{path}.{name}" if path else str(name)
            if name not in other:
                yield f"{inner}: {_brief(one[name])} there, nothing here"
            elif name not in one:
                yield f"{inner}: nothing there, {_brief(other[name])} here"
            else:
                yield from differing(one[name], other[name], inner)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from differing(a, b, f"{path}[{i}]")
    elif one != other:
        yield f"{path}: {_brief(one)} there, {_brief(other)} here"


def _brief(value: Any) -> str:
    if isinstance(value, list) and len(str(value)) > 60:
        return f"{len(value)} items"
    text = str(dict(value) if isinstance(value, Mapping) else value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _asked(spec: Mapping[str, Any], model: str, dataset: str | None, became: Mapping[str, str]) -> dict[str, Any]:
    asked = dict(_renamed(spec, became))
    if dataset is not None and asked.get("dataset"):
        asked["dataset"] = dataset
    return asked | {"model": model}


def _renamed(value: Any, became: Mapping[str, str]) -> Any:
    """The spec with the teachers that the chain made replaced, also inside `finetune`."""
    if isinstance(value, Mapping):
        return {
            k: became.get(v, v) if k in ("teacher", "baseline") and isinstance(v, str) else _renamed(v, became)
            for k, v in value.items()
        }
    return value
