"""Whether a canary or a shadow can answer whatever the main version is asked: nobody knows which of them gets it."""

from __future__ import annotations

from app.domain.records import Tensor, Version
from app.errors import Unprocessable
from app.serving.lane import default_max_batch, has_fixed_rows


def refuse_unlike(main: Version, other: Version, role: str, max_batch: int | None) -> None:
    """Raises Unprocessable unless every request that is valid for `main` is valid for `other`, and is answered with the
    same outputs. max_batch: as asked, for both."""
    why = _inputs(main, other) or _outputs(main, other)
    if why is None and main.preprocess is not None and other.preprocess is None:
        why = "takes no images"
    hint = "give it a deployment of its own: a client could not know which of the two it is asking"
    if why is None and max_batch is None and (why := _rows(main, other)) is not None:
        hint = f'say "max_batch": {default_max_batch(other)}, which then holds for both'
    if why is not None:
        raise Unprocessable(
            f"the {role} {other.ref} {why}. It takes {_told(other.signature.inputs)} and gives "
            f"{_told(other.signature.outputs)}; {main.ref} takes {_told(main.signature.inputs)} and gives "
            f"{_told(main.signature.outputs)}",
            code=f"{role}_differs",
            hint=hint,
        )


def _inputs(main: Version, other: Version) -> str | None:
    ours, theirs = ({t.name: t for t in version.signature.inputs} for version in (main, other))
    if ours.keys() != theirs.keys():
        return "has other inputs"
    for name, tensor in ours.items():
        if tensor.dtype != theirs[name].dtype:
            return f"takes {name!r} as another dtype"
        if not _fits(tensor.shape, theirs[name].shape):
            return f"does not take every shape of {name!r} that {main.ref} takes"
    return None


def _fits(shape: tuple[int, ...], into: tuple[int, ...]) -> bool:
    """Whether every array of one shape is one of the other; -1 is any size."""
    return len(shape) == len(into) and all(b in (-1, a) for a, b in zip(shape, into, strict=True))


def _outputs(main: Version, other: Version) -> str | None:
    ours, theirs = ({t.name: t.dtype for t in version.signature.outputs} for version in (main, other))
    return None if ours == theirs else "has other outputs"


def _rows(main: Version, other: Version) -> str | None:
    if not has_fixed_rows(other) or not main.signature.batched or not other.signature.batched:
        return None
    most, allowed = default_max_batch(other), default_max_batch(main)
    return f"takes only {most} rows in a request, and {main.ref} takes {allowed}" if most < allowed else None


def _told(tensors: tuple[Tensor, ...]) -> str:
    return ", ".join(f"{t.name}: {t.dtype} {list(t.shape)}" for t in tensors) or "nothing"
