"""Whether a result need not be made again, as make and cp tell: by times, and by what the result says of itself."""

from __future__ import annotations

from pathlib import Path

from img2img_cli.errors import Img2ImgError
from img2img_cli.tasks.job import Job
from img2img_cli.tasks.record import BESIDE, make_record, read_record


def is_up_to_date(job: Job, *, seeded: bool) -> bool:
    """Return whether a job's result is newer than all that the job reads, and was made with the same parameters.

    A result without a record, as with `--no-metadata`, is judged by the times alone. A pipe has no time.

    Args:
        seeded: whether the seed must be the same.
    """
    try:
        made = Path(job.output).stat().st_mtime_ns
        if not job.reads or any(Path(path).stat().st_mtime_ns > made for path in job.reads):
            return False
    except OSError:
        return False
    try:
        record = read_record(job.output)
    except Img2ImgError:
        return not job.metadata
    if seeded and record.get("seed") != job.seed:
        return False
    wanted = make_record(job)
    return all(record.get(key) == wanted.get(key) for key in ("parameters", *BESIDE))
