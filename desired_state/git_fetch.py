"""A short-lived child that fetches: `python -m desired_state.git_fetch`, JSON in, JSON out.

Limits on memory and file size are set on this process, and git inherits them: a pack that grows too large, or a bomb
that would need too much memory, ends the fetch and nothing else.

The one place that imports GitPython, which makes mirrors and repacks them. A fetch into one that is there is the same
command line with or without it, and its import takes 100 ms: more than everything else between a commit and its plan.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from desired_state.git_safety import met_a_limit, scrub, transport_options

_MEMORY: Final = 2**30
"""Bytes that git may allocate. Files above 1 MiB are streamed, so that only a bomb of deltas needs more."""
_MAX_PACKS: Final = 50
"""Packs after which the mirror is repacked: git's own threshold (`gc.autoPackLimit`)."""
_REFUSED: Final = ("fsck error", "badTree", "is corrupt", "inconsistent")


class _Failed(Exception):
    """The fetch failed; `kind` is `limit`, `refused` or `unreachable`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def main() -> int:
    """Read a request from standard input, fetch, print the answer."""
    request = json.loads(sys.stdin.buffer.read())
    try:
        answer = {"commit": fetch(request)}
    except _Failed as error:
        answer = {"kind": error.kind, "message": str(error)}
    except MemoryError:
        answer = {"kind": "limit", "message": "says more than fits in memory"}
    except (subprocess.CalledProcessError, OSError, ValueError) as error:
        words = error.stderr.decode(errors="replace") if isinstance(error, subprocess.CalledProcessError) else ""
        answer = {"kind": "unreachable", "message": scrub(words or str(error))}
    sys.stdout.write(json.dumps(answer))
    return 0


def fetch(request: dict[str, Any]) -> str:
    """Do what is asked for.

    Args:
        request: `url`, `branch`, `into`, `borrow`, `ref`, `depth`, `maxBytes`.

    Returns:
        The commit.
    """
    limit = int(request["maxBytes"])
    _restrict(limit)
    into = Path(request["into"])
    if not (into / "HEAD").is_file():
        _make(into)
    _drop_leftovers(into)
    if request["borrow"]:
        _borrow(Path(request["borrow"]), into)
    elif _size(into) > limit or _packs(into) > _MAX_PACKS:
        _repack(into)
    command = [
        *("fetch", "--quiet", f"--depth={int(request['depth'])}"),
        *("--no-tags", "--no-write-fetch-head", "--no-auto-maintenance", "--force"),
        *transport_options(request["url"]),
        *("--", request["url"], f"+refs/heads/{request['branch']}:{request['ref']}"),
    ]
    done = _git(into, *command)
    if done.returncode != 0:
        # git says little of a pack that met the limit on files; the piece that it left behind is as large as that.
        cut = any(path.stat().st_size >= limit for path in into.glob("objects/pack/tmp_*"))
        _drop_leftovers(into)
        raise _failure("File too large" if cut else done.stderr.decode(errors="replace"), limit)
    named = _git(into, "rev-parse", "--verify", f"{request['ref']}^{{commit}}")
    named.check_returncode()
    return named.stdout.decode().strip()


def _git(into: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", f"--git-dir={into}", *arguments], capture_output=True, check=False)


def _restrict(limit: int) -> None:
    for kind, bound in ((resource.RLIMIT_FSIZE, limit), (resource.RLIMIT_DATA, _MEMORY), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (bound if hard == resource.RLIM_INFINITY else min(bound, hard), hard))


def _make(into: Path) -> None:
    import git  # noqa: PLC0415 - 100 ms, once in a mirror's life

    into.mkdir(parents=True, exist_ok=True)
    # Without a template: no sample hooks, nothing of the machine's in it. `Repo.init` takes no such option.
    try:
        git.Git(into).execute(["git", "init", "--quiet", "--bare", "--template=", "--", str(into)])
    except git.GitError as error:
        raise OSError(str(error)) from error


def _borrow(lender: Path, into: Path) -> None:
    """Let a scratch repository read the objects of the mirror, of which nothing changes."""
    if not (lender / "HEAD").is_file():
        return
    (into / "objects/info").mkdir(parents=True, exist_ok=True)
    (into / "objects/info/alternates").write_text(f"{(lender / 'objects').resolve()}\n")
    # Where the mirror's history ends on purpose; without it git would miss the parents of borrowed commits.
    with suppress(FileNotFoundError):
        shutil.copyfile(lender / "shallow", into / "shallow")


def _drop_leftovers(into: Path) -> None:
    """Remove what a killed fetch left behind. One reconciler per state directory: nobody else is fetching here."""
    for pattern in ("objects/pack/tmp_*", "objects/pack/.tmp-*", "*.lock", "refs/**/*.lock"):
        for path in sorted(into.glob(pattern)):
            path.unlink(missing_ok=True)


def _size(into: Path) -> int:
    return sum(path.stat().st_size for path in into.glob("objects/**/*") if path.is_file())


def _packs(into: Path) -> int:
    return sum(1 for _ in into.glob("objects/pack/*.pack"))


def _repack(into: Path) -> None:
    """Leave only what the refs need: the newest of each repository, and the commits of accepted snapshots."""
    import git  # noqa: PLC0415 - 100 ms, once in dozens of fetches

    # Cleaning up is no condition of fetching: a failure here shows again where it matters.
    with suppress(git.GitError):
        git.Repo(into).git.repack("-a", "-d", "-q")


def _failure(words: str, limit: int) -> _Failed:
    if met_a_limit(words):
        return _Failed("limit", f"sends more than {limit} bytes, or more than fits in memory")
    if any(sign in words for sign in _REFUSED):
        return _Failed("refused", scrub(words))
    return _Failed("unreachable", scrub(words) or "git fetch failed")


if __name__ == "__main__":
    sys.exit(main())
