"""Literal values for tests: snapshots, nodes and observations that differ only in what a test is about."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from reconciler.desired import Desired
from schemas.base import format_time
from schemas.digests import digest_text
from schemas.memory import LastKnownGood, Memory, ModelRecord, Receipt
from schemas.node import NodeConfig
from schemas.observation import Gpu, Hardware, Instance, NativeEngine, NodeState, Observed, Present, StoredModel
from schemas.snapshot import SnapshotDocument
from schemas.target import ServingTarget

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)  # a Monday
NODE_ID = "0x" + "1" * 40
ENVIRONMENT = digest_text("environment")
PIN = digest_text("trust")
IMAGE = "127.0.0.1:5000/llamacpp@sha256:" + "a" * 64


def manifest_digest(name: str) -> str:
    """The identity that tests give to a model."""
    return digest_text(f"manifest of {name}")


def model(name: str = "m", version: str = "v1", **fields: Any) -> dict[str, Any]:
    """A model entry of a snapshot, in wire form."""
    return {
        "name": name,
        "version": version,
        "manifest": {"path": f"models/{name}/{version}.yaml", "digest": manifest_digest(f"{name}:{version}")},
        "sources": ("https://models.example.org/",),
        "validation": {"probe": {"path": f"probes/{name}.yaml", "digest": digest_text(f"probe of {name}")}},
        **fields,
    }


def runtime(name: str = "main", **fields: Any) -> dict[str, Any]:
    """A llama.cpp runtime, native unless told otherwise."""
    return {
        "name": name,
        "engine": "llamacpp",
        "version": "1.0",
        "modes": ("native",),
        "native": {},
        **fields,
    }


def container_runtime(**fields: Any) -> dict[str, Any]:
    """The same in a container."""
    return runtime(modes=("container",), native=None, images=({"ref": IMAGE},), **fields)


def assignment(*serve: str, **fields: Any) -> dict[str, Any]:
    """An assignment that matches every node."""
    return {"runtime": "main", "serve": serve or ("m:v1",), **fields}


def snapshot(
    *, models: Any = None, runtimes: Any = None, assignments: Any = None, sequence: int = 1, **spec: Any
) -> SnapshotDocument:
    """A snapshot document; every default fits the default node."""
    policy = {"modes": ("container", "native"), **spec.pop("policy", {})}
    return SnapshotDocument.model_validate(
        {
            "apiVersion": "reconcile/v1alpha1",
            "kind": "Snapshot",
            "metadata": {
                "network": "testnet",
                "sequence": sequence,
                "trustVersion": 1,
                "issuedAt": format_time(NOW - timedelta(hours=1)),
                "expiresAt": format_time(NOW + timedelta(days=30)),
            },
            "spec": {
                "models": (model(),) if models is None else models,
                "runtimes": (runtime(),) if runtimes is None else runtimes,
                "assignments": (assignment(),) if assignments is None else assignments,
                "policy": policy,
                **spec,
            },
        }
    )


def desired(document: SnapshotDocument | None = None, **fields: Any) -> Desired:
    """A verified desired state."""
    document = document if document is not None else snapshot()
    digest = digest_text(f"snapshot {document.metadata.sequence}")
    return replace(Desired(document, digest, verified=True), **fields)


def node(**fields: Any) -> NodeConfig:
    """A node's configuration."""
    return NodeConfig.model_validate(
        {
            "apiVersion": "reconcile/v1alpha1",
            "kind": "Node",
            "network": "testnet",
            "repositories": ({"url": "file:///srv/network.git"},),
            "trust": {"digest": PIN},
            "stateDir": "/var/lib/reconcile",
            **fields,
        }
    )


def hardware(**fields: Any) -> Hardware:
    """A machine without a GPU."""
    base = Hardware(
        platform="linux/amd64",
        processor="Test CPU",
        cpus=8,
        memory=64 * 2**30,
        disk=1000 * 2**30,
        disk_free=500 * 2**30,
        memory_free=32 * 2**30,
    )
    return replace(base, **fields)


def gpu(uuid: str = "GPU-1", memory: int = 80 * 2**30) -> Gpu:
    """A GPU."""
    return Gpu(uuid, "NVIDIA H100", memory, "580.1")


def target(key: str = "m:v1", **fields: Any) -> ServingTarget:
    """The target to which the default snapshot resolves on the default node."""
    from schemas.runtimes import Isolation, LlamaCppArgs, Resources, Timeouts

    name = key.partition(":")[0]
    return ServingTarget.model_validate(
        {
            "runtime": "main",
            "engine": "llamacpp",
            "version": "1.0",
            "mode": "native",
            "backend": "native",
            "environment": ENVIRONMENT,
            "engine_args": LlamaCppArgs(),
            "isolation": Isolation(),
            "resources": Resources(),
            "timeouts": Timeouts(),
            "model": key,
            "manifest": manifest_digest(key),
            "probe": {"path": f"probes/{name}.yaml", "digest": digest_text(f"probe of {name}")},
            **fields,
        }
    )


def instance(of: ServingTarget | None = None, intent: str = "a1", **fields: Any) -> Instance:
    """A running instance of a target."""
    of = of or target()
    base = Instance(
        name=f"reconcile-testnet-{intent}",
        intent=intent,
        backend=of.backend,
        spec_digest=of.spec_digest,
        status="running",
        started_at=NOW - timedelta(hours=1),
    )
    return replace(base, **fields)


def stored(key: str = "m:v1", *, intact: bool = True) -> tuple[str, Present[Any]]:
    """A stored model, as it stands in an observation."""
    return manifest_digest(key), Present(StoredModel(manifest_digest(key), intact, 1000))


def record(key: str = "m:v1", state: Any = "Active", **fields: Any) -> ModelRecord:
    """A model's journalled state."""
    return replace(ModelRecord(manifest_digest(key), key, state, NOW - timedelta(hours=1), "test", size=1000), **fields)


def receipt(of: ServingTarget | None = None, intent: str = "a1", **fields: Any) -> Receipt:
    """A receipt of a target on the default machine."""
    of = of or target()
    subject = of.subject(hardware().accelerator)
    return replace(Receipt(1, subject, of.manifest, intent, NOW - timedelta(minutes=30), digest_text(intent)), **fields)


def good(of: ServingTarget | None = None) -> LastKnownGood:
    """A last known good."""
    return LastKnownGood(of or target(), digest_text("snapshot 1"), NOW - timedelta(minutes=30))


def observed(
    *,
    instances: tuple[Instance, ...] = (),
    models: tuple[Any, ...] = (),
    machine: Hardware | None = None,
    backends: Any = None,
    images: Any = None,
    not_enforced: Any = None,
    records: tuple[ModelRecord, ...] = (),
    front: Any = None,
    **memory: Any,
) -> Observed:
    """An observation: what is there, and what is remembered."""
    backends = {"native": Present(instances)} if backends is None else backends
    return Observed(
        NODE_ID,
        NodeState(
            hardware=machine or hardware(),
            engines=(NativeEngine("llamacpp", "1.0", ENVIRONMENT),),
            backends=backends,
            not_enforced=dict.fromkeys(backends, ()) | (not_enforced or {}),
            images=images or {},
            models=dict(models),
            front=front,
        ),
        Memory(
            **{
                "intents": frozenset(item.intent for item in instances),
                "models": {item.manifest: item for item in records},
                **memory,
            }
        ),
    )


def converged(of: ServingTarget | None = None, **memory: Any) -> Observed:
    """A node on which a target (the default snapshot's) serves, proven and remembered."""
    of = of or target()
    return observed(
        instances=(instance(of),),
        models=((of.manifest, Present(StoredModel(of.manifest, intact=True, size=1000))),),
        **{
            "last_known_good": good(of),
            "receipts": (receipt(of),),
            "records": (record(of.model),),
            **memory,
        },
    )
