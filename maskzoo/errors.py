"""What can go wrong through somebody's input; the command line turns each into one sentence and exit code 2."""

from __future__ import annotations


class MaskZooError(Exception):
    """Root of the errors that a user can mend: the message says what is wrong, where, and what would be right."""


class RecipeError(MaskZooError):
    """A recipe or an option asks for something that cannot be; the message starts with the key's path.

    Whoever raises it below the recipe knows its own `key` alone (`image_size`); the recipe puts the path before it.
    """

    def __init__(self, message: str, *, key: str = "") -> None:
        super().__init__(message)
        self.key = key


class PluginError(MaskZooError):
    """A plugin cannot be loaded, or two of them claim one name; the message names their distributions."""


class ContractError(MaskZooError):
    """A plugin or a caller breaks a promise of the contracts in `maskzoo.protocols`."""


class DataError(MaskZooError):
    """Images are missing, broken, or not what the recipe says."""


class StoppedError(MaskZooError):
    """A signal ended a piece of work that can be resumed; the command line exits with code 75.

    `moment` says when ("after step 3 of 40"), `resume` is the command that resumes it, where one is known.
    """

    def __init__(self, moment: str, resume: str | None = None) -> None:
        super().__init__(f"Stopped {moment}." + (f" Resume with: {resume}" if resume else ""))
        self.moment, self.resume = moment, resume
