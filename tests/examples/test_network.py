"""The example of a network's repository, and the check that its operators' pull requests go through."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

EXAMPLES = Path(__file__).parents[2] / "examples"
SNAPSHOT = "networks/edge/snapshot.v1alpha1.yaml"


class Clone:
    """An operator's clone of the example, as a git repository of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(EXAMPLES / "network", folder)
        self.git("init", "--quiet", "--initial-branch", "main")
        self.commit("As published")

    def git(self, *arguments: str) -> None:
        """A git command."""
        who = ["-c", "user.name=operator", "-c", "user.email=operator@example.org"]
        subprocess.run(["git", *who, *arguments], cwd=self.folder, check=True, capture_output=True)

    def commit(self, message: str) -> None:
        """What a pull request would bring."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", message)

    def reconcile(self, *arguments: str) -> None:
        """An operator's command."""
        command = [str(Path(sys.executable).with_name("reconcile")), *arguments]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True)

    def check(self, *, signed: bool = False) -> tuple[int, str]:
        """What the pull request's check comes to, and prints."""
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        if signed:
            environment["REQUIRE_SIGNATURES"] = "1"
        done = subprocess.run(
            ["ci/check.sh", "HEAD^"], cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    """A fresh one."""
    return Clone(tmp_path / "clone")


def test_as_published_it_passes_and_is_signed(clone: Clone) -> None:
    """Two of its three signers signed these very bytes, and its check accepts it (I1)."""
    clone.commit("Nothing new")
    code, said = clone.check(signed=True)
    assert code == 0, said
    assert "Accepted: snapshot 2 of epoch 1" in said


def test_a_good_change(clone: Clone) -> None:
    """A new version in its first wave: well-formed, and everybody sees whom it reaches before anybody signs it."""
    clone.reconcile("snapshot", "serve", "chat:v2", "--runtime", "bench", "--wave", "half", "--rollout", "chat-v2")
    clone.reconcile("snapshot", "bump")
    clone.commit("Serve chat:v2 on half of the nodes")
    code, said = clone.check()
    assert code == 0, said
    assert "Rollout chat-v2 at 50%" in said
    assert "on 4 nodes of edge" in said
    assert clone.check(signed=True)[0] == 3, "nobody has signed it yet"


def _other_manifest(clone: Clone) -> None:
    path = clone.folder / "models" / "chat" / "v1.yaml"
    path.write_text(path.read_text(encoding="utf-8") + "\n# smaller than it looks\n", encoding="utf-8")


def _unknown_model(clone: Clone) -> None:
    path = clone.folder / SNAPSHOT
    path.write_text(path.read_text(encoding="utf-8").replace('serve: ["code:v1"]', 'serve: ["code:v9"]'), "utf-8")


def _no_yaml(clone: Clone) -> None:
    path = clone.folder / SNAPSHOT
    path.write_text(path.read_text(encoding="utf-8") + "spec: {}\n", encoding="utf-8")


def _model_without_hash(clone: Clone) -> None:
    path = clone.folder / SNAPSHOT
    content = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r"(models/chat/v1.yaml), digest: \"[^\"]*\"", r"\1", content), encoding="utf-8")


def _bad_signature(clone: Clone) -> None:
    path = min((clone.folder / SNAPSHOT).with_name("snapshot.sigs").iterdir())
    document = json.loads(path.read_text(encoding="utf-8"))
    digit = "1" if document["signature"][20] == "0" else "0"
    document["signature"] = document["signature"][:20] + digit + document["signature"][21:]
    path.write_text(json.dumps(document), encoding="utf-8")


def _other_signers(clone: Clone) -> None:
    path = clone.folder / "networks" / "edge" / "trust" / "1.yaml"
    content = path.read_text(encoding="utf-8")
    path.write_text(content.replace("threshold: 2", "threshold: 1"), encoding="utf-8")


def _without_bump(clone: Clone) -> None:
    clone.reconcile("snapshot", "set", "spec.policy.gc.grace", "1h")


def _lower(clone: Clone) -> None:
    path = clone.folder / SNAPSHOT
    path.write_text(path.read_text(encoding="utf-8").replace("sequence: 2", "sequence: 1"), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_other_manifest, "DigestMismatch"),
        (_unknown_model, "code:v9"),
        (_no_yaml, "MalformedDocument"),
        (_model_without_hash, "spec.models[0].manifest.digest: is missing"),
        (_bad_signature, "InvalidSignature"),
        (_other_signers, "TrustBroken: networks/edge/trust/1.yaml is not what HEAD^ has"),
        (_without_bump, "Equivocation"),
        (_lower, "RollbackAttack"),
    ],
    ids=["manifest", "model", "twice", "hash", "signature", "trust", "bump", "lower"],
)
def test_a_bad_change(clone: Clone, change: Callable[[Clone], None], words: str) -> None:
    """Refused before anybody looks at it, with the file and the reason (I1, I11)."""
    change(clone)
    clone.commit("A change")
    code, said = clone.check()
    assert code != 0
    assert words in said
