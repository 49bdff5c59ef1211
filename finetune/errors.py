"""The errors that a user can cause and mend; `finetune.cli.main` prints them and exits with `exit_code`."""


class FinetuneError(Exception):
    """One message that names the key, file or line, and then the fix. Never shown with a traceback.

    Args:
        problem: one sentence that says what is wrong and where.
        fix: what to do about it; printed on its own indented line.
    """

    exit_code = 2

    def __init__(self, problem: str, fix: str = "") -> None:
        self.problem = problem
        self.fix = fix
        super().__init__(f"{problem}\n  {fix}" if fix else problem)


class ConfigError(FinetuneError):
    """A setting, a flag or a recipe is wrong."""


class DataError(FinetuneError):
    """A data file, a row or a data card is wrong."""


class SourceError(FinetuneError):
    """A model or data set can't be fetched, or is not what its hash says."""


class CheckpointError(FinetuneError):
    """A checkpoint is missing, damaged, or belongs to another run."""


class LaunchError(FinetuneError):
    """The launcher started fewer processes than it was told to."""


class TrainingError(FinetuneError):
    """Training can't go on (a loss that is not a number, for example). The run record says so."""

    exit_code = 1
