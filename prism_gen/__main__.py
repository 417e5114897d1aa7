"""`python -m prism_gen`. Owns nothing: cli/ holds the commands."""

from prism_gen.cli import main

if __name__ == "__main__":
    main()
