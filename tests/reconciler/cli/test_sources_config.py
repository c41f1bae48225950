"""`node.yaml`: secrets and sources, as an owner writes them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from reconciler.cli.wiring import build_reach, load_config
from runtime.host import host_ports
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

HEAD = """\
apiVersion: reconcile/v1alpha1
kind: Node
network: testnet
repositories: [{url: "https://example.org/network.git"}]
trust: {digest: "blake3:0000000000000000000000000000000000000000000000000000000000000000"}
stateDir: /var/lib/reconcile
"""

WHOLE = """\
secrets:
  hub: {file: /etc/reconcile/hub.token}
  s3: {credential: s3-secret}
  mirror: {environment: MIRROR_TOKEN}
sources:
  credentials:
    - {host: "mirror.example.org:8443", user: node, secret: mirror}
  hub: {endpoint: "https://hub.example.org", secret: hub}
  stores:
    - {bucket: models, endpoint: "https://minio.example.org:9000", region: eu-1, accessKey: AKIA, secret: s3}
    - {chain: true, region: us-west-2}
  proxy: {url: "http://proxy.example.org:3128", except: [localhost, .example.org]}
  bandwidth:
    limit: 50MiB
    windows:
      - {days: [mon, tue, wed, thu, fri], from: "08:00", to: "18:00", limit: 5MiB}
      - {days: [sat], from: "00:00", to: "00:00", limit: 0B}
"""


def _config(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "node.yaml"
    path.write_text(HEAD + text)
    return path


def test_everything_can_be_said(tmp_path: Path) -> None:
    """Every kind of secret and source in one file; what it means is what the node goes by."""
    config = load_config(_config(tmp_path, WHOLE))
    reach = build_reach(config, host_ports())
    assert config.sources.secrets() == ("mirror", "hub", "s3")
    assert reach.hub == "https://hub.example.org"
    assert (reach.store("models").region, reach.store("other").chain) == ("eu-1", True)


@pytest.mark.parametrize(
    ("moment", "rate"),
    [
        (datetime(2026, 3, 2, 12, 0, tzinfo=UTC), 5 * 2**20),
        (datetime(2026, 3, 2, 7, 59, tzinfo=UTC), 50 * 2**20),
        (datetime(2026, 3, 7, 12, 0, tzinfo=UTC), 0),
        (datetime(2026, 3, 8, 12, 0, tzinfo=UTC), 50 * 2**20),
    ],
)
def test_windows_limit_by_the_calendar(tmp_path: Path, moment: datetime, rate: int) -> None:
    """A Monday at noon, a Monday before work, a Saturday without downloads, a Sunday."""
    throttle = build_reach(load_config(_config(tmp_path, WHOLE)), host_ports()).throttle
    assert throttle is not None
    assert throttle._rate(moment) == rate


def test_without_limits_nothing_is_counted(tmp_path: Path) -> None:
    """A node that says nothing pays nothing."""
    assert build_reach(load_config(_config(tmp_path, "")), host_ports()).throttle is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sources: {hub: {secret: none}}", "the secret 'none'"),
        ("secrets: {a: {}}", "exactly one of file, environment and credential"),
        ("secrets: {a: {file: /a, environment: A}}", "exactly one"),
        ("secrets: {a: {file: relative}}", "file"),
        ("sources: {stores: [{accessKey: AKIA}]}", "belong together"),
        ("secrets: {s: {file: /s}}\nsources: {stores: [{accessKey: A, secret: s, chain: true}]}", "not both"),
        ('sources: {proxy: {url: "http://user:pw@proxy:3128"}}', "user and secret"),
        ('sources: {proxy: {url: "https://proxy:3128"}}', "url"),
        ("sources: {bandwidth: {limit: 1KiB}}", "at least 256KiB"),
        ("sources: {bandwidth: {limit: 1000}}", "with its unit"),
        ('sources: {hub: {endpoint: "ftp://hub"}}', "endpoint"),
        ("sources: {token: hf_secret}", "token"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, text: str, said: str) -> None:
    """Names that are not listed, halves of pairs, secrets in addresses: said where they stand, before anything runs."""
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(_config(tmp_path, text))
    assert "user:pw" not in caught.value.message
    assert "hf_secret" not in caught.value.message
