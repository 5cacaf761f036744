"""Exceptions for every error that a user can cause, each with its exit code."""

from __future__ import annotations

import errno
from enum import IntEnum

DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS})
_SHORTAGES = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc", "not enough memory")


class ExitCode(IntEnum):
    """The documented exit codes."""

    DONE = 0
    BUG = 1
    USAGE = 2
    SOME_FAILED = 3
    NOTHING_MATCHED = 4
    MODEL = 5
    OUTPUT = 6
    LOCKED = 7
    MEMORY = 8
    TIMEOUT = 124
    HUNG_UP = 129
    INTERRUPTED = 130
    TERMINATED = 143


class Img2ImgError(Exception):
    """Base of every error that a user can cause. Line breaks in the message become spaces."""

    exit_code: ExitCode = ExitCode.BUG

    def __init__(self, message: str = "") -> None:
        super().__init__(" ".join(message.splitlines()))  # file names and keys can contain line breaks


class UsageError(Img2ImgError):
    """Wrong arguments, or a preset that cannot be used."""

    exit_code = ExitCode.USAGE


class PresetError(UsageError):
    """A preset file that is missing, malformed or out of range."""


class InputError(Img2ImgError):
    """A picture that cannot be read."""

    exit_code = ExitCode.SOME_FAILED


class DamageError(InputError):
    """A picture that its decoder cannot decode."""


class ReadError(InputError):
    """A file that cannot be read now: it is missing, or its permissions or the disk prevent it."""


class ChangedError(ReadError):
    """A file that another process was writing to; it may be complete on the next try."""


class NothingMatchedError(Img2ImgError):
    """The inputs name no picture at all."""

    exit_code = ExitCode.NOTHING_MATCHED


class ModelError(Img2ImgError):
    """A model that is missing, refused, damaged or cannot be downloaded."""

    exit_code = ExitCode.MODEL


class OutputError(Img2ImgError):
    """A result that cannot be written."""

    exit_code = ExitCode.OUTPUT


class OutOfMemoryError(Img2ImgError):
    """The device has too little memory for the job."""

    exit_code = ExitCode.MEMORY


class LockedError(Img2ImgError):
    """Another run has locked the output folder."""

    exit_code = ExitCode.LOCKED


class TimeLimitError(Img2ImgError):
    """The time limit of --timeout or --item-timeout is over."""

    exit_code = ExitCode.TIMEOUT


def is_shortage(error: BaseException) -> bool:
    """Return whether an error means that memory ran out, in any of the wordings that libraries use."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _SHORTAGES)


_ADVICE = {
    errno.ENOSPC: "free space on its disk",
    errno.EDQUOT: "your quota is used up; free space or choose another place",
    errno.EROFS: "its file system is read-only; choose another place",
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its owner and whether it is immutable (lsattr)",
    errno.ENOENT: "its folder is gone; create it again or choose another place",
    errno.ENOTDIR: "a file has the name of its folder; choose another place",
    errno.EISDIR: "a folder has this name; remove it or choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "symbolic links form a loop there; remove them",
    errno.EIO: "check the disk",
    errno.EMFILE: "too many files are open; raise `ulimit -n`",
    errno.ENFILE: "too many files are open on this machine; close other programs",
    errno.EFBIG: "it would be larger than files may be there; check `ulimit -f`",
}


def advise(error: OSError) -> str:
    """Return what to do about a file or folder that cannot be written or created."""
    return _ADVICE.get(error.errno or 0, "choose another place")
