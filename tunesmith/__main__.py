"""`python -m tunesmith`: the command line, also where its script is not on the path."""

from app.client.commands.program import main

if __name__ == "__main__":
    main()
