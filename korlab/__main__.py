"""`python -m korlab` is `korlab`."""

from korlab.cli.main import main

main()
