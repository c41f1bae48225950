"""Encrypts and decrypts one private key, as a program of its own. The one place that imports `eth_keyfile`.

scrypt with the usual parameters takes 256 MiB (https://ethereum.org/developers/docs/data-structures-and-encoding/
web3-secret-storage), which a long-running process would keep: here the memory goes when the program ends. It reads one
JSON object from standard input and prints one on standard output; nothing secret is ever on a command line or in the
environment. Started by path with `python -P`: it imports nothing of this project.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from eth_keyfile import create_keyfile_json, decode_keyfile_json  # type: ignore[attr-defined] # its own names, re-exported without saying so


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Do what is asked.

    Args:
        request: `operation` (`encrypt` or `decrypt`), `password` (text), and `privateKey` (hex) with `kdf` and `work`,
            or `document`.

    Returns:
        `document`, or `privateKey` (hex), or `error`.
    """
    password = request["password"].encode()
    try:
        if request["operation"] == "encrypt":
            key = bytes.fromhex(request["privateKey"])
            return {"document": create_keyfile_json(key, password, kdf=request["kdf"], iterations=request["work"])}
        return {"privateKey": decode_keyfile_json(request["document"], password).hex()}
    except Exception as error:  # noqa: BLE001 - the SDK raises unrelated classes; the parent gives them one
        return {"error": str(error) or type(error).__name__}


if __name__ == "__main__":
    json.dump(answer(json.load(sys.stdin)), sys.stdout)
