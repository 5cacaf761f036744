"""What has been done in an output folder: one SQLite file, a cache of what the results themselves tell."""

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
from img2img_cli.tasks.job import Job
from img2img_cli.tasks.record import read_record

STATE, LOCK = ".img2img.sqlite", ".img2img.lock"
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
    """How a job failed before, and would again."""

    code: int
    reason: str


class Journal:
    """The state of one output folder, held by one run at a time."""

    def __init__(self, folder: Path, *, check: bool = True) -> None:
        self.folder = folder
        # Results may lie in folders that another run holds, so each knows its own temporary files.
        self.tag = f"{BATCH_TAG}{os.stat(folder).st_ino:x}-"
        self._file = StateFile(folder / STATE, _SCHEMA, _TABLES, check=check)
        self._beside: dict[tuple[object, ...], str] = {}

    def close(self) -> None:
        """Leave the file to the next run."""
        self._file.close()

    def take_notes(self) -> list[str]:
        """Lines for the user since the last call: what was wrong with the journal itself."""
        notes, self._file.notes = self._file.notes, []
        return notes

    def status(self, job: Job) -> str | None:
        """`done`, `failed`, `writing`, or None for a result that was never tried."""
        row = self._find(job)
        return str(row["status"]) if row else None

    def trace(self, job: Job) -> Provenance:
        """What the job's result would be made from; the hash of an input that is new or has changed is left open.

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
        """A file's hash; the file is read once while it stays as it is."""
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return hash_file(path)
        key = (path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if key not in self._beside:
            self._beside[key] = hash_file(path)
        return self._beside[key]

    def is_current(self, job: Job, provenance: Provenance) -> bool:
        """Whether the result lies there already, made from the same input in the same way.

        Outputs are the truth: a row counts only while its file is as it was written, and a file without a row is
        asked for its own record. The input is read only where its hash is not known and nothing else differs.

        Raises:
            InputError: the input cannot be read.
            OutputError: a file lies there that this tool has not made.
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
                # A run was killed before it could replace its own older result; the next one could be killed there too.
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
        """How the job failed before, if that was its pictures' fault and they are the same.

        Raises:
            InputError: the input cannot be read.
        """
        key = [self._key(job)]
        rows = self._file.execute("SELECT made_of, code, reason FROM failure WHERE output = ?", key)
        if not rows:
            return None
        made_of, code, reason = rows[0]
        if provenance.source_sha256 is None:
            if find_special(job.input):  # which can be read but once
                return None
            provenance = Provenance(fingerprint=provenance.fingerprint, source_sha256=hash_file(job.input))
        if not (isinstance(code, int) and isinstance(reason, str)):  # as a flipped bit can leave them
            return None
        failure = Failure(code=code, reason=reason)
        return failure if made_of == _describe(job, provenance, failure) else None

    def begin(self, job: Job, provenance: Provenance, data: bytes) -> None:
        """Note what is about to be written, so that a run that is killed now knows its own file again."""
        self._note(job, provenance, hashlib.sha256(data).hexdigest(), "writing")

    def finish(self, job: Job, provenance: Provenance, seconds: float | None) -> None:
        """Note a result that lies in its place."""
        size, mtime = stamp_file(job.output)
        self._update(job, status="done", code=0, reason=None, output_size=size, output_mtime=mtime, seconds=seconds)
        self._forget_failure(job)

    def fail(self, job: Job, failure: Failure, seconds: float, lasting: Provenance | None = None) -> None:
        """Note a failure; what lay there before is still known.

        Args:
            lasting: what the job would be made from, where it would fail again as long as that stays.
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
        """Leave a name for others who want the folder."""
        self._file.execute("DELETE FROM holder")
        self._file.execute("INSERT INTO holder VALUES (?)", [name])

    def _key(self, job: Job) -> str | bytes:
        return _storable(os.path.relpath(job.output, self.folder))

    def _find(self, job: Job) -> dict[str, Any] | None:
        """What is known of a job's result; asked for each time, as a folder may have any number of results."""
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
    """A name as the state holds it: text, or the bytes of one that is no UTF-8, so that two stay two."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(name)
    return name


def _describe(job: Job, provenance: Provenance, failure: Failure) -> str:
    """A hash of a failure to read a job's pictures and of all that it follows from, the code that reads them included.

    It covers the failure itself, as SQLite does not notice a bit that is flipped.
    """
    known = job.model_dump(mode="json", exclude={"input", "output", "force", "mask", "style", "control_image"})
    made_of = [provenance.fingerprint, provenance.source_sha256, __version__, PIL.__version__]
    content = [known, *made_of, failure.code, failure.reason]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_provenance(path: str) -> tuple[str, str] | None:
    """What a result says of itself, `("", "")` when it is one of ours that does not tell; None for a stranger.

    One whose pixels are damaged counts as a stranger: it is neither current nor for us to replace.
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
    """Lock the output folder for this run, clear what a killed run left half-written, and open its journal.

    Args:
        check: look for what was left and for damage; not needed soon after the last time.

    Raises:
        LockedError: another run holds it; the text says which.
        OutputError: it cannot be written to, or what is kept in it lies elsewhere.
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
