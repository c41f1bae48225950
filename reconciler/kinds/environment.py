"""Native environments: installed from their lock and compared before anything that serves is stopped (I2, I4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reconciler.kinds.base import Kind, may_stage
from reconciler.kinds.runtime import serving_instance
from reconciler.memory import DropHold, Note
from schemas.errors import Incompatible
from schemas.observation import Present, Unknown
from schemas.plan import Action, InstallEnvironment, RemoveEnvironment, VerifyEnvironment
from schemas.target import locked_environment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reconciler.kinds.base import Changes, Context, Draft, Situation
    from schemas.observation import StoredEnvironment
    from schemas.target import ServingTarget


def diff(situation: Situation, draft: Draft) -> None:
    """Plan the installation of the target's environment, its comparison before a start, and what nobody names away."""
    target = situation.choice.target
    seen = situation.observed.state.environments
    wanted = target is not None and target.lock is not None
    if isinstance(seen, Present):
        if target is not None and wanted:
            _secure(situation, draft, target, seen.value)
        _remove_unnamed(situation, draft, seen.value)
    elif wanted:
        reason = seen.reason if isinstance(seen, Unknown) else "this node has none"
        draft.hold("environment", "EnvironmentUnavailable", f"environments cannot be looked at: {reason}")
        draft.blocked = True


def _secure(
    situation: Situation, draft: Draft, target: ServingTarget, installed: Mapping[str, StoredEnvironment]
) -> None:
    assert target.lock is not None  # noqa: S101 - asked by the caller
    assert target.environment is not None  # noqa: S101 - a native target has one
    if serving_instance(situation) is not None:
        draft.explain("environment", "what runs was compared with its lock before it was started")
        return
    if target.environment in installed:
        verify = VerifyEnvironment(
            id="verify/environment",
            cause="compared before a start",
            environment=target.environment,
            lock=target.lock,
        )
        draft.actions.append(verify)
        draft.staging.append(verify.id)
        return
    if not may_stage(situation, draft, target.environment, "environment", "the installation may_stage for its window"):
        return
    install = InstallEnvironment(
        id="install/environment",
        cause="it is not here",
        environment=target.environment,
        lock=target.lock,
        engine=target.engine,
        version=target.version,
    )
    draft.actions.append(install)
    draft.staging.append(install.id)


def _remove_unnamed(situation: Situation, draft: Draft, installed: Mapping[str, StoredEnvironment]) -> None:
    """What neither the snapshot nor the last known good names, while all that runs is what should (I8)."""
    document = situation.desired.document
    surplus = sorted(installed.keys() - _named(situation))
    if document is None or not situation.desired.verified or not surplus:
        return
    serving = serving_instance(situation)
    others = [
        instance
        for seen in situation.observed.state.backends.values()
        for instance in (seen.value if isinstance(seen, Present) else ())
        if serving is None or instance.name != serving.name
    ]
    unknown = any(isinstance(seen, Unknown) for seen in situation.observed.state.backends.values())
    if serving is None or others or unknown:
        draft.explain("environment", f"{len(surplus)} that nobody names any more stay until only the target runs")
        return
    draft.actions.extend(
        RemoveEnvironment(
            id=f"remove/{environment}",
            cause="neither the snapshot nor the last known good names it",
            environment=environment,
            size=installed[environment].size,
        )
        for environment in surplus
    )


def _named(situation: Situation) -> frozenset[str]:
    """Environments that may be needed again."""
    document, good = situation.desired.document, situation.observed.memory.last_known_good
    targets = (situation.choice.target, situation.choice.wanted, good.target if good is not None else None)
    named = {target.environment for target in targets if target is not None and target.environment is not None}
    for runtime in document.spec.runtimes if document is not None else ():
        if runtime.native is not None and runtime.native.lock is not None:
            named.add(locked_environment(runtime.native.lock.digest, situation.observed.state.interpreter))
    return frozenset(named)


# --- doing --------------------------------------------------------------------------------------------------------


def perform(action: Action, context: Context) -> Changes:
    """Install, compare or remove an environment."""
    environments = context.adapters.environments
    if isinstance(action, InstallEnvironment):
        return _install(action, context)
    if isinstance(action, VerifyEnvironment):
        environments.verify(action.environment)
        return ()
    if isinstance(action, RemoveEnvironment):
        environments.remove(action.environment)
        message = f"{action.environment} was removed: {action.cause}"
        return (Note("Normal", "EnvironmentRemoved", message, subject=action.environment),)
    raise TypeError(f"not an action on environments: {action.kind}")


def _install(action: InstallEnvironment, context: Context) -> Changes:
    adapters = context.adapters
    lock = adapters.documents.lock(action.lock.digest)
    adapters.environments.install(action.environment, lock, stop=adapters.ports.stop)
    brings = adapters.environments.packages(action.environment)
    names = adapters.engines[action.engine].distributions
    versions = {name: brings[name] for name in names if name in brings}
    if action.version not in versions.values():
        adapters.environments.remove(action.environment)
        found = ", ".join(f"{name} {version}" for name, version in versions.items()) or f"no {' or '.join(names)}"
        raise Incompatible(f"{action.lock.path} installs {found}; the snapshot says {action.engine} {action.version}")
    message = f"{action.lock.path} is installed: {len(brings)} packages"
    return (DropHold(action.environment), Note("Normal", "EnvironmentInstalled", message, subject=action.environment))


KIND = Kind("environment", (InstallEnvironment, VerifyEnvironment, RemoveEnvironment), diff, perform)
