"""A run to a hub: its best weights, its model card and its evaluation, in one commit."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from nota_seg.report.card import choose, model_card
from nota_seg.report.runs import load_run
from util.errors import InputError


def files_to_push(path: str | Path) -> dict[str, Path | bytes]:
    """Name in the repository to file or content: `best/` at its top, the card, the evaluation.

    The card is the run's README.md where there is one (you may have edited it), else it is written now.

    Raises:
        InputError: No such run, or no best/ in it.
    """
    whole = load_run(Path(path), Path(path).resolve().name)
    run = choose(whole)
    best = run.path / "best"
    if not (best / "config.json").exists():
        raise InputError(
            f"{run.path} has no best/ with weights: it was not evaluated yet, or only its metrics are here"
        )
    files: dict[str, Path | bytes] = {f.relative_to(best).as_posix(): f for f in sorted(best.rglob("*")) if f.is_file()}
    if (run.path / "eval.json").exists():
        files["eval.json"] = run.path / "eval.json"
    card = next((f for f in (whole.path / "README.md", run.path / "README.md") if f.exists()), None)
    files["README.md"] = card if card is not None else model_card(path).encode()
    return files


def check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"REPO_ID {repo_id!r}: {error}") from None
    if repo_id.count("/") != 1:
        raise InputError(f"REPO_ID {repo_id!r}: give OWNER/NAME")


def push(path: str | Path, repo_id: str, *, private: bool = False, message: str | None = None) -> str:
    """Send a run; the address of the commit. The hub and the token are huggingface_hub's (HF_ENDPOINT, HF_TOKEN).

    Raises:
        InputError: No such run, a wrong name.
        huggingface_hub.errors.HfHubHTTPError: The hub refused.
    """
    check_repo_id(repo_id)
    files = files_to_push(path)
    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    commit = api.create_commit(
        repo_id,
        operations=[
            CommitOperationAdd(name, str(content) if isinstance(content, Path) else content)
            for name, content in files.items()
        ],
        commit_message=message or "Weights, model card and evaluation",
    )
    return str(commit.commit_url)
