"""`python -m trireme_operator`."""

from trireme_operator.main import main

main()
