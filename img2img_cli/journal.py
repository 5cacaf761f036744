"""What has been done in an output folder: one SQLite file, a cache of what the results themselves tell."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from img2img_cli.errors import InputError, LockedError, OutputError
from img2img_cli.images import load_image
from img2img_cli.job import Job
from img2img_cli.modelref import identify_file, identify_model
from img2img_cli.record import read_record
from img2img_cli.source import NO_STAMP, Stamp, find_special, hash_source, stamp_file
from img2img_cli.writer import BATCH_TAG, is_temporary

STATE, LOCK = ".img2img.sqlite", ".img2img.lock"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS result (
    output TEXT PRIMARY KEY, input TEXT, fingerprint TEXT,
    source_sha256 TEXT, source_size INTEGER, source_mtime INTEGER,
    output_sha256 TEXT, previous_sha256 TEXT, output_size INTEGER, output_mtime INTEGER,
    status TEXT NOT NULL, code INTEGER, reason TEXT, seconds REAL, finished REAL
);
CREATE TABLE IF NOT EXISTS holder (name TEXT);
"""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a result is made from: the input's bytes, and everything else that decides the pixels.

    Attributes:
        source_sha256: empty while unknown, as a FIFO can be read but once.
        source_stamp: by which the input is known again.
        beside: the mask, style and control picture, with their stamps from before they were hashed.
    """

    fingerprint: str
    source_sha256: str
    source_stamp: Stamp = NO_STAMP
    beside: tuple[tuple[str, Stamp], ...] = ()


def hash_file(path: str) -> str:
    """The SHA-256 of a file's content.

    Raises:
        InputError: it cannot be read.
    """
    return hash_source(path)[0]


def _stamp_beside(job: Job) -> tuple[tuple[str, Stamp], ...]:
    """The pictures beside the input with their stamps.

    Raises:
        InputError: one cannot be read twice.
    """
    names = [name for name in (job.mask, job.style, job.control_image) if name]
    for name in names:
        if kind := find_special(name):
            raise InputError(f"{name}: is {kind}, and a batch reads it more than once; save it as a file first")
    return tuple((name, stamp_file(name)) for name in names)


def make_fingerprint(job: Job) -> str:
    """A hash of all that a result follows from: parameters, seed, weights, mask, style, and the form of the output."""
    content = {
        "parameters": job.parameters.to_record(),
        "seed": job.seed,
        "model": identify_model(job.parameters.model),
        "controlnet": identify_model(job.parameters.controlnet) if job.parameters.controlnet else None,
        "files": [identify_file(role, text) for role, text in job.parameters.list_files()],
        **({"vae": identify_model(job.parameters.vae)} if job.parameters.vae else {}),
        **({"refiner": identify_model(job.parameters.refiner)} if job.parameters.refiner else {}),
        "mask": hash_file(job.mask) if job.mask else None,
        "style": hash_file(job.style) if job.style else None,
        "control_image": hash_file(job.control_image) if job.control_image else None,
        "output": [job.format, job.quality, job.metadata],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Journal:
    """The state of one output folder, held by one run at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._guard = threading.Lock()
        # Results may lie in folders that another run holds, so each knows its own temporary files.
        self.tag = f"{BATCH_TAG}{os.stat(folder).st_ino:x}-"
        self._connection = _open(folder / STATE)

    def close(self) -> None:
        """Leave the file to the next run."""
        self._connection.close()

    def status(self, job: Job) -> str | None:
        """`done`, `failed`, `writing`, or None for a result that was never tried."""
        row = self._find(job)
        return str(row["status"]) if row else None

    def trace(self, job: Job) -> Provenance:
        """What the job's result would be made from; the input is hashed only when it has changed.

        Raises:
            InputError: the input or the mask cannot be read.
        """
        beside, fingerprint = _stamp_beside(job), make_fingerprint(job)
        if find_special(job.input):
            return Provenance(fingerprint=fingerprint, source_sha256="", beside=beside)
        row, stamp = self._find(job) or {}, stamp_file(job.input)
        sha256 = row.get("source_sha256")
        before = (row.get("source_size"), row.get("source_mtime"), row.get("input"))
        if not sha256 or before != (*stamp, _storable(job.input)):
            known = sha256
            sha256, stamp = hash_source(job.input)
            if sha256 == known:
                self._update(job, input=_storable(job.input), source_size=stamp[0], source_mtime=stamp[1])
        return Provenance(fingerprint=fingerprint, source_sha256=sha256, source_stamp=stamp, beside=beside)

    def is_current(self, job: Job, provenance: Provenance) -> bool:
        """Whether the result lies there already, made from the same input in the same way.

        Outputs are the truth: a row counts only while its file is as it was written, and a file without a row is
        asked for its own record.

        Raises:
            OutputError: a file lies there that this tool has not made.
        """
        size, mtime = _stamp(job.output)
        if size is None:
            return False
        if not os.path.isfile(job.output):
            raise OutputError(f"{job.output}: is no regular file, and is left alone; remove it, or use --name")
        row = self._find(job)
        wanted = (provenance.fingerprint, provenance.source_sha256)
        if row and row["output_sha256"]:
            same = (row["output_size"], row["output_mtime"]) == (size, mtime)
            sha256 = row["output_sha256"] if same else hash_file(job.output)
            if sha256 == row["previous_sha256"] != row["output_sha256"]:
                # A run was killed before it could replace its own older result; the next one could be killed there too.
                self._update(job, output_sha256=sha256, fingerprint=None)
                return False
            if sha256 == row["output_sha256"]:
                current = (row["fingerprint"], row["source_sha256"]) == wanted
                if current and (row["status"] != "done" or not same):
                    self.finish(job, provenance, seconds=None)
                return current
        found = _read_provenance(job.output)
        if found is None and not job.force:
            raise OutputError(
                f"{job.output}: exists already and was not made by this tool; use --force to replace it, or --name"
            )
        if found == wanted:
            self._note(job, provenance, hash_file(job.output), "writing")
            self.finish(job, provenance, seconds=None)
            return True
        return False

    def begin(self, job: Job, provenance: Provenance, data: bytes) -> None:
        """Note what is about to be written, so that a run that is killed now knows its own file again."""
        self._note(job, provenance, hashlib.sha256(data).hexdigest(), "writing")

    def finish(self, job: Job, provenance: Provenance, seconds: float | None) -> None:
        """Note a result that lies in its place."""
        size, mtime = _stamp(job.output)
        self._update(job, status="done", code=0, reason=None, output_size=size, output_mtime=mtime, seconds=seconds)

    def fail(self, job: Job, code: int, reason: str, seconds: float) -> None:
        """Note a failure and its reason; what lay there before is still known."""
        if self._find(job) is None:
            self._insert({"output": self._key(job), "input": _storable(job.input), "status": "failed"})
        self._update(job, status="failed", code=code, reason=reason, seconds=seconds)

    def _key(self, job: Job) -> str:
        return _storable(os.path.relpath(job.output, self.folder))

    def _find(self, job: Job) -> dict[str, Any] | None:
        """What is known of a job's result; asked for each time, as a folder may have any number of results."""
        rows = self._execute(f"{_SELECT} WHERE output = ?", [self._key(job)])
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
        self._execute(f"INSERT OR REPLACE INTO result ({columns}) VALUES ({marks})", list(row.values()))

    def _update(self, job: Job, **values: Any) -> None:
        values["finished"] = time.time()
        assignments = ", ".join(f"{column} = ?" for column in values)
        self._execute(f"UPDATE result SET {assignments} WHERE output = ?", [*values.values(), self._key(job)])

    def _execute(self, statement: str, values: list[Any]) -> list[tuple[Any, ...]]:
        try:
            with self._guard, self._connection:
                return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise OutputError(f"{self.folder / STATE}: cannot be used ({error}); free space on its disk") from None


_COLUMNS = (
    "output", "input", "fingerprint", "source_sha256", "source_size", "source_mtime", "output_sha256",
    "previous_sha256", "output_size", "output_mtime", "status", "code", "reason", "seconds", "finished",
)  # fmt: skip
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM result"


def _storable(text: str) -> str:
    """A name as UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _open(path: Path) -> sqlite3.Connection:
    """Open the state and read all of it; a damaged file is put aside, because the results tell the same."""
    for attempt in range(2):
        connection = None
        try:
            connection = sqlite3.connect(path, check_same_thread=False)
            connection.executescript(_SCHEMA)
            connection.execute("PRAGMA synchronous = NORMAL")
            for _ in connection.execute(_SELECT):
                pass
            return connection
        except sqlite3.DatabaseError as error:
            if connection is not None:
                connection.close()
            if attempt or (isinstance(error, sqlite3.OperationalError) and "no such column" not in str(error)):
                raise OutputError(f"{path}: cannot be used ({error}); check the disk, or remove the file") from None
            _put_aside(path)
    raise AssertionError("unreachable")


def _put_aside(path: Path) -> None:
    try:
        os.replace(path, path.with_suffix(".damaged"))
    except OSError as error:
        raise OutputError(f"{path}: is damaged and cannot be put aside ({error.strerror}); remove the file") from None


def _stamp(path: str) -> tuple[int | None, int | None]:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None, None
    return status.st_size, status.st_mtime_ns


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
def hold_folder(folder: Path) -> Iterator[Journal]:
    """Lock the output folder for this run, clear what a killed run left half-written, and open its journal.

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
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written to ({error.strerror}); check its permissions") from None
    try:
        journal = Journal(folder)
        try:
            journal._execute("DELETE FROM holder", [])
            name = f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')},"
            journal._execute("INSERT INTO holder VALUES (?)", [name])
            _sweep(folder, journal.tag)
            yield journal
        finally:
            journal.close()
    finally:
        lock.release()


def _read_holder(folder: Path) -> str:
    try:
        with contextlib.closing(sqlite3.connect(f"file:{folder / STATE}?mode=ro", uri=True)) as connection:
            row = connection.execute("SELECT name FROM holder").fetchone()
    except sqlite3.Error:
        row = None
    return str(row[0]) if row else "another run"


def _sweep(folder: Path, tag: str) -> None:
    for parent, _, files in os.walk(folder):
        for name in files:
            if is_temporary(name, tag):
                path = Path(parent, name)
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    raise OutputError(f"{path}: a killed run's file cannot be removed ({error.strerror})") from None
