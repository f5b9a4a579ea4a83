"""Every setting of both kinds of process. Built once per process and passed down; only here is the environment read."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

MiB = 1024 * 1024
_OF_CLIENTS = {"ENGINESMITH_URL", "ENGINESMITH_API_KEY"}


class Settings(BaseSettings):
    """Read from ENGINESMITH_* unless given."""

    model_config = SettingsConfigDict(env_prefix="ENGINESMITH_", frozen=True, extra="forbid", allow_inf_nan=False)

    # Where the embedded store, the artifacts and the scratch folders lie.
    data: Path = Path("data")
    # A Redis or Valkey server (redis://, rediss://, unix://). None: the embedded one in `data`.
    redis_url: str | None = None
    # The artifact store: s3://bucket/prefix, file:///folder. None: `data`/store.
    store_url: str | None = None
    # Where the app listens.
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    # A port that has everything, and its address; the other then has predictions and health alone. None: one port.
    manage_port: int | None = Field(None, ge=0, le=65535)
    manage_host: str | None = None
    # Origins whose pages may ask ("https://shop.example", several with commas, or "*"). None: those of no other.
    cors_origins: str | None = None
    # The socket of the process that has the engines, where HTTP is spoken by others. None: one process does both.
    engines_socket: Path | None = None
    # "KEY" (all scopes) or "KEY=predict+write", several with commas. None: loopback only, and everything is allowed.
    api_keys: str | None = None
    # A file with one key a line, hashed: "sha256:DIGEST=predict". Read again when it changes.
    api_keys_file: Path | None = None
    # Queues whose workers are started when something lies there ("gpu,gpu-tensorrt"), though none may be alive now.
    pools: str | None = Field(None, pattern=r"^\s*(cpu|gpu(-[a-z_]+)?)(\s*,\s*(cpu|gpu(-[a-z_]+)?))*\s*$")
    # Networks and hosts that webhooks may reach though they are not public ("10.1.0.0/16, hooks.internal").
    webhooks_allow: str | None = None

    # The largest checkpoint or data set taken, in bytes.
    max_upload_bytes: int = Field(16 * 1024 * MiB, gt=0)
    # The largest body of a prediction, in bytes.
    max_predict_bytes: int = Field(64 * MiB, gt=0)
    # What the bodies of predictions that are being received or answered may hold together, in bytes, unpacked ones too.
    max_bodies_bytes: int = Field(512 * MiB, gt=0)
    # Seconds that a prediction's body may pause for, and that all of it may take.
    body_idle_s: float = Field(10.0, gt=0)
    body_total_s: float = Field(120.0, gt=0)
    # The largest JSON body elsewhere, in bytes.
    max_json_bytes: int = Field(4 * MiB, gt=0)
    # What an archive may unpack to, in bytes, and how many files it may hold.
    max_unpacked_bytes: int = Field(32 * 1024 * MiB, gt=0)
    max_archive_files: int = Field(200_000, gt=0)

    # Seconds that an attempt's lease lives without being renewed, and between two renewals.
    lease_s: float = Field(15.0, gt=0)
    lease_renew_s: float = Field(1.0, gt=0)
    # Seconds between two looks for expired leases, and how long one must be missing before it is believed.
    reap_s: float = Field(2.0, gt=0)
    reap_grace_s: float = Field(5.0, ge=0)
    # How often a job is begun at most when its worker is lost each time, the first time counted.
    max_attempts: int = Field(2, ge=1)
    # Seconds after its start for which the process of a trial goes on to take further trials of the same job.
    reuse_s: float = Field(60.0, ge=0)
    # Seconds between two looks at the deployments wanted.
    poll_s: float = Field(1.0, gt=0)
    # Seconds for which a staged upload or an unnamed file is kept.
    sweep_after_s: float = Field(24 * 3600.0, gt=0)
    # What the store may hold, in bytes, before uploads and jobs are refused; 0: no bound.
    store_bytes: int = Field(0, ge=0)
    # What is kept free on every disk that is written to, in bytes, but never more than a tenth of it.
    disk_reserve_bytes: int = Field(1024 * MiB, ge=0)
    # Seconds after its end for which a job is remembered, unless what it made still exists; 0: for ever.
    jobs_kept_s: float = Field(90 * 24 * 3600.0, ge=0)
    # What the trials of all searches may keep in the store, in bytes, before the oldest goes; 0: only a week ends it.
    trials_bytes: int = Field(20_000_000_000, ge=0)

    # Threads that one worker, or one engine, may use; 0: all cores (workers share them out).
    threads: int = Field(0, ge=0)
    # Rows that may wait in front of one engine before it answers 429.
    max_queue: int = Field(1024, ge=1)
    # Seconds after which a run of an engine counts as hanging, where the deployment does not say.
    run_timeout_s: float = Field(30.0, gt=0)
    # What the engines of one process may hold in memory, in bytes; 0: no bound. Above it the deployment that was asked
    # least recently is unloaded, and loaded again when it is asked.
    engine_memory_bytes: int = Field(0, ge=0)
    # Requests that may wait for one deployment to be loaded again, and for how long, in seconds.
    wake_queue: int = Field(256, ge=1)
    wake_patience_s: float = Field(30.0, gt=0)
    # How long a Redis that is gone is tried again before a call gives up, in seconds.
    redis_patience_s: float = Field(90.0, ge=0)
    # What a sandboxed child may use: bytes of memory, bytes of one file, seconds of CPU.
    sandbox_memory_bytes: int = Field(4 * 1024 * MiB, gt=0)
    sandbox_file_bytes: int = Field(16 * 1024 * MiB, gt=0)
    sandbox_cpu_s: int = Field(600, gt=0)

    # A collector that takes OpenTelemetry traces over HTTP (http://localhost:4318). None: nothing is traced.
    otlp_endpoint: str | None = Field(default_factory=lambda: os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"))
    # The share of traces kept, of those that begin here; a client's own sampling is obeyed.
    trace_ratio: float = Field(1.0, ge=0, le=1)
    # One JSON line on stderr for every request.
    access_log: bool = False

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @property
    def artifacts_url(self) -> str:
        """The artifact store as a URL."""
        return self.store_url or (self.data.absolute() / "store").as_uri()

    @property
    def scratch(self) -> Path:
        """Where jobs and engines keep their working files."""
        return self.data.absolute() / "scratch"

    def environ(self) -> dict[str, str]:
        """The environment for a child process that must see the same settings."""
        given = {f"ENGINESMITH_{k.upper()}": str(v) for k, v in self.model_dump(exclude_none=True).items()}
        kept = {k: v for k, v in os.environ.items() if not k.startswith("ENGINESMITH_")}
        return kept | given


def chosen(**given: Any) -> Settings:
    """given: what the command line says, which goes before the environment. Raises ValueError that calls what is wrong
    by the name under which it was said, and repeats no value."""
    try:
        return Settings(**given)
    except ValidationError as error:
        wrong = [(str(one["loc"][0]) if one["loc"] else "", one["msg"]) for one in error.errors(include_input=False)]
        named = [(f"--{name}" if name in given else f"ENGINESMITH_{name.upper()}", why) for name, why in wrong]
        raise ValueError("; ".join(f"{name}: {why}" for name, why in named)) from None


def unknown() -> list[str]:
    """What is set as if it were a setting, and is none; each with the setting that may be meant."""
    known = [f"ENGINESMITH_{name.upper()}" for name in Settings.model_fields]
    strange = sorted(
        name for name in os.environ if name.startswith("ENGINESMITH_") and name not in {*known, *_OF_CLIENTS}
    )
    meant = {name: difflib.get_close_matches(name, known, 1) for name in strange}
    return [f"{name} is no setting" + (f": is {close[0]} meant?" if close else "") for name, close in meant.items()]
