"""`python -m codiemb`, for torchrun."""

from codiemb.cli.app import main

if __name__ == "__main__":
    main()
