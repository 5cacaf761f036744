"""Fuzz the code that reads untrusted bytes, guided by coverage. It may only raise an Img2ImgError of one line.

`python benchmarks/fuzz.py decoder corpus/` runs until it is stopped. libFuzzer saves inputs with new coverage in the
corpus and crashing inputs next to it. Needs atheris: `pip install atheris`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1]))

try:
    import atheris
except ImportError:
    sys.exit("atheris is missing; install it with: pip install atheris")

with atheris.instrument_imports(include=["img2img_cli", "PIL"]):
    from img2img_cli.errors import Img2ImgError
    from img2img_cli.pictures.read import load_image, peek_size
    from img2img_cli.pictures.write import encode_image
    from img2img_cli.presets.catalogue import resolve
    from img2img_cli.presets.files import load_preset
    from img2img_cli.tasks.foreign.fields import Foreign
    from img2img_cli.tasks.foreign.read import read_origin
    from img2img_cli.tasks.foreign.replay import plan_replay
    from img2img_cli.tasks.inputs import read_manifest
    from img2img_cli.tasks.record import replay_command

from hostile import make_hostile, make_manifest, make_metadata, make_preset

SEEDS = 500


def fuzz_decoder(path: Path, content: bytes) -> None:
    """Decode a picture, and encode it again with its metadata if it has at most 65536 pixels."""
    path.write_bytes(content)
    peek_size(str(path))
    picture = load_image(str(path), content or b"\0")
    if picture.rgb.width * picture.rgb.height <= 1 << 16:
        for format_ in ("png", "jpeg", "tiff"):
            encode_image(picture.native, picture, format_, quality=None, record={}, text="x")


def fuzz_preset(path: Path, content: bytes) -> None:
    """Load and resolve a preset."""
    path.write_bytes(content)
    resolve(load_preset(str(path)), {}).parameters.check_references()


def fuzz_manifest(path: Path, content: bytes) -> None:
    """Read a manifest. The first byte chooses between CSV (below 0x80) and JSON Lines."""
    named = path.with_suffix(".csv" if content[:1] < b"\x80" else ".jsonl")
    named.write_bytes(content[1:])
    read_manifest(named)


def fuzz_metadata(path: Path, content: bytes) -> None:
    """Read the record or another tool's parameters from a picture, and build the command for them."""
    path.write_bytes(content)
    found = read_origin(str(path))
    command = plan_replay(found, "x.png").command if isinstance(found, Foreign) else replay_command(found)
    (command or "").encode()


def _first_byte(make: Callable[[int], tuple[str, bytes]]) -> Callable[[int], tuple[str, bytes]]:
    def prefixed(seed: int) -> tuple[str, bytes]:
        name, content = make(seed)
        return name, (b"\0" if name.endswith(".csv") else b"\xff") + content

    return prefixed


TARGETS = {
    "decoder": (fuzz_decoder, make_hostile, "x.png"),
    "preset": (fuzz_preset, make_preset, "x.yaml"),
    "manifest": (fuzz_manifest, _first_byte(make_manifest), "x.csv"),
    "metadata": (fuzz_metadata, make_metadata, "x.png"),
}


def main() -> None:
    """Fill the corpus from the generators and start libFuzzer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--seconds", type=int, default=0, help="0 is for ever")
    arguments, more = parser.parse_known_args()
    check, make, name = TARGETS[arguments.target]
    arguments.corpus.mkdir(parents=True, exist_ok=True)
    for seed in range(SEEDS):
        file, content = make(seed)
        if len(content) < 1 << 16:
            (arguments.corpus / f"seed-{file}").write_bytes(content)
    warnings.simplefilter("ignore")
    path = Path(tempfile.mkdtemp(prefix="fuzz-")) / name

    def try_one(content: bytes) -> None:
        try:
            check(path, content)
        except Img2ImgError as error:
            if len(str(error).splitlines()) != 1:
                raise AssertionError(f"not one line: {error}") from error

    options = [f"-max_total_time={arguments.seconds}", "-timeout=10", "-rss_limit_mb=4096", "-max_len=65536"]
    options.append(f"-artifact_prefix={arguments.corpus.resolve()}-crash-")
    atheris.Setup([sys.argv[0], *options, *more, str(arguments.corpus)], try_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
