"""Jobs: work on the whole corpus inside PostgreSQL, now and then.

    lock      an advisory lock a job, the session's: it goes with the connection, however that ends
    snapshot  one REPEATABLE READ transaction: the stores' offsets (the watermark) and the rows
    publish   one transaction: the result, the watermark, and which run is to be read from now on

A job is a module with two plain functions (see `Module`), named in topics.yaml.
"""

from __future__ import annotations

from headrace.jobs.history import JobRun, Standing, behind, standing
from headrace.jobs.runtime import Busy, Context, Module, run
from headrace.jobs.watermark import Watermark

__all__ = [
    "Busy",
    "Context",
    "JobRun",
    "Module",
    "Standing",
    "Watermark",
    "behind",
    "run",
    "standing",
]
