"""What exists and what happens, as frozen records: tensors, versions, data sets, jobs."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
Name = Annotated[str, Field(pattern=NAME, description="letters, digits, dot, dash, underscore; at most 63")]
DTypeName = Literal[
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
    "float16", "bfloat16", "float32", "float64", "string",
]  # fmt: skip
# No job makes an engine of `echo`: it stands in tests for what no processor has.
Format = Literal["torch", "onnx", "torchscript", "openvino", "onnxruntime", "tensorrt", "tensorrt_rtx", "echo"]
ENGINE_FORMATS = frozenset({"openvino", "onnxruntime", "tensorrt", "tensorrt_rtx", "echo"})
Status = Literal["queued", "running", "succeeded", "failed", "cancelling", "cancelled"]
ENDED = frozenset({"succeeded", "failed", "cancelled"})
_REF = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]{0,62})(?:@([1-9][0-9]{0,8}))?$")


def seconds_since(at: str) -> float:
    """at: a time as `now` writes it."""
    return (datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds()


def now() -> str:
    """The time as RFC 3339 in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_ref(ref: str) -> tuple[str, int | None]:
    """`name@3` → ("name", 3); `name` → ("name", None). Raises ValueError."""
    found = _REF.match(ref)
    if not found:
        raise ValueError(f"{ref!r} is no reference: say a name, or name@number")
    return found[1], int(found[2]) if found[2] else None


class Record(BaseModel):
    """A frozen fact. `but` gives the changed copy."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def but(self, **changes: Any) -> Self:
        return self.model_validate(self.model_dump() | changes)


class Tensor(Record):
    """One input or output. shape includes the batch axis; a dynamic dimension is -1."""

    name: str = Field(min_length=1, max_length=256)
    dtype: DTypeName = "float32"
    shape: tuple[Annotated[int, Field(ge=-1)], ...]
    batch_axis: int | None = 0


class Signature(Record):
    inputs: tuple[Tensor, ...] = Field(min_length=1)
    outputs: tuple[Tensor, ...] = ()

    @cached_property
    def batched(self) -> bool:
        """Whether rows of several requests may share one run: axis 0 is the dynamic batch of every tensor."""
        return all(t.batch_axis == 0 and t.shape[:1] == (-1,) for t in (*self.inputs, *self.outputs))


class Quality(Record):
    """A measured accuracy (Wilson's interval) or r2 (bootstrap) on n samples of a split."""

    name: Literal["accuracy", "r2"]
    value: float
    low: float
    high: float
    n: int
    split: Literal["train", "val", "test"]
    dataset: str | None = None
    confidence: float = 0.95


class Histogram(Record):
    """counts: of values in equally wide bins from `low` to `high`; those beyond `high` are in none."""

    low: float
    high: float
    counts: tuple[int, ...]


class Latency(Record):
    """Measured on the host named, after warm-up; milliseconds per run of `batch` rows. histogram: of the runs, up to
    their 98th percentile; what was measured before there were any has none."""

    runtime: str
    batch: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    runs: int
    threads: int
    load_1m: float
    device: str
    throughput_rps: float
    histogram: Histogram | None = None


class Parity(Record):
    """How far an engine's answers lay from its source's, over n inputs."""

    n: int
    max_abs_diff: float
    max_rel_diff: float
    tolerance: float
    agreed: float | None = None  # share of equal arg-max answers, for classifiers


class Metrics(Record):
    quality: Quality | None = None
    latency: tuple[Latency, ...] = ()
    parity: Parity | None = None
    layer_sparsity: dict[str, float] = {}


class Made(Record):
    """What made a version: the job and its spec."""

    job: str
    spec: dict[str, Any]


class Version(Record):
    """An immutable version of a model; it exists if and only if its manifest does. files: path → sha256."""

    name: Name
    version: int = Field(ge=1)
    format: Format
    folder: str  # the prefix in the artifact store under which `files` lie
    files: dict[str, str]
    bytes: int
    signature: Signature
    parameters: int | None = None
    macs: int | None = None
    sparsity: float | None = None
    metrics: Metrics = Metrics()
    parent: str | None = None
    made_by: Made
    built_for: dict[str, Any] | None = None
    verdict: Literal["accepted", "rejected", "unproven"] | None = None
    task: str | None = None
    labels: tuple[str, ...] | None = None
    preprocess: dict[str, Any] | None = None
    trainable: bool = False
    notes: tuple[str, ...] = ()
    # Facts a runtime or pass needs again (precision, max_batch, threads …).
    details: dict[str, Any] = {}
    key: str | None = None  # the id of the API key that its job was submitted with
    created_at: str

    @cached_property
    def ref(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def is_engine(self) -> bool:
        return self.format in ENGINE_FORMATS


class Split(Record):
    """rows: how many. x, y: .npy files in the data set's folder. index: None, or an .npy of int64 row numbers."""

    rows: int
    x: str
    y: str
    index: str | None = None

    @property
    def places(self) -> tuple[str, ...]:
        """The files that it names."""
        return (self.x, self.y, *([self.index] if self.index is not None else []))


class Dataset(Record):
    """Arrays in the model's own layout; y is int64 classes 0…C-1, or float32."""

    name: Name
    version: int = Field(ge=1)
    kind: Literal["arrays", "images", "table"]
    folder: str
    files: dict[str, str]
    bytes: int
    x_shape: tuple[int, ...]  # of one row
    x_dtype: DTypeName
    y_dtype: Literal["int64", "float32"]
    y_shape: tuple[int, ...] = ()  # of one row
    classes: int | None = None
    labels: tuple[str, ...] | None = None
    splits: dict[Literal["train", "val", "test"], Split]
    split_note: str
    preprocess: dict[str, Any] | None = None
    columns: tuple[str, ...] | None = None
    key: str | None = None  # the id of the API key that it was uploaded with
    created_at: str

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.version}"


class Progress(Record):
    done: float = 0
    total: float | None = None
    unit: str = ""
    eta_s: float | None = None


class Result(Record):
    model: str | None = None
    verdict: Literal["accepted", "rejected", "unproven"] | None = None
    report: dict[str, Any] = {}


class Job(Record):
    """One piece of work. spec: as asked; model and dataset: the exact refs it was resolved to."""

    id: str
    kind: str
    spec: dict[str, Any]
    model: str | None = None
    dataset: str | None = None
    status: Status = "queued"
    phase: str = "queued"
    progress: Progress = Progress()
    metrics: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    result: Result | None = None
    error: dict[str, Any] | None = None
    cache_hit: bool = False
    attempt: int = 1
    allowed_attempts: int = 2  # the number of the last attempt that the reaper may start
    queue: str = "cpu"  # cpu, gpu; or that of one kind of GPU: see plans.py
    key: str | None = None  # the id of the API key that it was submitted with
    parent: str | None = None  # the search or optimize job that a trial belongs to
    waiting: bool = False  # running, but only its trials are: it holds no worker, and no lease
    due: bool = False  # running, and woken: its next step lies on the queue, and nobody has begun it
    warnings: tuple[str, ...] = ()  # said at the submission: what will run, but not as one might hope
    traceparent: str | None = None  # W3C: the trace of the request that made it
    created_at: str
    started_at: str | None = None
    finished_at: str | None = None

    @property
    def ended(self) -> bool:
        return self.status in ENDED
