"""Run the entries of a batch, one model after the other. A failed entry does not stop the others."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from img2img_cli.batch.entries import Entry
from img2img_cli.batch.session import Session, Stop
from img2img_cli.errors import Img2ImgError, ModelError


def run_entries(session: Session, entries: Sequence[Entry]) -> None:
    """Process the entries, grouped by model. Entries left untried by a limit or a signal are counted as skipped.

    Raises:
        ModelError: all entries need the same model, and it cannot be loaded.
    """
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        key = entry.job.parameters.pipeline_key
        groups.setdefault(key, []).append(entry)
    ended: set[int] = set()
    try:
        session.interrupts.check()
        session.check_limits()
        with contextlib.closing(session.opener):
            for group in groups.values():
                _run_group(session, group, ended, alone=len(groups) == 1)
    except Stop:
        pass
    finally:
        for entry in entries:
            if id(entry) not in ended:
                session.end(entry.job, "skipped")


def _run_group(session: Session, entries: list[Entry], ended: set[int], *, alone: bool) -> None:
    entries = _skip_unreadable(session, entries, ended)
    if not entries:
        return
    try:
        with session.interrupts.allow():
            pipeline = session.load(entries[0].job)
    except ModelError as error:
        if alone:
            raise
        entries[0].close()  # its picture is already decoded
        for entry in entries:
            ended.add(id(entry))
            session.fail(entry.job, error, 0.0)
        return
    from img2img_cli.batch.assembly_line import Line

    pipeline.expect(sum(entry.job.parameters.steps_run for entry in entries))
    with Line(session, pipeline, ended) as line:
        line.run(entries)


def _skip_unreadable(session: Session, entries: list[Entry], ended: set[int]) -> list[Entry]:
    """Fail leading entries that cannot be decoded; return the rest, so that no model is loaded without need."""
    for index, entry in enumerate(entries):
        session.check_limits()
        error = _open_first(session, entry)
        if error is None:
            return entries[index:]
        ended.add(id(entry))
        session.fail(entry.job, error, entry.spent_s, entry.provenance)
    return []


def _open_first(session: Session, entry: Entry) -> Exception | None:
    """Decode an entry in a separate thread, because decoding can hang; return the error if it fails, else None."""
    wanted = True

    def check() -> None:
        if not wanted:
            raise Stop

    pool = ThreadPoolExecutor(1, thread_name_prefix="img2img-first")
    opening = pool.submit(session.opener.open, entry, check)
    try:
        while not wait([opening], timeout=0.25).done:
            session.interrupts.check()
            session.check_limits()
    except BaseException:
        wanted = False
        if entry.stages is not None:
            entry.stages.kill()
        raise
    finally:
        pool.shutdown(wait=False)
    try:
        opening.result()
    except (Img2ImgError, MemoryError) as error:
        entry.close()
        return error
    return None
