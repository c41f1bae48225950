"""The commands that write a snapshot: small differences, and what is next."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

import pytest

from schemas.digests import digest_bytes
from tests.support.operators import NETWORK, SNAPSHOT

if TYPE_CHECKING:
    from tests.support.operators import Operator


def changed(before: str, after: str) -> list[str]:
    """Removed and added lines."""
    return [line for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line[0] in "+-"]


def test_a_new_snapshot_is_valid_and_teaches(operator: Operator) -> None:
    """The first snapshot is a document by itself, with a comment on every part and a modeline for editors."""
    operator.trust()
    found = operator.run("snapshot", "new")
    assert "Next: reconcile runtime set" in found.stdout
    operator.run("snapshot", "validate")
    first, *_ = operator.text.splitlines()
    assert first == "# yaml-language-server: $schema=../../.schemas/snapshot.v1alpha1.json"
    assert (operator.snapshot.parent / "../../.schemas/snapshot.v1alpha1.json").exists()
    assert operator.text.count("#") > 8
    operator.run("snapshot", "new", code=64)


def test_a_new_snapshot_needs_trust(operator: Operator) -> None:
    """Without trust there is nobody to sign for it, and the error says what to do."""
    found = operator.run("snapshot", "new", "--network", NETWORK, code=3)
    assert "reconcile trust init" in found.stderr


def test_the_network_is_found_or_asked_for(operator: Operator) -> None:
    """One network is found by itself; none, or several, must be named."""
    assert "which network" in operator.run("snapshot", "show", code=64).stderr
    operator.trust()
    operator.run("trust", "init", "--network", "other", "--signer", operator.address(1))
    assert "it has other, testnet" in operator.run("snapshot", "show", code=64).stderr
    assert "snapshot new" in operator.run("snapshot", "show", "--network", "other", code=3).stderr


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("spec.runtimes[main].version", "0.32", '      version: "0.32"'),
        ("spec.models[tiny:v1].state", "inactive", "      state: inactive"),
        ("spec.policy.modes", "[container, native]", "    modes: [container, native] # how engines may be run"),
        ("metadata.sequence", "7", "  sequence: 7 # raised by"),
        ("spec.runtimes[0].engineArgs.contextSize", "512", "      engineArgs: {contextSize: 512}"),
        ("spec.policy.gc.allowEmpty", "true", "    gc: {allowEmpty: true}"),
        ("spec.withdrawn", "[{digest: 'blake3:00'}]", '    - digest: "blake3:00"'),
    ],
)
def test_set_changes_one_field(operator: Operator, path: str, value: str, line: str) -> None:
    """A field is set with the type that the schema asks for, and everything else stays as it is."""
    operator.network()
    before = operator.text
    operator.run("snapshot", "set", path, value)
    differences = changed(before, operator.text)
    assert len([one for one in differences if one.startswith("-")]) <= 1
    assert any(one.startswith(f"+ {line}") for one in differences), differences


def test_set_says_what_it_did_and_what_is_missing(operator: Operator) -> None:
    """The difference is shown; a document that is not complete is told, with line and field."""
    operator.network()
    found = operator.run("snapshot", "set", "spec.models[tiny].state", "sleeping")
    assert "-      state: active" in found.stdout
    assert "spec.models[0].state" in found.stderr
    assert "snapshot.v1alpha1.yaml:" in found.stderr
    assert "Nothing to change" in operator.run("snapshot", "set", "spec.models[tiny].state", "sleeping").stdout


def test_set_refuses_what_is_not_there(operator: Operator) -> None:
    """A path that leads nowhere is an error with the choices, and nothing is written."""
    operator.network()
    before = operator.text
    assert "listed: tiny:v1" in operator.run("snapshot", "set", "spec.models[big].state", "x", code=64).stderr
    operator.run("snapshot", "set", "spec..x", "x", code=64)
    operator.run("snapshot", "set", "kind.deeper", "x", code=1)
    assert operator.text == before


def test_unset_removes_one_field(operator: Operator) -> None:
    """A field is removed, and nothing else."""
    operator.network()
    operator.run("snapshot", "set", "spec.policy.gc.grace", "48h")
    before = operator.text
    operator.run("snapshot", "unset", "spec.policy.gc")
    assert changed(before, operator.text) == ["-     gc: {grace: 48h}"]


def test_serve_puts_the_special_before_the_general(operator: Operator) -> None:
    """The first assignment that matches wins, so one for fewer nodes goes first; the same nodes are changed."""
    operator.network()
    operator.model("tiny", "v2", seed=2)
    operator.run("snapshot", "serve", "tiny:v2", "--runtime", "main", "--match", "gpu=h100")
    operator.run("snapshot", "serve", "tiny:v2", "--runtime", "main", "--percent", "10", "--rollout", "new")
    operator.run("snapshot", "serve", "tiny:v1", "tiny:v2", "--runtime", "main")
    operator.run("snapshot", "serve", "tiny:v2", "--runtime", "main", "--percent", "50", "--rollout", "new")
    operator.run("snapshot", "validate")
    assigned = operator.json("snapshot", "show")["snapshot"]["spec"]["assignments"]
    assert [one.get("rollout", {}).get("percent") for one in assigned] == ["50%", None, None]
    assert assigned[1]["selector"]["matchLabels"] == {"gpu": "h100"}
    assert assigned[2]["serve"] == ["tiny:v1", "tiny:v2"]


def test_serve_refuses_what_is_not_listed(operator: Operator) -> None:
    """Models, runtimes and options are checked before anything is written."""
    operator.network()
    before = operator.text
    for arguments in (
        ["big:v1", "--runtime", "main"],
        ["tiny:v1", "--runtime", "other"],
        ["tiny:v1", "--runtime", "main", "--percent", "5"],
        ["tiny:v1", "--runtime", "main", "--match", "gpu"],
    ):
        operator.run("snapshot", "serve", *arguments, code=64)
    assert operator.text == before


def test_withdraw_names_what_must_stop(operator: Operator) -> None:
    """A model is withdrawn by its manifest's digest, an image by its own, anything else as given."""
    operator.network()
    image = "example.org/engine@sha256:" + "1" * 64
    operator.run("snapshot", "withdraw", "tiny:v1", "--reason", "leaked")
    operator.run("snapshot", "withdraw", image)
    operator.run("snapshot", "withdraw", "blake3:" + "2" * 64)
    shown = operator.json("snapshot", "show")["snapshot"]["spec"]
    assert shown["withdrawn"][0] == {"digest": shown["models"][0]["manifest"]["digest"], "reason": "leaked"}
    assert [entry["digest"][:8] for entry in shown["withdrawn"][1:]] == ["sha256:1", "blake3:2"]
    operator.sign(1)  # what must stop at once does not wait for a tidy list


def test_pin_binds_changed_files_again(operator: Operator) -> None:
    """A probe that was changed on purpose is bound by its new digest; nothing else moves."""
    operator.network()
    path = operator.root / "probes/tiny-v1.yaml"
    path.write_text(path.read_text() + "# checked by Alice\n")
    assert "DigestMismatch" in operator.run("snapshot", "validate", code=3).stderr
    operator.run("snapshot", "pin")
    assert digest_bytes(path.read_bytes()) in operator.text
    operator.run("snapshot", "validate")
    assert "Nothing to do" in operator.run("snapshot", "pin").stdout


# --- bump ---------------------------------------------------------------------------------------------------------


def position(operator: Operator) -> tuple[int, int, str | None]:
    """Epoch, sequence and previous."""
    metadata = operator.json("snapshot", "show")["snapshot"]["metadata"]
    return metadata["epoch"], metadata["sequence"], metadata.get("previous")


def test_bump_follows_the_last_commit(operator: Operator) -> None:
    """The sequence rises above what was committed, `previous` names it, and doing it twice is doing it once."""
    operator.network()
    operator.run("snapshot", "bump")
    assert position(operator) == (1, 1, None)
    operator.sign(1, 2)
    operator.commit()
    first = digest_bytes(operator.snapshot.read_bytes())
    operator.run("snapshot", "set", "spec.policy.gc.grace", "48h")
    assert "Removed 2 signatures" in operator.run("snapshot", "bump").stdout
    assert position(operator) == (1, 2, first)
    operator.run("snapshot", "bump")
    assert position(operator) == (1, 2, first)


def test_bump_without_git_follows_the_signatures(operator: Operator) -> None:
    """Outside git, what was published is what the signature files are about."""
    import shutil

    shutil.rmtree(operator.root / ".git")
    operator.network()
    operator.run("snapshot", "bump")
    assert position(operator) == (1, 1, None)
    operator.sign(1, 2)
    first = digest_bytes(operator.snapshot.read_bytes())
    operator.run("snapshot", "set", "spec.policy.gc.grace", "48h")
    operator.run("snapshot", "bump")
    assert position(operator) == (1, 2, first)
    operator.run("snapshot", "bump")
    assert position(operator) == (1, 2, first)


def test_bump_begins_a_new_epoch(operator: Operator) -> None:
    """After root raised the epoch the sequence begins again, without a previous: a fast-forward is undone."""
    operator.network()
    operator.run("snapshot", "set", "metadata.sequence", "9007199254740991")
    operator.sign(1, 2)
    operator.commit()
    operator.run("trust", "rotate", "--raise-epoch")
    for number in (1, 2):
        operator.run("trust", "sign", "--key", operator.key_file(number), "--yes")
    operator.run("snapshot", "bump", "--valid", "10d")
    assert position(operator) == (2, 1, None)
    assert operator.json("snapshot", "show")["snapshot"]["metadata"]["trustVersion"] == 2
    operator.sign(1, 2)
    operator.run("snapshot", "verify")


def test_bump_tells_what_is_missing(operator: Operator) -> None:
    """A snapshot that is not complete is bumped all the same, and the warning says where."""
    operator.network()
    operator.run("snapshot", "unset", "spec.models[tiny].validation")
    assert "spec.models[0].validation: is missing" in operator.run("snapshot", "bump").stderr


# --- revert -------------------------------------------------------------------------------------------------------


def test_revert_is_a_new_and_higher_snapshot(operator: Operator) -> None:
    """An older content comes back above the newest sequence, with the files that it names, and verifies."""
    operator.network()
    operator.sign(1, 2)
    first = operator.commit()
    operator.model("tiny", "v2", seed=2)
    operator.run("snapshot", "serve", "tiny:v2", "--runtime", "main")
    operator.run("model", "remove", "tiny:v1")
    for suffix in ("yaml", "pieces"):
        (operator.root / f"models/tiny/v1.{suffix}").unlink()
    probe = operator.root / "probes/tiny-v1.yaml"
    probe.write_text(probe.read_text() + "# changed\n")
    operator.run("snapshot", "bump")
    operator.sign(1, 2)
    operator.commit()
    second = digest_bytes(operator.snapshot.read_bytes())
    found = operator.run("snapshot", "revert", first)
    restored = {line.removeprefix("Restored ") for line in found.stdout.splitlines() if line.startswith("Restored")}
    assert restored == {"models/tiny/v1.yaml", "models/tiny/v1.pieces", "probes/tiny-v1.yaml"}
    assert position(operator) == (1, 3, second)
    shown = operator.json("snapshot", "show")["snapshot"]["spec"]
    assert [model["version"] for model in shown["models"]] == ["v1"]
    operator.sign(1, 2)
    operator.run("snapshot", "verify")


def test_revert_to_a_file(operator: Operator) -> None:
    """An older snapshot may also come as a file."""
    operator.network()
    older = operator.keys / "older.yaml"
    older.write_text(operator.text)
    operator.commit()
    operator.run("snapshot", "set", "spec.policy.gc.grace", "48h")
    operator.run("snapshot", "revert", str(older))
    assert "grace" not in operator.text
    assert position(operator)[1] == 2


def test_revert_takes_no_withdrawal_back(operator: Operator) -> None:
    """I6: what must not run stays withdrawn, although the older content knew nothing of it; once, however often."""
    operator.network()
    operator.sign(1, 2)
    first = operator.commit()
    operator.run("snapshot", "withdraw", "tiny:v1", "--reason", "it tells secrets")
    operator.run("snapshot", "bump")
    operator.commit()
    withdrawn = operator.json("snapshot", "show")["snapshot"]["spec"]["withdrawn"]
    assert [entry["reason"] for entry in withdrawn] == ["it tells secrets"]
    said = operator.run("snapshot", "revert", first).stdout
    assert f"Still withdrawn: {withdrawn[0]['digest']}" in said
    assert operator.json("snapshot", "show")["snapshot"]["spec"]["withdrawn"] == withdrawn
    operator.commit()
    assert "Still withdrawn" not in operator.run("snapshot", "revert", "HEAD").stdout
    assert operator.json("snapshot", "show")["snapshot"]["spec"]["withdrawn"] == withdrawn


def test_revert_refuses_what_cannot_come_back(operator: Operator) -> None:
    """No such revision, no snapshot in it, a file that nobody has any more: nothing is written."""
    operator.network()
    operator.git("commit", "--quiet", "--allow-empty", "--message=empty")
    empty = operator.git("rev-parse", "HEAD")
    operator.commit()
    before = operator.text
    operator.run("snapshot", "revert", "nonsense", code=64)
    operator.run("snapshot", "revert", "--", "--all", code=64)
    assert SNAPSHOT in operator.run("snapshot", "revert", empty, code=3).stderr
    older = operator.keys / "older.yaml"
    older.write_text(operator.text.replace(digest_of(operator), "blake3:" + "0" * 64))
    operator.run("snapshot", "revert", str(older), code=3)
    assert operator.text == before


def digest_of(operator: Operator) -> str:
    """The digest of the served model's manifest."""
    digest: str = operator.json("snapshot", "show")["snapshot"]["spec"]["models"][0]["manifest"]["digest"]
    return digest
