"""The provenance of batch results, by which a later run knows which results are up to date."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace

from img2img_cli.errors import InputError
from img2img_cli.presets.references import identify_file, identify_model
from img2img_cli.system.source_files import NO_STAMP, Stamp, find_special, hash_source, stamp_file
from img2img_cli.tasks.job import Job


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Identifiers of everything that determines a result: the bytes of the input and all settings.

    Attributes:
        fingerprint: SHA-256 of everything except the input, from `make_fingerprint`.
        source_sha256: SHA-256 of the input; None until the input is read.
        source_stamp: the size and time by which the input is recognised without reading it.
        beside: the names of the mask, style and control picture, with their stamps from before they were hashed.
    """

    fingerprint: str
    source_sha256: str | None
    source_stamp: Stamp = NO_STAMP
    beside: tuple[tuple[str, Stamp], ...] = ()


def hash_file(path: str) -> str:
    """Return the SHA-256 of the content of a file, as hexadecimal digits.

    Raises:
        InputError: the file cannot be read.
    """
    return hash_source(path)[0]


def stamp_beside(job: Job) -> tuple[tuple[str, Stamp], ...]:
    """Return the names of the mask, style and control picture of a job, with their stamps.

    Raises:
        InputError: one of them is a FIFO or other special file, which cannot be read twice.
    """
    names = [name for name in (job.mask, job.style, job.control_image) if name]
    for name in names:
        if kind := find_special(name):
            raise InputError(f"{name}: is {kind}, and a batch reads it more than once; save it as a file first")
    return tuple((name, stamp_file(name)) for name in names)


def make_fingerprint(job: Job, hash_beside: Callable[[str], str] = hash_file) -> str:
    """Hash everything that determines a result except its input.

    This covers the parameters, seed, weights, mask, style, control picture and output format.

    Args:
        hash_beside: hashes a mask, style or control picture. A caller can cache these hashes, because jobs may share
            such pictures.

    Returns:
        SHA-256 as hexadecimal digits.

    Raises:
        InputError: one of these pictures cannot be read.
    """
    content = {
        "parameters": job.parameters.to_record(),
        "seed": job.seed,
        "model": identify_model(job.parameters.model),
        "controlnet": identify_model(job.parameters.controlnet) if job.parameters.controlnet else None,
        "files": [identify_file(role, text) for role, text in job.parameters.list_files()],
        **({"vae": identify_model(job.parameters.vae)} if job.parameters.vae else {}),
        **({"refiner": identify_model(job.parameters.refiner)} if job.parameters.refiner else {}),
        "mask": hash_beside(job.mask) if job.mask else None,
        "style": hash_beside(job.style) if job.style else None,
        "control_image": hash_beside(job.control_image) if job.control_image else None,
        "output": [job.format, job.quality, job.metadata],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def match_source(job: Job, provenance: Provenance, fingerprint: str, source_sha256: str) -> Provenance | None:
    """Compare a job with the recorded fingerprint and source hash of a result.

    Returns:
        the provenance, completed with the hash and stamp of the input; None if the result was made from anything else.

    Raises:
        InputError: the input cannot be read.
    """
    if fingerprint != provenance.fingerprint:
        return None
    if provenance.source_sha256 is None and not find_special(job.input):
        sha256, stamp = hash_source(job.input)
        provenance = replace(provenance, source_sha256=sha256, source_stamp=stamp)
    return provenance if provenance.source_sha256 == source_sha256 else None
