"""The command `python -m splatexp.render`, which draws a finished run again."""

from splatexp.commands.render import main

if __name__ == "__main__":
    main()
