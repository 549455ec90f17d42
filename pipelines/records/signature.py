"""Who wrote a record: the signature by which a producer's word counts."""

import hmac
from collections.abc import Mapping
from functools import lru_cache

from pipelines.errors import InvalidMessage
from pipelines.types import Headers

PRODUCER_HEADER = "flywheel-producer"
SIGNATURE_HEADER = "flywheel-signature"


def sign(value: bytes, producer: str, key: bytes) -> Headers:
    """The headers by which `decode` knows that `producer` wrote exactly this value."""
    return ((PRODUCER_HEADER, producer.encode()), (SIGNATURE_HEADER, _signature(value, key)))


def signer_of(value: bytes, headers: Headers, keys: Mapping[str, bytes]) -> str | None:
    """The producer; None without a signature. One that does not hold is never just ignored."""
    producer = signature = None
    for header, content in headers:
        if header == PRODUCER_HEADER:
            if producer is not None:
                raise InvalidMessage(f"more than one header {PRODUCER_HEADER}")
            producer = content
        elif header == SIGNATURE_HEADER:
            if signature is not None:
                raise InvalidMessage(f"more than one header {SIGNATURE_HEADER}")
            signature = content
    if producer is None and signature is None:
        return None
    if producer is None or signature is None:
        raise InvalidMessage("only one of the headers that make up a signature is there")
    name = producer.decode(errors="replace")
    key = keys.get(name)
    if not key:
        raise InvalidMessage("signed by a producer that the settings do not name")
    if not hmac.compare_digest(_signature(value, key), signature):
        raise InvalidMessage("the signature does not fit: wrong key, or changed on the way")
    return name


def _signature(value: bytes, key: bytes) -> bytes:
    signer = _signer(key).copy()
    signer.update(value)
    return signer.hexdigest().encode()


@lru_cache(maxsize=64)
def _signer(key: bytes) -> hmac.HMAC:
    """What every signature with this key begins with: setting it up takes as long as a record."""
    return hmac.new(key, digestmod="sha256")
