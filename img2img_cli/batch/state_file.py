"""A SQLite file for state that can be rebuilt. A damaged file is set aside and replaced, and work goes on."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from img2img_cli.errors import OutputError, advise

# The errors from a damaged file: SQLite's own, and Python's for text that is not UTF-8 or a number that is too large.
TROUBLE = (sqlite3.Error, UnicodeError, OverflowError)
_COMPANIONS = ("", "-journal", "-wal", "-shm")
_FORMATS = (1, 2)  # valid read and write versions in the file header
# Result codes caused by the disk, permissions or other programs, each with the matching system error.
_CIRCUMSTANCES = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_BUSY: errno.EBUSY,
    sqlite3.SQLITE_LOCKED: errno.EBUSY,
    sqlite3.SQLITE_PROTOCOL: errno.EBUSY,
    sqlite3.SQLITE_NOLFS: errno.EFBIG,
}
_DAMAGE = (sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS)


class StateFile:
    """A database that several threads use through one connection.

    Args:
        schema: SQL that creates missing tables.
        columns: the columns of each table.
        check: read the whole file first, to find damage before the content is used.

    Attributes:
        notes: messages for the user about damage. The code that shows them clears the list.

    Raises:
        OutputError: the disk, permissions or another program prevent access; the message says what to do.
    """

    def __init__(self, path: Path, schema: str, columns: Mapping[str, Sequence[str]], *, check: bool = True) -> None:
        self.path = path
        self.notes: list[str] = []
        self._schema, self._columns = schema, columns
        self._guard = threading.Lock()
        try:
            self._connection = self._open(check=check)
        except TROUBLE as error:
            self._set_aside(error)
            self._connection = self._open_new()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a statement in its own transaction and return its rows.

        If the file is damaged, replace it with an empty one and run the statement there.

        Raises:
            OutputError: the disk, permissions or another program prevent access; the message says what to do.
        """
        with self._guard:
            try:
                return self._execute(statement, values)
            except TROUBLE as error:
                self._set_aside(error)
                self._connection = self._open_new()
                return self._execute(statement, values)

    def _execute(self, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        with self._connection:
            return self._connection.execute(statement, values).fetchall()

    def _open(self, *, check: bool) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, check_same_thread=False)
        try:
            connection.executescript(self._schema)
            connection.execute("PRAGMA synchronous = NORMAL")
            if check:
                self._read_all(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _read_all(self, connection: sqlite3.Connection) -> None:
        """Read every page and every value.

        Raises:
            sqlite3.Error, UnicodeError, OverflowError: the file is damaged.
        """
        (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(found)
        for table, columns in self._columns.items():
            for _ in connection.execute(f"SELECT {', '.join(columns)} FROM {table}"):
                pass

    def _open_new(self) -> sqlite3.Connection:
        try:
            return self._open(check=False)
        except TROUBLE as error:
            raise self._explain(error) from None

    def _set_aside(self, error: Exception) -> None:
        """Rename a damaged file.

        Raises:
            OutputError: the error has another cause, or the file cannot be renamed.
        """
        if not _is_damage(error, self.path):
            raise self._explain(error) from None
        with contextlib.suppress(AttributeError):
            self._connection.close()
        aside = self.path.with_suffix(".damaged")
        try:
            for companion in _COMPANIONS:  # SQLite must not apply the old journal files to the new database
                with contextlib.suppress(FileNotFoundError):
                    os.replace(f"{self.path}{companion}", f"{aside}{companion}")
        except OSError as trouble:
            reason = f"is damaged and cannot be put aside ({trouble.strerror})"
            raise OutputError(f"{self.path}: {reason}; {advise(trouble)}, or remove the file") from None
        self.notes.append(f"{self.path}: was damaged and is now {aside.name}; what results tell of themselves is used")

    def _explain(self, error: Exception) -> OutputError:
        code = _get_code(error) & 0xFF
        trouble = _ask_system(self.path)
        if trouble is None:
            number = _CIRCUMSTANCES.get(code, errno.EIO)
            trouble = OSError(number, os.strerror(number) if code in _CIRCUMSTANCES else str(error))
        if trouble.errno == errno.EBUSY:
            advice = "another program uses it; close that first"
        elif trouble.errno == errno.ENOENT and self.path.parent.is_dir():
            advice = "it was removed meanwhile; start again"
        else:
            advice = advise(trouble)
        return OutputError(f"{self.path}: cannot be used ({trouble.strerror}); {advice}")


def _get_code(error: Exception) -> int:
    return getattr(error, "sqlite_errorcode", None) or sqlite3.SQLITE_CORRUPT


def _is_damage(error: Exception, path: Path) -> bool:
    """Return whether the content of the file caused the error."""
    if isinstance(error, sqlite3.ProgrammingError):  # for example, a thread uses the connection after it was closed
        return False
    code = _get_code(error)
    if code & 0xFF == sqlite3.SQLITE_READONLY:
        return _ask_system(path) is None and not _has_sound_header(path)
    return code in _DAMAGE or code & 0xFF not in _CIRCUMSTANCES


def _has_sound_header(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(20)
    except OSError:
        return True
    return head.startswith(b"SQLite format 3\0") and head[18] in _FORMATS and head[19] in _FORMATS


def _ask_system(path: Path) -> OSError | None:
    """Try to create a file next to this one and to open this one for writing; return the error, or None."""
    try:
        with tempfile.TemporaryFile(dir=path.parent) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
        with path.open("r+b"):
            pass
    except OSError as error:
        return error
    return None


def read_value(path: Path, statement: str) -> Any:
    """Query a file that another process may hold; return the first value, or None if there is none or on an error."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            row = connection.execute(statement).fetchone()
    except TROUBLE:
        return None
    return row[0] if row else None
