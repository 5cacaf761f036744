"""Collect the texts in a picture's metadata in which tools record how it was made."""

from __future__ import annotations

import re

from PIL import ExifTags, ImageFile

from img2img_cli.pictures.files.exif_text import decode_comment
from img2img_cli.pictures.write import IMAGE_HISTORY

USER_COMMENT = "UserComment"
# PNG keywords for parameters; a file without them may have its texts after the pixels.
TOLD_BY = frozenset({"img2img", "parameters", "prompt", "workflow", "invokeai_metadata", "sd-metadata", "Dream"})
# ComfyUI writes its two texts into EXIF tags that describe a camera.
_NAMED = re.compile(r"(prompt|workflow):(?=\s*\{)", re.IGNORECASE)
_DESCRIPTIONS = (ExifTags.Base.Make, ExifTags.Base.Model, ExifTags.Base.ImageDescription)


def collect_texts(image: ImageFile.ImageFile) -> dict[str, str]:
    """Return texts by name: PNG keywords, `img2img` for our own record, `UserComment` for EXIF's or the file's comment.

    May decode the pixels of a PNG, so open it with `read.open_picture`.
    """
    if image.format == "PNG" and not TOLD_BY & image.info.keys():
        image.load()  # some tools write their texts after the pixels
    texts = {str(key): str(value) for key, value in image.info.items() if isinstance(value, str)}
    if image.format == "PNG" and TOLD_BY & texts.keys():
        return texts
    comment = image.info.get("comment")
    if isinstance(comment, bytes):  # in a GIF or JPEG
        texts[USER_COMMENT] = comment.decode("utf-8", "replace")
    exif = image.getexif()
    little_endian = getattr(exif, "endian", None) == "<"
    if told := decode_comment(
        exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment), little_endian=little_endian
    ):
        texts[USER_COMMENT] = told
    for tag in _DESCRIPTIONS:
        value = exif.get(tag)
        if isinstance(value, str) and (match := _NAMED.match(value)):
            texts.setdefault(match[1].lower(), value[match.end() :])
    history = exif.get(IMAGE_HISTORY)
    if isinstance(history, str) and history.startswith("{"):
        texts["img2img"] = history
    return texts
