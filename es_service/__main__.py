"""`python -m es_service` is the same as `es-service`."""

import sys

from es_service.cli import main

sys.exit(main())
