"""The command `python -m splatexp.resume`, which continues an interrupted run."""

from splatexp.commands.resume import main

if __name__ == "__main__":
    main()
