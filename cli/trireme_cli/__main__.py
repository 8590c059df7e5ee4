"""`python -m trireme_cli`."""

from trireme_cli.main import main

main()
