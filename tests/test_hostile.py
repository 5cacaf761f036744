"""Hostile files give a picture or one line that names the file, in little time and memory, and leave no files."""

from __future__ import annotations

import json
import random
import resource
import struct
import time
from pathlib import Path

import hostile
import pytest
from hostile import make_hostile, make_manifest, make_metadata, make_preset
from pictures import decode, encode, make_picture
from PIL import Image, PngImagePlugin

from img2img_cli.errors import Img2ImgError, InputError, PresetError, UsageError
from img2img_cli.pictures.files.limits import MAX_FRAMES
from img2img_cli.pictures.read import load_image, peek_size
from img2img_cli.pictures.write import encode_image
from img2img_cli.presets.catalogue import resolve
from img2img_cli.presets.files import load_preset
from img2img_cli.presets.schema import Parameters
from img2img_cli.presets.strict_yaml import parse_scalar
from img2img_cli.tasks.foreign.fields import Foreign
from img2img_cli.tasks.foreign.read import read_origin
from img2img_cli.tasks.foreign.replay import plan_replay
from img2img_cli.tasks.inputs import read_manifest
from img2img_cli.tasks.job import Job
from img2img_cli.tasks.plan import BatchChoices, Refused, plan_batch
from img2img_cli.tasks.record import make_record, read_record, replay_command

QUICK = ["--set", "num_inference_steps=1", "--set", "num_samples=1", "--set", "image_size=64"]
SECONDS, MEBIBYTES = 4, 500
DICE = random.Random(0)


def check_line(error: Img2ImgError, name: str) -> None:
    text = str(error)
    assert name in text
    assert len(text.splitlines()) == 1, text
    assert len(text) < 20_000


def in_time(began: float) -> None:
    """Check a time limit in this process's own CPU seconds, so that a busy machine causes no failure."""
    assert time.process_time() - began < SECONDS


def peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 3000, 500))
def test_a_hostile_picture_is_read_or_refused_in_one_line(tmp_path: Path, first: int) -> None:
    before, outcomes = peak_mib(), {"read": 0, "refused": 0}
    for seed in range(first, first + 500):
        name, content = make_hostile(seed)
        path = tmp_path / name
        path.write_bytes(content)
        began = time.process_time()
        assert min(peek_size(str(path))) >= 0
        for read in (load_image, read_record):
            try:
                found = read(str(path))
            except Img2ImgError as error:
                check_line(error, name)
                outcomes["refused"] += read is load_image
            else:
                assert read is read_record or found.rgb.mode == found.native.mode == "RGB"
                outcomes["read"] += read is load_image
        in_time(began)
    assert min(outcomes.values()) > 100, "both are to be tried"
    assert peak_mib() - before < MEBIBYTES


@pytest.mark.slow
def test_what_was_read_can_be_written() -> None:
    written = 0
    for seed in range(1000):
        try:
            picture = load_image(*make_hostile(seed))
        except Img2ImgError:
            continue
        if picture.rgb.width * picture.rgb.height > 1 << 16:
            continue
        for format_ in ("png", "jpeg", "tiff", "webp"):
            content = encode_image(picture.native, picture, format_, quality=None, record={}, text="x")
            assert decode(content).size == picture.size
            written += 1
    assert written > 1000


def test_hostile_presets_are_refused_with_one_line(tmp_path: Path) -> None:
    for seed in range(1500):
        name, content = make_preset(seed)
        (tmp_path / name).write_bytes(content)
        began = time.process_time()
        try:
            resolve(load_preset(str(tmp_path / name)), {}).parameters.check_references()
        except Img2ImgError as error:
            assert len(str(error).splitlines()) == 1, str(error)
        in_time(began)


@pytest.mark.slow
def test_hostile_manifests_are_refused_with_one_line(tmp_path: Path) -> None:
    choices, alone = BatchChoices(folder=tmp_path / "out", preset="colorize"), 0
    for seed in range(1500):
        name, content = make_manifest(seed)
        (tmp_path / name).write_bytes(content)
        began = time.process_time()
        try:
            items = read_manifest(tmp_path / name)
            for job in plan_batch(items, choices) if seed % 4 == 0 else ():
                if isinstance(job, Refused):
                    check_line(job.error, name)
                    alone += 1
        except Img2ImgError as error:
            check_line(error, "")
        in_time(began)
    assert alone > 50


@pytest.mark.slow
def test_hostile_records_are_refused_with_one_line(tmp_path: Path) -> None:
    told = 0
    for seed in range(700):
        name, content = make_metadata(seed)
        (tmp_path / name).write_bytes(content)
        began = time.process_time()
        try:
            found = read_origin(str(tmp_path / name))
            if isinstance(found, Foreign):
                (plan_replay(found, name).command or "").encode()
            else:
                told += bool(replay_command(found).encode())
        except Img2ImgError as error:
            assert len(str(error).splitlines()) == 1
        in_time(began)
    assert told > 5, "some are sound, or nothing is tested behind the reading"


@pytest.mark.slow
def test_hostile_files_through_the_command_line(here, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for seed in range(5000, 5150):
        name, content = make_hostile(seed)
        (folder / f"{seed}{Path(name).suffix}").write_bytes(content)
    done = here("batch", folder, "-o", out, "--preset", "colorize", "--json", "--name", "{stem}-{index}{ext}", *QUICK)
    events = [json.loads(line) for line in done.out.splitlines()]
    failed = [event for event in events if event["event"] == "failed"]
    made = {event["output"] for event in events if event["event"] == "done"}
    assert done.code == 3
    assert not [line for line in done.err.splitlines() if "img2img" in line or "Traceback" in line], "libtiff may talk"
    assert len(failed) + len(made) == 150
    assert len(failed) > 20 < len(made)
    assert {event["code"] for event in failed} <= {3, 8}
    assert not [event["reason"] for event in failed if "bug" in event["reason"] or "\n" in event["reason"]]
    left = {str(path) for path in out.rglob("*") if path.is_file() and not path.name.startswith(".img2img.")}
    assert left == made
    for path in made:
        assert min(decode(Path(path).read_bytes()).size) >= 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "make", "seeds"),
    [(["info"], make_metadata, range(3)), (["presets", "validate"], make_preset, range(3))],
)
def test_hostile_files_through_processes(fresh, tmp_path: Path, arguments, make, seeds) -> None:
    for seed in seeds:
        name, content = make(seed)
        (tmp_path / name).write_bytes(content)
        done = fresh(*arguments, tmp_path / name)
        assert done.code in (0, 2, 3, 5)
        assert "Traceback" not in done.err
        assert len(done.err.splitlines()) == 1 or done.code == 0


# --- each limit, by a file that would take minutes or gibibytes without it


def refuse(made: tuple[str, bytes], reason: str, folder: Path) -> None:
    path = folder / f"x{made[0]}"
    path.write_bytes(made[1])
    began, before = time.process_time(), peak_mib()
    with pytest.raises(InputError, match=reason) as error:
        load_image(str(path))
    check_line(error.value, path.name)
    peek_size(str(path))
    in_time(began)
    assert peak_mib() - before < MEBIBYTES


def test_texts_that_unpack_are_counted(tmp_path: Path) -> None:
    refuse(hostile.png_of_text_bombs(DICE, 3000), "too many texts", tmp_path)


@pytest.mark.slow
def test_chunks_are_counted(tmp_path: Path) -> None:
    refuse(hostile.png_of_many_chunks(DICE, 300_000), "too many chunks", tmp_path)


@pytest.mark.slow
def test_segments_are_counted(tmp_path: Path) -> None:
    for seed in range(8):  # EXIF that is joined piece by piece, empty ones, bytes between them
        refuse(hostile.jpeg_of_many_segments(random.Random(seed), 300_000), "too many", tmp_path)


def test_blocks_before_a_frame_are_counted(tmp_path: Path) -> None:
    refuse(hostile.gif_of_many_blocks(DICE, 300_000), "too many blocks", tmp_path)


def test_scans_are_counted_up_to_the_pictures_end(tmp_path: Path) -> None:
    refuse(hostile.jpeg_of_many_scans(DICE, (2000, 2000), 3000), "too many scans", tmp_path)
    good = encode(make_picture("coffee"), "JPEG", progressive=True)
    assert load_image("phone.jpg", good + b"\xff\xda\0\4xx" * 500).size == (96, 72), "a film behind it does not count"


def test_numbers_in_tags_are_counted(tmp_path: Path) -> None:
    for seed in range(4):
        refuse(hostile.tiff_of_many_values(random.Random(seed), 4_000_000), "too many numbers", tmp_path)
    below = hostile.make_tiff(hostile.grey_tags(12, 12, ((34665, 4, 1, 300),)), bytes(300 - 122))
    exif = struct.pack("<HHHLLL", 1, 36867, 5, 2_000_000, 400, 0)
    refuse((".tif", below + exif + bytes(16_000_400)), "too many numbers", tmp_path)


def test_tags_are_counted(tmp_path: Path) -> None:
    content = bytearray(hostile.make_tiff(hostile.grey_tags(12, 12), bytes(10_000_000), big=True))
    content[16:24] = struct.pack("<Q", 1 << 40)
    refuse((".tif", bytes(content)), "too many tags", tmp_path)


def test_tiles_are_checked_before_they_are_allocated(tmp_path: Path) -> None:
    tags = [(256, 4, 1, 12), (257, 4, 1, 12), (258, 3, 1, 8), (259, 3, 1, 5), (262, 3, 1, 1)]
    tags += [(322, 4, 1, 46_000), (323, 4, 1, 46_000), (324, 4, 1, 130), (325, 4, 1, 300)]
    refuse((".tif", hostile.make_tiff(tags, bytes(500))), "million pixels", tmp_path)


def jpeg2000(**changes: tuple[int, bytes]) -> tuple[str, bytes]:
    """Return a codestream in its box, with bytes changed at offsets from its beginning."""
    content = bytearray(encode(make_picture("noise", (32, 32)), "JPEG2000", num_resolutions=2))
    start = content.find(b"\xff\x4f\xff\x51")
    for at, new in changes.values():
        content[start + at : start + at + len(new)] = new
    return ".jp2", bytes(content)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"components": (40, struct.pack(">H", 16_384))}, "makes no sense"),
        ({"size": (8, struct.pack(">II", 60_000, 60_000))}, "million pixels"),
        ({"size": (8, struct.pack(">II", 13_000, 13_000)), "tile": (24, struct.pack(">II", 50, 50))}, "too many tiles"),
    ],
    ids=["components", "pixels", "tiles"],
)
def test_a_codestream_that_belies_its_box_is_refused(tmp_path: Path, changes, reason) -> None:
    refuse(jpeg2000(**changes), reason, tmp_path)


def test_code_blocks_and_layers_are_counted(tmp_path: Path) -> None:
    coding = jpeg2000()[1].find(b"\xff\x52") - jpeg2000()[1].find(b"\xff\x4f\xff\x51")
    large = struct.pack(">II", 13_000, 13_000)
    sizes = {"size": (8, large), "tile": (24, large)}
    refuse(jpeg2000(**sizes, block=(coding + 10, b"\0\0")), "code-blocks", tmp_path)
    refuse(jpeg2000(layers=(coding + 6, b"\xff\xff"), levels=(coding + 9, b"\xff")), "code-blocks", tmp_path)


@pytest.mark.slow
def test_more_pixels_than_the_file_can_hold_are_refused(tmp_path: Path) -> None:
    refuse((".png", hostile._png((14_000, 14_000), rows=bytes(1000))), "cannot hold", tmp_path)
    nothing = hostile.make_hostile(90_648)
    assert nothing[0].endswith(".jp2")
    refuse((".jp2", nothing[1]), "cannot hold", tmp_path)
    blank = encode(Image.new("RGB", (3000, 2000), "white"), "JPEG2000")
    assert load_image("blank.jp2", blank).size == (3000, 2000)
    flat = encode(Image.new("L", (4000, 4000)), "PNG", compress_level=9)
    assert load_image("flat.png", flat).size == (4000, 4000), "deflate may grow a thousandfold"
    bits = encode(Image.new("1", (8000, 8000)), "PNG", compress_level=9)
    assert load_image("bits.png", bits).size == (8000, 8000)


@pytest.mark.slow
def test_a_films_canvas_is_no_larger_than_its_frames_can_fill(tmp_path: Path) -> None:
    frames = [make_picture("noise", (16, 16), seed) for seed in range(2)]
    content = bytearray(encode(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    content[24:30] = (20_000).to_bytes(3, "little") + (3000).to_bytes(3, "little")
    refuse((".webp", bytes(content)), "cannot hold", tmp_path)
    flat = encode(Image.new("RGB", (4000, 4000)), "WEBP", lossless=True)
    assert load_image("flat.webp", flat).size == (4000, 4000), "one colour takes no bits"
    lossy = encode(Image.new("RGB", (4000, 4000)), "WEBP", quality=1)
    assert load_image("flat.webp", lossy).size == (4000, 4000)
    jpeg = encode(Image.new("L", (8000, 8000)), "JPEG", quality=1, progressive=True)
    assert load_image("flat.jpg", jpeg).size == (8000, 8000)
    gif = encode(Image.new("L", (8000, 8000)), "GIF")
    assert load_image("flat.gif", gif).size == (8000, 8000)


def test_slow_encodings_have_a_lower_limit(tmp_path: Path) -> None:
    refuse(hostile.bmp_of_long_rows(DICE, (65_500, 3000)), "slow encoding", tmp_path)


def test_a_webps_canvas_is_checked_before_it_is_allocated(tmp_path: Path) -> None:
    content = bytearray(
        encode(make_picture("noise", (32, 32)).convert("RGBA"), "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0")
    )
    assert content[12:16] == b"VP8X"
    content[24:30] = b"\xff\xff\0" * 2
    refuse((".webp", bytes(content)), "million pixels", tmp_path)


def test_a_long_header_of_words_is_refused(tmp_path: Path) -> None:
    refuse((".ppm", b"P6\n#" + b"x" * 20_000_000 + b"\n9 9\n255\n" + bytes(243)), "header is too long", tmp_path)


@pytest.mark.parametrize("make", [hostile.gif_of_many_frames, hostile.tiff_of_many_directories])
@pytest.mark.parametrize(("count", "wanted"), [(3, 3), (30_000, MAX_FRAMES)])
def test_frames_are_counted_without_a_look_at_each(make, count: int, wanted: int) -> None:
    began = time.process_time()
    picture = load_image("film", make(random.Random(1), count)[1])
    assert picture.frames == wanted + (count == 3 and make is hostile.tiff_of_many_directories)
    in_time(began)


def test_a_lying_number_of_frames_is_cut() -> None:
    frames = [make_picture("noise", (16, 16), seed) for seed in range(2)]
    content = bytearray(encode(frames[0], "PNG", save_all=True, append_images=frames[1:]))
    at = content.find(b"acTL")
    content[at + 4 : at + 8] = struct.pack(">I", 10**6)
    picture = load_image("film", hostile.mend("PNG", bytes(content)))
    assert picture.frames == MAX_FRAMES
    assert picture.rgb.tobytes() == frames[0].tobytes()


def test_directories_in_a_circle_end() -> None:
    for following in (8, 10, 34):
        content = hostile.make_tiff(hostile.grey_tags(12, 12), bytes(144), following)
        assert load_image("loop.tif", content).size == (12, 12)


# --- metadata that is not what it says


def png_with(**texts: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        info.add_text(key, value)
    return encode(make_picture("coffee"), "PNG", pnginfo=info)


@pytest.mark.parametrize("key", ["xmp", "icc_profile", "exif", "dpi", "transparency", "interlace", "bbox"])
def test_a_text_that_is_called_like_metadata_is_only_text(key: str) -> None:
    picture = load_image("photo.png", png_with(**{key: "6"}))
    assert picture.rgb.tobytes() == make_picture("coffee").tobytes()
    assert (picture.xmp, picture.icc_profile, picture.alpha) == (None, None, None)
    for format_ in ("png", "jpeg", "tiff", "webp"):
        content = encode_image(picture.native, picture, format_, quality=None, record={}, text="")
        assert decode(content).size == picture.size


@pytest.mark.parametrize("kind", [2, 3, 4, 5, 12])
def test_tags_of_the_wrong_type_are_left_out(kind: int) -> None:
    more = ((700, kind, 1, 65), (34675, kind, 1, 65))
    picture = load_image("scan.tif", hostile.make_tiff(hostile.grey_tags(12, 12, more), bytes(300)))
    assert (picture.xmp, picture.icc_profile) == (None, None)
    content = encode_image(picture.native, picture, "png", quality=None, record={}, text="")
    assert decode(content).size == (12, 12)


@pytest.mark.slow
def test_pillow_logs_nothing_to_stderr(fresh, tmp_path: Path) -> None:
    tags = [*hostile.grey_tags(12, 12, ((277, 4, 1, 19),))]
    (tmp_path / "a.tif").write_bytes(hostile.make_tiff(tags, bytes(300)))
    done = fresh("info", tmp_path / "a.tif")
    assert (done.code, len(done.err.splitlines())) == (3, 1)
    assert done.err.startswith("img2img: ")


def test_very_large_exif_is_left_out() -> None:
    exif = Image.Exif()
    exif[0x010F] = "x" * 2_000_000
    picture = load_image("photo.png", encode(make_picture("coffee"), "PNG", exif=exif))
    assert len(picture.exif) == 0


# --- records


def record_picture(record: object, *, pixels: bool = True, behind: bool = False) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add(b"tEXt", b"img2img\0" + json.dumps(record).encode(), after_idat=behind)
    content = encode(make_picture("noise"), "PNG", pnginfo=info)
    return content if pixels else content[: content.find(b"IDAT") + 50]


def sound_record() -> dict[str, object]:
    return make_record(Job(input="a.png", output="b.png", preset="edit", parameters=Parameters(prompt="p"), seed=1))


@pytest.mark.parametrize("behind", [False, True])
def test_a_record_is_read_wherever_it_stands(tmp_path: Path, behind: bool) -> None:
    (tmp_path / "a.png").write_bytes(record_picture(sound_record(), behind=behind))
    assert read_record(str(tmp_path / "a.png")) == sound_record()


def test_a_record_is_read_without_the_pixels(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(record_picture(sound_record(), pixels=False))
    assert read_record(str(tmp_path / "a.png")) == sound_record()
    with pytest.raises(InputError, match="damaged"):
        load_image(str(tmp_path / "a.png"))


@pytest.mark.parametrize(
    "changes",
    [
        {"parameters": {}},
        {"parameters": {"task": "edit"}},
        {"parameters": []},
        {"preset": "\ud800"},
        {"control_image": "x"},
    ],
)
def test_a_record_that_gives_no_command_is_damaged(tmp_path: Path, changes) -> None:
    record = {**sound_record(), **changes}
    if "control_image" in changes:
        record["parameters"] = {"task": "edit", "prompt": "p"}
    (tmp_path / "a.png").write_bytes(record_picture(record))
    with pytest.raises(InputError, match="record is damaged"):
        read_record(str(tmp_path / "a.png"))


def test_only_formats_of_pictures_are_opened_for_a_record(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n")
    with pytest.raises(InputError, match="not a picture"):
        read_record(str(tmp_path / "a.png"))


# --- text


@pytest.mark.parametrize(
    "text", ["=", "<<", "[" * 5000, "!!int x", "!x y", "2001-99-99", "2001-01-01", "0x" + "f" * 5000, "0b_"]
)
def test_a_value_that_is_no_plain_one_stays_text(text: str) -> None:
    assert parse_scalar(text) == text


def test_a_thousand_brackets_take_no_time() -> None:
    began = time.process_time()
    for text in ("[" * 999, "a: " + "[" * 900, "- " * 400, "&a [" + "[" * 900) * 50:
        assert parse_scalar(text) == text
    in_time(began)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("strength: 0x" + "f" * 5000, "too large"),
        ("extends: ~nobody-here/x.yaml", "no such preset"),
        (f"extends: {'a' * 5000}.yaml", "no such preset"),
        ('"a\\nb": 1', "unknown key"),
        ('extends: "a\\nb"', "unknown preset"),
    ],
    ids=["number", "home", "long", "key", "name"],
)
def test_odd_presets_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(PresetError, match=reason) as error:
        resolve(load_preset(str(path)), {})
    assert len(str(error.value).splitlines()) == 1


def test_a_long_line_of_presets_is_refused(tmp_path: Path) -> None:
    for index in range(2000):
        (tmp_path / f"{index}.yaml").write_text(f"extends: {index + 1}.yaml\n")
    with pytest.raises(PresetError, match="merge"):
        load_preset(str(tmp_path / "0.yaml"))


@pytest.mark.parametrize("value", ["a\\ud800.png", "a\\u0000.png"])
@pytest.mark.parametrize("key", ["input", "output", "mask"])
def test_names_that_no_file_can_have_are_refused(tmp_path: Path, key: str, value: str) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_text('{"input": "a.png"}\n' + f'{{"input": "a.png", "{key}": "{value}"}}\n')
    good, bad = read_manifest(path)
    assert good.error is None
    assert isinstance(bad.error, UsageError)
    check_line(bad.error, "jobs.jsonl:2")


@pytest.mark.slow
def test_libtiff_keeps_its_thoughts_to_itself(tmp_path: Path, fresh) -> None:
    """Otherwise libtiff would print its own lines to stderr, beside the one that names the file."""
    whole = encode(make_picture("noise", (64, 64)), "TIFF", compression="tiff_lzw")
    (tmp_path / "odd.tif").write_bytes(whole[:2000] + bytes([255]) * 400 + whole[2400:])
    done = fresh("colorize", tmp_path / "odd.tif")
    assert done.code == 3
    assert len(done.err.splitlines()) == 1, done.err
    assert "odd.tif" in done.err
