"""The hub repositories that a preset needs, and whether they were downloaded. Accesses only the disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HUB_CACHE

from img2img_cli.presets.references import list_files, locate_model, parse_file, split_folder


@dataclass(frozen=True, kw_only=True)
class Repository:
    """One repository of the hub that a preset needs.

    Attributes:
        reference: hub id.
        role: `pipeline` for a whole model, `part` for a VAE, ControlNet or image encoder, else as in `list_files`.
        without: components of the pipeline that another repository replaces.
        folder: the part's folder within the repository; empty for its root.
        file: the weights file; None if the repository has only one.
    """

    reference: str
    role: str
    revision: str | None = None
    variant: str | None = None
    without: tuple[str, ...] = ()
    folder: str = ""
    file: str | None = None


def list_repositories(parameters: Any) -> list[Repository]:
    """Return the hub repositories that a preset needs; local models and files need none.

    Args:
        parameters: `Parameters`, or a card of `files.list_cards` with the same attributes.

    Raises:
        ModelError: as in `locate_model`, `parse_file` and `split_folder`.
    """
    p = parameters
    found = []
    without_vae = ("vae",) if p.vae else ()
    if locate_model(p.model)[0] == "hub":
        found.append(
            Repository(reference=p.model, role="pipeline", revision=p.revision, variant=p.variant, without=without_vae)
        )
    if p.refiner is not None and locate_model(p.refiner)[0] == "hub":
        found.append(Repository(reference=p.refiner, role="pipeline", variant=p.variant, without=without_vae))
    for reference, revision in ((p.vae, None), (p.controlnet, p.controlnet_revision)):
        if reference is not None and locate_model(reference, index="config.json")[0] == "hub":
            found.append(Repository(reference=reference, role="part", revision=revision))
    if p.ip_adapter is not None:
        place, folder = split_folder(p.ip_adapter_image_encoder)
        if not Path(place).is_dir():
            found.append(Repository(reference=place, role="part", folder=folder))
    files = [(role, parse_file(role, text)) for role, text in list_files(p)]
    return found + [Repository(reference=r.repository, role=role, file=r.file) for role, r in files if r.on_hub]


def is_fetched(repository: Repository) -> bool:
    """Return whether the hub cache on disk holds any file of a repository."""
    folder = Path(HF_HUB_CACHE, f"models--{repository.reference.replace('/', '--')}")
    return any(folder.glob("snapshots/*/*"))
