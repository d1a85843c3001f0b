"""`python -m clip` is `clip`."""

from clip.cli import main

if __name__ == "__main__":
    main()
