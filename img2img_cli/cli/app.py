"""The command's entry point, and the only place where an exception becomes an exit code."""

from __future__ import annotations

import functools
import importlib
import os
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from img2img_cli import __version__
from img2img_cli.errors import DISK_ERRORS, ExitCode, Img2ImgError
from img2img_cli.system.interrupts import INTERRUPTS, Interrupted
from img2img_cli.system.streams import protect_streams

THREAD_PREFIX = "img2img-"  # of a batch's own threads

COMMANDS = ("upscale", "edit", "colorize", "restore", "batch", "serve", "info", "doctor")  # as `--help` lists them
GROUPS = ("presets", "models", "train")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"img2img {__version__}")
        raise typer.Exit


def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@functools.cache
def build_command(name: str | None = None) -> Callable[..., object]:
    """Return what parses the command line.

    Args:
        name: the command that was given; if it is known, the others are neither imported nor built, which takes time.
    """
    app = typer.Typer(
        name="img2img",
        help="Turn one picture into another with Stable Diffusion, offline from the first minute.",
        invoke_without_command=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    wanted = (name,) if name in (*COMMANDS, *GROUPS) else (*COMMANDS, *GROUPS)
    for one in wanted:
        found = getattr(importlib.import_module(f"img2img_cli.cli.commands.{one}"), one)
        if one in GROUPS:
            app.add_typer(found, name=one)
        else:
            app.command()(found)
    return typer.main.get_command(app)


def main() -> NoReturn:
    """Run the command and leave with its documented exit code."""
    protect_streams()
    INTERRUPTS.install()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    try:
        code = _run()
        INTERRUPTS.close()
    except Interrupted as error:  # while another error was told of
        code = _fail(str(error), error.exit_code)
    if any(thread.name.startswith(THREAD_PREFIX) for thread in threading.enumerate()):
        # A decoder that hangs cannot be stopped, and Python would wait for it for ever.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _run() -> int:
    try:
        try:
            code = build_command(*sys.argv[1:2])(standalone_mode=False)
            sys.stdout.flush()
        except Exception:
            INTERRUPTS.check()  # a library may have made another error of a signal
            raise
        return int(code) if isinstance(code, int) else ExitCode.DONE
    except Img2ImgError as error:
        return _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        command = sys.argv[1] if sys.argv[1:] and sys.argv[1] in (*COMMANDS, *GROUPS) else ""
        advice = f"img2img {command} --help".replace("  ", " ")
        return _fail(f"{error.format_message().rstrip('.')}; try '{advice}'", ExitCode.USAGE)
    except Interrupted as error:
        return _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", ExitCode.INTERRUPTED)
    except MemoryError:
        return _fail("out of memory; use a smaller picture or --set image_size", ExitCode.MEMORY)
    except RuntimeError as error:
        if "can't start new thread" not in str(error):
            raise
        return _fail("no more threads can be started; stop other programs or raise `ulimit -u`", ExitCode.MEMORY)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        place = error.filename or "a file"
        return _fail(f"{place}: cannot be written ({error.strerror}); free space on its disk", ExitCode.OUTPUT)


def _fail(message: str, code: int) -> int:
    from img2img_cli.text import printable

    print(f"img2img: {printable(' '.join(message.split()))}", file=sys.stderr)
    return int(code)
