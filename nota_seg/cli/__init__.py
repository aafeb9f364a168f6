"""The command line: one module a verb; a verb parses, calls one function, prints.

Verbs import what they need when they run: `nota-seg --help` must not wait for torch.
"""

from __future__ import annotations

import atexit
import errno
import gc
import os
import sys
import traceback
from typing import Any

import typer

from nota_seg.cli import (
    ablate,
    compare,
    convert,
    data,
    demo,
    distill,
    evaluate,
    export,
    finetune,
    flops,
    latency,
    models,
    new,
    predict,
    pretrain,
    pseudo_loop,
    report,
    search,
    serve,
    submit,
)
from util.errors import InputError

# typer carries a click of its own from some release on: its exceptions are taken from where they surely are.
UsageError: Any = typer.BadParameter.__mro__[1]
ClickException: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="nota-seg",
    help="Research on light semantic segmentation: compose a model, pre-train, fine-tune, evaluate, count, compare.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    # --output_dir is --output-dir: people have both in their scripts.
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda token: token.replace("_", "-"),
    },
)
app.command("demo")(demo.demo)
app.command("models")(models.models)
app.command("pretrain")(pretrain.pretrain)
app.command("finetune")(finetune.finetune)
app.command("distill")(distill.distill)
app.command("eval")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("flops")(flops.flops)
app.command("ablate")(ablate.ablate)
app.command("compare")(compare.compare)
app.command("search")(search.search)
app.command("latency")(latency.latency)
app.command("export")(export.export)
app.command("serve")(serve.serve)
app.command("convert")(convert.convert)
app.command("pseudo-loop")(pseudo_loop.pseudo_loop)
app.command("submit")(submit.submit)
app.command("ensemble")(submit.ensemble)
app.command("report")(report.report)
app.command("push")(report.push)
app.command("new")(new.new)
app.add_typer(data.app, name="data")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit code is 0 done, 2 a mistake in the command or its input, 1 anything else."""
    try:
        result = app(args=arguments, prog_name="nota-seg", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except typer.Exit as error:
        return error.exit_code
    except UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else "nota-seg"
        return _fail(2, f"{error.format_message()} (see `{path} --help`)")
    except ClickException as error:
        return _fail(2, error.format_message())
    except InputError as error:
        return _fail(2, str(error))
    except (KeyboardInterrupt, typer.Abort):
        return _fail(1, "interrupted")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `nota-seg models | head` is no error
        return 1
    except Exception as error:
        return _unexpected(error)


def _unexpected(error: Exception) -> int:
    if type(error).__name__ == "Interrupted":  # by name: the loop's module is not imported for the sake of an error
        return _fail(1, str(error))
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        return _fail(1, f"the disk is full ({error}): what was written before is whole; free space, then --resume")
    if isinstance(error, FloatingPointError):
        return _fail(1, str(error))
    traceback.print_exception(error)
    return 1


def _fail(code: int, message: str) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return code


def entry() -> None:
    """The console script."""
    # What a command imports is half a million objects that live as long as it does. Looking through them for garbage
    # time and again, and taking them apart at the end, is two seconds of every command (docs/performance.md).
    gc.set_threshold(10_000, 10, 10)
    status: list[int] = []
    atexit.register(_leave, status)  # the first one that is registered is the last one that runs
    status.append(main())
    sys.exit(status[0])


def _leave(status: list[int]) -> None:
    """End the process without taking it apart, if its command came to an end."""
    if status:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status[0])
