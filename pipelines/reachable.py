"""Whether the Prefect API answers, and what a person does where it does not.

Owns the knock at the door before a run and the words after one that lost its server. Refuses to wait for a server to
come back: Prefect's client does that for a minute by itself, and a run that gave up goes on from where it stopped.

PipelineError
└── UnreachableError  the address of the Prefect API does not answer
"""

import httpx

from pipelines.dvc import PipelineError
from pipelines.secrecy import hide_secrets

__all__ = ["UnreachableError", "require_api", "words_of_loss"]

KNOCK_SECONDS = 10.0
REMEDY = (
    "start the server (`make serve`), or unset PREFECT_API_URL for a temporary one, or run `dvc repro`, "
    "which needs no server"
)


class UnreachableError(PipelineError):
    """The address of the Prefect API does not answer."""


def knock(address: str, seconds: float = KNOCK_SECONDS) -> str | None:
    """Asks for an answer, whichever; returns None if there was one, else why not.

    Prefect's own client is not asked: it takes a minute to give up an address that leads nowhere.
    """
    try:
        # No secret is sent, and what answers is not believed: Prefect's client checks the certificate afterwards.
        httpx.get(f"{address.rstrip('/')}/health", timeout=seconds, verify=False)  # noqa: S501
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return hide_secrets(str(error)) or type(error).__name__
    return None


def require_api(address: str | None, seconds: float = KNOCK_SECONDS) -> None:
    """Refuses to start where the API does not answer.

    Args:
        address: of the API (PREFECT_API_URL); None where a temporary server is to be started.
        seconds: longest wait.
    Raises:
        UnreachableError: naming the address and what to do, on one line.
    """
    if address and (reason := knock(address, seconds)):
        raise UnreachableError(
            f"the Prefect API at {hide_secrets(address)} (PREFECT_API_URL) does not answer ({reason}); {REMEDY}"
        )


def words_of_loss(address: str | None) -> str | None:
    """What to tell after a run that failed, if the reason is that the API went away; None if it answers."""
    reason = knock(address) if address else None
    if reason is None:
        return None
    return (
        f"the Prefect API at {hide_secrets(str(address))} (PREFECT_API_URL) went away during the run ({reason}); what "
        f"finished stages made is kept, and the same command goes on from there: {REMEDY}"
    )
