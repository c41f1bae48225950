"""How git is called: what it may do, what it inherits, and what is repeated of what it says.

A repository is somebody else's: nothing in it, and nothing that its server says, may run a command here. The node's
owner, on the other hand, is trusted: credential helpers, proxies and SSH settings of the account are used as they are.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from schemas.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

TRANSPORTS: Final = "file:https:ssh"
"""Transports that git may use, also after a redirect or a rewrite of the address. `ext` runs commands by design, `git`
and `http` let everybody on the way withhold or replay."""

_ADDRESS: Final = re.compile(
    # No host and no user begins with a hyphen: ssh would take it for an option (CVE-2017-1000117).
    r"(?:(?:file|https|ssh)://(?!-)|/)[!-~]+|[A-Za-z0-9._][A-Za-z0-9._-]*@(?!-)[A-Za-z0-9.-]+:(?!:)[!-~]+"
)
_BRANCH: Final = re.compile(r"(?!.*(?:\.\.|//|\.lock(?:/|$)|/\.|@\{))[A-Za-z0-9][A-Za-z0-9._/-]{0,127}(?<![./])")

_KEPT: Final = frozenset(
    {
        "GIT_ASKPASS",
        "GIT_CONFIG_GLOBAL",
        "GIT_CONFIG_NOSYSTEM",
        "GIT_CONFIG_SYSTEM",
        "GIT_EXEC_PATH",
        "GIT_SSH",
        "GIT_SSH_COMMAND",
        "GIT_SSH_VARIANT",
        "GIT_SSL_CAINFO",
        "GIT_SSL_CAPATH",
        "GIT_SSL_CERT",
        "GIT_SSL_KEY",
    }
)
"""Variables of git that say how the owner reaches servers. All others (`GIT_DIR`, traces, alternates ...) would make
git read or write somewhere else, and are dropped."""

_CONFIG: Final = (
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.bigFileThreshold", "1m"),  # larger files are streamed, not held in memory: no document is larger than 16 MiB
    ("fetch.fsckObjects", "true"),
    ("fetch.recurseSubmodules", "false"),
    ("fetch.unpackLimit", "1"),  # one pack per fetch: its size is what is bounded, and no cloud of loose files
    ("fetch.writeCommitGraph", "false"),
    ("gc.auto", "0"),  # clean-up happens in one place, and never in the background
    ("maintenance.auto", "false"),
    ("http.lowSpeedLimit", "1000"),  # bytes a second, below which a server counts as dead ...
    ("http.lowSpeedTime", "30"),  # ... after that many seconds
    ("pack.threads", "1"),
    ("submodule.recurse", "false"),
)

UPLOAD_PACK: Final = "git -c 'safe.directory=*' upload-pack"
"""Server side of a local repository, which may belong to somebody else (an operator's, on the same machine). Reading
from one is safe by git's own promise; its hooks and filters do not run, and nothing is fetched on demand."""

_CREDENTIALS: Final = re.compile(r"(?<=://)[^/\s]*@")
_INVISIBLE: Final = r"[^\t\n -~\u00a1-\u1fff\u2070-\ud7ff\uf900-\ufefe]"
"""Not compiled: that takes 8 ms, and most commands have nothing to repeat of what git said."""
_LIMITS: Final = (
    "File too large",
    "died of signal 25",
    "out of memory",
    "Out of memory",
    "data too large to fit into virtual memory",
)
"""What git says when it met a limit: EFBIG, SIGXFSZ, no memory, no address space."""
_LOUD: Final = ("fatal:", "error:", "ERROR:")
_WORDS: Final = 400
"""Characters that are kept of what git says."""


def environment(base: Mapping[str, str]) -> dict[str, str]:
    """The complete environment of a git process.

    Args:
        base: the agent's own environment.
    """
    kept = {key: value for key, value in base.items() if not key.startswith("GIT_") or key in _KEPT}
    config = {"GIT_CONFIG_COUNT": str(len(_CONFIG))}
    for index, (key, value) in enumerate(_CONFIG):
        config[f"GIT_CONFIG_KEY_{index}"] = key
        config[f"GIT_CONFIG_VALUE_{index}"] = value
    return {
        **kept,
        **config,
        "GIT_ALLOW_PROTOCOL": TRANSPORTS,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_LITERAL_PATHSPECS": "1",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",  # nobody sits there: fail instead of waiting
        "LC_ALL": "C",
        # ssh asks through a program instead of the terminal, and that program refuses.
        "SSH_ASKPASS": kept.get("SSH_ASKPASS", "/bin/false"),
        "SSH_ASKPASS_REQUIRE": "force",
    }


def check_address(url: str) -> str:
    """An address that git may be given.

    Raises:
        ConfigError: a transport that is not allowed, or something that git would take for an option or a helper.
    """
    if not _ADDRESS.fullmatch(url):
        raise ConfigError(
            f"{scrub(url)}: a repository is reached by file://, https:// or ssh://, by an absolute path, or as "
            "user@host:path"
        )
    return url


def check_branch(branch: str) -> str:
    """A branch name that git may be given.

    Raises:
        ConfigError: not a branch name.
    """
    if not _BRANCH.fullmatch(branch):
        raise ConfigError(f"{scrub(branch)!r} is not the name of a branch")
    return branch


def transport_options(url: str) -> tuple[str, ...]:
    """Options for `ls-remote` and `fetch` that depend on the address."""
    return (f"--upload-pack={UPLOAD_PACK}",) if url.startswith(("/", "file://")) else ()


def met_a_limit(words: str) -> bool:
    """Whether git says that it was given more than it may take."""
    return any(sign in words for sign in _LIMITS)


def scrub(text: str) -> str:
    """What may be shown and kept of an address or of git's words: no credentials, nothing invisible, not much."""
    clean = re.sub(_INVISIBLE, "", _CREDENTIALS.sub("", text)).replace("\t", " ")
    lines = [line.strip() for line in clean.splitlines() if line.strip()]
    loud = [line for line in lines if line.startswith(_LOUD)]
    return "; ".join(loud or lines)[:_WORDS]
