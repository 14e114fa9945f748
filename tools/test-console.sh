#!/bin/sh
# The console's tests: its pure parts in node, the whole in Chromium over a daemon built for tests. Prints
# node's report (TAP), and a line `SKIP NAME: REASON` for what could not run. What it needs, tools/setup.sh
# installs.
set -u
cd "$(dirname "$0")/.."
: "${GO:=go}"

if ! node -e 'process.exit(Number(process.versions.node.split(".")[0]) >= 20 ? 0 : 1)' 2>/dev/null; then
	echo "SKIP the console's tests: needs node, 20 or newer"
	exit 0
fi
node --test --test-reporter=tap web/console/test/unit/
status=$?

if ! command -v chromium >/dev/null || [ ! -d web/console/test/node_modules/playwright-core ] || ! command -v qemu-io >/dev/null; then
	echo "SKIP the console in a browser: needs chromium, playwright-core from npm and qemu-utils"
	exit $status
fi
make -s build-test GO="$GO" || exit 1
IOTESTS_TIMEOUT_SCALE=${IOTESTS_TIMEOUT_SCALE:-3} BLOCKD=bin/blockd-test node --test --test-reporter=tap web/console/test/browser/ || status=1
exit $status
