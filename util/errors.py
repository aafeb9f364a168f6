"""The one error that means "the command or its input is wrong", and the did-you-mean that goes with it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A mistake of the caller: the message is one line that names the culprit and the fix; the CLI exits with 2."""

    def __init__(self, message: str) -> None:
        # A loader's worker hands its error on as the text of a traceback; what was said is behind the last name.
        super().__init__(" ".join(message.rpartition("InputError: ")[2].split()))


def did_you_mean(name: str, known: Iterable[str], *, most: int = 3) -> str:
    """The end of an error message: `did you mean 'a' or 'b'?`, or the list of what is known when nothing is near."""
    names = list(dict.fromkeys(known))
    near = difflib.get_close_matches(name, names, n=most, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"known: {shown}" if names else "nothing is known here"
