"""Reasons: named, explained, published, and each of them really given somewhere."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from schemas import errors
from schemas.errors import ReconcileError
from schemas.reasons import PAGE, meaning, page, reasons
from schemas.refusals import NotYetValid

ROOT = Path(__file__).parents[2]
PACKAGES = ("desired_state", "reconciler", "runtime", "schemas")

TRUST = (
    "InvalidSignature",
    "ThresholdNotMet",
    "UnknownSigner",
    "WrongNetwork",
    "Expired",
    "NotYetValid",
    "RollbackAttack",
    "Equivocation",
    "BrokenChain",
    "SignaturesPending",
    "StaleSource",
    "FreezeSuspected",
    "Withdrawn",
    "AgentTooOld",
    "MalformedDocument",
    "LimitExceeded",
    "MissingDocument",
    "DigestMismatch",
)
"""What may be wrong with desired state: programs of operators rely on these names."""


def given() -> set[str]:
    """Names of errors that are made, and texts that are used as a reason, anywhere but where they are defined."""
    found: set[str] = set()
    for path in (file for package in PACKAGES for file in (ROOT / package).rglob("*.py")):
        if path in (ROOT / "schemas" / "errors.py", ROOT / "schemas" / "refusals.py"):
            continue
        for one in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(one, ast.Call) and isinstance(one.func, ast.Name):
                found.add(one.func.id)
                found.update(str(value.value) for value in _arguments(one) if isinstance(value, ast.Constant))
    return found


def _arguments(call: ast.Call) -> list[ast.expr]:
    return [*call.args, *(keyword.value for keyword in call.keywords)]


@pytest.mark.parametrize("name", TRUST)
def test_the_names_that_are_relied_upon_exist(name: str) -> None:
    """Every reason why desired state is refused has exit code 3, whatever else changes."""
    assert reasons()[name].exit_code == 3


@pytest.mark.parametrize("name", sorted(reasons()))
def test_every_reason_is_really_given(name: str) -> None:
    """A reason that nothing ever gives would be a promise that nobody keeps."""
    assert name in given()


@pytest.mark.parametrize("name", sorted(reasons()))
def test_every_reason_is_explained(name: str) -> None:
    """What it means and what to do, in sentences."""
    what, do = meaning(reasons()[name])
    assert what.endswith((".", "`."))
    assert do.endswith(".")
    assert f"### {name}\n" in page()


def test_the_page_is_fresh() -> None:
    """What people read is what the code says; `make docs` renews it."""
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make docs`"


def test_the_tree_in_the_docstring_is_whole() -> None:
    """The overview at the top of the file names every reason."""
    for name in reasons():
        assert name in (errors.__doc__ or ""), name


def test_groups_are_no_reasons() -> None:
    """`NotTrusted` says nothing that a person could act upon, so nobody is told just that."""
    assert not {"ReconcileError", "NotTrusted", "DocumentError", "Transient", "Terminal", "Operational"} & set(
        reasons()
    )


def test_a_reason_without_advice_is_noticed() -> None:
    """Whoever adds one must say what to do about it."""

    class Vague(ReconcileError):
        """Something happened."""

    with pytest.raises(ValueError, match="what to do"):
        meaning(Vague)


def test_not_yet_valid_keeps_its_moment() -> None:
    """Where the moment is not known it is None, and the message stands alone."""
    assert NotYetValid("later").begins is None
