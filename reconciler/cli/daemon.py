"""`reconcile --watch`: the daemon. It stays until it is told to leave, and outlives its configuration's mistakes."""

from __future__ import annotations

import gc
import logging
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

from reconciler import logbook
from reconciler.cli import wiring
from reconciler.cli.passes import opened, serve_imports, state_of
from reconciler.cli.scouting import Scout
from reconciler.control import CONTROL_SOCKET, Audience, listening
from reconciler.lookout import Lookout
from reconciler.service import Pulse, notify, reloading
from reconciler.tempo import Tempo
from reconciler.triggers import Sights, triggers
from reconciler.verbs import record
from reconciler.watch import Wake, watch
from runtime.host import SystemClock, SystemRandomness
from schemas.control import Retry, Rollback, Suspend
from schemas.errors import ConfigError, DaemonUnreachable, ReconcileError, StateLocked

if TYPE_CHECKING:
    from pathlib import Path

    from reconciler.executor import Outcome, Reporter
    from reconciler.logbook import Form
    from reconciler.loop import PassResult, Reconciler
    from runtime.interfaces import Progress
    from schemas.control import Question, Validate
    from schemas.node import NodeConfig
    from schemas.plan import Action

LOG = logging.getLogger("reconcile")

LOCKED_SECONDS: Final = 0.2
"""Between two looks whether a command has given the state directory back."""


def stay(
    config_file: str | None, interval: int | None, *, stop_runtime: bool, as_json: bool, log_format: Form | None = None
) -> int:
    """Make passes until told to end, and leave the runtime serving; returns the exit code.

    Args:
        config_file: where the configuration is; None looks for it.
        interval: seconds between polls; None as the configuration says.
        stop_runtime: stop the runtime in the end.
        as_json: whether progress is for programs.
        log_format: of the log; None as the configuration says.

    Raises:
        ConfigError: there is no configuration that can be used, and there was none before.
    """
    gc.enable()
    logbook.set_up(log_format or "human")
    wake = Wake()
    wake.on_signals()
    daemon = _Daemon(wiring.config_path(config_file), wake, interval, as_json=as_json, log_format=log_format)
    code = daemon.run()
    notify("STOPPING=1")
    if stop_runtime:
        daemon.stop_runtime()
    return code


class _Daemon:
    """What stays while configurations come and go."""

    def __init__(self, path: Path, wake: Wake, interval: int | None, *, as_json: bool, log_format: Form | None) -> None:
        self._log_format = log_format
        self._path, self._wake, self._interval, self._as_json = path, wake, interval, as_json
        self._read_as = _identity(path)
        self._config = wiring.load_config(path)
        self._proven: NodeConfig | None = None
        """The newest configuration that a node was wired from."""
        self._error = ""
        self._audience = Audience(self._record, wake, self._validate)
        self._changes = _Changes(as_json=as_json)
        self._pulse = Pulse()
        self._lookout: Lookout | None = None

    def run(self) -> int:
        """Make passes until told to end."""
        try:
            with self._pulse.watched():
                while not self._wake.is_set():
                    self._wake.reload = False
                    try:
                        self._stay()
                    except StateLocked as error:
                        if self._proven is None:
                            raise
                        if self._config.state_dir != self._proven.state_dir:
                            self._config = self._refused(error, self._proven)
                            continue
                        # A command has come in between two configurations: its pass is a pass as well.
                        LOG.info("%s: %s", error.reason, error.message)
                        self._wake.wait(LOCKED_SECONDS)
                    except ReconcileError as error:
                        # Found in use only: a user that does not exist, a folder that is no node's, another network.
                        if self._proven is None or self._config is self._proven:
                            raise
                        self._config = self._refused(error, self._proven)
                        continue
                    self._read()
        finally:
            self._audience.dismiss(DaemonUnreachable("the daemon was told to end", hint="start it again, or ask later"))
        return 0

    def stop_runtime(self) -> None:
        """Stop what runs here, as a recorded pass of its own; what cannot be stopped now is left, and said."""
        config = self._config
        state = state_of(config)
        with state.lock(), opened(config, Wake(), as_json=self._as_json) as reconciler:
            for refused in reconciler.stop_runtime():
                LOG.error("%s: %s", refused.reason, refused.message)
            front = wiring.build_front(config, state, wiring.host())
            if front is not None:
                front.stop()

    def _read(self) -> None:
        if self._wake.is_set():
            return
        reloading()
        self._read_as = _identity(self._path)
        try:
            self._config, self._error = wiring.load_config(self._path), ""
        except ConfigError as error:
            self._config = self._refused(error, self._config)

    def _refused(self, error: ReconcileError, before: NodeConfig) -> NodeConfig:
        LOG.error("%s: %s; the configuration before goes on", error.reason, error.message)
        self._error = error.message
        return before

    def _stay(self) -> None:
        """Make passes with one configuration."""
        config, wake = self._config, self._wake
        log_format = self._log_format or config.logs.format
        logbook.set_up(log_format, config.logs.level)
        state = state_of(config)
        tempo = Tempo(self._interval or config.interval, SystemRandomness())
        sights = Sights(
            urls=tuple(repository.url for repository in config.repositories),
            branch=config.branch,
            config=self._path,
            instances=tuple(wiring.build_followers(config, state)),
        )
        self._lookout = Lookout(Scout(config), wake=wake, interval=self._interval or config.interval)
        wired = opened(
            config,
            wake,
            as_json=self._as_json,
            tell=self._told,
            lookout=self._lookout,
            tempo=tempo,
            config_error=self._error,
            logged=log_format == "json" and not self._as_json,
        )
        with (
            state.lock(),
            wired as reconciler,
            listening(state.run / CONTROL_SOCKET, self._audience) as listen,
            triggers(wake, sights) as renew,
            wiring.observed(config, lambda: self._pass(config, reconciler), reconciler.shows) as run_pass,
        ):
            self._proven = config
            if _identity(self._path) != self._read_as:
                # It was written again before anybody looked out for that.
                wake.now(reload=True)
            # It means that the node is looked after, whatever state it is in: a bad snapshot restarts no daemon.
            notify("READY=1")

            def rest() -> None:
                renew()
                listen()
                self._pulse.rest()

            watch(
                run_pass,
                wake=wake,
                tempo=tempo,
                clock=SystemClock(),
                reported=self._changes,
                resting=rest,
                idle=reconciler.idle,
            )

    def _pass(self, config: NodeConfig, reconciler: Reconciler) -> PassResult:
        self._pulse.beat()
        serve_imports(config, self._wake)
        result = self._audience.serve(
            lambda ignore, expected: reconciler.run_pass(expected=expected, ignore_windows=ignore)
        )
        ready = result.status.condition("Ready")
        notify(f"STATUS={f'{ready.reason}: {ready.message}'[:200] if ready is not None else ''}")
        return result

    def _record(self, question: Question) -> int:
        """Record what somebody wants; called by the threads that serve the control socket."""
        with closing(wiring.open_journal(state_of(self._config), readonly=False)) as journal:
            count = record(question, journal, SystemClock().now())
        if self._lookout is not None and count:
            if isinstance(question, Suspend):
                self._lookout.ask("suspend")
            elif isinstance(question, Retry | Rollback):
                self._lookout.ask("redirect")
        return count

    def _validate(self, question: Validate) -> dict[str, Any]:
        """Ask what serves; called by the threads that serve the control socket. Passes go on meanwhile."""
        from reconciler.cli.validating import asked_here

        return asked_here(self._config, question.model or None)

    def _told(self, reporter: Reporter, advance: Progress) -> tuple[Reporter, Progress]:
        audience = self._audience

        def both(subject: str, done: int, total: int) -> None:
            self._pulse.beat()
            advance(subject, done, total)
            audience.advance(subject, done, total)

        return _All(self._pulse, reporter, audience), both


def _identity(path: Path) -> tuple[int, ...]:
    """What changes whenever a file is written or replaced; nothing where there is none."""
    try:
        seen = path.stat()
    except OSError:
        return ()
    return (seen.st_ino, seen.st_size, seen.st_mtime_ns)


class _All:
    """A reporter that tells several, and shows a sign of life."""

    def __init__(self, pulse: Pulse, *reporters: Reporter) -> None:
        self._pulse, self._reporters = pulse, reporters

    def started(self, action: Action) -> None:
        """An action begins."""
        self._pulse.beat()
        for reporter in self._reporters:
            reporter.started(action)

    def finished(self, outcome: Outcome) -> None:
        """An action ended, or was skipped."""
        self._pulse.beat()
        for reporter in self._reporters:
            reporter.finished(outcome)


class _Changes:
    """Logs what changed between passes, and nothing when nothing did."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._before: dict[str, str] = {}

    def __call__(self, result: PassResult) -> None:
        for condition in result.status.conditions:
            now = f"{condition.status} {condition.reason}: {condition.message}"
            if self._before.get(condition.type) != now:
                self._before[condition.type] = now
                fields = {"condition": condition.type, "status": condition.status, "reason": condition.reason}
                LOG.info("%s %s", condition.type, now, extra=fields)
