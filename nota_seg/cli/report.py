"""`nota-seg report` and `nota-seg push`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from nota_seg.cli.common import Overwrite, parse_size, quiet_libraries
from util.errors import InputError


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or a folder of seeds.")],
    output: Annotated[
        Path | None, typer.Option(help="File to write; `-` for stdout.  [default: RUN/README.md]")
    ] = None,
    size: Annotated[str, typer.Option(help="Pixels that the cost is counted for: 512 or HxW.")] = "512",
    overwrite: Overwrite = False,
) -> None:
    """Write a model card: results with their protocol, cost, latency with its device, data, commands, licences.

    Example: `nota-seg report result/b0-ade`
    """
    from nota_seg.report.card import model_card
    from util.files import write_text

    quiet_libraries()
    pixels = parse_size(size, "--size")
    assert pixels is not None
    target = output or run / "README.md"
    if str(target) != "-" and target.exists() and not overwrite:
        raise InputError(f"{target} exists: --overwrite replaces it, --output names another")
    text = model_card(run, size=pixels)
    if str(target) == "-":
        print(text, end="")
    else:
        write_text(target, text)
        print(target)


def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or a folder of seeds.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="OWNER/NAME on the hub.")],
    private: Annotated[bool, typer.Option("--private", help="A new repository is private.")] = False,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be sent; no network.")] = False,
) -> None:
    """Send a run's best weights with its model card to a Hugging Face hub (HF_TOKEN; HF_ENDPOINT for another hub).

    Example: `nota-seg push result/b0-ade me/segformer-b0-ade --dry-run`
    """
    from nota_seg.report import hub

    quiet_libraries()
    hub.check_repo_id(repo_id)
    if dry_run:
        for name, content in hub.files_to_push(run).items():
            size = len(content) if isinstance(content, bytes) else content.stat().st_size
            print(f"{size:>12,}  {repo_id}/{name}")
        return
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        print(hub.push(run, repo_id, private=private, message=message))
    except LocalTokenNotFoundError:
        raise InputError("no token for the hub: set HF_TOKEN, or `hf auth login`") from None
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else None
        if code in (401, 403):
            raise InputError(f"the hub refused ({code}): set HF_TOKEN to a token that may write to {repo_id}") from None
        print(f"error: the hub answered: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(1) from None
    except (OfflineModeIsEnabled, httpx.TransportError, OSError) as error:
        print(f"error: no connection to the hub: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(1) from None
