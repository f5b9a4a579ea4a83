"""The process of one job, as workers.listen starts it: what RQ would do there, in a file.

python -m workers.horse WORKER QUEUE JOB EXECUTION
"""

from __future__ import annotations

import sys

import redis
from rq.executions import Execution

from app.settings import Settings
from app.storage.dial import dial
from workers.lease import block_sigterm


def main() -> int:
    """1 where the worker that started it is not known any more."""
    block_sigterm()  # before any library starts threads, which would have it open and die of it
    key, name, id, execution_id = sys.argv[1:]
    settings = Settings()
    if settings.redis_url is None:
        raise SystemExit("ENGINESMITH_REDIS_URL is not set")
    from workers.listen import JobWorker

    connection = dial(settings.redis_url, redis.Redis)
    worker = JobWorker.find_by_key(key, connection=connection)
    if worker is None:
        return 1
    worker.log_job_description = False
    job = worker.job_class.fetch(id, connection=connection)
    execution = Execution.fetch(execution_id, job.id, connection=connection)
    execution._job = job
    worker.execution = execution
    worker.main_work_horse(job, worker.queue_class(name, connection=connection))
    return 0


if __name__ == "__main__":
    sys.exit(main())
