"""What a training command reports without a traceback: mistakes of use and of the machine, never of the code."""


class TrainingError(Exception):
    """Base of the errors whose message says what is wrong and what to do; `command` prints it and exits with 1.

    `agreed`: all ranks raise it together, after an exchange, so that rank 0 alone has to say it.
    """

    agreed = False


class ConfigError(TrainingError, ValueError):
    """A configuration names an unknown key, has a wrong type, or has a value that its section refuses."""


class RunDirError(TrainingError):
    """A run directory belongs to another configuration or another process, or is no run directory."""

    agreed = True


class CheckpointError(TrainingError):
    """A checkpoint cannot be written or read, or does not fit the objects that it is loaded into."""


class NonFiniteError(TrainingError, ArithmeticError):
    """The loss or a gradient is NaN or infinite; raised before the weights change."""

    agreed = True


class OtherRankError(TrainingError):
    """Another rank of the run stopped, and says why itself."""
