"""What a training command reports without a traceback: mistakes of use and of the machine, never of the code."""


class TrainingError(Exception):
    """Base of the errors whose message says what is wrong and what to do; `command` prints it and exits with 1."""


class ConfigError(TrainingError, ValueError):
    """A configuration names an unknown key, has a wrong type, or has a value that its section refuses."""


class RunDirError(TrainingError):
    """A run directory belongs to another configuration or another process, or is no run directory."""


class CheckpointError(TrainingError):
    """A checkpoint cannot be written or read, or does not fit the objects that it is loaded into."""


class NonFiniteError(TrainingError, ArithmeticError):
    """The loss or a gradient is NaN or infinite; raised before the weights change."""
