"""How commands and the server speak of pieces: a line of JSON's length, the JSON, and pixels."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from img2img_cli import errors
from img2img_cli.errors import ExitCode, Img2ImgError
from img2img_cli.presets.schema import Offload, Parameters
from img2img_cli.tasks.pieces import Piece

# safetensors keeps its header's words to itself when it loads, reads no stream, and takes longer to pack.
PREFIX = struct.Struct("!I")
OWNER = "X-Img2Img-Owner"  # header that tells whose turn a request takes
CONTENT_TYPE = "application/vnd.img2img"
MODES = {"L": 1, "RGB": 3, "RGBA": 4}
_PICTURES = ("image", "control", "mask", "style", "hints")
HEARTBEAT_S = 2.0  # the server says so often that it is at work
SILENCE_S = 15.0  # a server that says nothing for so long has stopped
Read = Callable[[int], bytes]


@dataclass(kw_only=True, eq=False)
class PipelineInfo:
    """The attributes of a pipeline, as `tasks.pieces.Pipeline` explains them, and the number of its lanes."""

    multiple: int
    takes_mask: bool
    has_controlnet: bool
    enlargements: Sequence[int]
    refines: bool
    direct: bool
    whole: bool
    batch_pixels: int
    gains_from_batches: bool
    offload: Offload
    device_name: str
    lanes: int


class Elsewhere(PipelineInfo):
    """A pipeline in another process or thread, which manages its threads and memory."""

    def expect(self, calls: int) -> None:
        """Do nothing: its owner has other clients too."""

    def share_threads(self, lanes: int) -> contextlib.AbstractContextManager[Callable[[], None]]:
        """Do nothing: its owner divides the threads."""
        return contextlib.nullcontext(lambda: None)

    def save_memory(self) -> str | None:
        """Return None: its owner tries everything before it reports that memory is short."""
        return None


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a pipeline is built from, and where."""

    parameters: Parameters
    device: str = "auto"
    offload: Offload = "auto"

    def to_json(self) -> dict[str, Any]:
        """As `from_json` reads it."""
        return {"parameters": self.parameters.model_dump(mode="json"), "device": self.device, "offload": self.offload}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Spec:
        """Checked as a preset is.

        Raises:
            KeyError, ValueError: not a spec.
        """
        parameters = Parameters.model_validate_json(json.dumps(data["parameters"]))
        return cls(parameters=parameters, device=str(data["device"]), offload=data["offload"])


def pack(header: dict[str, Any], images: Sequence[Image.Image] = ()) -> bytes:
    """One message."""
    told = [{"mode": image.mode, "size": image.size} for image in images]
    text = json.dumps({**header, "images": told}).encode()
    return b"".join([PREFIX.pack(len(text)), text, *(image.tobytes() for image in images)])


def unpack(read: Read) -> tuple[dict[str, Any], list[Image.Image]]:
    """One message from a function that returns so many bytes, or fewer at the end.

    Raises:
        EOFError: it breaks off.
        ValueError: not a message.
    """
    (length,) = PREFIX.unpack(_read_all(read, PREFIX.size))
    header = json.loads(_read_all(read, length))
    images = []
    for told in header.pop("images"):
        mode, (width, height) = told["mode"], told["size"]
        if mode not in MODES or not 0 < width < 1 << 16 or not 0 < height < 1 << 16:
            raise ValueError("not a picture")
        images.append(Image.frombytes(mode, (width, height), _read_all(read, width * height * MODES[mode])))
    return header, images


def _read_all(read: Read, count: int) -> bytes:
    parts, missing = [], count
    while missing:
        part = read(min(missing, 1 << 20))
        if not part:
            raise EOFError("the connection broke off")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def pack_pieces(spec: Spec, pieces: Sequence[Piece]) -> bytes:
    """A request to transform pieces of one group; pictures and parameters that they share are sent once."""
    images: dict[int, Image.Image] = {}
    parameters: dict[int, Parameters] = {}
    rows = []
    for piece in pieces:
        row: dict[str, Any] = {
            "seed": piece.seed,
            "enlarge": piece.enlarge,
            "reconstruct": piece.reconstruct,
            "place": piece.place,
        }
        for name in _PICTURES:
            if (image := getattr(piece, name)) is not None:
                images.setdefault(id(image), image)
                row[name] = list(images).index(id(image))
        parameters.setdefault(id(piece.parameters), piece.parameters)
        rows.append(row | {"parameters": list(parameters).index(id(piece.parameters))})
    header = {"spec": spec.to_json(), "pieces": rows}
    header["parameters"] = [p.model_dump(mode="json") for p in parameters.values()]
    return pack(header, list(images.values()))


def unpack_pieces(read: Read) -> tuple[Spec, list[Piece]]:
    """What `pack_pieces` has packed.

    Raises:
        EOFError, KeyError, ValueError, TypeError: anything else.
    """
    header, images = unpack(read)
    parameters = [Parameters.model_validate_json(json.dumps(data)) for data in header["parameters"]]
    pieces = []
    for row in header["pieces"]:
        pictures = {name: images[row.pop(name)] for name in _PICTURES if name in row}
        pictures.setdefault("control", None)
        left, top, right, bottom = map(float, row.pop("place"))
        row |= {"parameters": parameters[row["parameters"]], "place": (left, top, right, bottom)}
        pieces.append(Piece(**pictures, **row))
    if not pieces or len({piece.group for piece in pieces}) > 1:
        raise ValueError("pieces of several groups")
    return Spec.from_json(header["spec"]), pieces


def describe_error(error: BaseException) -> dict[str, str]:
    """An error in JSON."""
    if isinstance(error, Img2ImgError):
        return {"kind": type(error).__name__, "message": str(error)}
    return {"kind": "Img2ImgError", "message": f"a bug: {type(error).__name__}: {error}; please report it"}


def restore_error(told: dict[str, str]) -> Img2ImgError:
    """What `describe_error` has told of."""
    kind = getattr(errors, told["kind"], Img2ImgError)
    return (kind if isinstance(kind, type) and issubclass(kind, Img2ImgError) else Img2ImgError)(told["message"])


def describe_pipeline(pipeline: Any, lanes: int) -> PipelineInfo:
    """A pipeline's traits."""
    names = [field.name for field in dataclasses.fields(PipelineInfo) if field.name != "lanes"]
    return PipelineInfo(lanes=lanes, **{name: getattr(pipeline, name) for name in names})


def parse_duration(text: str) -> float:
    """Seconds of `90`, `90s`, `15m` or `2h`.

    Raises:
        UsageError: anything else, and what is not over 0.
    """
    factor = {"s": 1, "m": 60, "h": 3600}.get(text[-1:], 0)
    try:
        seconds = float(text[:-1]) * factor if factor else float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise errors.UsageError(f"'{text}' is no length of time; write 90s, 15m or 2h")
    return seconds


HTTP_STATUS = {
    ExitCode.USAGE: 422,
    ExitCode.SOME_FAILED: 400,
    ExitCode.NOTHING_MATCHED: 404,
    ExitCode.MODEL: 404,
    ExitCode.MEMORY: 507,
    ExitCode.TIMEOUT: 504,
}  # of errors; 500 for the rest
