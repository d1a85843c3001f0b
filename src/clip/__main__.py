"""`python -m clip` is `clip`."""

from .cli.main import main

if __name__ == "__main__":
    main()
