"""Examples on the disk, so that no picture or caption is encoded twice and memory does not bound the data."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from img2img_cli.errors import OutputError, advise
from img2img_cli.train.diffusion.capture import Example
from img2img_cli.train.diffusion.noising import Steps

SHARED_BYTES = 1 << 14  # larger tensors are files of their own, which examples with the same caption share
KEPT_BYTES = 2 << 30  # tensors kept in memory; the rest is read each time
_REFERENCE = "tensor:"


class Store:
    """Examples by key, in a folder of their own. A file is written under its final name once it is whole."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: dict[str, torch.Tensor] = {}
        self._free = KEPT_BYTES

    def has(self, key: str) -> bool:
        """Return whether there is an example of this key."""
        return self._locate(key).is_file()

    def put(self, key: str, example: Example) -> None:
        """Write an example.

        Raises:
            OutputError: it cannot be written.
        """
        parts = {field.name: getattr(example, field.name) for field in fields(Example)} | {"steps": vars(example.steps)}
        self._write(key, self._split(parts))

    def get(self, key: str) -> Example:
        """Return an example that was written."""
        parts = self._join(torch.load(self._locate(key), weights_only=True))
        return Example(**parts | {"steps": Steps(**parts["steps"])})

    def _locate(self, name: str) -> Path:
        return self._folder / f"{name}.pt"

    def _write(self, name: str, value: Any) -> None:
        buffer = io.BytesIO()
        torch.save(value, buffer)
        path = self._locate(name)
        half = path.with_suffix(".tmp")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            half.write_bytes(buffer.getvalue())
            os.replace(half, path)
        except OSError as error:
            half.unlink(missing_ok=True)
            raise OutputError(f"{path}: cannot be written ({error.strerror}); {advise(error)}") from None

    def _split(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if value.nbytes < SHARED_BYTES:
                return value
            plain = value.contiguous()
            told = f"{plain.dtype}{tuple(plain.shape)}".encode()
            name = hashlib.sha256(told + plain.view(torch.uint8).numpy().tobytes()).hexdigest()
            if not self.has(name):
                self._write(name, plain)
            return _REFERENCE + name
        if isinstance(value, Mapping):
            return {key: self._split(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._split(each) for each in value)
        return value

    def _join(self, value: Any) -> Any:
        if isinstance(value, str) and value.startswith(_REFERENCE):
            return self._load(value.removeprefix(_REFERENCE))
        if isinstance(value, dict):
            return {key: self._join(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._join(each) for each in value)
        return value

    def _load(self, name: str) -> torch.Tensor:
        if name in self._kept:
            return self._kept[name]
        tensor: torch.Tensor = torch.load(self._locate(name), weights_only=True)
        if tensor.nbytes <= self._free:
            self._kept[name] = tensor
            self._free -= tensor.nbytes
        return tensor
