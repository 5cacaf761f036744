"""Explain why a file cannot be opened, from its first bytes."""

from __future__ import annotations

import io
import re

from PIL import Image

from img2img_cli.pictures.files.limits import DAMAGE

HEAD_BYTES = 512
# Common formats that are not supported.
OTHERS = (
    (rb"....ftyp(hei[cxms]|hev[cx]|mif1|msf1)", "HEIF"),
    (rb"....ftyp(crx )", "Canon raw"),
    (rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI |\0\0\x01\xba", "film"),
    (rb"\xff\x0a|\0\0\0\x0cJXL \r\n", "JPEG XL"),
    (rb"%PDF", "PDF"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript"),
    (rb"\x76\x2f\x31\x01", "OpenEXR"),
    (rb"#\?(RADIANCE|RGBE)", "Radiance HDR"),
    (rb"PF\s|Pf4\s", "colour PFM"),
    (rb"P7\s", "PAM"),
    (rb"qoif", "QOI"),
    (rb"II\xbc\x01", "JPEG XR"),
    (rb"SIMPLE  =", "FITS"),
    (rb".{128}DICM", "DICOM"),
    (rb"FUJIFILMCCD-RAW", "Fujifilm raw"),
    (rb"IIRO|IIRS|IIU\0", "raw"),
    (rb"gimp xcf", "GIMP"),
    (rb"icns", "Apple icon"),
    (rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF", "Windows metafile"),
    (rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg", "SVG"),
    (rb"(\xef\xbb\xbf)?\s*<(!doctype\s+)?html", "web page"),
    (rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!", "archive"),
    (rb"version https://git-lfs", "Git LFS pointer"),
)
# What makes a picture of them.
ADVICE = {
    "HEIF": "convert it first, as `heif-convert FILE.heic FILE.jpg` does",
    "Canon raw": "develop it first, as `dcraw_emu -T FILE` or darktable does",
    "Fujifilm raw": "develop it first, as `dcraw_emu -T FILE` or darktable does",
    "raw": "develop it first, as `dcraw_emu -T FILE` or darktable does",
    "film": "take a frame of it first, as `ffmpeg -i FILE -frames:v 1 FILE.png` does",
    "JPEG XL": "convert it first, as `djxl FILE.jxl FILE.png` does",
    "PDF": "draw a page of it first, as `pdftoppm -png FILE.pdf page` does",
    "PostScript": "draw it first, as `gs -sDEVICE=png16m -o page.png FILE` does",
    "SVG": "draw it first, as `rsvg-convert FILE.svg -o FILE.png` does",
    "web page": "look whether its address leads to a picture",
    "archive": "unpack it first",
    "Git LFS pointer": "get the file itself with `git lfs pull`",
}


def explain_refusal(data: bytes, formats: tuple[str, ...]) -> str:
    """Return why a file cannot be opened as any of the formats, and what to do next."""
    for name in formats:
        if reason := _try_open(data, name):
            return f"the picture begins as {name} does but cannot be opened ({reason}); get a good copy or convert it"
    for pattern, kind in OTHERS:
        if re.match(pattern, data[:HEAD_BYTES], re.DOTALL | re.IGNORECASE):
            advice = ADVICE.get(kind, "convert it first, to PNG for example")
            return f"not a picture in a format that can be read, but {kind}; {advice}"
    return f"not a picture in a format that can be read ({', '.join(formats)}); convert it first"


def _try_open(data: bytes, name: str) -> str | None:
    """Return the error of a format's reader; None if it has none or the file does not begin like this format."""
    factory, accept = Image.OPEN[name]
    if accept is None or accept(data[:16]) is not True:
        return None
    try:
        with factory(io.BytesIO(data), b""):
            return None
    except DAMAGE as error:
        return " ".join(str(error).split())[:120] or type(error).__name__
