"""Write an HTML report of a batch: before/after sliders, filters, parameters and timings. It needs no network."""

from __future__ import annotations

import base64
import html
import io
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from img2img_cli.errors import Img2ImgError
from img2img_cli.pictures.read import load_image
from img2img_cli.pictures.write import write_output_bytes
from img2img_cli.system.source_files import Stamp, find_special, stamp_file
from img2img_cli.tasks.job import Job
from img2img_cli.tasks.plan import Planned

THUMBNAIL_SIDE, THUMBNAIL_QUALITY = 320, 72
# Pictures are embedded. With more pairs than this, the page would be too large to open.
MAX_PAIRS = 2_000
Name = tuple[str, str | None]
_TEMPLATE = Path(__file__).with_name("report.html")


def write_report(
    path: Path, ends: Mapping[Name, Sequence[dict[str, Any]]], planned: Sequence[Planned], seconds: float
) -> None:
    """Write the report of one run. An existing file is replaced, because a report shows only the last run.

    Args:
        ends: the final events of each input, by the names of the input and the output; only those of `planned` are
            shown.
        seconds: how long the run took.

    Raises:
        OutputError: the page cannot be written.
    """
    by_name = {(job.input, job.output): job for job in planned}
    events = [event for name in by_name for event in ends.get(name, ())]
    counts = Counter(str(event["event"]) for event in events)
    shown = [event for event in events if event["event"] in ("done", "up-to-date")][:MAX_PAIRS]
    with ThreadPoolExecutor(os.cpu_count() or 2) as pool:
        befores = list(pool.map(make_thumbnail, [str(event["input"]) for event in shown]))
        afters = list(pool.map(make_thumbnail, [str(event["output"]) for event in shown]))
    pairs = {str(event["output"]): pair for event, pair in zip(shown, zip(befores, afters, strict=True), strict=True)}
    rows = [_make_row(event, by_name[_name(event)], pairs.get(str(event["output"]))) for event in events]
    jobs = [job for job in planned if isinstance(job, Job)]
    presets = {job.preset: job.parameters.model_dump(exclude_defaults=True) for job in jobs}
    data = {
        "rows": rows,
        "presets": presets,
        "seconds": round(seconds, 1),
        "counts": {status: counts[status] for status in ("done", "up-to-date", "failed", "skipped")},
    }
    page = _TEMPLATE.read_text(encoding="utf-8")
    # "</script>" in a string would end the script element. This escape leaves the JSON value unchanged.
    text = json.dumps(data, ensure_ascii=True).replace("<", "\\u003c")
    page = page.replace("/*DATA*/null", text).replace("<!--TITLE-->", html.escape(f"img2img: {len(planned)} pictures"))
    write_output_bytes(page.encode(), str(path))


def _name(event: dict[str, Any]) -> Name:
    return event["input"], event["output"]


def _make_row(event: dict[str, Any], job: Planned, pair: tuple[str | None, str | None] | None) -> dict[str, Any]:
    row = {key: event[key] for key in ("input", "output", "seconds", "width", "height", "reason") if key in event}
    row = {key: _text(value) for key, value in row.items()}
    before, after = pair or (None, None)
    return row | {
        "status": event["event"],
        "preset": job.preset,
        "seed": job.seed if isinstance(job, Job) else None,
        "prompt": job.parameters.prompt if isinstance(job, Job) else "",
        "before": before,
        "after": after,
    }


def _text(value: Any) -> Any:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def make_thumbnail(path: str) -> str | None:
    """Return an upright sRGB WebP thumbnail as a data URL, at most 320 pixels a side; None if the file is unreadable.

    Transparent parts become white.
    """
    if find_special(path):  # a FIFO can be read only once, and the run has read it
        return None
    return _make_thumbnail(path, stamp_file(path))


@lru_cache(maxsize=2 * MAX_PAIRS)  # successive reports of a watch differ in few pictures
def _make_thumbnail(path: str, _: Stamp) -> str | None:
    try:
        picture = load_image(path, truncated="keep")
    except Img2ImgError:
        return None
    image = picture.rgb
    if picture.alpha is not None:
        image = Image.composite(image, Image.new("RGB", image.size, "white"), picture.alpha)
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=THUMBNAIL_QUALITY)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
