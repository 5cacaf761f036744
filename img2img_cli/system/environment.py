"""Settings of the libraries that count only when they are made before the first import of them."""

from __future__ import annotations

import logging
import os
import sys

os.environ.setdefault("DIFFUSERS_DISABLE_REMOTE_CODE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
for _library in ("HF_HUB", "TRANSFORMERS", "DIFFUSERS"):  # what goes wrong is told by ourselves, in one line
    os.environ.setdefault(f"{_library}_VERBOSITY", "critical")
for _name in ("torchao", "torch.utils._pytree"):  # diffusers imports torchao where it is installed, and that warns
    logging.getLogger(_name).setLevel(logging.ERROR)
if not sys.stderr.isatty():
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
