"""`python -m prunerob` is the `prunerob` command."""

from prunerob.cli import main

if __name__ == "__main__":
    main()
