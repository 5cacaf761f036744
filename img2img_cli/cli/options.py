"""Options that several commands share, each declared once."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Optional, TypeVar, get_type_hints

import typer

_PRESET, _OUTPUT, _RUN = "Preset and model", "Output", "Run"

PathsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT... [OUTPUT]",
        help="Picture to read, - is stdin; and file or folder to write, - is stdout. Left out: beside INPUT. With "
        "--output or a folder at the end, any number of pictures, folders and quoted globs.",
        show_default=False,
    ),
]
MaskOption = Annotated[
    Optional[str], typer.Option(help="Picture of the same size; only its white part is changed.", show_default=False)
]
STYLE = "style"  # the preset for a style picture without a prompt
StyleOption = Annotated[
    Optional[str],
    typer.Option(
        help="Picture whose strokes and colours to take, without a model; with an IP-Adapter where a preset has one.",
        show_default=False,
    ),
]
HintsOption = Annotated[
    Optional[str],
    typer.Option(
        help="Picture with strokes of the colours that are known, transparent elsewhere, or a painted copy of INPUT.",
        show_default=False,
    ),
]
VariationsOption = Annotated[int, typer.Option(min=1, max=64, help="Results from as many seeds, numbered -1, -2, ...")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=_RUN)]
OffloadOption = Annotated[
    str,
    typer.Option(
        help="What waits in main memory for its turn on a GPU: auto, none, model, group or sequential.",
        rich_help_panel=_RUN,
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Errors only.", rich_help_panel=_RUN)]
Returned = TypeVar("Returned")


@dataclass(frozen=True, kw_only=True)
class SharedOptions:
    """What every command that makes pictures takes besides its own options."""

    preset: Annotated[
        Optional[str], typer.Option(help="Preset name or YAML file.", rich_help_panel=_PRESET, show_default=False)
    ] = None
    prompt: Annotated[
        Optional[str],
        typer.Option("--prompt", "-p", help="What the result shows, in words.", show_default="the preset's"),
    ] = None
    negative_prompt: Annotated[Optional[str], typer.Option(help="What it does not show.", show_default=False)] = None
    strength: Annotated[
        Optional[float],
        typer.Option(
            help="Share of the noise schedule that is run, up to 1: more changes more.", show_default="the preset's"
        ),
    ] = None
    steps: Annotated[Optional[int], typer.Option(help="num_inference_steps.", show_default="the preset's")] = None
    guidance_scale: Annotated[
        Optional[float], typer.Option(help="Weight of the prompt.", show_default="the preset's")
    ] = None
    model: Annotated[
        Optional[str],
        typer.Option(
            help="bundled, a hub id, a diffusers folder or a .safetensors file.",
            rich_help_panel=_PRESET,
            show_default=False,
        ),
    ] = None
    lora: Annotated[
        list[str],
        typer.Option(
            metavar="REF[:SCALE]",
            help="LoRA added to the preset's: a file, a hub id or owner/name/FILE; repeatable.",
            rich_help_panel=_PRESET,
        ),
    ] = dataclasses.field(default_factory=list)
    embedding: Annotated[
        list[str],
        typer.Option(
            metavar="REF",
            help="Textual inversion whose name the prompt uses: a file, a hub id or owner/name/FILE; repeatable.",
            rich_help_panel=_PRESET,
        ),
    ] = dataclasses.field(default_factory=list)
    controlnet: Annotated[
        Optional[str],
        typer.Option(help="ControlNet: hub id, folder or file.", rich_help_panel=_PRESET, show_default=False),
    ] = None
    vae: Annotated[
        Optional[str],
        typer.Option(help="Another VAE: hub id, folder or file.", rich_help_panel=_PRESET, show_default=False),
    ] = None
    scheduler: Annotated[
        Optional[str],
        typer.Option(
            help="A diffusers class, such as EulerDiscreteScheduler.", rich_help_panel=_PRESET, show_default=False
        ),
    ] = None
    set_: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="Any preset parameter; repeatable.", rich_help_panel=_PRESET),
    ] = dataclasses.field(default_factory=list)
    size: Annotated[
        Optional[str],
        typer.Option(help="original, model or WxH.", rich_help_panel=_OUTPUT, show_default="the preset's"),
    ] = None
    format: Annotated[str, typer.Option(help="keep, png, jpeg, webp, tiff, bmp or avif.", rich_help_panel=_OUTPUT)] = (
        "keep"
    )
    quality: Annotated[
        Optional[int],
        typer.Option(min=1, max=100, help="For jpeg, webp, avif.", rich_help_panel=_OUTPUT, show_default=False),
    ] = None
    no_metadata: Annotated[
        bool, typer.Option("--no-metadata", help="Write neither EXIF nor parameters.", rich_help_panel=_OUTPUT)
    ] = False
    truncated: Annotated[
        str,
        typer.Option(
            help="What to do with an INPUT that is cut short or damaged: refuse it, or keep what can be decoded of it.",
            rich_help_panel=_RUN,
        ),
    ] = "refuse"
    device: DeviceOption = "auto"
    dtype: Annotated[
        Optional[str],
        typer.Option(help="auto, float32, bfloat16 or float16.", rich_help_panel=_RUN, show_default=False),
    ] = None
    fast: Annotated[
        bool,
        typer.Option(
            "--fast",
            help="Fewer steps, guidance in the first of them only, a small VAE if the preset has one; costs quality.",
            rich_help_panel=_RUN,
        ),
    ] = False
    compile: Annotated[
        Optional[str],
        typer.Option(
            help="auto compiles the model where a long batch pays for it; never.",
            rich_help_panel=_RUN,
            show_default=False,
        ),
    ] = None
    offload: OffloadOption = "auto"
    no_server: Annotated[
        bool, typer.Option("--no-server", help="Run by itself even where a server is warm.", rich_help_panel=_RUN)
    ] = False
    keep_warm: Annotated[
        Optional[str],
        typer.Option(
            metavar="TIME",
            help="Keep a server with the model running for TIME, such as 10m, so that later commands start at once.",
            rich_help_panel=_RUN,
            show_default=False,
        ),
    ] = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan as YAML and stop.", rich_help_panel=_RUN)
    ] = False
    json: Annotated[
        bool, typer.Option("--json", help="One line of JSON for each result or event, on stdout.", rich_help_panel=_RUN)
    ] = False
    quiet: QuietOption = False


@dataclass(frozen=True, kw_only=True)
class PictureOptions(SharedOptions):
    """What the commands for a single picture take as well."""

    force: Annotated[
        bool, typer.Option("--force", "-f", help="Replace an existing OUTPUT.", rich_help_panel=_OUTPUT)
    ] = False
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Replace INPUT by the result.", rich_help_panel=_OUTPUT)
    ] = False
    output: Annotated[
        Optional[str],
        typer.Option(
            "--output",
            "-o",
            help="File or folder to write; every path is an INPUT then.",
            rich_help_panel=_OUTPUT,
            show_default=False,
        ),
    ] = None
    suffix: Annotated[
        Optional[str],
        typer.Option(
            help="What a result's name adds to INPUT's, where you name none.",
            rich_help_panel=_OUTPUT,
            show_default="-TASK, -x2 or -PRESET",
        ),
    ] = None
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Do nothing where OUTPUT exists.", rich_help_panel=_OUTPUT)
    ] = False
    update: Annotated[
        bool,
        typer.Option(
            "--update",
            help="Do nothing where OUTPUT is newer than what is read and was made the same way; else replace it.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False
    seed: Annotated[
        Optional[int],
        typer.Option(
            min=0, max=2**32 - 1, help="Same seed, same picture.", rich_help_panel=_RUN, show_default="random"
        ),
    ] = None


def with_options(
    options: type[SharedOptions],
) -> Callable[[Callable[..., Returned]], Callable[..., Returned]]:
    """Return a decorator that adds the fields of a class of options to a command's own parameters.

    The command receives them as `shared`.
    """

    def decorate(command: Callable[..., Returned]) -> Callable[..., Returned]:
        hints = get_type_hints(options, include_extras=True)
        own = inspect.signature(command, eval_str=True)
        parameters = [p for p in own.parameters.values() if p.name != "shared"]
        names = [field.name for field in dataclasses.fields(options)]
        for field in dataclasses.fields(options):
            default = [] if field.default is dataclasses.MISSING else field.default
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(inspect.Parameter(field.name, kind, default=default, annotation=hints[field.name]))

        def wrapper(**arguments: Any) -> Returned:
            shared = options(**{name: arguments.pop(name) for name in names})
            return command(**arguments, shared=shared)

        keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        # Typer reads the signature and the annotations, so the wrapper gets the merged ones.
        vars(wrapper)["__signature__"] = inspect.Signature(keyword_only)
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
        return wrapper

    return decorate
