"""The command line: `python -m ml COMMAND`; see `ml.cli.commands`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack

from ml.cli.arguments import parser
from ml.cli.commands import COMMANDS
from ml.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0 on success, 2 after an error message on standard
    error, 130 when interrupted.
    """
    command_line = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(command_line)
    try:
        with ExitStack() as stack:
            COMMANDS[options.command](options, stack, command_line)
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped; run the same command again to resume.\n")
        return 130
    except UserError as err:
        sys.stderr.write(f"{err}\n")
        return 2
    except (
        OSError
    ) as err:  # e.g. a file where a folder is expected, or a folder without write permission
        if err.filename is None:
            raise
        sys.stderr.write(f"{err.filename}: {err.strerror}.\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
