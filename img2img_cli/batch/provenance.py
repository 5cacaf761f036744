"""What a batch's results are made from, so that a later run knows which are up to date."""

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
    """What a result is made from: the input's bytes, and everything else that decides the pixels.

    Attributes:
        source_sha256: None until the input is read.
        source_stamp: by which the input is known again.
        beside: the mask, style and control picture, with their stamps from before they were hashed.
    """

    fingerprint: str
    source_sha256: str | None
    source_stamp: Stamp = NO_STAMP
    beside: tuple[tuple[str, Stamp], ...] = ()


def hash_file(path: str) -> str:
    """The SHA-256 of a file's content.

    Raises:
        InputError: it cannot be read.
    """
    return hash_source(path)[0]


def stamp_beside(job: Job) -> tuple[tuple[str, Stamp], ...]:
    """The pictures beside the input with their stamps.

    Raises:
        InputError: one cannot be read twice.
    """
    names = [name for name in (job.mask, job.style, job.control_image) if name]
    for name in names:
        if kind := find_special(name):
            raise InputError(f"{name}: is {kind}, and a batch reads it more than once; save it as a file first")
    return tuple((name, stamp_file(name)) for name in names)


def make_fingerprint(job: Job, hash_beside: Callable[[str], str] = hash_file) -> str:
    """A hash of all that a result follows from: parameters, seed, weights, mask, style, and the form of the output.

    Args:
        hash_beside: hashes the pictures beside the input, which many jobs may share.
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
    """What a result is made from, completed by the input's hash and stamp; None if the job asks for something else.

    Raises:
        InputError: the input cannot be read.
    """
    if fingerprint != provenance.fingerprint:
        return None
    if provenance.source_sha256 is None and not find_special(job.input):
        sha256, stamp = hash_source(job.input)
        provenance = replace(provenance, source_sha256=sha256, source_stamp=stamp)
    return provenance if provenance.source_sha256 == source_sha256 else None
