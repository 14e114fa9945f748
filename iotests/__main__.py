"""`python3 -m iotests`: run the tests against the daemon named by $DAEMON."""

import sys

from iotests.harness.runner import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
