"""Check that the tests notice when a protection of pictures is removed: `python tests/mutations.py`.

Each mutation changes one thing in a copy of the tree and runs the tests that should fail then. All must pass without it
and fail with it. A mutation whose text is no longer in the code is an error: update it with the code.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEFT_OUT = (".git", ".venv", "__pycache__", "runs", "dist", "build", ".mypy_cache", ".ruff_cache", ".pytest_cache")
FAILED = 1  # pytest's exit code for tests that ran and failed; others mean that they could not run


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """Changes, each as file, old text and new text, and the tests that must fail with them, as arguments of pytest."""

    name: str
    changes: tuple[tuple[str, str, str], ...]
    tests: tuple[str, ...]


def change(file: str, old: str, new: str = "") -> tuple[tuple[str, str, str], ...]:
    """Return one change. Without a new text, the old one is removed."""
    return ((f"img2img_cli/{file}", old, new),)


MUTATIONS = (
    Mutation(
        name="results are saved over what is there",
        changes=change(
            "pictures/write.py",
            "    target = Path(os.path.realpath(output)) if replace else Path(output)\n",
            "    target = Path(os.path.realpath(output)) if replace else Path(output)\n"
            "    if replace:\n        target.write_bytes(data)\n        return\n",
        ),
        tests=("tests/test_writer.py",),
    ),
    Mutation(
        name="results are put in place without looking at them",
        changes=change("pictures/write.py", "        if verify:\n            _verify(temporary)\n"),
        tests=("tests/test_writer.py",),
    ),
    Mutation(
        name="a file that appears meanwhile is replaced",
        changes=change(
            "pictures/write.py",
            "        os.link(temporary, target)\n", "        os.replace(temporary, target)\n",
        ),
        tests=("tests/test_writer.py",),
    ),
    Mutation(
        name="a link that fails on a full disk is a rename",
        changes=change("pictures/write.py", "        if error.errno in DISK_ERRORS:\n            raise\n"),
        tests=("tests/test_faults.py", "-k", "hard_links"),
    ),
    Mutation(
        name="a write that fails is a success",
        changes=change(
            "pictures/write.py",
            '        raise OutputError(\n            f"{output}: cannot be written ({error.strerror or error}); '
            'free space or choose another place"\n        ) from None\n',
            "        return\n",
        ),
        tests=("tests/test_writer.py",),
    ),
    Mutation(
        name="temporary files stay after a failure",
        changes=change("pictures/write.py", "            temporary.unlink(missing_ok=True)\n", "            pass\n"),
        tests=("tests/test_writer.py",),
    ),
    Mutation(
        name="a command that fails ends with 0",
        changes=change(
            "cli/app.py",
            "    except Img2ImgError as error:\n        return _fail(str(error), error.exit_code)\n",
            "    except Img2ImgError:\n        return 0\n",
        ),
        tests=("tests/test_cli.py", "-k", "bad_inputs"),
    ),
    Mutation(
        name="a full disk behind stdout is a bug",
        changes=(
            *change("system/streams.py", "            raise explain_stdout(error) from None\n", "            raise\n"),
            *change("cli/app.py", "        if error.errno not in DISK_ERRORS:\n", "        if True:\n"),
        ),
        tests=("tests/test_faults.py", "-k", "behind_a_stream and stdout"),
    ),
    Mutation(
        name="a result may replace a mask",
        changes=change("tasks/claims.py", "        for path in job.reads:\n", "        for path in (job.input,):\n"),
        tests=("tests/test_job.py",),
    ),
    Mutation(
        name="a batch's results may collide",
        changes=change("tasks/plan.py", "    check_outputs(jobs, choices.folder)\n"),
        tests=("tests/test_inputs.py",),
    ),
    Mutation(
        name="the journal is not told what is about to be written",
        changes=change("batch/assembly_line.py", "        journal.begin(job, entry.provenance, data)\n"),
        tests=("tests/test_faults.py", "-k", "dies_after_writing"),
    ),
    Mutation(
        name="the journal forgets what lies there after two kills",
        changes=change(
            "batch/journal.py",
            "                self._update(job, output_sha256=sha256, fingerprint=None)\n",
        ),
        tests=("tests/test_faults.py", "-k", "two_runs"),
    ),
    Mutation(
        name="a run sweeps the files of another below it",
        changes=change("batch/journal.py", "is_temporary(name, tag)", "is_temporary(name, BATCH_TAG)"),
        tests=("tests/test_faults.py", "-k", "folder_below"),
    ),
    Mutation(
        name="two runs may work on one folder",
        changes=change("batch/journal.py", "        lock.acquire(timeout=0)\n"),
        tests=("tests/test_batch.py", "-k", "second_run"),
    ),
    Mutation(
        name="there is no limit of pixels",
        changes=(
            *change("pictures/read.py", "    if width * height > MAX_PIXELS:\n", "    if False:\n"),
            *change("pictures/read.py", "Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2", "Image.MAX_IMAGE_PIXELS = None"),
        ),
        tests=("tests/test_images.py", "-k", "bomb"),
    ),
    Mutation(
        name="a mask's black is repainted",
        changes=change(
            "tasks/run.py",
            "        result = paste_masked(result, picture.native, soft)\n",
            "        pass\n",
        ),
        tests=("tests/test_cli.py", "-k", "mask_keeps"),
    ),
    Mutation(
        name="pixels that are not numbers become black",
        changes=change(
            "engines/base.py",
            "    if not torch.isfinite(pixels).all():\n        raise ModelError",
            "    if False:\n        raise ModelError",
        ),
        tests=("tests/test_faults.py", "-k", "numbers_that_are_none"),
    ),
    Mutation(
        name="pickled checkpoints are opened",
        changes=change("presets/references.py", "    if path.suffix.lower() in PICKLES:\n        raise ModelError(\n",
                       "    if False:\n        raise ModelError(\n"),
        tests=("tests/test_pipeline.py", "-k", "not_there"),
    ),
    Mutation(
        name="pickled weights in a folder are opened",
        changes=change(
            "engines/diffusion/load.py",
            '"use_safetensors": True, **given}', '"use_safetensors": None, **given}',
        ),
        tests=("tests/test_pipeline.py", "-k", "damaged_folder"),
    ),
    Mutation(
        name="the server answers to any name",
        changes=change(
            "server/guard.py", 'if not self._is_ours(_host_of(headers.get("host", ""))):', "if False:"
        ),
        tests=("tests/test_server.py", "-k", "guard"),
    ),
    Mutation(
        name="a spoilt picture fails all of its batch",
        changes=change("batch/assembly_line.py", "            if len(run.entries) > 1:\n", "            if False:\n"),
        tests=("tests/test_batch.py", "-k", "one_spoilt"),
    ),
    Mutation(
        name="a signal comes between a result and its count",
        changes=change(
            "system/interrupts.py",
            "        self._held, self._stop = True, None\n", "        self._stop = None\n",
        ),
        tests=("tests/test_interrupts.py", "-k", "nowhere_between or wait_where"),
    ),
    Mutation(
        name="what was told as late is written",
        changes=change(
            "batch/assembly_line.py",
            "        if self._session.opener.is_late(entry):\n            raise TimeLimitError\n",
        ),
        tests=("tests/test_sources.py", "-k", "told_as_late"),
    ),
    Mutation(
        name="an input is known by its stamp from after the run",
        changes=change(
            "batch/journal.py",
            "        size, mtime = provenance.source_stamp\n",
            "        size, mtime = stamp_file(job.input)\n"
        ),
        tests=("tests/test_sources.py", "-k", "replaced_meanwhile"),
    ),
    Mutation(
        name="a folder's FIFOs and devices are read",
        changes=change("tasks/inputs.py", "if item.scanned and (kind := find_special(item.path))", "if False"),
        tests=("tests/test_sources.py", "-k", "left_aside"),
    ),
    Mutation(
        name="a changed failure in the journal is believed",
        changes=change("batch/journal.py", ", failure.code, failure.reason]", "]"),
        tests=("tests/test_journal.py", "-k", "not_believed"),
    ),
    Mutation(
        name="lanes keep features for each other",
        changes=change(
            "engines/diffusion/feature_cache.py",
            "_active = threading.local()", "_active = contextlib.nullcontext()",
        ),
        tests=("tests/test_speed.py", "-k", "features_of_their_own"),
    ),
    Mutation(
        name="kept features are not halved when guidance ends",
        changes=change(
            "engines/diffusion/feature_cache.py",
            "        self._kept = pytree.tree_map_only(torch.Tensor, lambda kept: kept.chunk(2)[-1], self._kept)\n",
            "        pass\n",
        ),
        tests=("tests/test_together.py", "-k", "beyond_the_end or guided_step"),
    ),
    Mutation(
        name="a copied VAE carries what moves the other parts",
        changes=change("engines/diffusion/offload.py", "        copied.__dict__.pop(name, None)\n", "        pass\n"),
        tests=("tests/test_together.py", "-k", "second_try"),
    ),
    Mutation(
        name="parts are taken for fitting that do not",
        changes=change(
            "engines/diffusion/offload.py",
            "    if sum(parts) + work <= free:\n", "    if sum(parts) <= free:\n",
        ),
        tests=("tests/test_offload.py", "-k", "what_is_chosen"),
    ),
    Mutation(
        name="an owner's requests all come before another's",
        changes=change(
            "server/queue.py",
            "                    self._queues[request.owner] = queue  # at the end: this owner has had its turn\n",
            "                    self._queues = {request.owner: queue, **self._queues}\n",
        ),
        tests=("tests/test_server.py", "-k", "owners_take_turns"),
    ),
    Mutation(
        name="one request spoils those of others in its batch",
        changes=change(
            "server/queue.py",
            "            if len(requests) > 1 and not isinstance(error, CancelledError):\n",
            "            if False:\n",
        ),
        tests=("tests/test_server.py", "-k", "spoils_a_batch"),
    ),
    Mutation(
        name="floats of 0 to 255 are read as 0 to 1",
        changes=change("pictures/files/sixteen_bit.py", "255.0 if most <= 255 * OVERSHOOT else float(TOP)", "1.0"),
        tests=("tests/test_images.py", "-k", "floats_are_scaled"),
    ),
    Mutation(
        name="16 bits are clipped to 8",
        changes=change(
            "pictures/files/sixteen_bit.py",
            "    return Image.fromarray(((luminance.astype(np.uint32) + STEP // 2) // STEP).astype(np.uint8))\n",
            "    return Image.fromarray(luminance.clip(0, 255).astype(np.uint8))\n",
        ),
        tests=("tests/test_images.py", "-k", "scaled_not_clipped"),
    ),
    Mutation(
        name="a mask of 0 and 1 is nearly black",
        changes=change("pictures/masks.py", "    if (white | (levels == low)).all():\n", "    if False:\n"),
        tests=("tests/test_masks.py", "-k", "two_values"),
    ),
)  # fmt: skip


def copy_tree(target: Path) -> Path:
    """Copy the tree without files that are not part of it."""
    shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
    return target


def apply(mutation: Mutation, tree: Path) -> None:
    """Apply a mutation to the copy.

    Raises:
        ValueError: a text does not occur exactly once.
    """
    for file, old, new in mutation.changes:
        text = (tree / file).read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise ValueError(f"{file} has this {text.count(old)} times: {old.strip()!r}")
        (tree / file).write_text(text.replace(old, new), encoding="utf-8")


def run_tests(tests: tuple[str, ...], tree: Path) -> int:
    """Return pytest's exit code, or 1 after a timeout: a test that hangs has noticed the mutation, too."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, timeout=180)
    except subprocess.TimeoutExpired:
        return FAILED
    if done.returncode not in (0, FAILED):
        print(done.stdout.decode()[-2000:], done.stderr.decode()[-2000:], file=sys.stderr)
    return done.returncode


def try_mutation(mutation: Mutation, folder: Path) -> str:
    """Return `killed`, or what is wrong."""
    tree = copy_tree(folder / mutation.name.replace(" ", "-").replace("/", "-"))
    try:
        apply(mutation, tree)
        code = run_tests(mutation.tests, tree)
    except ValueError as error:
        return f"NOT FOUND: {error}"
    finally:
        shutil.rmtree(tree)
    return {FAILED: "killed", 0: "SURVIVED"}.get(code, f"DID NOT RUN ({code})")


def try_unchanged(tests: tuple[str, ...], folder: Path) -> str:
    """Return `green`, or what is wrong."""
    code = run_tests(tests, folder)
    return "green" if code == 0 else f"RED ({code})"


def main() -> None:
    """Try all mutations, or those with a given word in their name; exit with 1 if one survives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="only mutations with one of these in their name")
    parser.add_argument("--jobs", type=int, default=2, help="how many at once")
    arguments = parser.parse_args()
    chosen = [m for m in MUTATIONS if not arguments.words or any(word in m.name for word in arguments.words)]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(arguments.jobs) as pool:
        folder = Path(name)
        unchanged = copy_tree(folder / "unchanged")
        green = {
            tests: pool.submit(try_unchanged, tests, unchanged) for tests in dict.fromkeys(m.tests for m in chosen)
        }
        tried = [(mutation, pool.submit(try_mutation, mutation, folder)) for mutation in chosen]
        print("| mutation | tests | without | with |\n| --- | --- | --- | --- |")
        bad = 0
        for mutation, future in tried:
            without, outcome = green[mutation.tests].result(), future.result()
            bad += outcome != "killed" or without != "green"
            print(f"| {mutation.name} | `{' '.join(mutation.tests)}` | {without} | {outcome} |", flush=True)
    print(f"\n{len(chosen)} mutations, {bad} wrong, {time.monotonic() - began:.0f} s")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
