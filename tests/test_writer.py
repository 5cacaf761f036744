"""Writing pictures: metadata is kept, and files are never incomplete."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading

import numpy as np
import pytest
from pictures import EXIF, GPS, ORIENTATION, bomb, camera_exif, decode, encode, make_picture, psnr, wide_profile
from PIL import ExifTags, Image

from img2img_cli.errors import InputError, OutputError
from img2img_cli.pictures.files.formats import EXTENSIONS
from img2img_cli.pictures.masks import paste_masked
from img2img_cli.pictures.read import Picture, load_image
from img2img_cli.pictures.write import choose_format, encode_image, write_output
from img2img_cli.presets.schema import Parameters
from img2img_cli.system.streams import STDIO
from img2img_cli.tasks.job import Job
from img2img_cli.tasks.plan import plan_variations
from img2img_cli.tasks.record import format_parameters, make_record, read_record

PROMPT = 'Ein Mädchen, 漢字 \U0001f3a8 & <b>"quotes"</b>\nsecond line'
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF/></x:xmpmeta>'
CARRIERS = ("png", "jpeg", "webp", "tiff", "avif")
COMMENT = ExifTags.Base.UserComment


def make_job(**changes):
    values = {
        "input": "old/photo.jpg",
        "output": "new.png",
        "preset": "edit",
        "parameters": Parameters(prompt=PROMPT, negative_prompt="blurry", strength=0.5),
        "seed": 12345,
    }
    return Job(**values | changes)


def make_source(**changes):
    image = make_picture("coffee")
    values = {
        "name": "photo.jpg",
        "rgb": image,
        "native": image,
        "exif": camera_exif(),
        "xmp": XMP,
        "dpi": (300.0, 300.0),
    }
    return Picture(**values | {"icc_profile": wide_profile(), "text": {"Title": "Käse"}} | changes)


def encode_result(format_, source=None, *, metadata=True, image=None, quality=None, job=None):
    source, job = source or make_source(), job or make_job()
    image = image or make_picture("chelsea")
    text = format_parameters(job, image.size)
    return encode_image(
        image, source, format_, quality=quality, record=make_record(job) if metadata else None, text=text
    )


def comment_of(image):
    comment = image.getexif().get_ifd(EXIF)[COMMENT]
    assert comment.startswith(b"UNICODE\0")
    return comment[8:].decode("utf-16-be")


@pytest.mark.parametrize("format_", CARRIERS)
def test_the_record_comes_back(tmp_path, format_):
    path = tmp_path / "result"
    path.write_bytes(encode_result(format_))
    record = read_record(str(path))
    assert record == make_record(make_job())
    assert record["parameters"]["prompt"] == PROMPT
    assert record["input"] == "photo.jpg", "folders are nobody's business"


@pytest.mark.parametrize("format_", CARRIERS)
def test_other_tools_find_their_parameters(format_):
    image = decode(encode_result(format_))
    text = image.text["parameters"] if format_ == "png" else comment_of(image)
    assert text == format_parameters(make_job(), (96, 72))
    assert text.startswith(PROMPT + "\nNegative prompt: blurry\nSteps: 20, ")
    assert "Seed: 12345, Size: 96x72" in text


@pytest.mark.parametrize("format_", CARRIERS)
def test_the_users_exif_and_gps_are_kept(format_):
    exif = decode(encode_result(format_)).getexif()
    assert exif[ExifTags.Base.Make] == "Lumen"
    assert exif.get_ifd(EXIF)[ExifTags.Base.DateTimeOriginal] == "1998:07:04 12:30:00"
    gps = exif.get_ifd(GPS)
    assert gps[ExifTags.GPS.GPSLatitudeRef] == "N"
    assert tuple(map(float, gps[ExifTags.GPS.GPSLatitude])) == (52.0, 31.0, 12.0)


@pytest.mark.parametrize("format_", ["png", "jpeg", "webp", "avif"])
def test_the_users_xmp_is_kept(format_):
    assert decode(encode_result(format_)).info["xmp"] == XMP


def test_the_users_png_texts_and_resolution_are_kept():
    image = decode(encode_result("png"))
    assert image.text["Title"] == "Käse"
    assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)


@pytest.mark.parametrize("format_", CARRIERS)
@pytest.mark.parametrize("metadata", [True, False])
def test_the_colour_profile_is_kept_even_without_metadata(format_, metadata):
    assert decode(encode_result(format_, metadata=metadata)).info["icc_profile"] == wide_profile()


@pytest.mark.parametrize("format_", CARRIERS)
def test_no_metadata_means_none(tmp_path, format_):
    content = encode_result(format_, metadata=False)
    image = decode(content)
    assert not getattr(image, "text", {})
    assert "xmp" not in image.info
    assert GPS not in image.getexif()
    assert ExifTags.Base.Make not in image.getexif()
    for secret in (b"Lumen", b"M\xc3\xa4dchen", b"xmpmeta", b"1998:07", b"12345"):
        assert secret not in content
    path = tmp_path / "bare"
    path.write_bytes(content)
    with pytest.raises(InputError, match="--no-metadata"):
        read_record(str(path))


@pytest.mark.parametrize("format_", ["png", "jpeg", "webp"])
def test_a_masked_result_carries_nothing_over_by_itself(format_):
    options = {"comment": b"secret words", "xmp": XMP, "exif": camera_exif(), "dpi": (300, 300)}
    source = load_image("photo.jpg", encode(make_picture("coffee"), "JPEG", **options))
    result = paste_masked(make_picture("chelsea"), source.native, Image.new("L", source.size, 128))
    content = encode_result(format_, source, metadata=False, image=result)
    assert b"secret words" not in content
    assert b"xmpmeta" not in content
    assert b"Lumen" not in content


def test_a_picture_through_load_and_encode_keeps_its_metadata_and_loses_its_orientation(tmp_path):
    stored = encode(make_picture("coffee"), "JPEG", exif=camera_exif(6), xmp=XMP, icc_profile=wide_profile())
    source = load_image("photo.jpg", stored)
    for format_ in ("png", "jpeg", "webp"):
        image = decode(encode_result(format_, source, image=source.native))
        assert image.size == (72, 96)
        assert ORIENTATION not in image.getexif()
        assert image.getexif().get_ifd(GPS)[ExifTags.GPS.GPSLatitudeRef] == "N"
        assert image.info["xmp"] == XMP


def test_results_of_results_hold_one_record(tmp_path):
    first = load_image("first.png", encode_result("png"))
    path = tmp_path / "second.png"
    path.write_bytes(encode_result("png", first, job=make_job(seed=99)))
    assert read_record(str(path))["seed"] == 99
    assert path.read_bytes().count(b"Seed: ") == 1


def test_more_exif_than_a_jpeg_can_hold_does_not_cost_the_result():
    exif = camera_exif()
    exif.get_ifd(EXIF)[ExifTags.Base.MakerNote] = b"m" * 64_500
    source = make_source(exif=exif)
    image = decode(encode_result("jpeg", source))
    assert comment_of(image).startswith(PROMPT)


@pytest.mark.parametrize("dpi", [(0.0, 0.0), (float("nan"),) * 2, (float("inf"),) * 2, (-1.0, -1.0), (1e12, 1e12)])
@pytest.mark.parametrize("format_", ["png", "jpeg", "tiff", "bmp"])
def test_an_absurd_resolution_does_not_cost_the_result(format_, dpi):
    assert decode(encode_result(format_, make_source(dpi=dpi))).size == (96, 72)


def test_a_broken_name_does_not_cost_the_record():
    job = make_job(input="old/\udcff.jpg", preset="./\udcff.yaml")
    assert decode(encode_result("png", job=job)).text["img2img"]
    assert decode(encode_result("jpeg", job=job)).size == (96, 72)


def test_pictures_that_say_nothing_are_refused(tmp_path):
    path = tmp_path / "plain.png"
    for content in (encode(make_picture("coffee"), "PNG"), b"text", bomb()):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"plain\.png") as error:
            read_record(str(path))
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("missing", ["parameters", "preset", "input", "seed"])
def test_a_record_with_a_hole_is_damaged(tmp_path, missing):
    record = make_record(make_job())
    del record[missing]
    path = tmp_path / "result.png"
    path.write_bytes(encode_image(make_picture("coffee"), make_source(), "png", quality=None, record=record, text="x"))
    with pytest.raises(InputError, match="damaged"):
        read_record(str(path))


def test_a_blank_user_comment_is_no_record(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(EXIF)[COMMENT] = b"ASCII\0\0\0" + bytes(40)
    path = tmp_path / "phone.jpg"
    path.write_bytes(encode(make_picture("coffee"), "JPEG", exif=exif))
    with pytest.raises(InputError):
        read_record(str(path))


@pytest.mark.parametrize(
    ("output", "format_", "source", "wanted"),
    [(f"a{extension}", "keep", "PNG", known) for extension, known in EXTENSIONS.items()]
    + [("a.JPG", "keep", "PNG", "jpeg"), ("a.jpg", "webp", "PNG", "webp"), ("a.jpg", "png", "JPEG", "png")]
    + [(STDIO, "keep", source, wanted) for source, wanted in (("JPEG", "jpeg"), ("MPO", "jpeg"), ("WEBP", "webp"))]
    + [(STDIO, "keep", source, "png") for source in ("GIF", "PPM", "JPEG2000")],
)
def test_format_of_the_result(output, format_, source, wanted):
    assert choose_format(format_, output, source) == wanted


@pytest.mark.parametrize("format_", ["png", "jpeg", "webp", "tiff", "bmp", "avif"])
def test_files_are_of_the_format_and_near_the_result(format_):
    image = decode(encode_result(format_))
    assert image.format == format_.upper()
    minimum = 99 if format_ in ("png", "tiff", "bmp") else 36
    assert psnr(image.convert("RGB"), make_picture("chelsea")) > minimum


@pytest.mark.parametrize("format_", ["jpeg", "webp", "avif"])
def test_quality_trades_bytes_for_likeness(format_):
    low, high = encode_result(format_, quality=30), encode_result(format_, quality=95)
    assert len(low) < len(high)
    assert psnr(decode(low).convert("RGB"), make_picture("chelsea")) < psnr(
        decode(high).convert("RGB"), make_picture("chelsea")
    )


def test_webp_of_full_quality_is_lossless():
    assert decode(encode_result("webp", quality=100)).convert("RGB").tobytes() == make_picture("chelsea").tobytes()


@pytest.mark.parametrize("format_", ["png", "webp", "tiff"])
def test_alpha_is_written(format_):
    image = make_picture("chelsea")
    image.putalpha(make_picture("gradient").getchannel(0))
    assert decode(encode_result(format_, image=image)).getchannel("A").tobytes() == image.getchannel("A").tobytes()


@pytest.mark.parametrize("format_", ["jpeg", "bmp"])
def test_where_there_is_no_alpha_the_ground_is_white(format_):
    image = Image.new("RGBA", (32, 32), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (16, 0, 32, 32))
    flat = np.asarray(decode(encode_result(format_, image=image)), int)
    assert np.abs(flat[:, 20:] - 255).max() <= 3
    assert np.abs(flat[:, :12] - (255, 0, 0)).max() <= 3


def test_too_large_for_the_format_is_an_output_error():
    image = Image.new("RGB", (16_400, 8))
    with pytest.raises(OutputError, match="--format png"):
        encode_result("webp", image=image)


@pytest.fixture
def content():
    return encode(make_picture("chelsea"), "PNG")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_new_file_is_whole_and_alone(tmp_path, content):
    write_output(content, str(tmp_path / "new.png"), replace=False)
    assert (tmp_path / "new.png").read_bytes() == content
    assert names(tmp_path) == ["new.png"]


def test_a_new_file_has_the_usual_permissions(tmp_path, content):
    write_output(content, str(tmp_path / "new.png"), replace=False)
    (tmp_path / "usual").touch()
    assert (tmp_path / "new.png").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_an_existing_file_is_not_replaced_unasked(tmp_path, content):
    target = tmp_path / "old.png"
    target.write_bytes(b"precious")
    with pytest.raises(OutputError, match="--force"):
        write_output(content, str(target), replace=False)
    assert target.read_bytes() == b"precious"
    assert names(tmp_path) == ["old.png"]


def test_a_file_that_appears_after_planning_is_not_replaced(tmp_path, content):
    source, target = tmp_path / "in.png", tmp_path / "out.png"
    source.write_bytes(content)
    (job,) = plan_variations(make_job(input=str(source)), str(target))
    target.write_bytes(b"somebody else's")
    with pytest.raises(OutputError, match="exists already"):
        write_output(content, job.output, replace=job.force or job.in_place)
    assert target.read_bytes() == b"somebody else's"
    assert names(tmp_path) == ["in.png", "out.png"]


def test_of_many_writers_without_force_one_wins(tmp_path):
    contents = [encode(Image.new("RGB", (64, 64), (i * 20, 0, 0)), "PNG") for i in range(8)]
    target, gate, refused = tmp_path / "out.png", threading.Barrier(8), []

    def write(content):
        gate.wait()
        try:
            write_output(content, str(target), replace=False)
        except OutputError:
            refused.append(content)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 7
    assert target.read_bytes() in set(contents) - set(refused)
    assert names(tmp_path) == ["out.png"]


def test_a_replaced_file_keeps_its_permissions(tmp_path, content):
    target = tmp_path / "old.png"
    target.write_bytes(b"old")
    target.chmod(0o640)
    write_output(content, str(target), replace=True)
    assert target.read_bytes() == content
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert names(tmp_path) == ["old.png"]


def test_replacing_goes_through_a_link(tmp_path, content):
    (tmp_path / "real.png").write_bytes(b"old")
    (tmp_path / "link.png").symlink_to("real.png")
    write_output(content, str(tmp_path / "link.png"), replace=True)
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "real.png").read_bytes() == content


def test_readers_of_a_replaced_file_see_the_old_or_the_new(tmp_path, content):
    target = tmp_path / "old.png"
    target.write_bytes(b"old")
    with target.open("rb") as reader:
        write_output(content, str(target), replace=True)
        assert reader.read() == b"old", "replaced by renaming, not written over"


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failing_disk_leaves_the_old_file(tmp_path, content, monkeypatch, step, code):
    target = tmp_path / "old.png"
    target.write_bytes(b"old")

    def fail(*_args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OutputError, match=r"old\.png.*cannot be written"):
        write_output(content, str(target), replace=True)
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["old.png"]


@pytest.mark.parametrize("replace", [False, True])
def test_what_cannot_be_decoded_takes_no_place(tmp_path, content, replace):
    target = tmp_path / "old.png"
    if replace:
        target.write_bytes(b"old")
    for bad in (content[: len(content) // 2], b"not a picture"):
        with pytest.raises(OutputError):
            write_output(bad, str(target), replace=replace)
    assert names(tmp_path) == (["old.png"] if replace else [])
    assert not replace or target.read_bytes() == b"old"


LIMITED = """
import resource, sys
from img2img_cli.errors import OutputError
from img2img_cli.pictures.write import write_output
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_output(open(sys.argv[1], "rb").read(), sys.argv[2], replace=sys.argv[3] == "replace")
except OutputError as error:
    sys.exit(f"refused: {error}")
"""


@pytest.mark.parametrize("how", ["replace", "new"])
def test_a_full_disk_leaves_the_old_file(tmp_path, content, how):
    assert len(content) > 4096
    (tmp_path / "in.png").write_bytes(content)
    target = tmp_path / "out.png"
    if how == "replace":
        target.write_bytes(b"old")
    before = names(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "in.png"), str(target), how],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("refused: "), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert names(tmp_path) == before
    assert how == "new" or target.read_bytes() == b"old"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_an_output_error(tmp_path, content):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError):
        write_output(content, str(tmp_path / "new.png"), replace=False)


@pytest.mark.parametrize("name", ["漢" * 83 + ".png", "x" * 251 + ".png"], ids=("wide", "plain"))
def test_the_longest_names_can_be_written(tmp_path, content, name):
    write_output(content, str(tmp_path / name), replace=False)
    assert names(tmp_path) == [name]


def test_a_folder_that_went_away_is_an_output_error(tmp_path, content):
    with pytest.raises(OutputError, match=r"new\.png"):
        write_output(content, str(tmp_path / "gone" / "new.png"), replace=False)
