"""Models in the hub's cache: what a preset needs of it, fetched, listed, checked and removed."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, scan_cache_dir, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import CacheNotFound, EntryNotFoundError, LocalEntryNotFoundError

from img2img_cli.errors import ModelError
from img2img_cli.presets.catalogue import resolve
from img2img_cli.presets.files import list_cards, list_presets, load_preset
from img2img_cli.presets.references import INDEX, FileReference, locate_model
from img2img_cli.presets.repositories import Repository, is_fetched, list_repositories
from img2img_cli.presets.schema import Parameters
from img2img_cli.presets.weight_files import check_weights

USUAL_FILES = ("pytorch_lora_weights.safetensors", "learned_embeds.safetensors")  # of a LoRA, of an embedding
PART_FILES = [
    "config.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model-*-of-*.safetensors",
    "model.safetensors",
]
_CHUNK = 1 << 22


@dataclass(frozen=True, kw_only=True)
class CachedModel:
    """A repository in the cache, its size in bytes, and the presets that use it."""

    reference: str
    size: int
    presets: tuple[str, ...]


def list_needs(name: str) -> list[Repository]:
    """The repositories of a preset by name or file, or the one that a hub id names.

    Raises:
        PresetError, ModelError: neither.
    """
    if name in list_presets() or name.endswith((".yaml", ".yml")):
        return list_repositories(resolve(load_preset(name), {}).parameters)
    kind, reference = locate_model(name)
    if kind != "hub":
        raise ModelError(f"{name}: lies on this machine already; `models` is about what comes from the hub")
    return [Repository(reference=reference, role="unknown")]


def pull(repository: Repository) -> None:
    """Download what is missing of a repository: safetensors in the variant asked for, and configs.

    Raises:
        ModelError: gated, missing, out of reach.
    """
    from img2img_cli.engines.explain import explain_model_errors

    role, reference = repository.role, repository.reference
    with explain_model_errors(reference):
        if role == "unknown":
            role = _find_role(reference)
        if role == "pipeline":
            _pull_pipeline(repository)
        elif role == "part":
            patterns = [str(Path(repository.folder, name)) for name in PART_FILES]
            snapshot_download(reference, revision=repository.revision, allow_patterns=patterns)
        else:
            fetch_file(FileReference(reference, repository.file, on_hub=True), role)
    check_download(reference)


@contextlib.contextmanager
def check_downloads(parameters: Parameters) -> Iterator[None]:
    """Check what a preset fetches within the block, as `check_download` does.

    Raises:
        ModelError: naming a file that differed.
    """
    new = [repository.reference for repository in list_repositories(parameters) if not is_fetched(repository)]
    yield
    for reference in new:
        check_download(reference)


def check_download(reference: str) -> None:
    """Compare what was fetched with the hub's checksums, which huggingface_hub does not; remove what differs.

    Raises:
        ModelError: naming a file that differed.
    """
    damaged = _find_damage(_find_cached(reference))
    for path, blob in damaged:
        path.unlink()
        blob.unlink(missing_ok=True)
    if damaged:
        raise ModelError(
            f"{reference}: {damaged[0][0].name} came with other bytes than the hub's checksum says and was removed; "
            "run it again, and look at the proxy if it stays so"
        )


def _find_role(reference: str) -> str:
    for name, role in ((INDEX, "pipeline"), ("config.json", "part")):
        try:
            hf_hub_download(reference, name)
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            continue
        return role
    return "lora"


def _pull_pipeline(repository: Repository) -> None:
    import diffusers

    hf_hub_download(repository.reference, INDEX, revision=repository.revision)
    diffusers.DiffusionPipeline.download(
        repository.reference,
        revision=repository.revision,
        variant=repository.variant,
        use_safetensors=True,
        **dict.fromkeys((*repository.without, "safety_checker")),
    )


def fetch_file(found: FileReference, role: str) -> Path:
    """The path of a LoRA's or embedding's file, downloaded if need be. A repository with only one needs no name.

    Raises:
        ModelError: several files and none named, or one that is no safetensors file.
    """
    path = _find_path(found, role)
    check_weights(path)
    return path


def _find_path(found: FileReference, role: str) -> Path:
    if not found.on_hub:
        return Path(found.repository, str(found.file))
    if found.file:
        return Path(hf_hub_download(found.repository, found.file))
    try:
        folder = Path(snapshot_download(found.repository, local_files_only=True))
        names = [file.name for file in folder.rglob("*.safetensors")]
    except LocalEntryNotFoundError:
        names = [name for name in HfApi().list_repo_files(found.repository) if name.endswith(".safetensors")]
    if usual := [name for name in names if name in USUAL_FILES]:
        names = usual
    if len(names) != 1:
        listed = ", ".join(sorted(names)[:8]) or "none"
        raise ModelError(
            f"{role} {found.repository}: has {len(names)} .safetensors files ({listed}); "
            f"name one: {found.repository}/FILE"
        )
    return Path(hf_hub_download(found.repository, names[0]))


def read_index(reference: str, revision: str | None = None) -> dict[str, Any]:
    """The index of a model on this machine: its classes by the names of its parts; empty where there is none.

    Raises:
        ModelError: as `locate_model`.
    """
    kind, place = locate_model(reference)
    path = Path(place, INDEX) if kind == "folder" else None
    if kind == "hub" and isinstance(cached := try_to_load_from_cache(place, INDEX, revision=revision), str):
        path = Path(cached)
    try:
        index = json.loads(path.read_bytes()) if path is not None else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return index if isinstance(index, dict) else {}


def list_users() -> dict[str, list[str]]:
    """For each repository the names of the shipped presets that need it."""
    users: dict[str, list[str]] = defaultdict(list)
    for name, card in list_cards().items():
        for repository in list_repositories(card):
            users[repository.reference].append(name)
    return users


def list_cached() -> list[CachedModel]:
    """Every model in the cache, by name."""
    users = list_users()
    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return []
    found = [
        CachedModel(reference=r.repo_id, size=r.size_on_disk, presets=tuple(users.get(r.repo_id, ())))
        for r in repositories
        if r.repo_type == "model"
    ]
    return sorted(found, key=lambda model: model.reference.lower())


def remove(reference: str) -> int:
    """Delete a repository from the cache; bytes freed.

    Raises:
        ModelError: it is not there.
    """
    revisions = []
    try:
        cache = scan_cache_dir()
        revisions = [
            revision.commit_hash
            for r in cache.repos
            if r.repo_type == "model" and r.repo_id == reference
            for revision in r.revisions
        ]
    except CacheNotFound:
        pass
    if not revisions:
        raise ModelError(f"{reference}: not in the cache; `img2img models list` shows what is")
    strategy = cache.delete_revisions(*revisions)
    strategy.execute()
    return int(strategy.expected_freed_size)


def find_damage(reference: str) -> list[str]:
    """Names of cached files whose content is not what the hub's checksum in their blob's name says.

    Raises:
        ModelError: it is not in the cache.
    """
    cached = _find_cached(reference)
    if not cached:
        raise ModelError(f"{reference}: not in the cache; `img2img models pull {reference}` fetches it")
    # Below the folder of a snapshot, named by its commit.
    return sorted("/".join(path.parts[path.parts.index("snapshots") + 2 :]) for path, _ in _find_damage(cached))


def _find_cached(reference: str) -> list[Any]:
    try:
        return [r for r in scan_cache_dir().repos if r.repo_type == "model" and r.repo_id == reference]
    except CacheNotFound:
        return []


def _find_damage(repositories: list[Any]) -> list[tuple[Path, Path]]:
    """Damaged files with their blobs."""
    files = {
        (file.file_path, file.blob_path) for r in repositories for revision in r.revisions for file in revision.files
    }
    return sorted((path, blob) for path, blob in files if not _matches(blob))


def _matches(blob: Path) -> bool:
    """Large files are stored under their SHA-256, small ones under git's SHA-1 of a blob; a mirror may do otherwise."""
    if len(blob.name) not in (40, 64):
        return True
    size = blob.stat().st_size
    digest = (
        hashlib.sha256() if len(blob.name) == 64 else hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    )
    with blob.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest() == blob.name
