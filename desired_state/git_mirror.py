"""The folder into which is fetched: made, tidied, and freed of what a killed fetch left behind.

The one place that imports GitPython, which makes mirrors and repacks them: rarely, and in a short-lived child
(`python -m desired_state.git_mirror make|repack FOLDER`), because it leaks in long-running processes, and because its
import takes 100 ms.
"""

from __future__ import annotations

import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

Work = Literal["make", "repack"]

MAX_PACKS: Final = 50
"""Packs after which a mirror is repacked: git's own threshold (`gc.autoPackLimit`)."""
_ARGUMENTS: Final = 2


def work_due(into: Path, limit: int) -> Work | None:
    """What the child has to do before a fetch.

    Args:
        into: the mirror, or a scratch folder.
        limit: bytes that it should not be larger than.

    Raises:
        OSError: it cannot be read.
    """
    if not (into / "HEAD").is_file():
        return "make"
    return "repack" if _packs(into) > MAX_PACKS or _size(into) > limit else None


def drop_leftovers(into: Path) -> None:
    """Remove what a killed fetch left behind. One reconciler per state directory: nobody else is fetching here.

    Raises:
        OSError: it cannot be removed.
    """
    for pattern in ("objects/pack/tmp_*", "objects/pack/.tmp-*", "*.lock", "refs/**/*.lock"):
        for path in sorted(into.glob(pattern)):
            path.unlink(missing_ok=True)


def was_cut(into: Path, limit: int) -> bool:
    """Whether a fetch that failed has met the limit on files, of which git says little.

    The piece of the pack that it left behind is then as large as that.
    """
    with suppress(OSError):
        return any(path.stat().st_size >= limit for path in into.glob("objects/pack/tmp_*"))
    return False


def borrow(lender: Path, into: Path) -> None:
    """Let a scratch repository read the objects of a mirror, of which nothing changes.

    Raises:
        OSError: the scratch repository cannot be written.
    """
    if not (lender / "HEAD").is_file():
        return
    (into / "objects/info").mkdir(parents=True, exist_ok=True)
    (into / "objects/info/alternates").write_text(f"{(lender / 'objects').resolve()}\n")
    # Where the mirror's history ends on purpose; without it git would miss the parents of borrowed commits.
    with suppress(FileNotFoundError):
        shutil.copyfile(lender / "shallow", into / "shallow")


def _size(into: Path) -> int:
    return sum(path.stat().st_size for path in into.glob("objects/**/*") if path.is_file())


def _packs(into: Path) -> int:
    return sum(1 for _ in into.glob("objects/pack/*.pack"))


# --- the child ----------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    """Make a mirror, or leave in it only what its refs need: what was fetched last, and what was accepted."""
    import git  # noqa: PLC0415 - see above

    if len(arguments) != _ARGUMENTS or arguments[0] not in ("make", "repack"):
        sys.stderr.write("usage: python -m desired_state.git_mirror make|repack FOLDER\n")
        return 64
    into = Path(arguments[1])
    try:
        if arguments[0] == "make":
            into.mkdir(parents=True, exist_ok=True)
            # Without a template: no sample hooks, nothing of the machine's in it. `Repo.init` takes no such option.
            git.Git(into).execute(["git", "init", "--quiet", "--bare", "--template=", "--", str(into)])
        else:
            git.Repo(into).git.repack("-a", "-d", "-q")
    except (git.GitError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
