"""Every error that synthgen raises on purpose.

SynthgenError
├── ConfigError        params.yaml or a command-line option cannot be used
├── SourceError        the raw data cannot be read as a whole (a single bad file is quarantined instead)
├── LeakError          images of one object, or one image with two labels, stand where they must not
├── PlanError          plan.yaml or folds.csv is missing or no longer fits the data
├── ArtifactError      a file written by an earlier stage is missing, altered or of another schema
├── DeviceError        the requested device is not there
├── TrainingError      a training could not start or did not converge to finite numbers
│   └── DivergedError  it came to ruin again and again; only the class that it was for is lost
└── MeasurementError   predictions do not allow the requested comparison

A message says what happened, why, and what to do, with the value and the limit it broke.
"""

__all__ = [
    "ArtifactError",
    "ConfigError",
    "DeviceError",
    "DivergedError",
    "LeakError",
    "MeasurementError",
    "PlanError",
    "SourceError",
    "SynthgenError",
    "TrainingError",
]


class SynthgenError(Exception):
    """Base of all errors that a user can act on; the command line prints them without a traceback."""


class ConfigError(SynthgenError):
    """params.yaml or a command-line option cannot be used."""


class SourceError(SynthgenError):
    """The raw data cannot be read as a whole."""


class LeakError(SynthgenError):
    """Images of one object, or one image with two labels, stand where they must not."""


class PlanError(SynthgenError):
    """plan.yaml or folds.csv is missing or no longer fits the data."""


class ArtifactError(SynthgenError):
    """A file written by an earlier stage is missing, altered or of another schema."""


class DeviceError(SynthgenError):
    """The requested device is not there."""


class TrainingError(SynthgenError):
    """A training could not start or did not stay finite."""


class DivergedError(TrainingError):
    """A training came to ruin again and again; only the class that it was for is lost."""


class MeasurementError(SynthgenError):
    """Predictions do not allow the requested comparison."""
