"""Profiles on disk."""

from __future__ import annotations

from pathlib import Path

from rlinf_graph.compiler.cost import profile as profiles
from rlinf_graph.compiler.cost.profile import Profile
from rlinf_graph.ir.diagnostic import fail
from rlinf_graph.ir.span import shown_path


def read_profile(path: Path | None) -> Profile | None:
    """The profile in a file; none where no file is given.

    Raises:
        CompileError: RG0408, for a file that is not there or holds no profile.
    """
    if path is None:
        return None
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        help_text = ("rlinf-graph profile FILE -o PROFILE writes one",)
        raise fail(profiles.CODE, f"cannot read {path}: {why}", help=help_text) from None
    return profiles.loads(text, shown_path(str(path)))


def write_profile(profile: Profile, path: Path) -> Path:
    """Write a profile and make the folder it lies in; its path.

    Raises:
        CompileError: RG0004, where that cannot be.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(profiles.dumps(profile), "utf-8")
    except OSError as error:
        help_text = ("-o PROFILE",)
        raise fail("RG0004", f"cannot write {path}: {error.strerror}", help=help_text) from None
    return path
