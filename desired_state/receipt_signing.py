"""Signs receipts, in a program of its own.

The Ethereum SDK costs most of a second, and the key should be in memory no longer than it must. The program reads one
JSON object from standard input (`node`, `privateKey`, `statements`: texts of receipts or heads) and prints one on
standard output (`signatures`, in the same order, or `error`). Nothing secret is on a command line or in the
environment. Started as `python -P -m desired_state.receipt_signing`.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, Final

from schemas.errors import ConfigError
from schemas.receipt import ChainHead, ReceiptDocument

if TYPE_CHECKING:
    from collections.abc import Sequence

    from desired_state.signatures import TypedData
    from schemas.ports import Processes, Stop

_TIMEOUT: Final = 60.0
"""Seconds for one batch: thirty times what one takes on a loaded machine."""
BATCH: Final = 100
"""Statements of one batch: some 150 KB."""
_OUTPUT: Final = 2**16
"""Bytes of its answer: twice what a batch's signatures take."""


def sign_statements(
    statements: Sequence[str], *, node: str, private_key: bytes, processes: Processes, stop: Stop
) -> tuple[str, ...]:
    """Have statements signed by a child.

    Args:
        statements: at most `BATCH` texts of `ReceiptDocument` or `ChainHead`.
        node: the address whose key it must be, and whose statements they must be.
        private_key: 32 bytes.
        processes: where the child runs.
        stop: ends it early.

    Returns:
        A signature for each, in order.

    Raises:
        ConfigError: the key is not the node's, a statement is not one of its own, or the child failed.
        InterruptedError: stopping was requested.
    """
    asked = {"node": node, "privateKey": private_key.hex(), "statements": list(statements)}
    program = [sys.executable, "-P", "-m", "desired_state.receipt_signing"]
    try:
        done = processes.run(program, timeout=_TIMEOUT, max_output=_OUTPUT, stdin=json.dumps(asked).encode(), stop=stop)
    except InterruptedError:
        raise
    except (TimeoutError, OverflowError, OSError) as error:
        raise ConfigError(f"receipts could not be signed: {error}") from error
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ConfigError(f"receipts could not be signed: {last or f'exit code {done.returncode}'}")
    answer: dict[str, Any] = json.loads(done.stdout)
    if "error" in answer:
        raise ConfigError(f"receipts could not be signed: {answer['error']}")
    return tuple(answer["signatures"])


def typed(content: bytes) -> TypedData:
    """What is signed for a statement or a head.

    Raises:
        ValueError: it is neither.
    """
    from desired_state.signatures import receipt_head_message, receipt_message  # noqa: PLC0415 - 0.9 s, in the child

    if json.loads(content).get("kind") == "ReceiptHead":
        return receipt_head_message(ChainHead.model_validate_json(content), content)
    return receipt_message(ReceiptDocument.model_validate_json(content), content)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Sign what is asked; see the module's text."""
    from desired_state.signatures import address_of, sign  # noqa: PLC0415 - as above

    try:
        key = bytes.fromhex(request["privateKey"])
        if address_of(key) != request["node"]:
            return {"error": "the key is not this node's"}
        messages = [typed(statement.encode()) for statement in request["statements"]]
        if any(message.message["node"] != request["node"] for message in messages):
            return {"error": "a statement is another node's"}
        return {"signatures": [sign(message, key) for message in messages]}
    except ValueError as error:
        return {"error": f"not a statement of a node: {type(error).__name__}"}


if __name__ == "__main__":
    json.dump(answer(json.load(sys.stdin)), sys.stdout)
