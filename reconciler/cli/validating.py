"""`reconcile validate`: ask what serves here what its probe asks, and show what it answered."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from reconciler.cli import wiring
from reconciler.cli.console import emit, plural, say, table
from reconciler.cli.node import config_option, json_option

if TYPE_CHECKING:
    from reconciler.node import Node
    from runtime.interfaces import EngineConnection
    from runtime.validation.evidence import Evidence, Platform
    from runtime.validation.judge import Verdict
    from schemas.node import NodeConfig
    from schemas.observation import Instance, Observed
    from schemas.target import ServingTarget

    Asked = tuple[Verdict, Evidence, ServingTarget, Platform]

EXIT: Final = {"pass": 0, "fail": 1, "inconclusive": 6}
"""By the contract: done, an error, not Ready."""


@click.command()
@click.argument("model", required=False, metavar="[MODEL]")
@click.option("--evidence", type=click.Path(dir_okay=False, path_type=Path), help="Write all that it answered here.")
@config_option
@json_option
def validate(model: str | None, config_file: str | None, evidence: Path | None, *, as_json: bool) -> None:
    """Run the probe against what serves on this node, through the runtime's own socket.

    MODEL is NAME:VERSION, or NAME; without one, whatever serves. Nothing is recorded and nothing is changed: a
    periodic retest does that. Exits with 0 when it passed, 1 when it failed, 6 when its answers cannot tell.
    """
    config = wiring.load_config(wiring.config_path(config_file))
    found = _there(config, model) or asked_here(config, model)
    if evidence is not None:
        # Canonical, as `Evidence.to_json`: exactly the text whose digest is shown.
        text = json.dumps(found["evidence"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        evidence.write_text(text, encoding="utf-8")
    if as_json:
        emit(found)
    else:
        platform = found["platform"]
        rows = [
            (item["test"], item["outcome"], _figure(item["statistic"]), item["message"]) for item in found["findings"]
        ]
        say(
            f"{found['model']} on {platform['engine']} {platform['version']}: {found['outcome']} ({found['strength']}, "
            f"{plural(found['tokens'], 'token')})",
            found["message"],
            "",
            *table(("Test", "Outcome", "Figure", "What"), rows),
            "",
            f"Platform {platform['engine']} {platform['dtype']} on {platform['architecture']}; evidence "
            f"{found['evidenceDigest']}",
        )
    sys.exit(EXIT[found["outcome"]])


def _there(config: NodeConfig, model: str | None) -> dict[str, Any] | None:
    """Have the daemon ask, where there is one."""
    from reconciler.asking import ask as ask_daemon
    from reconciler.state_dir import StateDir
    from schemas.control import Validate
    from schemas.errors import DaemonUnreachable

    try:
        return ask_daemon(StateDir(Path(config.state_dir)), Validate(model=model or "")).document
    except DaemonUnreachable:
        return None


def asked_here(config: NodeConfig, model: str | None) -> dict[str, Any]:
    """Ask from this process, with a journal of its own that is only read; what came of it, as JSON.

    Raises:
        UsageError: nothing serves, or something else than was asked for.
        EngineUnreachable: it does not answer.
    """
    from reconciler.state_dir import StateDir

    with closing(wiring.open_journal(StateDir(Path(config.state_dir)), readonly=True)) as journal:
        return _document(*ask(wiring.build_node(config, journal, ports=wiring.host(), progress=silent), model))


def ask(node: Node, model: str | None) -> Asked:
    """Run the probe of what serves on a node against it.

    Args:
        node: the node.
        model: `name:version` or `name` of what should serve; None takes whatever does.

    Raises:
        UsageError: nothing serves, or something else than was asked for.
        EngineUnreachable: it does not answer.
    """
    from runtime.validation.run import validate as run

    accepted = node.journal.accepted()
    desired, observed = node.look(accepted.digest if accepted is not None else "")
    target, platform, connection = connected(node, observed, model)
    adapters = node.adapters
    models = desired.document.spec.models if desired.document is not None else ()
    verdict, evidence = run(
        adapters.engines[target.engine],
        connection,
        node.documents.probe(target.probe.digest),
        platform=platform,
        seed=adapters.ports.randomness.token(16),
        clock=adapters.ports.clock,
        stop=adapters.ports.stop,
        tasks=next((spec.requires.tasks for spec in models if spec.manifest.digest == target.manifest), ()),
    )
    return verdict, evidence, target, platform


def connected(node: Node, observed: Observed, model: str | None) -> tuple[ServingTarget, Platform, EngineConnection]:
    """What serves on a node, on what, and how it is asked: through the runtime's own socket.

    Args:
        node: the node.
        observed: what was seen of it.
        model: `name:version` or `name` of what should serve; None takes whatever does.

    Raises:
        UsageError: nothing serves, or something else than was asked for.
    """
    from reconciler.kinds.instances import instance_name
    from runtime.interfaces import SOCKET_NAME
    from runtime.validation.platform import platform_of

    target, instance = _serving(node, observed, model)
    adapters = node.adapters
    name = instance_name(node.config.network, instance.intent)
    connection = adapters.connect(adapters.backends[target.backend], name, adapters.run_folder / name / SOCKET_NAME)
    return target, platform_of(target, observed.state.hardware), connection


def _serving(node: Node, observed: Observed, model: str | None) -> tuple[ServingTarget, Instance]:
    """What runs here, and what it is: the last known good, which is what serves between two passes.

    Raises:
        UsageError: nothing serves, or something else than was asked for.
    """
    from schemas.errors import UsageError

    good = observed.memory.last_known_good
    if good is None:
        raise UsageError("nothing serves on this node yet", hint="`reconcile status` says why")
    target = good.target
    if model is not None and model not in (target.model, target.model.partition(":")[0]):
        raise UsageError(f"{target.model} serves on this node, not {model}", hint="one model is loaded at a time")
    backend = node.adapters.backends.get(target.backend)
    running = [
        item
        for item in (backend.list() if backend is not None else ())
        if item.spec_digest == target.spec_digest and item.status == "running"
    ]
    if not running:
        raise UsageError(f"{target.model} should serve, and no instance of it runs", hint="`reconcile` starts it again")
    return target, running[0]


def _document(verdict: Verdict, evidence: Evidence, target: ServingTarget, platform: Platform) -> dict[str, Any]:
    return {
        "model": target.model,
        "manifest": target.manifest,
        "probe": target.probe.digest,
        "outcome": verdict.outcome,
        "message": verdict.message,
        "strength": verdict.strength,
        "tokens": verdict.tokens,
        "platform": {
            "engine": platform.engine,
            "version": platform.version,
            "architecture": platform.architecture,
            "dtype": platform.dtype,
        },
        "findings": [
            {
                "test": item.test,
                "outcome": item.outcome,
                "message": item.message,
                "statistic": item.statistic,
                "threshold": item.threshold,
                "tokens": item.tokens,
            }
            for item in verdict.findings
        ],
        "evidenceDigest": verdict.evidence,
        "evidence": json.loads(evidence.to_json()),
    }


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def silent(subject: str, done: int, total: int) -> None:
    """Progress that nobody wants to see."""
