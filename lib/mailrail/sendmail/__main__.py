"""`python -m mailrail.sendmail` is `mailrail-sendmail`."""

import sys

from mailrail.sendmail import main

sys.exit(main())
