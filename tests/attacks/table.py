"""The rows: what each attack is, what its attacker holds, and exactly how it must end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.attacks.scene import Scene

    Change = Callable[[Scene], None]

Holds = Literal[
    "push access",
    "push access, one signer's key",
    "push access, the online key",
    "push access, a threshold of signers' keys",
    "push access, a threshold of root keys",
    "push access, revoked keys",
    "signers who do not look",
    "the git server",
    "one of two repositories",
    "the owner's ear",
]
"""What the attacker has. `the owner's ear`: can talk the node's owner into an address or a name."""


@dataclass(frozen=True)
class Attack:
    """A row."""

    name: str
    group: str
    """The heading under which it stands."""
    title: str
    """One sentence: what is done."""
    holds: Holds
    reason: str
    """The reason that the node gives: of `condition`, or of the error where there is no pass."""
    code: int
    """Exit code of the pass."""
    change: Change
    condition: str
    serves: bool
    """Whether the last good state goes on serving: always, but for what the network itself withdrew."""
    accepts: bool
    """Whether a new snapshot comes in force: the attack is passed over, or repaired."""
    learns: bool
    """Whether the node learns something genuine all the same, which it keeps: a rotation, a timestamp."""
    says: str
    """What the message must hold."""

    def __str__(self) -> str:
        """Its name, in a test's id."""
        return self.name


ATTACKS: dict[str, Attack] = {}
"""By name, in the order of the table."""


def attack(
    reason: str,
    *,
    holds: Holds = "push access",
    code: int = 3,
    condition: str = "SourceVerified",
    serves: bool = True,
    accepts: bool = False,
    learns: bool = False,
    says: str = "",
) -> Callable[[Change], Change]:
    """Enter a row: the function changes the scene, its docstring says how, its module's first line is the heading."""

    def enter(change: Change) -> Change:
        name = change.__name__
        if name in ATTACKS:
            raise ValueError(f"two attacks are called {name}")
        group = (change.__globals__["__doc__"] or "").partition("\n")[0].rstrip(".")
        title = " ".join((change.__doc__ or "").split())
        ATTACKS[name] = Attack(
            name, group, title, holds, reason, code, change, condition, serves, accepts, learns, says
        )
        return change

    return enter


def line(attack: Attack, reason: str, code: int, *, answered: bool) -> str:
    """A row as it was seen, for a terminal."""
    serving = "serves" if answered else "stopped"
    return f"{attack.name:<28} {reason:<18} exit {code}  {serving:<8} {attack.holds:<40} {attack.title}"
