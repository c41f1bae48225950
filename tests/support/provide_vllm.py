"""Install vLLM's environment from its lock, once, where tests look for it.

Usage: `python -m tests.support.provide_vllm FOLDER`

Takes three minutes and 3.5 GB, or a second where it is there. Where wheels come from is pip's configuration; the lock
names PyTorch's CPU build, which only PyTorch's own index and mirrors of it have. Exit code 1 where they cannot be had.
"""

from __future__ import annotations

import sys
from pathlib import Path

from runtime.environments import DiskEnvironments
from runtime.host import StopEvent, host_ports
from schemas.digests import digest_bytes
from schemas.errors import ReconcileError
from schemas.target import locked_environment
from tests.support.vllm import LOCK


def main(folder: Path) -> int:
    """Install, or compare what is there."""
    environments, lock = DiskEnvironments(folder, ports=host_ports()), LOCK.read_bytes()
    digest = locked_environment(digest_bytes(lock), environments.interpreter)
    try:
        for other in environments.list():
            if other != digest:
                environments.remove(other)
        environments.install(digest, lock, stop=StopEvent())
        environments.verify(digest)
    except ReconcileError as error:
        sys.stderr.write(f"vllm: {error.message}\n")
        return 1
    sys.stderr.write(f"vllm: {len(environments.packages(digest))} packages at {environments.python(digest)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
