"""Compare the speed of img2img with other tools on the same weights and picture, in one run; see README.md.

Most sections print tables of seconds and of ratios. Ratios carry over best, because machines and their load differ.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skimage import data
from skimage.metrics import peak_signal_noise_ratio

PLAIN_SCRIPT = Path(__file__).with_name("plain_diffusers.py")
PROMPT, SEED, GUIDANCE = "a photo", 7, 7.5
SCHEDULER = "DPMSolverMultistepScheduler"
RUN = (sys.executable, "-m", "img2img_cli")


def say(*cells: object) -> None:
    """Print a row of a table, with floats to three significant digits."""
    print(
        "| " + " | ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells) + " |", flush=True
    )


def head(*names: str) -> None:
    """Print the head of a table."""
    print()
    say(*names)
    say(*("---" for _ in names))


def clock(work: Callable[[], Any], repeats: int = 1) -> float:
    """Call `work` several times and return the seconds of the fastest call."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def run(command: list[str], **environment: str) -> tuple[float, float]:
    """Run a command and return its seconds and its peak memory in GiB."""
    began = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    return time.perf_counter() - began, usage.ru_maxrss / 2**20


def measure_product(size: int = 4096, seconds: float = 3.0) -> float:
    """Measure the matrix product of the machine, in bfloat16 on a CPU and float16 on a GPU.

    Args:
        size: the side of the square matrices.
        seconds: how long to multiply; about as long as a step of a model, so that clock rates are comparable.

    Returns:
        the rate in TFLOP/s.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.bfloat16
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    synchronize = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    a @ b
    synchronize()
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for _ in range(4):
            a @ b
        synchronize()
        count += 4
    return count * 2 * size**3 / (time.perf_counter() - began) / 1e12


def edit_command(model: Path, source: Path, output: Path, steps: int, strength: float) -> list[str]:
    """Return the `img2img edit` command with the settings of the plain script."""
    options = f"--steps {steps} --strength {strength} --guidance-scale {GUIDANCE} --seed {SEED} --quiet --force"
    fixed = ["--model", str(model), "--prompt", PROMPT, "--set", f"scheduler={SCHEDULER}"]
    return [*RUN, "edit", str(source), str(output), *fixed, *options.split()]


def script_command(folder: Path, source: Path, output: Path, steps: int, strength: float, *more: str) -> list[str]:
    """Return the command that runs the plain diffusers script."""
    options = f"--steps {steps} --strength {strength} --guidance-scale {GUIDANCE} --seed {SEED}"
    return [sys.executable, str(PLAIN_SCRIPT), str(folder), str(source), str(output), PROMPT, *options.split(), *more]


def compare_single(folder: Path, steps: int, strength: float, peers: str | None, single_file: Path | None) -> None:
    """Measure whole runs on one picture, including start-up and loading.

    Args:
        peers: a Python with stable-diffusion-cpp-python; None to leave that comparison out.
        single_file: the same weights in one file, for stable-diffusion.cpp.
    """
    steps_run = int(steps * strength)
    head(f"one 512 x 512 picture, {steps_run} guided steps", "seconds", "times ours", "peak GiB")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        source = work / "in.png"
        Image.fromarray(data.astronaut()).save(source)
        ours, memory = run([*edit_command(folder, source, work / "ours.png", steps, strength), "--no-server"])
        say("img2img, cold", ours, 1.0, memory)
        warm = measure_warm(folder, source, work, steps, strength)
        say("img2img, warm server", warm, warm / ours, "")
        for label, more in (
            ("plain diffusers, float32 (its default)", ("--dtype", "float32", "--contiguous")),
            ("plain diffusers, bfloat16", ("--dtype", "bfloat16", "--contiguous")),
            ("plain diffusers, bfloat16, channels_last", ("--dtype", "bfloat16")),
        ):
            seconds, memory = run(script_command(folder, source, work / "script.png", steps, strength, *more))
            say(label, seconds, seconds / ours, memory)
        again, memory = run([*edit_command(folder, source, work / "ours.png", steps, strength), "--no-server"])
        say("img2img, cold, again", again, again / ours, memory)
        if peers and single_file:
            compare_cpp(peers, single_file, folder, source, work)


def compare_cpp(python: str, single_file: Path, folder: Path, source: Path, work: Path, steps: int = 4) -> None:
    """Measure stable-diffusion.cpp through its Python package, with few steps.

    Each step takes most of a minute on two cores.
    """
    head(f"one 512 x 512 picture, {steps // 2} guided steps", "seconds", "times ours", "peak GiB")
    ours, memory = run([*edit_command(folder, source, work / "few.png", steps, 0.5), "--no-server"])
    say("img2img, cold", ours, 1.0, memory)
    for label, options in (("default", ""), ("flash attention", "diffusion_flash_attn=True, ")):
        code = (
            "from stable_diffusion_cpp import StableDiffusion\n"
            f"model = StableDiffusion(model_path={str(single_file)!r}, wtype='f16', {options}verbose=False)\n"
            f"made = model.generate_image({PROMPT!r}, init_image={str(source)!r}, strength=0.5, sample_steps={steps}, "
            f"cfg_scale={GUIDANCE}, seed={SEED}, sample_method='dpm++2m')\n"
            f"made[0].save({str(work / 'cpp.png')!r})\n"
        )
        seconds, memory = run([python, "-c", code])
        say(f"stable-diffusion.cpp, f16, {label}", seconds, seconds / ours, memory)


def measure_warm(folder: Path, source: Path, work: Path, steps: int, strength: float) -> float:
    """Return the seconds of the second run through a server."""
    with Server() as server:
        command = edit_command(folder, source, work / "warm.png", steps, strength)
        run(command, **server.environment)
        return run(command, **server.environment)[0]


class Server:
    """A context manager that runs a server with its own runtime folder."""

    def __init__(self, *options: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="i2i")
        self.environment = {"XDG_RUNTIME_DIR": self._folder.name}
        self._options = options

    def __enter__(self) -> Server:
        command = [*RUN, "serve", *self._options]
        environment = {**os.environ, **self.environment}
        self._process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        assert self._process.stderr is not None
        if b"serving" not in self._process.stderr.readline():
            raise SystemExit("the server did not start")
        os.environ.update(self.environment)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()

    def read_model_seconds(self) -> float:
        """Return the seconds for which the models of the server have run in all."""
        from img2img_cli.server.client import ask_server

        return float(ask_server("GET", "/img2img/status")["model_seconds"])


def measure_overhead() -> None:
    """Compare the time of a whole warm command with that of the model alone, for the bundled model."""
    examples = Path(__file__).parent.parent / "examples"
    head("warm one-liner, bundled model", "seconds", "the model's own", "overhead")
    with Server() as server, tempfile.TemporaryDirectory() as name:
        for task, source, more in (
            ("edit", "coffee.jpg", ["--prompt", "fog"]),
            ("colorize", "coffee-grey.jpg", []),
            ("upscale", "chelsea-small.png", []),
        ):
            output = f"{name}/out{Path(source).suffix}"
            command = [task, str(examples / source), output, *more, "--quiet", "--force"]
            rows = []
            for _ in range(8):
                before = server.read_model_seconds()
                seconds, _ = run(["img2img", *command], **server.environment)
                model = server.read_model_seconds() - before
                rows.append((seconds - model, seconds, model))
            overhead, seconds, model = sorted(rows[1:])[len(rows) // 2]
            say(f"{task} {source}", seconds, model, overhead)
    head("start-up", "seconds")
    for label, arguments in (("--help", ["--help"]), ("a usage error", ["colorize", "missing.jpg"])):
        began = time.perf_counter()
        subprocess.run(["img2img", *arguments], capture_output=True)
        say(label, time.perf_counter() - began)


def load_unet(folder: Path, device: str, dtype: Any) -> Any:
    """Load the UNet with the memory format and kernels that the command uses."""
    import torch
    from diffusers import UNet2DConditionModel

    from img2img_cli.engines.cpu_kernels import replace_kernels

    unet = UNet2DConditionModel.from_pretrained(folder / "unet", dtype=dtype).to(device)
    unet = unet.to(memory_format=torch.channels_last).eval()
    replace_kernels(unet, torch.device(device))
    return unet


def measure_unet(folder: Path, batches: list[int], *, compiled: bool, peers: str | None) -> None:
    """Measure which share of the machine's matrix-product rate the UNet reaches in the same run.

    Args:
        batches: the numbers of guided pairs in a batch.
        compiled: measure the compiled UNet too.
        peers: a Python with openvino; None to leave that comparison out.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.bfloat16
    unet = load_unet(folder, device, dtype)
    side = unet.config.sample_size
    width = unet.config.cross_attention_dim
    head("SD 1.5's UNet, guided pairs of 64 x 64 latents", "seconds a pair", "TFLOP/s", "product's TFLOP/s", "share")
    with torch.inference_mode():
        for batch in batches:
            sample = torch.randn(2 * batch, unet.config.in_channels, side, side, device=device, dtype=dtype)
            sample = sample.to(memory_format=torch.channels_last)
            texts = torch.randn(2 * batch, 77, width, device=device, dtype=dtype)
            step = torch.tensor(5, device=device)
            with FlopCounterMode(display=False) as counter:
                unet(sample, step, texts)
            flops = counter.get_total_flops()
            forms = {"eager": unet.forward}
            if compiled:
                forms["compiled"] = torch.compile(unet.forward, dynamic=False)
            for label, forward in forms.items():
                began = time.perf_counter()
                forward(sample, step, texts)
                first = time.perf_counter() - began

                def go(forward: Any = forward, given: Any = (sample, step, texts)) -> None:
                    forward(*given)
                    if device == "cuda":
                        torch.cuda.synchronize()

                before, seconds, after = measure_product(), clock(go, 5), measure_product()
                rate = (before + after) / 2
                note = f" (first call {first:.0f} s)" if label == "compiled" else ""
                say(
                    f"{label}, {batch} at once{note}",
                    seconds / batch,
                    flops / seconds / 1e12,
                    rate,
                    f"{flops / seconds / 1e12 / rate:.0%}",
                )
    if peers:
        subprocess.run([peers, __file__, "openvino", "--model", str(folder)], check=True)


def measure_openvino(folder: Path) -> None:
    """Measure the same UNet through OpenVINO in bfloat16. This must run in a Python that has openvino."""
    import openvino
    import torch
    from diffusers import UNet2DConditionModel

    class Positional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unet = UNet2DConditionModel.from_pretrained(folder / "unet", dtype=torch.float32).eval()

        def forward(self, sample: Any, timestep: Any, texts: Any) -> Any:
            return self.unet(sample, timestep, texts, return_dict=False)[0]

    unet = Positional()
    texts = torch.randn(2, 77, unet.unet.config.cross_attention_dim)
    example = (torch.randn(2, 4, 64, 64), torch.tensor(5), texts)
    with torch.no_grad():
        model = openvino.convert_model(unet, example_input=example)
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    given = [np.asarray(value) for value in example]
    compiled(given)
    say("OpenVINO, bf16, 1 at once", clock(lambda: compiled(given), 3), "", "", "")


def measure_overhead_of_tool(folder: Path) -> None:
    """Measure the share of time that the command adds to encoding, denoising and decoding, once the model is loaded."""
    import torch

    from img2img_cli.engines.device import choose_placement
    from img2img_cli.engines.diffusion.latents import LatentsPipeline
    from img2img_cli.engines.open import open_pipeline
    from img2img_cli.presets.catalogue import resolve
    from img2img_cli.presets.files import load_preset
    from img2img_cli.tasks.job import Job
    from img2img_cli.tasks.run import run_jobs

    overrides = {"model": str(folder), "prompt": PROMPT, "num_inference_steps": 8, "strength": 0.5}
    parameters = resolve(load_preset("sd15-edit"), overrides).parameters
    pipeline = open_pipeline(parameters, choose_placement("auto", "auto"))
    spent = 0.0
    call = type(pipeline.pipe).__call__
    stages = {"encode": LatentsPipeline.encode, "decode": LatentsPipeline.decode}

    def timed(function: Any) -> Any:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            nonlocal spent
            began = time.perf_counter()
            result = function(*arguments, **options)
            spent += time.perf_counter() - began
            return result

        return wrapper

    type(pipeline.pipe).__call__ = timed(call)
    for stage, function in stages.items():
        setattr(LatentsPipeline, stage, timed(function))
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        source = Path(name) / "in.png"
        Image.fromarray(data.astronaut()).save(source)
        shares = []
        for index in range(3):
            job = Job(
                input=str(source), output=f"{name}/{index}.png", preset="sd15-edit", parameters=parameters, seed=SEED
            )
            spent, began = 0.0, time.perf_counter()
            list(run_jobs([job], pipeline))
            shares.append((time.perf_counter() - began - spent) / spent)
    head("overhead of the tool over its own pipeline, 4 guided steps at 512 x 512", "share")
    say("decode, fit, encode and write files", f"{min(shares):.2%}")


def measure_scaling() -> None:
    """Measure how the time grows with pictures, steps and pixels: the exponent of a power-law fit, and peak memory."""
    from img2img_cli.engines.device import choose_placement
    from img2img_cli.engines.open import open_pipeline
    from img2img_cli.presets.catalogue import resolve
    from img2img_cli.presets.files import load_preset
    from img2img_cli.tasks.run import transform_image

    picture = Image.fromarray(data.astronaut())
    base = {"prompt": "fog", "guidance_scale": 2.0, "image_size": 256, "num_inference_steps": 8}
    parameters = resolve(load_preset("edit"), base).parameters
    pipeline = open_pipeline(parameters, choose_placement("auto", "auto"))

    def cost(count: int = 1, **keys: Any) -> float:
        p = resolve(load_preset("edit"), {**base, **keys}).parameters
        return clock(lambda: [transform_image(picture, p, seed, pipeline) for seed in range(count)], 2)

    cost()
    head("bundled model, one thing grows", "seconds", "exponent", "peak MiB")
    rows: dict[str, tuple[list[int], Callable[[int], float]]] = {
        "pictures": ([1, 2, 4, 8], cost),
        "steps": ([8, 16, 32, 64], lambda n: cost(num_inference_steps=n)),
        "pixels": ([256**2, 362**2, 512**2, 724**2], lambda n: cost(image_size=round(n**0.5))),
    }
    for name, (sizes, measure) in rows.items():
        seconds = [measure(size) for size in sizes]
        exponent = float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        say(f"{name} {', '.join(map(str, sizes))}", ", ".join(f"{s:.2f}" for s in seconds), exponent, peak)


def measure_losses() -> None:
    """Measure the loss of quality of options that save time, with the bundled model on photographs."""
    from img2img_cli.engines.device import choose_placement
    from img2img_cli.engines.open import open_pipeline
    from img2img_cli.presets.catalogue import resolve
    from img2img_cli.presets.files import load_preset
    from img2img_cli.tasks.run import transform_image

    base = {"prompt": "winter", "guidance_scale": 3.0, "num_inference_steps": 24, "image_size": 256}
    pipeline = open_pipeline(resolve(load_preset("edit"), base).parameters, choose_placement("auto", "auto"))
    pictures = [Image.fromarray(picture) for picture in (data.coffee(), data.chelsea(), data.astronaut())]

    def make(**keys: Any) -> tuple[list[Any], float]:
        p = resolve(load_preset("edit"), {**base, **keys}).parameters
        made: list[Any] = []
        seconds = clock(lambda: made.extend(np.asarray(transform_image(i, p, SEED, pipeline)) for i in pictures))
        return made, seconds

    make()
    truth, plain = make()
    head("24 guided steps of the bundled model", "time", "PSNR to the full run, dB")
    say("nothing", 1.0, "")
    for label, keys in (
        ("cache_interval 2", {"cache_interval": 2}),
        ("cache_interval 3", {"cache_interval": 3}),
        ("cache_interval 5", {"cache_interval": 5}),
        ("guidance_end 0.6", {"guidance_end": 0.6}),
        ("two thirds of the steps", {"num_inference_steps": 16}),
        ("--fast: both of the last", {"num_inference_steps": 16, "guidance_end": 0.6}),
        ("half of the steps", {"num_inference_steps": 12}),
    ):
        made, seconds = make(**keys)
        psnr = [peak_signal_noise_ratio(a, b) for a, b in zip(truth, made, strict=True)]
        say(label, seconds / plain, float(np.mean(psnr)))


def measure_gpu(folders: list[Path], batches: list[int]) -> None:
    """Compare this tool with an eager loop over the diffusers pipeline: images per second, PSNR and peak memory.

    Both use float16 on a GPU and float32 on a CPU.
    """
    import torch
    from diffusers import AutoPipelineForImage2Image, DPMSolverMultistepScheduler

    from img2img_cli.engines.device import choose_placement
    from img2img_cli.engines.open import open_pipeline
    from img2img_cli.presets.catalogue import resolve
    from img2img_cli.presets.files import load_preset
    from img2img_cli.tasks.pieces import Piece

    device = "cuda" if torch.cuda.is_available() else "cpu"
    rate = measure_product(8192 if device == "cuda" else 1024)
    print(f"\n{torch.cuda.get_device_name() if device == 'cuda' else 'CPU'}: matrix product {rate:.1f} TFLOP/s")
    for folder in folders:
        config = json.loads((folder / "unet" / "config.json").read_text())
        side = config["sample_size"] * 8
        steps = {"num_inference_steps": 20, "strength": 0.5} if device == "cuda" else {"num_inference_steps": 2}
        picture = Image.fromarray(data.astronaut()).resize((side, side))
        preset = load_preset("sdxl-edit" if config.get("addition_embed_type") else "sd15-edit")
        given = {"model": str(folder), "prompt": PROMPT, "image_size": max(64, side), "dtype": "float16", **steps}
        if device == "cpu":
            given["dtype"] = "float32"
        p = resolve(preset, {**given, "scheduler": SCHEDULER}).parameters
        plain = AutoPipelineForImage2Image.from_pretrained(folder, dtype=getattr(torch, p.dtype)).to(device)
        plain.scheduler = DPMSolverMultistepScheduler.from_config(plain.scheduler.config)
        plain.set_progress_bar_config(disable=True)

        def loop(plain: Any = plain, p: Any = p, picture: Any = picture) -> Any:
            return plain(
                prompt=p.prompt,
                image=picture,
                strength=p.strength,
                num_inference_steps=p.num_inference_steps,
                guidance_scale=p.guidance_scale,
                generator=torch.Generator("cpu").manual_seed(SEED),
            ).images[0]

        loop()
        eager, truth = clock(loop, 3), np.asarray(loop())
        head(
            f"{folder.name}, {side} x {side}, {p.steps_run} steps", "images/s", "times the loop", "PSNR, dB", "peak GiB"
        )
        say("eager loop over diffusers", 1 / eager, 1.0, "", "")
        del plain
        for compile_ in ("never", "auto"):
            q = p.model_copy(update={"compile": compile_})
            pipeline = open_pipeline(q, choose_placement(device, q.dtype))
            pipeline.expect(10**6)
            for batch in batches:
                pieces = [Piece(image=picture, control=None, seed=SEED, parameters=q) for _ in range(batch)]
                if device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                made = pipeline.transform(pieces)
                seconds = clock(lambda pieces=pieces, run=pipeline.transform: run(pieces), 2)
                peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else float("nan")
                psnr = peak_signal_noise_ratio(truth, np.asarray(made[0]))
                label = f"ours, {batch} at once" + (", compiled" if compile_ == "auto" else "")
                say(label, batch / seconds, eager * batch / seconds, float(psnr), peak)


def main() -> None:
    """Run the sections named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections = ("single", "unet", "tool", "overhead", "scaling", "losses", "gpu", "openvino")
    parser.add_argument("sections", choices=sections, nargs="+")
    parser.add_argument("--model", type=Path, help="a diffusers folder, as make_random_sd15.py writes")
    parser.add_argument("--xl", type=Path, help="gpu: a folder of Stable Diffusion XL's architecture too")
    parser.add_argument("--single-file", type=Path, help="the same weights in one file, for stable-diffusion.cpp")
    parser.add_argument("--peers", help="a Python that has stable-diffusion-cpp-python and openvino")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--strength", type=float, default=0.6)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--compiled", action="store_true", help="unet: compiled too, which takes minutes")
    arguments = parser.parse_args()
    print(f"torch threads {os.environ.get('OMP_NUM_THREADS', 'auto')}, load {os.getloadavg()[0]:.1f}")
    for section in arguments.sections:
        if section in ("single", "unet", "tool", "gpu", "openvino") and arguments.model is None:
            parser.error(f"{section} needs --model")
        if section == "single":
            compare_single(arguments.model, arguments.steps, arguments.strength, arguments.peers, arguments.single_file)
        elif section == "unet":
            measure_unet(arguments.model, arguments.batches, compiled=arguments.compiled, peers=arguments.peers)
        elif section == "tool":
            measure_overhead_of_tool(arguments.model)
        elif section == "overhead":
            measure_overhead()
        elif section == "scaling":
            measure_scaling()
        elif section == "losses":
            measure_losses()
        elif section == "openvino":
            measure_openvino(arguments.model)
        elif section == "gpu":
            measure_gpu([f for f in (arguments.model, arguments.xl) if f], arguments.batches)


if __name__ == "__main__":
    main()
