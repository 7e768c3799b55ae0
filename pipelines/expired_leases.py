"""Frees what killed runs held under a temporary server.

Owns doing at a run's start what the repossessor service of `prefect server start` does all the time: Prefect 3.8 leaves
it out of temporary servers, whose database outlives them, so that the turn of a run that was killed never came free.
Refuses to touch a lease that has not expired: its holder may be alive. Needs leases in files (`LEASES_IN_FILES`).
"""

import asyncio

from prefect.client.orchestration import get_client
from prefect.server.concurrency.lease_storage.filesystem import ConcurrencyLeaseStorage

__all__ = ["LEASES_IN_FILES", "release_expired_leases"]

LEASES_IN_FILES = "prefect.server.concurrency.lease_storage.filesystem"


def release_expired_leases() -> int:
    """Releases every expired lease in PREFECT_HOME by the server in use; returns how many there were."""
    expired = asyncio.run(ConcurrencyLeaseStorage().read_expired_lease_ids())
    if expired:
        with get_client(sync_client=True) as client:
            for lease in expired:
                client.release_concurrency_slots_with_lease(lease)
    return len(expired)
