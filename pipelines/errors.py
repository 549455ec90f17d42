"""The errors raised on purpose, split by what the caller does about them."""

from enum import IntEnum


class ExitCode(IntEnum):
    """How the program ends. Printed by name, documented in docs/reference/exit-codes.md."""

    OK = 0
    FAILURE = 1  # an error nobody foresaw; the log has the traceback
    USAGE = 2  # the command line is wrong
    SETTINGS = 10  # the settings are wrong or incomplete
    PORT_IN_USE = 11
    DATA_LOCKED = 12  # another daemon holds the data folder
    DATA_DAMAGED = 13  # a file of ours is foreign, torn or changed
    BROKER_UNAVAILABLE = 14
    TEACHER_REFUSED = 15  # the teacher does not accept our key or our model
    DISK_FULL = 16
    TRAINING_STACK_MISSING = 17
    NOT_RUNNING = 18  # a verb needs the learner, and no learner answers
    OFFSETS_LOST = 19  # the topic was re-created, or is shorter than what we have read
    REFUSED = 20  # the operation is not allowed, for example approving a failed gate
    TIMED_OUT = 21
    PROBLEMS_FOUND = 22  # `flywheel doctor` found what a person has to see to
    NOT_ALL_TAKEN = 23  # `flywheel import` could not use every line, or no task wants them


class FlywheelError(Exception):
    """Something that a person can act on. The message says what happened and what to do."""

    exit_code = ExitCode.FAILURE


class InvalidMessage(FlywheelError):
    """This record can never be processed: it becomes a dead letter and is not tried again."""


class SettingsError(FlywheelError):
    """The settings cannot be used as they are."""

    exit_code = ExitCode.SETTINGS


class PortInUse(FlywheelError):
    """Another program listens where we want to."""

    exit_code = ExitCode.PORT_IN_USE


class DataLocked(FlywheelError):
    """Another daemon uses this data folder."""

    exit_code = ExitCode.DATA_LOCKED


class DataDamaged(FlywheelError):
    """A file is not what we wrote. Nothing was changed."""

    exit_code = ExitCode.DATA_DAMAGED


class ArtifactDamaged(DataDamaged):
    """An artifact's content differs from its name. It is never loaded."""


class BrokerUnavailable(FlywheelError):
    """The broker could not be reached. Trying again may help."""

    exit_code = ExitCode.BROKER_UNAVAILABLE


class OffsetsLost(FlywheelError):
    """Our stored position is not on the topic any more. Never reset silently."""

    exit_code = ExitCode.OFFSETS_LOST


class TeacherRefused(FlywheelError):
    """The teacher will refuse every call like this one: wrong key, wrong model, no credit."""

    exit_code = ExitCode.TEACHER_REFUSED


class TrainingStackMissing(FlywheelError):
    """torch, transformers or peft is needed and not installed."""

    exit_code = ExitCode.TRAINING_STACK_MISSING


class TrainingFailed(FlywheelError):
    """A training run ended without a student. The champion serves on."""


class TrainingRunFailed(TrainingFailed):
    """As above, and it was recorded and logged as a run."""


class NoCompletion(FlywheelError):
    """What came back from the teacher is no answer in the chat protocol."""


class TrainingInterrupted(TrainingFailed):
    """A training was ended from outside: it can go on where it stood."""


class NotRunning(FlywheelError):
    """No learner answers at the address where one should be."""

    exit_code = ExitCode.NOT_RUNNING


class Refused(FlywheelError):
    """The operation is not allowed in this state."""

    exit_code = ExitCode.REFUSED


class DiskFull(FlywheelError):
    """There is no space left for a write. Nothing half-written was left behind."""

    exit_code = ExitCode.DISK_FULL


class TimedOut(FlywheelError):
    """Something that was waited for did not happen in time."""

    exit_code = ExitCode.TIMED_OUT
