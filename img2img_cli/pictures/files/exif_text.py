"""Decode EXIF's UserComment, in every encoding that tools write."""

from __future__ import annotations

import codecs
import unicodedata

PREFIX_BYTES = 8
ASCII, UNICODE, JIS, UNDEFINED = b"ASCII\0\0\0", b"UNICODE\0", b"JIS\0\0\0\0\0", bytes(8)
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_STRANGE = frozenset({"Cc", "Cn", "Co", "Cs"})  # controls, unassigned, private use, surrogates
PLAIN_SHARE = 0.8  # a short text with this share of letters, digits and spaces is UTF-8 rather than UTF-16
LONG = 8  # from this many characters on, UTF-16 ideographs are not mistaken for ASCII
MAX_JUDGED = 2000  # characters examined to judge an encoding


def decode_comment(value: object, *, little_endian: bool = False) -> str:
    """Return the text of a UserComment without surrounding zeros and spaces; empty if there is none.

    By the standard, the first eight bytes name the encoding. Under `UNICODE`, tools write UTF-16 in either byte order,
    with or without a byte order mark, or UTF-8. Some tools omit the name.

    Args:
        value: the tag's value from Pillow.
        little_endian: whether the EXIF itself is; its byte order decides if the text is ambiguous.
    """
    if isinstance(value, str):
        return value.strip("\0 ")
    if not isinstance(value, bytes):
        return ""
    name, content = value[:PREFIX_BYTES], value[PREFIX_BYTES:]
    if name == JIS:
        return content.decode("iso2022_jp", "replace").strip("\0 ")
    if name not in (ASCII, UNICODE, UNDEFINED):
        content = value
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return content[len(mark) :].decode(encoding, "replace").strip("\0 ")
    trimmed = content.rstrip(b"\0 ")
    if name == UNICODE or b"\0" in trimmed:
        text = _decode_utf16(content, little_endian=little_endian)
        return (trimmed.decode() if _is_utf8(trimmed, instead_of=text) else text).strip("\0 ")
    try:
        return trimmed.decode().strip("\0 ")
    except UnicodeDecodeError:
        return trimmed.decode("cp1252", "replace").strip("\0 ")


def _decode_utf16(content: bytes, *, little_endian: bool) -> str:
    """Decode UTF-16 in the byte order that gives the likelier text."""
    orders = ("utf-16-le", "utf-16-be") if little_endian else ("utf-16-be", "utf-16-le")
    texts = [content[: len(content) // 2 * 2].decode(order, "replace") for order in orders]
    return max(texts, key=_likelihood)


def _is_utf8(content: bytes, *, instead_of: str) -> bool:
    """Return whether alleged UTF-16 is UTF-8: it is readable, in fewer alphabets than `instead_of`, the UTF-16 text."""
    try:
        text = content.decode()[:MAX_JUDGED]
    except UnicodeDecodeError:
        return False
    if _count_strange(text):
        return False
    if len(content) % 2 or _count_strange(instead_of):
        return True
    if _count_alphabets(text) >= _count_alphabets(instead_of[:MAX_JUDGED]):
        return False
    plain = sum(character.isalnum() or character.isspace() for character in text)
    return len(text) >= LONG or plain >= PLAIN_SHARE * len(text)


def _likelihood(text: str) -> float:
    """Rate how likely people wrote a text: few alphabets and no invalid characters give a higher number."""
    judged = text.rstrip("\0 ")[:MAX_JUDGED]
    is_latin = bool(judged) and judged.isascii()
    return -4.0 * _count_strange(judged) - _count_alphabets(judged) + 0.5 * is_latin


def _count_alphabets(text: str) -> int:
    """Estimate the number of alphabets by counting blocks of 256 code points."""
    return len({ord(character) >> 8 for character in text.rstrip("\0 ")})


def _count_strange(text: str) -> int:
    text = text.rstrip("\0 ")
    return sum((unicodedata.category(c) in _STRANGE and c not in "\n\r\t") or c == "\ufffd" for c in text)
