"""Library settings that take effect only if they are made before the library is imported."""

from __future__ import annotations

import logging
import os
import sys

os.environ.setdefault("DIFFUSERS_DISABLE_REMOTE_CODE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
for _library in ("HF_HUB", "TRANSFORMERS", "DIFFUSERS"):  # img2img reports errors itself, in one line
    os.environ.setdefault(f"{_library}_VERBOSITY", "critical")
for _name in ("torchao", "torch.utils._pytree"):  # diffusers imports torchao if it is installed, which warns
    logging.getLogger(_name).setLevel(logging.ERROR)
if sys.stderr is None or not sys.stderr.isatty():
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
