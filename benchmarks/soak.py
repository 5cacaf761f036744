"""Run `img2img batch` over ten thousand small pictures, alone and through a warm server, and look for leaks.

The memory, file descriptors and threads of the working process are sampled during the run, and a line is fitted to
each over the second half. In the first half, kernel caches still grow with every new picture shape. Exits with 1 if
memory grows by more than 2 MiB per thousand pictures, or descriptors or threads by more than one over the whole run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from batch_endurance import make_files

RUN = (sys.executable, "-m", "img2img_cli")
QUICK = ("--set", "num_inference_steps=1", "--set", "num_samples=1", "--set", "image_size=64")
EVERY = 20  # pictures between samples
MOST_MIB_PER_THOUSAND, MOST_OTHERS = 2.0, 1.0


@dataclass
class Samples:
    """Samples of the resources of a process.

    Attributes:
        pictures: the number of finished pictures at each sample.
        mib: resident memory in MiB.
        descriptors: the number of open file descriptors.
        threads: the number of threads.
    """

    pictures: list[int] = field(default_factory=list)
    mib: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def take(self, pid: int, pictures: int) -> None:
        """Take a sample of a process."""
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        self.pictures.append(pictures)
        self.mib.append(int(status["VmRSS"].split()[0]) / 1024)
        self.threads.append(int(status["Threads"]))
        self.descriptors.append(len(list(Path(f"/proc/{pid}/fd").iterdir())))

    def fit(self, values: Sequence[float]) -> float:
        """Return the growth of a value per thousand pictures, fitted over the second half."""
        start = len(self.pictures) // 2
        return float(np.polyfit(self.pictures[start:], values[start:], 1)[0] * 1000)


def run_batch(source: Path, output: Path, pid: int | None, more: Sequence[str]) -> tuple[Samples, float]:
    """Run one batch over all pictures.

    Args:
        pid: the process to sample; None for the batch itself.

    Returns:
        the samples, and the seconds that the batch took.
    """
    command = [*RUN, "batch", str(source), "-o", str(output), "--preset", "colorize", "--json", *QUICK, *more]
    samples, began, done = Samples(), time.monotonic(), 0
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] in ("done", "failed"):
            done += 1
            if done % EVERY == 0:
                samples.take(pid or process.pid, done)
    if process.wait() not in (0, 3):
        raise SystemExit(
            f"the batch ended with {process.returncode}: {process.stderr and process.stderr.read()[-500:]}"
        )
    return samples, time.monotonic() - began


def judge(label: str, samples: Samples, seconds: float) -> bool:
    """Print a row of the table; return whether all growth is within the limits."""
    growth = samples.fit(samples.mib)
    total = samples.pictures[-1] / 1000
    others = [samples.fit(values) * total for values in (samples.descriptors, samples.threads)]
    print(
        f"| {label} | {samples.pictures[-1]} | {seconds:.0f} | {samples.mib[len(samples.mib) // 10]:.0f} | "
        f"{samples.mib[len(samples.mib) // 2]:.0f} | {samples.mib[-1]:.0f} | "
        f"{growth:+.2f} | {others[0]:+.2f} | {others[1]:+.2f} |",
        flush=True,
    )
    return growth <= MOST_MIB_PER_THOUSAND and max(others) <= MOST_OTHERS


def main() -> None:
    """Run the batch alone and then through a server. Exit with 1 if anything grows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--only", choices=("batch", "server"))
    arguments = parser.parse_args()
    print("| | pictures | seconds | MiB at 1/10 | half | all | MiB a thousand | descriptors in all | threads in all |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    flat = []
    with tempfile.TemporaryDirectory(prefix="i2i") as name:
        folder = Path(name)
        make_files(folder / "in", arguments.count)
        if arguments.only != "server":
            flat.append(judge("batch", *run_batch(folder / "in", folder / "alone", None, ["--no-server"])))
        if arguments.only != "batch":
            os.environ["XDG_RUNTIME_DIR"] = name
            with subprocess.Popen([*RUN, "serve", "--quiet"], stderr=subprocess.DEVNULL) as server:
                while not list((folder / "img2img").glob("*.api")):
                    time.sleep(0.1)
                flat.append(judge("warm server", *run_batch(folder / "in", folder / "warm", server.pid, [])))
                server.terminate()
    sys.exit(not all(flat))


if __name__ == "__main__":
    main()
