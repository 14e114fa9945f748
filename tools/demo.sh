#!/bin/sh
# make demo: builds blockd (unless DAEMON names another daemon) and shows it at work, in under a minute.
set -eu
cd "$(dirname "$0")/.."

sh tools/setup.sh python qemu nbd
[ -n "${DAEMON:-}" ] || make -s build
DAEMON=${DAEMON:-bin/blockd} exec /usr/bin/python3 -m demo
