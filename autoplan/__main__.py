"""Run the command line as ``python -m autoplan`` (also under torchrun)."""

from autoplan.cli.main import main

raise SystemExit(main())
