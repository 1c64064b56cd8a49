"""The command `python -m splatexp.view`, which shows a run in the browser."""

from splatexp.commands.view import main

if __name__ == "__main__":
    main()
