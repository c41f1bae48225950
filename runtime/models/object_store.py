"""Signed requests to S3 and what speaks like it. The only importer of botocore, of which the signer alone is used.

The SDK's client would connect by itself, past the node's policy, and read whole bodies through its own buffers; its
signer takes a request and gives headers, which is all that is needed here (docs/adr/0010-model-sources.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.models.sources import Interrupted, Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.models.addresses import Location
    from runtime.models.http_source import Signer
    from runtime.secrets import Secrets
    from schemas.access import StoreAccess

_SIGNED: frozenset[str] = frozenset({"host", "range"})
"""Headers of ours that are signed: a proxy on the way may change the others."""


def signer(store: StoreAccess, secrets: Secrets) -> Signer:
    """What signs requests to an object store (AWS Signature Version 4).

    Args:
        store: the keys, or where to look for them; one of the two.
        secrets: the node's.

    Raises:
        Refused: the SDK is not installed, or there are no credentials where they are looked for.
        ConfigError: a secret cannot be read.
    """
    try:
        from botocore.auth import S3SigV4Auth  # noqa: PLC0415 - 110 ms and 20 MiB, for nodes with object stores
        from botocore.awsrequest import AWSRequest  # noqa: PLC0415
        from botocore.credentials import Credentials  # noqa: PLC0415
        from botocore.exceptions import BotoCoreError  # noqa: PLC0415
        from botocore.session import get_session  # noqa: PLC0415
    except ImportError as error:
        raise Refused("s3:// needs botocore: pip install 'inference-reconciler[s3]'") from error
    if store.chain:
        try:
            credentials = get_session().get_credentials()
        except BotoCoreError as error:
            raise Refused(f"the AWS credential chain failed: {type(error).__name__}") from error
        if credentials is None:
            raise Refused("the AWS credential chain has no credentials here")
    else:
        secret = secrets.read(store.secret or "")
        session = secrets.read(store.session) if store.session is not None else None
        credentials = Credentials(store.access_key, secret, session)

    def sign(place: Location, headers: Mapping[str, str]) -> Mapping[str, str]:
        ours = {name: value for name, value in headers.items() if name.lower() in _SIGNED}
        request = AWSRequest("GET", f"{place.scheme}://{place.authority}{place.target}", headers=ours)
        try:
            # Frozen for each request: temporary keys are renewed when they are about to end.
            frozen = credentials.get_frozen_credentials()
            S3SigV4Auth(frozen, "s3", store.region).add_auth(request)
        except BotoCoreError as error:
            raise Interrupted(f"no credentials from the AWS chain now: {type(error).__name__}") from error
        return {name: value for name, value in request.headers.items() if name not in ours}

    return sign
