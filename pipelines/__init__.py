"""Prefect flows that schedule the DVC stages; no logic of the pipeline itself lives here.

Owns the process-wide defaults that have to stand before Prefect is imported: no usage reports, and
enough time for Prefect's temporary server, which takes 13 to 19 s to start on two busy cores.
"""

import os

_DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
}

for _name, _value in _DEFAULTS.items():
    os.environ.setdefault(_name, _value)
