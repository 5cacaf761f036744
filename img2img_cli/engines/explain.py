"""Errors of the libraries that load weights as one sentence with a remedy."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence

from huggingface_hub import errors as hub
from safetensors import SafetensorError

from img2img_cli.errors import ModelError

_TRANSPORT_ERRORS: tuple[type[Exception], ...] = tuple(
    importlib.import_module(name).HTTPError for name in ("httpx2", "httpx") if importlib.util.find_spec(name)
)  # huggingface_hub lets them through when a download breaks off
_LOADING_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    AssertionError,
    ImportError,
    *_TRANSPORT_ERRORS,
)
_STATUS_SENTENCES = {
    401: "the hub does not accept the token, or wants one; run `hf auth login`",
    429: "the hub asks for fewer requests (429); try again later",
}
_HUB_SENTENCES: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    ((hub.GatedRepoError,), "the model is gated; accept its licence on its hub page, then run `hf auth login`"),
    ((hub.RepositoryNotFoundError,), "not on the hub, or private; check the name, or run `hf auth login`"),
    (_TRANSPORT_ERRORS, "the connection to the hub broke off; run it again, files that are complete are kept"),
    ((hub.RevisionNotFoundError,), "the hub has no such revision; check --set revision"),
    (
        (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, hub.HfHubHTTPError, ConnectionError, TimeoutError),
        "not in the cache and the hub cannot be reached; connect to the internet once, or give a folder with --model; "
        "the presets edit, colorize and upscale need neither",
    ),
)


_PHRASES = (
    ("meta tensor", "some of its tensors are missing; get the whole file again"),
    ("expected shape", "its tensors have other sizes than this family's; give one of the model's family"),
)


@contextlib.contextmanager
def explain_model_errors(reference: str, advice: str = "check that it is a whole diffusers model") -> Iterator[None]:
    """Turn what loading raises into one sentence with a remedy. The reference is named, never a token.

    Args:
        advice: what to do where the error itself does not tell.
    """
    try:
        yield
    except SafetensorError as error:
        raise ModelError(f"{reference}: a weights file is damaged ({error}); get the model again") from None
    except _LOADING_ERRORS as error:
        # diffusers wraps the hub's errors in its own, which say less.
        if (sentence := _explain_hub_error(list(_causes(error)))) is not None:
            raise ModelError(f"{reference}: {sentence}") from None
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, RuntimeError) and "out of memory" in reason.lower():
            raise
        for phrase, sentence in _PHRASES:
            if phrase in str(error):
                raise ModelError(f"{reference}: {sentence}") from None
        raise ModelError(f"{reference}: cannot be loaded ({reason}); {advice}") from None


def _explain_hub_error(causes: Sequence[BaseException]) -> str | None:
    for cause in causes:
        for kinds, sentence in _HUB_SENTENCES[:2]:
            if isinstance(cause, kinds):
                return sentence
        if isinstance(cause, hub.HfHubHTTPError) and cause.response.status_code in _STATUS_SENTENCES:
            return _STATUS_SENTENCES[cause.response.status_code]
    for cause in causes:
        for kinds, sentence in _HUB_SENTENCES:
            if isinstance(cause, kinds):
                return sentence
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
