"""The command `python -m splatexp.evaluate`, which measures a finished run again."""

from splatexp.commands.evaluate import main

if __name__ == "__main__":
    main()
