"""The journal of an output folder: a SQLite file that caches which results are done and how jobs failed.

The results carry their own records, so a lost journal can be rebuilt from them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL
from filelock import FileLock, Timeout

from img2img_cli import __version__
from img2img_cli.batch.provenance import Provenance, hash_file, make_fingerprint, match_source, stamp_beside
from img2img_cli.batch.state_file import StateFile, read_value
from img2img_cli.errors import InputError, LockedError, OutputError, advise
from img2img_cli.pictures.read import load_image
from img2img_cli.pictures.write import BATCH_TAG, is_temporary
from img2img_cli.system.source_files import NO_STAMP, find_special, stamp_file
from img2img_cli.tasks.inputs import BATCH_STATE
from img2img_cli.tasks.job import Job
from img2img_cli.tasks.record import read_record

STATE, LOCK = BATCH_STATE, ".img2img.lock"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS result (
    output TEXT PRIMARY KEY, input TEXT, fingerprint TEXT,
    source_sha256 TEXT, source_size INTEGER, source_mtime INTEGER,
    output_sha256 TEXT, previous_sha256 TEXT, output_size INTEGER, output_mtime INTEGER,
    status TEXT NOT NULL, code INTEGER, reason TEXT, seconds REAL, finished REAL
);
CREATE TABLE IF NOT EXISTS failure (
    output TEXT PRIMARY KEY, made_of TEXT NOT NULL, code INTEGER NOT NULL, reason TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS holder (name TEXT);
"""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The exit code and reason of a failed job."""

    code: int
    reason: str


class Journal:
    """The state of one output folder; one run at a time holds it.

    Args:
        check: read the whole file first, to find damage.

    Attributes:
        tag: a prefix for the temporary files of this folder.

    Raises:
        OutputError: the file cannot be used.
    """

    def __init__(self, folder: Path, *, check: bool = True) -> None:
        self.folder = folder
        # Results may lie in a folder that another run holds, so the tag tells apart the temporary files of each run.
        self.tag = f"{BATCH_TAG}{os.stat(folder).st_ino:x}-"
        self._file = StateFile(folder / STATE, _SCHEMA, _TABLES, check=check)
        self._beside: dict[tuple[object, ...], str] = {}

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def take_notes(self) -> list[str]:
        """Return and clear the messages about damage to the journal since the last call."""
        notes, self._file.notes = self._file.notes, []
        return notes

    def status(self, job: Job) -> str | None:
        """Return `done`, `failed` or `writing`, or None if the job was never tried."""
        row = self._find(job)
        return str(row["status"]) if row else None

    def trace(self, job: Job) -> Provenance:
        """Return the provenance that the result of the job would have.

        `source_sha256` is None if the input is new or has changed since it was last recorded.

        Raises:
            InputError: the mask, style or control picture cannot be read.
        """
        beside = stamp_beside(job)
        row, stamp = self._find(job) or {}, stamp_file(job.input)
        sha256 = row.get("source_sha256")
        if stamp == NO_STAMP or (row.get("source_size"), row.get("source_mtime"), row.get("input")) != (
            *stamp,
            _storable(job.input),
        ):
            sha256, stamp = None, NO_STAMP
        fingerprint = make_fingerprint(job, self._hash_beside)
        return Provenance(fingerprint=fingerprint, source_sha256=sha256, source_stamp=stamp, beside=beside)

    def _hash_beside(self, path: str) -> str:
        """Return the SHA-256 of a file. An unchanged file is read only once."""
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return hash_file(path)
        key = (path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if key not in self._beside:
            self._beside[key] = hash_file(path)
        return self._beside[key]

    def is_current(self, job: Job, provenance: Provenance) -> bool:
        """Return whether the output file already exists and was made from the same input with the same settings.

        The output file decides: a row counts only if its file is unchanged, and a file without a row is judged by its
        embedded record. The input is read only if its hash is unknown and nothing else differs.

        Raises:
            InputError: the input cannot be read.
            OutputError: the output is not a regular file, or is a file that this tool did not make and that
                `job.force` does not allow to replace.
        """
        stamp = stamp_file(job.output)
        if stamp == NO_STAMP:
            if os.path.exists(job.output):
                raise OutputError(f"{job.output}: is no regular file, and is left alone; remove it, or use --name")
            return False
        row = self._find(job)
        if row and row["output_sha256"]:
            same = (row["output_size"], row["output_mtime"]) == stamp
            sha256 = row["output_sha256"] if same else hash_file(job.output)
            if sha256 == row["previous_sha256"] != row["output_sha256"]:
                # A run was killed before it could replace its older result. Record the file that is there, because
                # the next run could be killed at the same point.
                self._update(job, output_sha256=sha256, fingerprint=None)
                return False
            if sha256 == row["output_sha256"]:
                made_of = match_source(job, provenance, row["fingerprint"], row["source_sha256"])
                if made_of is not None and made_of is not provenance:
                    size, mtime = made_of.source_stamp
                    self._update(job, input=_storable(job.input), source_size=size, source_mtime=mtime)
                if made_of is not None and (row["status"] != "done" or not same):
                    self.finish(job, made_of, seconds=None)
                return made_of is not None
        found = _read_provenance(job.output)
        if found is None and not job.force:
            raise OutputError(
                f"{job.output}: exists already and was not made by this tool; use --force to replace it, or --name"
            )
        made_of = match_source(job, provenance, *found) if found is not None else None
        if made_of is not None:
            self._note(job, made_of, hash_file(job.output), "writing")
            self.finish(job, made_of, seconds=None)
        return made_of is not None

    def recall_failure(self, job: Job, provenance: Provenance) -> Failure | None:
        """Return the recorded failure of the job if its pictures caused it and have not changed; None otherwise.

        Raises:
            InputError: the input cannot be read.
        """
        key = [self._key(job)]
        rows = self._file.execute("SELECT made_of, code, reason FROM failure WHERE output = ?", key)
        if not rows:
            return None
        made_of, code, reason = rows[0]
        if provenance.source_sha256 is None:
            if find_special(job.input):  # a FIFO can be read only once
                return None
            provenance = Provenance(fingerprint=provenance.fingerprint, source_sha256=hash_file(job.input))
        if not (isinstance(code, int) and isinstance(reason, str)):  # a flipped bit can change the type
            return None
        failure = Failure(code=code, reason=reason)
        return failure if made_of == _describe(job, provenance, failure) else None

    def begin(self, job: Job, provenance: Provenance, data: bytes) -> None:
        """Record the output bytes about to be written, so that a killed run's file is recognised by the next run."""
        self._note(job, provenance, hashlib.sha256(data).hexdigest(), "writing")

    def finish(self, job: Job, provenance: Provenance, seconds: float | None) -> None:
        """Record that the output file is in place.

        Args:
            seconds: the time spent on the job; None if an earlier run wrote the file.
        """
        size, mtime = stamp_file(job.output)
        self._update(job, status="done", code=0, reason=None, output_size=size, output_mtime=mtime, seconds=seconds)
        self._forget_failure(job)

    def fail(self, job: Job, failure: Failure, seconds: float, lasting: Provenance | None = None) -> None:
        """Record a failure. The record of an earlier output file is kept.

        Args:
            seconds: the time spent on the job.
            lasting: the provenance of the job if the failure will repeat until the pictures change; None otherwise.
        """
        if self._find(job) is None:
            self._insert({"output": self._key(job), "input": _storable(job.input), "status": "failed"})
        reason = failure.reason.encode("utf-8", "replace").decode()
        self._update(job, status="failed", code=failure.code, reason=reason, seconds=seconds)
        if lasting is None or lasting.source_sha256 is None:
            self._forget_failure(job)
        else:
            kept = Failure(code=failure.code, reason=reason)
            row = [self._key(job), _describe(job, lasting, kept), kept.code, kept.reason]
            self._file.execute("INSERT OR REPLACE INTO failure VALUES (?, ?, ?, ?)", row)

    def _forget_failure(self, job: Job) -> None:
        self._file.execute("DELETE FROM failure WHERE output = ?", [self._key(job)])

    def hold(self, name: str) -> None:
        """Record the name of this run, for the message to other runs that want the folder."""
        self._file.execute("DELETE FROM holder")
        self._file.execute("INSERT INTO holder VALUES (?)", [name])

    def _key(self, job: Job) -> str | bytes:
        return _storable(os.path.relpath(job.output, self.folder))

    def _find(self, job: Job) -> dict[str, Any] | None:
        """Return the row of a job, or None. Rows are not cached in memory, because a folder may have very many."""
        rows = self._file.execute(f"{_SELECT} WHERE output = ?", [self._key(job)])
        return dict(zip(_COLUMNS, rows[0], strict=True)) if rows else None

    def _note(self, job: Job, provenance: Provenance, sha256: str, status: str) -> None:
        size, mtime = provenance.source_stamp
        previous = (self._find(job) or {}).get("output_sha256")
        self._insert(
            {
                "output": self._key(job),
                "previous_sha256": previous,
                "input": _storable(job.input),
                "fingerprint": provenance.fingerprint,
                "source_sha256": provenance.source_sha256,
                "source_size": size,
                "source_mtime": mtime,
                "output_sha256": sha256,
                "status": status,
            }
        )

    def _insert(self, row: dict[str, Any]) -> None:
        columns = ", ".join(row)
        marks = ", ".join("?" * len(row))
        self._file.execute(f"INSERT OR REPLACE INTO result ({columns}) VALUES ({marks})", list(row.values()))

    def _update(self, job: Job, **values: Any) -> None:
        values["finished"] = time.time()
        assignments = ", ".join(f"{column} = ?" for column in values)
        self._file.execute(f"UPDATE result SET {assignments} WHERE output = ?", [*values.values(), self._key(job)])


_COLUMNS = (
    "output", "input", "fingerprint", "source_sha256", "source_size", "source_mtime", "output_sha256",
    "previous_sha256", "output_size", "output_mtime", "status", "code", "reason", "seconds", "finished",
)  # fmt: skip
_TABLES = {"result": _COLUMNS, "failure": ("output", "made_of", "code", "reason"), "holder": ("name",)}
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM result"


def _storable(name: str) -> str | bytes:
    """Return a name as the database stores it: text, or bytes if it is not UTF-8, so that different names differ."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(name)
    return name


def _describe(job: Job, provenance: Provenance, failure: Failure) -> str:
    """Hash a failure to read the pictures of a job with everything that determines it, including the code versions.

    The hash also covers the failure itself, because SQLite does not detect flipped bits.

    Returns:
        SHA-256 as hexadecimal digits.
    """
    known = job.model_dump(mode="json", exclude={"input", "output", "force", "mask", "style", "control_image"})
    made_of = [provenance.fingerprint, provenance.source_sha256, __version__, PIL.__version__]
    content = [known, *made_of, failure.code, failure.reason]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_provenance(path: str) -> tuple[str, str] | None:
    """Read the fingerprint and the source hash from the record embedded in a result.

    Returns:
        `("", "")` for a result of this tool without these values, and None for any other file. A picture with damaged
        pixels counts as any other file: it is neither current nor safe to replace.
    """
    try:
        record = read_record(path)
        load_image(path)
    except InputError:
        return None
    if "fingerprint" not in record:
        return ("", "") if "parameters" in record else None
    return str(record["fingerprint"]), str(record.get("source_sha256"))


@contextlib.contextmanager
def hold_folder(folder: Path, *, check: bool = True) -> Iterator[Journal]:
    """Lock the output folder for this run, open its journal, and remove temporary files that a killed run left.

    Args:
        check: look for such files and for damage to the journal; not needed soon after the last check.

    Raises:
        LockedError: another run holds the folder; the message names it.
        OutputError: the folder cannot be written to or locked, or its journal or lock file is a symbolic link.
    """
    for name in (STATE, LOCK):
        if os.path.islink(folder / name):
            raise OutputError(f"{folder / name}: is a link, and would be written through; remove it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise LockedError(f"{folder}: {_read_holder(folder)} works on it; wait for its end, or stop it") from None
    except NotImplementedError:
        raise OutputError(f"{folder}: its file system has no locks; choose another place") from None
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written to ({error.strerror}); {advise(error)}") from None
    try:
        journal = Journal(folder, check=check)
        try:
            journal.hold(
                f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')},"
            )
            if check:
                _sweep(folder, journal.tag)
            yield journal
        finally:
            journal.close()
    finally:
        lock.release()


def _read_holder(folder: Path) -> str:
    return str(read_value(folder / STATE, "SELECT name FROM holder") or "another run")


def _sweep(folder: Path, tag: str) -> None:
    for parent, _, files in os.walk(folder):
        for name in files:
            if is_temporary(name, tag):
                path = Path(parent, name)
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    reason = f"a killed run's file cannot be removed ({error.strerror})"
                    raise OutputError(f"{path}: {reason}; {advise(error)}") from None
